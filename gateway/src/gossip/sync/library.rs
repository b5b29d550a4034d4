//! What the comparisons of all topics share: the store, the limits, and who is at which desk.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use iroh::EndpointId;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    desk::{Call, Desk, SyncProgress},
    per_peer::PerPeer,
    sets::{self, Set},
};
use crate::{
    clock::unix_now,
    gossip::{
        fetch::{
            Connections,
            answers::STALLED,
            trust::Trust,
            wire::{self, WireError},
        },
        retell::Retell,
        state::TopicState,
    },
    metrics::{CauseLabels, Metrics},
    pipeline::{EventReader, EventWriter, Ingest, Span, StoreError},
    protocol::{EventId, TopicName, kinds::Part},
};

/// Ids of one range; with more, the range is split. Few in the tests, so that they see it.
pub const RANGE: usize = if cfg!(test) { 400 } else { 50_000 };
/// The most differences of one range that an honest side can have: a single crowded second is not
/// split.
pub const MOST_DIFFERENT: usize = 500_000;
/// Comparisons that we lead at once, over all topics.
const LEADING: usize = 16;
/// Comparisons that others lead at once. They wait for us more than we for them.
const FOLLOWING: usize = 16;
/// Of them, those that others lead who are no neighbors.
const STRANGERS: usize = 4;
/// Comparisons with one peer at once that we lead, and as many that it leads: their requests share
/// the streams of one connection.
const WITH_ONE_PEER: usize = 4;
/// Requests to one peer at once, over all topics. It answers no more at once.
const TAKES_FROM_ONE_PEER: usize = 4;
/// A peer that compared with us may ask for so long for what it was told that we have.
const LEFT_LATELY: Duration = Duration::from_secs(120);
/// Calls that may wait at one desk; what does not fit comes again.
const CALLS: usize = 32;

/// Why a topic is not compared on demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotSync {
    #[error(
        "nothing is reconciled in this topic at the moment: it is just being left, or the gateway is \
         stopping"
    )]
    NoDesk,
    #[error("many already watch this topic being reconciled; wait for one of them to end")]
    TooManyWatch,
}

/// What [`Library::new`] needs.
pub struct StartLibrary {
    /// Our own endpoint id.
    pub me: EndpointId,
    pub reader: Arc<dyn EventReader>,
    pub writer: Arc<dyn EventWriter>,
    pub ingest: Ingest,
    pub connections: Arc<Connections>,
    pub trust: Arc<Trust>,
    /// The longest event taken, in bytes.
    pub max_event_bytes: usize,
    /// How far `created_at` may lie in the future and, unless 0, in the past. Seconds.
    pub max_future_s: u64,
    pub max_past_s: u64,
    pub interval: Duration,
    pub metrics: Arc<Metrics>,
}

/// Shared by all topics.
pub struct Library {
    pub start: StartLibrary,
    /// Tells our states from those of an earlier run.
    instance: u64,
    desks: Mutex<HashMap<TopicName, Arc<Desk>>>,
    left: Mutex<HashMap<TopicName, Instant>>,
    pub leading: Semaphore,
    pub following: Semaphore,
    pub strangers: Semaphore,
    pub leading_to: PerPeer,
    pub followed_by: PerPeer,
    pub takes: PerPeer,
    /// Half of the cores may compare.
    pub turns: Arc<Semaphore>,
}

/// Why a comparison ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("not now")]
    NotNow,
    /// So much came that our own pipeline cannot take, and nothing that it can, that it had better end.
    #[error("what it has cannot be taken here at the moment")]
    NotTaken,
    /// A program that knows gossip alone.
    #[error("it does not speak our protocol")]
    DoesNotSpeak,
    #[error("it broke the protocol: {0}")]
    Lie(WireError),
    #[error("{0}")]
    Broken(String),
    #[error("it took too long")]
    Slow,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => Self::Slow,
            WireError::Io(error) => Self::Broken(error.to_string()),
            error if error.is_lie() => Self::Lie(error),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        WireError::Io(error).into()
    }
}

impl Failure {
    /// A label for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotNow => "not now",
            Self::NotTaken => "not taken",
            Self::DoesNotSpeak => "does not speak",
            Self::Lie(_) => "lie",
            Self::Broken(_) => "broken off",
            Self::Slow => "too slow",
            Self::Store(_) => "store failed",
        }
    }
}

impl Library {
    pub fn new(start: StartLibrary) -> Arc<Self> {
        let turns = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Arc::new(Self {
            start,
            instance: rand::random(),
            desks: Mutex::default(),
            left: Mutex::default(),
            leading: Semaphore::new(LEADING),
            following: Semaphore::new(FOLLOWING),
            strangers: Semaphore::new(STRANGERS),
            leading_to: PerPeer::new(WITH_ONE_PEER),
            followed_by: PerPeer::new(WITH_ONE_PEER),
            takes: PerPeer::new(TAKES_FROM_ONE_PEER),
            turns: Arc::new(Semaphore::new(turns)),
        })
    }

