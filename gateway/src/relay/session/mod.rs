//! One client connection: text → message → pipeline or store → answer.
//!
//! One task does it all. It never waits for a commit or a query while the client has something to
//! say: published events and the running query are futures of its own loop.

mod requests;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    Relay,
    outbox::{self, Gone, Socket},
};
use crate::{
    metrics::CauseLabels,
    pipeline::{Candidate, Origin, Outcome, Scan, ScanItem, Scope, Target, Visibility},
    protocol::{
        Event, EventId, TopicName, kinds,
        message::{self, ClientMessage},
    },
    subscriptions::{Feed, Interest, News},
};

/// Events of one connection on their way; above it the connection is not read.
const MAX_UNDER_WAY: usize = 1_024;
/// Messages written between two flushes while more of them are ready.
const BURST: usize = 128;
/// Log entries read at once while a subscription catches up.
const PAGE: usize = 500;

/// Serves one connection until the client leaves, misbehaves, or the gateway stops.
pub(super) async fn run(
    stream: TokioIo<Upgraded>,
    remote: SocketAddr,
    connection: u64,
    scope: Scope,
    relay: Arc<Relay>,
    token: CancellationToken,
    _permit: Arc<OwnedSemaphorePermit>,
) {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(relay.config.max_message_bytes);
    config.max_frame_size = Some(relay.config.max_message_bytes);
    config.read_buffer_size = 8 * 1024;
    config.write_buffer_size = 16 * 1024;
    config.max_write_buffer_size = 64 << 20;
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    tracing::debug!(%remote, ?scope, "connected");
    relay.metrics.connections.inc();
    let feed = relay.subscriptions.connect(connection);
    let idle = Duration::from_secs(relay.config.idle_timeout_s);
    let mut session = Session {
        socket,
        origin: Origin::Client { connection, address: remote.ip() },
        scope,
        feed,
        open: HashMap::new(),
        waiting: VecDeque::new(),
        scanning: None,
        under_way: FuturesUnordered::new(),
        generation: 0,
        idle,
        pinged: false,
        // Nobody can authenticate yet, so nobody is party to a direct message.
        visible: Arc::new(|event: &Event| !kinds::is_for_parties_only(event.kind)),
        relay,
    };
    let end = session.serve(&token).await;
    session.finish(end).await;
    tracing::debug!("disconnected");
}

struct Session {
    relay: Arc<Relay>,
    socket: Socket,
    origin: Origin,
    scope: Scope,
    feed: Feed,
    open: HashMap<Arc<str>, Subscription>,
    /// Subscriptions whose stored events are still to be read, in the order of their REQs.
    waiting: VecDeque<Arc<str>>,
    scanning: Option<Scanning>,
    under_way: FuturesUnordered<BoxFuture<'static, (EventId, Outcome)>>,
    generation: u64,
    idle: Duration,
    pinged: bool,
    visible: Visibility,
}

struct Subscription {
    interest: Arc<Interest>,
    generation: u64,
}

struct Scanning {
    subscription: Arc<str>,
    scan: Scan,
}

/// Why a session ends.
enum End {
    /// The client closed, or the connection broke.
    Left,
    Stopping,
    TooLong,
    Idle,
    Protocol,
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Left
    }
}

impl Session {
    async fn serve(&mut self, token: &CancellationToken) -> End {
        let mut deadline = Instant::now() + self.idle;
        let mut unflushed = 0;
        loop {
            self.start_next_scan();
            // While more is ready at once, nothing is flushed, within a bound.
            let step = if unflushed == 0 {
                self.step(token, deadline).await
            } else if unflushed >= BURST {
                None
            } else {
                self.step(token, deadline).now_or_never().flatten()
            };
            let Some(step) = step else {
                if let Err(gone) = outbox::flush(&mut self.socket).await {
                    return gone.into();
                }
                unflushed = 0;
                continue;
            };
            let handled = match step {
                Step::Stop => return End::Stopping,
                Step::Idle if self.pinged => return End::Idle,
                Step::Idle => {
                    self.pinged = true;
                    deadline = Instant::now() + self.idle;
                    outbox::ping(&mut self.socket).await.map_err(End::from)
                }
                Step::Received(message) => {
                    self.pinged = false;
                    deadline = Instant::now() + self.idle;
                    self.receive(message).await
                }
                Step::Ended(id, outcome) => {
                    let (accepted, text) = outcome.ok();
                    self.send(message::ok(&id, accepted, &text)).await
                }
                Step::Scanned(item) => self.scanned(item).await,
                Step::News(News::Delivery(delivery)) => self.deliver(delivery).await,
                Step::News(News::Lagged) => self.catch_up_lagged().await,
            };
            if let Err(end) = handled {
                return end;
            }
            unflushed += 1;
        }
    }

