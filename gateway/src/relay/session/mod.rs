//! One client connection: text → message → pipeline or store → answer.
//!
//! One task does it all. It never waits for a commit or a query while the client has something to
//! say: published events and the running query are futures of its own loop.

mod auth;
mod count;
mod end;
mod negentropy;
mod publish;
mod rates;
mod requests;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{Role, WebSocketConfig},
    },
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::{
    Relay,
    outbox::Outbox,
    rates::{ClientRates, Held},
    wire::{self, Metered},
};
use crate::{
    metrics::{CauseLabels, Metrics},
    pipeline::{LogEntry, Origin, Scan, ScanItem, Scope, Seq, SharedViewer, StoreError, Visit},
    protocol::{
        Prefix,
        message::{self, ClientMessage, MessageError, Verb},
    },
    subscriptions::{Feed, Interest, Lagged, News},
};
use auth::{Auth, Authenticated};
use count::{Counted, Counting};
use end::End;
use negentropy::{Negentropies, Reconciled};
use publish::Published;

pub use negentropy::Syncs;

/// Events of one connection on their way, and their text in bytes; above it the connection is not
/// read.
const MAX_UNDER_WAY: usize = 1_024;
const MAX_BYTES_UNDER_WAY: usize = 2 << 20;
/// Ids, authors, kinds and tag values in all open subscriptions of one connection.
const MAX_FILTER_VALUES: usize = 20_000;
/// Messages written between two flushes while more of them are ready.
const BURST: usize = 128;
/// Log entries read at once while a subscription catches up.
const PAGE: usize = 500;

/// Who a connection is from, and where it leads.
pub(super) struct Visitor {
    pub connection: u64,
    pub address: IpAddr,
    /// The address that the client connected to, when it did so itself.
    pub here: Option<SocketAddr>,
    /// A program on this machine, or a web page named in `relay.trusted_origins`: it may read
    /// private topics without authenticating.
    pub trusted: bool,
    pub viewer: SharedViewer,
    pub scope: Scope,
    /// On the URL of a public topic.
    pub visit: Option<Visit>,
    /// The bounds of this client; programs on this machine have none.
    pub rates: Option<Arc<ClientRates>>,
}

/// Serves one connection until the client leaves or misbehaves, or the token is cancelled: because
/// the gateway stops, or because the topic was left.
pub(super) async fn run(
    stream: TokioIo<Upgraded>,
    visitor: Box<Visitor>,
    relay: Arc<Relay>,
    token: CancellationToken,
    _permit: Arc<OwnedSemaphorePermit>,
) {
    let Visitor { connection, address, here, trusted, viewer, scope, visit, rates } = *visitor;
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(relay.config.max_message_bytes);
    config.max_frame_size = Some(relay.config.max_message_bytes);
    // Held by every connection, however idle; see `wire` for those that are not.
    config.read_buffer_size = 512;
    // For pongs and closes alone; see the outbox.
    config.write_buffer_size = 0;
    config.max_write_buffer_size = 64 * 1024;
    let stream = Metered::new(stream, relay.config.max_message_bytes);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    tracing::debug!(%address, trusted, ?scope, "connected");
    let open = Gauges { metrics: relay.metrics.clone(), subscriptions: 0 };
    open.metrics.connections.inc();
    let feed = relay.subscriptions.connect(connection);
    let idle = Duration::from_secs(relay.config.idle_timeout_s);
    let patience = Duration::from_secs(relay.config.reader_patience_s);
    let mut session = Session {
        out: Outbox::new(socket, patience),
        origin: Origin::Client { connection, address, viewer: viewer.load_full() },
        here,
        viewer,
        rates,
        auth: None,
        scope,
        visit,
        feed,
        open: HashMap::new(),
        waiting: VecDeque::new(),
        scanning: None,
        behind: VecDeque::new(),
        catching_up: None,
        counting: None,
        negentropies: None,
        gauges: open,
        bytes_under_way: 0,
        under_way: FuturesUnordered::new(),
        generation: 0,
        idle,
        pinged: false,
        relay,
    };
    let end = session.serve(&token).await;
    Box::pin(session.finish(end)).await;
    tracing::debug!("disconnected");
}