    /// Opens a desk for a topic; what calls there goes into the queue.
    pub fn open(
        &self,
        state: Arc<TopicState>,
        retell: Retell,
    ) -> (Arc<Desk>, mpsc::Receiver<Call>) {
        let (calls, queue) = mpsc::channel(CALLS);
        let desk = Arc::new(Desk::new(state, retell, calls));
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        desks.insert(desk.topic().clone(), desk.clone());
        (desk, queue)
    }

    /// Closes it, unless it was opened anew meanwhile.
    pub fn close(&self, desk: &Arc<Desk>) {
        desk.close();
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        if desks.get(desk.topic()).is_some_and(|open| Arc::ptr_eq(open, desk)) {
            desks.remove(desk.topic());
            if desk.state.circle().is_some() {
                // Whoever asks for a private topic by its name is not to learn that we were in it.
                return;
            }
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.retain(|_, at| at.elapsed() < LEFT_LATELY);
            // That it was in a private one, nobody is told who only knows the name.
            if desk.state.circle().is_none() {
                left.insert(desk.topic().clone(), Instant::now());
            }
        }
    }

    /// Whether a peer may not know yet that we left the topic.
    pub fn left_lately(&self, topic: &TopicName) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.get(topic).is_some_and(|at| at.elapsed() < LEFT_LATELY)
    }

    pub fn desk(&self, topic: &TopicName) -> Option<Arc<Desk>> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    /// A neighbor says that it has something new. From others it means nothing.
    pub fn hinted(&self, peer: EndpointId, topic: &TopicName) {
        // The queue is short: what means nothing takes no place in it.
        if let Some(desk) = self.desk(topic)
            && desk.state.neighbors().contains(&peer)
        {
            let _ = desk.calls.try_send(Call::Hint(peer));
        }
    }

    /// Compares with all neighbors of a topic now.
    ///
    /// # Errors
    /// When nobody compares in this topic, or too many watch.
    pub fn sync_now(&self, topic: &TopicName) -> Result<watch::Receiver<SyncProgress>, CannotSync> {
        let desk = self.desk(topic).ok_or(CannotSync::NoDesk)?;
        let progress = desk.watch(desk.state.neighbors()).ok_or(CannotSync::TooManyWatch)?;
        let _ = desk.calls.try_send(Call::All);
        Ok(progress)
    }

    /// Tells a peer that there is something new here.
    pub async fn hint(&self, peer: EndpointId, topic: &TopicName) {
        let Some(desk) = self.desk(topic) else { return };
        let bytes = wire::encode_opening(wire::HINT, topic);
        let sending = async {
            let connection = self.start.connections.to(peer).await.ok()?;
            let (mut send, _receive) = desk.state.open(&connection).await.ok()?;
            send.write_all(&bytes).await.ok()?;
            send.finish().ok()?;
            // Dropped before, the stream would be reset.
            send.stopped().await.ok()
        };
        if timeout(STALLED, sending).await.ok().flatten().is_none() {
            tracing::debug!(peer = %peer.fmt_short(), "a hint did not get through");
        }
    }

    /// What stands for all that is held of a topic, or gone from it, here.
    pub fn state(&self, topic: &TopicName) -> [u8; 16] {
        let mut state = [0; 16];
        state[..8].copy_from_slice(&self.instance.to_be_bytes());
        state[8..].copy_from_slice(&self.start.reader.version(topic).to_be_bytes());
        state
    }

    /// The time that is kept of each part of a topic.
    pub fn spans(&self, topic: &TopicName) -> [Span; 3] {
        let now = unix_now();
        let start = &self.start;
        let until = now.saturating_add(start.max_future_s);
        let past = start.max_past_s;
        let oldest = if past == 0 { 0 } else { now.saturating_sub(past) };
        Part::ALL.map(|part| match part {
            Part::Requests | Part::Profiles => Span { from: oldest, until },
            Part::Rest => Span { from: oldest.max(start.reader.kept_since(topic)), until },
        })
    }

    /// What to compare with a peer, and from where on it is complete.
    pub async fn set(
        &self,
        desk: &Desk,
        peer: EndpointId,
        part: Part,
        span: Span,
    ) -> Result<(Arc<Set>, u64), Failure> {
        let found = self.start.reader.topic_ids(desk.topic().clone(), part, span, RANGE).await?;
        let from = found.from;
        let gone = desk.known_gone(peer, part, Span { from, until: span.until });
        let set = sets::in_turn(&self.turns, move || both(found.ids, gone)).await?;
        Ok((Arc::new(set), from))
    }

    pub fn bytes(&self, cause: &'static str, bytes: usize) {
        self.start.metrics.sync_bytes.get_or_create(&CauseLabels { cause }).inc_by(bytes as u64);
    }

    pub fn events(&self, cause: &'static str, events: usize) {
        self.start.metrics.sync_events.get_or_create(&CauseLabels { cause }).inc_by(events as u64);
    }

    pub fn ended(&self, cause: &'static str) {
        self.start.metrics.syncs.get_or_create(&CauseLabels { cause }).inc();
    }
}

fn both(mut ids: Vec<(u64, EventId)>, gone: Vec<(u64, EventId)>) -> Result<Set, WireError> {
    ids.extend(gone);
    Set::new(&ids)
}