    /// Waits for whatever comes first. `None` only when the registry is gone.
    async fn step(&mut self, token: &CancellationToken, deadline: Instant) -> Option<Step> {
        let scanning = async {
            match &mut self.scanning {
                Some(scanning) => scanning.scan.next().await,
                None => std::future::pending().await,
            }
        };
        let room = self.under_way.len() < MAX_UNDER_WAY;
        tokio::select! {
            biased;
            () = token.cancelled() => Some(Step::Stop),
            Some((id, outcome)) = self.under_way.next() => Some(Step::Ended(id, outcome)),
            item = scanning => Some(Step::Scanned(item)),
            news = self.feed.next() => news.map(Step::News),
            message = self.socket.next(), if room => Some(Step::Received(message)),
            () = sleep_until(deadline) => Some(Step::Idle),
        }
    }

    async fn receive(&mut self, message: Option<Result<Message, Error>>) -> Result<(), End> {
        let text = match message {
            None | Some(Ok(Message::Close(_))) => return Err(End::Left),
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(_))) => {
                self.malformed("binary");
                return self
                    .send(message::notice("invalid: binary frames carry nothing here"))
                    .await;
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Err(Error::Capacity(_))) => {
                self.malformed("too long");
                return Err(End::TooLong);
            }
            Some(Err(Error::Protocol(_) | Error::Utf8(_))) => {
                self.malformed("websocket");
                return Err(End::Protocol);
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "the connection broke");
                return Err(End::Left);
            }
        };
        match message::parse(&text, self.relay.config.max_filters) {
            Ok(ClientMessage::Event(event)) => {
                self.publish(*event);
                Ok(())
            }
            Ok(ClientMessage::Req { subscription, filters }) => {
                self.request(subscription.into(), filters).await
            }
            Ok(ClientMessage::Close { subscription }) => {
                self.forget(&subscription.into());
                Ok(())
            }
            Err(error) => {
                self.malformed("message");
                self.send(error.answer()).await
            }
        }
    }

    fn publish(&mut self, event: Event) {
        let target = match &self.scope {
            Scope::All => Target::Routed,
            Scope::Topic(name) => Target::Topics(vec![TopicName::clone(name)]),
        };
        let (id, ingest) = (event.id, self.relay.ingest.clone());
        let candidate = Candidate { event, origin: self.origin.clone(), target };
        self.under_way.push(
            async move {
                let outcome = ingest.submit(candidate).await;
                (id, outcome)
            }
            .boxed(),
        );
    }

    async fn send(&mut self, text: String) -> Result<(), End> {
        outbox::send(&mut self.socket, text).await.map_err(End::from)
    }

    fn malformed(&self, cause: &'static str) {
        self.relay.metrics.client_messages_malformed.get_or_create(&CauseLabels { cause }).inc();
    }

    /// Says goodbye. What was published and not yet answered is answered first.
    async fn finish(mut self, end: End) {
        let farewell = match end {
            End::Left => None,
            End::Stopping => {
                while let Some((id, outcome)) = self.under_way.next().await {
                    let (accepted, text) = outcome.ok();
                    if self.send(message::ok(&id, accepted, &text)).await.is_err() {
                        break;
                    }
                }
                Some((CloseCode::Away, "the gateway is shutting down"))
            }
            End::TooLong => {
                let max = self.relay.config.max_message_bytes;
                let notice = message::notice(&format!(
                    "invalid: a message has at most {max} bytes (max_message_length)"
                ));
                // The close frame says the same, should this fail.
                let _ = self.send(notice).await;
                Some((CloseCode::Size, "the message is too long"))
            }
            End::Idle => Some((CloseCode::Away, "the connection was idle")),
            End::Protocol => Some((CloseCode::Protocol, "this is not the websocket protocol")),
        };
        if let Some((code, reason)) = farewell {
            outbox::close(&mut self.socket, code, reason).await;
        }
        let open = i64::try_from(self.open.len()).unwrap_or(i64::MAX);
        self.relay.metrics.subscriptions.dec_by(open);
        self.relay.metrics.connections.dec();
    }
}

enum Step {
    Stop,
    Idle,
    Received(Option<Result<Message, Error>>),
    Ended(EventId, Outcome),
    Scanned(Option<ScanItem>),
    News(News),
}
