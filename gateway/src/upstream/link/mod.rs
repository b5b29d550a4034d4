//! One connection to a relay, as its client.
//!
//! A [`Link`] is a handle; an actor owns the socket. What the relay sends is bounded in size and goes
//! into bounded queues: while one of them is full nothing more is read, so a slow reader slows the relay
//! down. Whoever reads a [`Request`] must therefore not wait for another answer of the same link before
//! it goes on reading.
//!
//! Events are checked to be what was asked for, and are not verified: that is the pipeline's part.

mod actor;
mod auth;
mod dial;
mod error;
mod negentropy;
mod nip11;
mod options;
mod request;
pub(super) mod shown;
mod tally;
#[cfg(test)]
pub(super) mod tests;
mod wire;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use error::{LinkError, NegError};
pub use negentropy::NegSession;
pub use nip11::{Document, RemoteLimits};
pub use options::{LinkOptions, Timeouts};
pub use request::{Item, Request};
pub use tally::LinkFigures;

use crate::{
    protocol::{Event, Filter, remote, work},
    tasks::Tasks,
};
use actor::{Actor, Command, Kind, Opening};
use tally::Tally;
use wire::Traffic;

/// Subscriptions at once with a relay that does not say how many it allows.
const SUBSCRIPTIONS: usize = 10;
/// The most in any case.
const MOST_SUBSCRIPTIONS: usize = 64;
/// Reconciliations at once.
const NEG_SESSIONS: usize = 4;
/// Published events without an answer at once. Who publishes one more waits.
const PUBLISHES: usize = 256;
/// Messages on their way to the actor. Who has one more waits.
const COMMANDS: usize = 32;
/// Items of one request that wait for its reader.
const ITEMS: usize = 256;
/// Text of events that wait for the readers of one link, in bytes; one event of any size fits.
const ROOM: usize = 256 * 1024;

/// What a relay answered to an event (NIP-01, OK).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub accepted: bool,
    /// With its prefix; as the relay wrote it, but bounded and printable.
    pub message: String,
}

/// A connection to a relay. Cheap to clone. It ends when it is closed, when its tasks end, and when
/// nobody has a handle, a request or a session of it any more.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    url: Url,
    limits: RemoteLimits,
    timeouts: Timeouts,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<LinkError>>,
    subscriptions: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    publishes: Semaphore,
}

/// What handles, requests and the actor have in common.
struct Shared {
    token: CancellationToken,
    /// Keys of requests and sessions that were dropped and are to be closed: as many at most as are open.
    dropped: Mutex<Vec<u64>>,
    drops: Notify,
    /// The key of the next request or session.
    next: AtomicU64,
    /// The relay's last NOTICE, bounded and printable.
    notice: Mutex<Option<Arc<str>>>,
    tally: Tally,
    traffic: Arc<Traffic>,
    /// In bytes, see [`ROOM`].
    room: Arc<Semaphore>,
}

impl Shared {
    /// A request or session is no longer wanted.
    fn drop_key(&self, key: u64) {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).push(key);
        self.drops.notify_one();
    }
}

/// The subscription id of a request or session.
fn subscription_id(key: u64) -> String {
    format!("g{key}")
}

/// The key of a subscription id of ours.
fn key_of(subscription: &str) -> Option<u64> {
    let digits = subscription.strip_prefix('g')?;
    // Only as we write it.
    let key = digits.parse().ok()?;
    (subscription_id(key) == subscription).then_some(key)
}

impl Link {
    /// Connects and reads what the relay says of itself. A missing or lying NIP-11 document is survived.
    ///
    /// # Errors
    /// When there is no websocket in time.
    pub async fn open(url: &Url, options: &LinkOptions, tasks: &Tasks) -> Result<Self, LinkError> {
        Self::open_knowing(url, options, None, tasks).await
    }

    /// The same, with the limits that an earlier connection learned.
    ///
    /// # Errors
    /// When there is no websocket in time.
    pub async fn open_knowing(
        url: &Url,
        options: &LinkOptions,
        known: Option<RemoteLimits>,
        tasks: &Tasks,
    ) -> Result<Self, LinkError> {
        let traffic = Arc::new(Traffic::default());
        let socket = dial::websocket(url, options, traffic.clone()).await?;
        let limits = match known {
            Some(limits) => limits,
            None => nip11::read(url, options).await,
        };
        let shared = Arc::new(Shared {
            token: tasks.token().child_token(),
            dropped: Mutex::default(),
            drops: Notify::new(),
            next: AtomicU64::new(1),
            notice: Mutex::default(),
            tally: Tally::default(),
            traffic,
            room: Arc::new(Semaphore::new(ROOM)),
        });
        let (commands, orders) = mpsc::channel(COMMANDS);
        let (end, ended) = watch::channel(None);
        let actor = Actor::new(url, socket, options, shared.clone(), orders);
        tasks.spawn("upstream link", actor.run(end));
        let subscriptions = limits.max_subscriptions.unwrap_or(SUBSCRIPTIONS);
        Ok(Self(Arc::new(Inner {
            url: url.clone(),
            timeouts: options.timeouts,
            commands,
            shared,
            ended,
            subscriptions: Arc::new(Semaphore::new(subscriptions.min(MOST_SUBSCRIPTIONS))),
            sessions: Arc::new(Semaphore::new(NEG_SESSIONS)),
            publishes: Semaphore::new(PUBLISHES),
            limits,
        })))
    }