/// A connection. What most connections never need is in a box that they never make.
struct Session {
    relay: Arc<Relay>,
    out: Outbox,
    origin: Origin,
    here: Option<SocketAddr>,
    /// What this connection may see: one for all its subscriptions.
    viewer: SharedViewer,
    rates: Option<Arc<ClientRates>>,
    auth: Option<Box<Auth>>,
    scope: Scope,
    visit: Option<Visit>,
    feed: Feed,
    open: HashMap<Arc<str>, Subscription>,
    /// Subscriptions whose stored events are still to be read, in the order of their REQs.
    waiting: VecDeque<Arc<str>>,
    scanning: Option<Scanning>,
    /// Live subscriptions that must read on from the log first.
    behind: VecDeque<Lagged>,
    catching_up: Option<(Lagged, BoxFuture<'static, Result<LogPage, StoreError>>)>,
    counting: Option<Box<Counting>>,
    negentropies: Option<Box<Negentropies>>,
    /// Events on their way through the pipeline, and keys being checked.
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    bytes_under_way: usize,
    gauges: Gauges,
    generation: u64,
    idle: Duration,
    pinged: bool,
}

struct Subscription {
    interest: Arc<Interest>,
    generation: u64,
    /// What it takes of what its address may have open.
    _held: Option<[Held; 2]>,
}

/// What is answered with OK.
enum Done {
    Published(Published),
    Authenticated(Authenticated),
}

/// A part of the log, and the position that it reaches.
struct LogPage {
    entries: Vec<LogEntry>,
    reached: Seq,
}

/// What this connection adds to the relay's figures; taken back however it ends.
struct Gauges {
    metrics: Arc<Metrics>,
    subscriptions: i64,
}

impl Gauges {
    fn subscriptions(&mut self, change: i64) {
        self.subscriptions += change;
        self.metrics.subscriptions.inc_by(change);
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.metrics.subscriptions.dec_by(self.subscriptions);
        self.metrics.connections.dec();
    }
}

struct Scanning {
    subscription: Arc<str>,
    scan: Scan,
}

impl Session {
    async fn serve(&mut self, token: &CancellationToken) -> End {
        // Made once: what is waited for in vain is not put on and off all the lists each time.
        let (stop, idle) = (pin!(token.cancelled()), pin!(sleep(self.idle)));
        let mut waits = Waits { stop, idle };
        let mut deadline = Instant::now() + self.idle;
        let mut unflushed = 0;
        if self.demands_auth()
            && let Err(end) = Box::pin(self.challenge()).await
        {
            return end;
        }
        loop {
            self.start_next_scan();
            self.start_next_catch_up();
            self.start_next_count();
            self.start_next_reconciliation();
            // While more is ready at once, nothing is flushed, within a bound.
            let step = if self.out.is_empty() {
                unflushed = 0;
                Some(self.step(&mut waits).await)
            } else if unflushed >= BURST {
                None
            } else {
                self.step(&mut waits).now_or_never()
            };
            let Some(step) = step else {
                if let Err(gone) = self.out.flush().await {
                    return gone.into();
                }
                continue;
            };
            let handled = match step {
                Step::Stop if self.visit.as_ref().is_some_and(Visit::is_over) => {
                    return End::TopicLeft;
                }
                Step::Stop => return End::Stopping,
                Step::Idle if Instant::now() < deadline => {
                    waits.idle.as_mut().reset(deadline);
                    Ok(())
                }
                Step::Idle if self.pinged => return End::Idle,
                Step::Idle => {
                    self.pinged = true;
                    deadline = Instant::now() + self.idle;
                    waits.idle.as_mut().reset(deadline);
                    self.out.ping().await.map_err(End::from)
                }
                Step::Received(message) => {
                    self.pinged = false;
                    deadline = Instant::now() + self.idle;
                    self.receive(message).await
                }
                Step::Done(done) => self.done(done).await,
                // In boxes: every connection would carry the room for them otherwise.
                Step::Counted(counted) => Box::pin(self.counted(counted)).await,
                Step::Reconciled(reconciled) => Box::pin(self.reconciled(reconciled)).await,
                Step::Scanned(item) => self.scanned(item).await,
                Step::Logged(entries) => self.logged(entries).await,
                Step::News(news) => self.news(news).await,
            };
            if let Err(end) = handled {
                return end;
            }
            unflushed += 1;
        }
    }

    /// Waits for whatever comes first.
    async fn step(&mut self, waits: &mut Waits<'_, '_>) -> Step {
        let scanning = async {
            match &mut self.scanning {
                Some(scanning) => scanning.scan.next().await,
                None => std::future::pending().await,
            }
        };
        let logged = async {
            match &mut self.catching_up {
                Some((_, page)) => page.await,
                None => std::future::pending().await,
            }
        };
        let counted = async {
            match &mut self.counting {
                Some(counting) => counting.next().await,
                None => std::future::pending().await,
            }
        };
        let reconciled = async {
            match &mut self.negentropies {
                Some(negentropies) => negentropies.next().await,
                None => std::future::pending().await,
            }
        };
        let room =
            self.under_way.len() < MAX_UNDER_WAY && self.bytes_under_way < MAX_BYTES_UNDER_WAY;
        // In no order of preference: neither a long answer nor a fast feed may keep a client from
        // being heard.
        tokio::select! {
            () = &mut waits.stop => Step::Stop,
            Some(done) = self.under_way.next() => Step::Done(done),
            entries = logged => Step::Logged(entries),
            item = scanning => Step::Scanned(item),
            counted = counted => Step::Counted(counted),
            reconciled = reconciled => Step::Reconciled(reconciled),
            news = self.feed.next() => Step::News(news),
            message = self.out.socket.next(), if room => Step::Received(message),
            () = &mut waits.idle => Step::Idle,
        }
    }

    async fn receive(&mut self, message: Option<Result<Message, Error>>) -> Result<(), End> {
        let text = match message {
            None | Some(Ok(Message::Close(_))) => return Err(End::Left),
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(bytes))) => {
                if let Some(limited) = self.exceeds_rate(bytes.len()) {
                    return self.patience(limited).map(drop);
                }
                self.malformed("binary");
                return self
                    .send(message::notice("invalid: binary frames carry nothing here"))
                    .await;
            }
            // A ping takes as much as a message: it is answered.
            Some(Ok(Message::Ping(bytes) | Message::Pong(bytes))) => {
                let limited = self.exceeds_rate(bytes.len());
                if let Some(limited) = limited {
                    return self.patience(limited).map(drop);
                }
                // The websocket library has its pong ready.
                return Ok(self.out.flush().await?);
            }
            Some(Ok(Message::Frame(_))) => return Ok(()),
            Some(Err(Error::Capacity(_))) => {
                self.malformed("too long");
                return Err(End::TooLong);
            }
            // Whoever just goes away does no wrong.
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                return Err(End::Left);
            }
            Some(Err(Error::Protocol(_))) => {
                self.malformed("websocket");
                return Err(End::Protocol);
            }
            Some(Err(Error::Utf8(_))) => {
                self.malformed("not UTF-8");
                return Err(End::Text);
            }
            Some(Err(Error::Io(error))) if wire::is_endless(&error) => {
                self.malformed("endless");
                return Err(End::Flooding);
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "the connection broke");
                return Err(End::Left);
            }
        };
        if let Some(limited) = self.exceeds_rate(text.len()) {
            return Box::pin(self.refuse_for_rate(&text, limited)).await;
        }
        match message::parse(&text, self.relay.config.max_filters) {
            Ok(ClientMessage::Event(event)) => self.publish(*event).await,
            // In a box: every connection would carry the room for it otherwise.
            other => Box::pin(self.obey(other)).await,
        }
    }

    async fn obey(&mut self, message: Result<ClientMessage, MessageError>) -> Result<(), End> {
        match message {
            Ok(ClientMessage::Event(event)) => self.publish(*event).await,
            Ok(ClientMessage::Req { subscription, filters }) => {
                self.request(subscription.into(), filters).await
            }
            Ok(ClientMessage::Close { subscription }) => {
                self.forget(&subscription.into());
                Ok(())
            }
            Ok(ClientMessage::Auth(event)) => self.authenticate(*event).await,
            Ok(ClientMessage::Count { subscription, filters }) => {
                self.count(subscription.into(), filters).await
            }
            Ok(ClientMessage::NegOpen { subscription, filters, message }) => {
                self.open_negentropy(subscription.into(), filters, message).await
            }
            Ok(ClientMessage::NegMessage { subscription, message }) => {
                self.go_on_with_negentropy(subscription.into(), message).await
            }
            Ok(ClientMessage::NegClose { subscription }) => {
                self.close_negentropy(&subscription.into());
                Ok(())
            }
            Err(error) => {
                self.malformed("message");
                // Whatever was open under this id is over.
                match &error {
                    MessageError::Closed { verb: Verb::Req, subscription, .. } => {
                        self.forget(&subscription.as_str().into());
                    }
                    MessageError::Negentropy(subscription, _) => {
                        self.close_negentropy(&subscription.as_str().into());
                    }
                    _ => {}
                }
                self.send(error.answer()).await
            }
        }
    }

    async fn done(&mut self, done: Done) -> Result<(), End> {
        match done {
            Done::Published(published) => self.published(published).await,
            Done::Authenticated(authenticated) => Box::pin(self.authenticated(authenticated)).await,
        }
    }

    /// Sends an answer with this reason in it. The client must have a challenge before it is told to
    /// authenticate (NIP-42).
    async fn answer(&mut self, prefix: Option<Prefix>, text: String) -> Result<(), End> {
        if prefix == Some(Prefix::AuthRequired) {
            Box::pin(self.challenge()).await?;
        }
        self.send(text).await
    }

    async fn send(&mut self, text: String) -> Result<(), End> {
        self.out.text(&text).await.map_err(End::from)
    }

    fn malformed(&self, cause: &'static str) {
        self.relay.metrics.client_messages_malformed.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// What a session waits for all its life.
struct Waits<'w, 't> {
    stop: Pin<&'w mut WaitForCancellationFuture<'t>>,
    /// Goes off too early after a message came; then it is set again.
    idle: Pin<&'w mut Sleep>,
}

enum Step {
    Stop,
    Idle,
    Received(Option<Result<Message, Error>>),
    Done(Done),
    Counted(Counted),
    Reconciled(Reconciled),
    Logged(Result<LogPage, StoreError>),
    Scanned(Option<ScanItem>),
    News(News),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands of idle connections are common; each has this on the heap.
    #[test]
    fn a_session_is_small() {
        fn size<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(run);
        assert!(bytes <= 2_176, "{bytes} bytes");
    }
}