    pub fn url(&self) -> &Url {
        &self.0.url
    }

    /// What the relay asks of its clients.
    pub fn limits(&self) -> &RemoteLimits {
        &self.0.limits
    }

    pub fn timeouts(&self) -> &Timeouts {
        &self.0.timeouts
    }

    /// Subscribes. Limits above the relay's `max_limit` are lowered to it. Waits for one of the
    /// subscriptions that the relay allows to be free, at most for the time of an answer.
    ///
    /// # Errors
    /// When none becomes free, the relay's limits do not allow such a request, or the link has ended.
    pub async fn request(&self, filters: &[Filter]) -> Result<Request, LinkError> {
        let Inner { limits, timeouts, shared, subscriptions, .. } = &*self.0;
        if let Some(max) = limits.max_filters.filter(|max| filters.len() > *max) {
            return Err(LinkError::TooManyFilters { filters: filters.len(), max });
        }
        let mut filters = filters.to_vec();
        if let Some(max) = limits.max_limit {
            filters.iter_mut().filter_map(|f| f.limit.as_mut()).for_each(|l| *l = max.min(*l));
        }
        let key = shared.next.fetch_add(1, Ordering::Relaxed);
        let text = self.fitting(remote::req(&subscription_id(key), &filters))?;
        let allowed = limits.max_subscriptions.unwrap_or(SUBSCRIPTIONS);
        let free = timeout(timeouts.answer, subscriptions.clone().acquire_owned()).await;
        let permit =
            free.ok().and_then(Result::ok).ok_or_else(|| self.failure(LinkError::Busy(allowed)))?;
        let (queue, items) = mpsc::channel(ITEMS);
        let request = Request::new(key, items, shared.clone(), permit);
        let kind = Kind::Request { filters: filters.into(), queue, dropped: request.dropped() };
        self.order(Command::Open(Opening { key, text, kind })).await?;
        Ok(request)
    }

    /// Publishes an event and waits for the relay's OK. When it asks for authentication, and that is
    /// allowed, it is given, and the event sent once more. What the relay's document rules out is not
    /// sent: it is answered as not accepted, with `invalid:` or `pow:` in front.
    ///
    /// # Errors
    /// When there is no answer in time, or the link has ended.
    pub async fn publish(&self, event: &Arc<Event>) -> Result<Ack, LinkError> {
        let Inner { limits, timeouts, publishes, .. } = &*self.0;
        if let Some(reason) = work::refusal(event, limits.min_pow) {
            return Ok(Ack { accepted: false, message: reason.to_string() });
        }
        let length = event.json().len() + "[\"EVENT\",]".len();
        if let Some(max) = limits.max_message_length.filter(|max| length > *max) {
            let message = format!("invalid: {}", LinkError::TooLong { bytes: length, max });
            return Ok(Ack { accepted: false, message });
        }
        // Never closed.
        let _permit = publishes.acquire().await;
        let (reply, answer) = oneshot::channel();
        self.order(Command::Publish { event: event.clone(), reply }).await?;
        let after = timeouts.answer;
        match timeout(after, answer).await {
            Ok(Ok(ack)) => Ok(ack),
            Ok(Err(_)) => Err(self.closed().await),
            Err(_) => Err(LinkError::Slow { what: "answer to an event", after }),
        }
    }

    /// Prepares a reconciliation (NIP-77); its first exchange opens it.
    ///
    /// # Errors
    /// When too many are open for too long, or the link has ended.
    pub async fn negentropy(&self, filter: &Filter) -> Result<NegSession, LinkError> {
        let Inner { timeouts, sessions, .. } = &*self.0;
        let free = timeout(timeouts.answer, sessions.clone().acquire_owned()).await;
        let busy = || self.failure(LinkError::Busy(NEG_SESSIONS));
        let permit = free.ok().and_then(Result::ok).ok_or_else(busy)?;
        Ok(NegSession::new(self.clone(), filter.clone(), permit))
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> LinkError {
        let mut ended = self.0.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(LinkError::ClosedHere),
            // The actor is gone without a word: the gateway is stopping.
            Err(_) => LinkError::ClosedHere,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.0.commands.is_closed()
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.0.shared.token.cancel();
    }

    /// What the relay last said in a NOTICE: bounded and printable.
    pub fn last_notice(&self) -> Option<Arc<str>> {
        self.0.shared.notice.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn figures(&self) -> LinkFigures {
        self.0.shared.tally.figures(&self.0.shared.traffic)
    }

    async fn order(&self, command: Command) -> Result<(), LinkError> {
        match self.0.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.closed().await),
        }
    }

    /// The text, if the relay takes messages so long.
    fn fitting(&self, text: String) -> Result<Utf8Bytes, LinkError> {
        match self.0.limits.max_message_length {
            Some(max) if text.len() > max => Err(LinkError::TooLong { bytes: text.len(), max }),
            _ => Ok(text.into()),
        }
    }

    /// Why the link has ended, or else this.
    fn failure(&self, otherwise: LinkError) -> LinkError {
        self.0.ended.borrow().clone().unwrap_or(otherwise)
    }
}
