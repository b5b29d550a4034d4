//! Gets announced events: each once, from whoever has it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    stream::{self, FuturesUnordered},
};
use iroh::{
    Endpoint, EndpointId,
    endpoint::{Connection, RecvStream},
};
use tokio::{
    io::AsyncRead,
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::wire::{self, MAX_IDS, Request, WireError};
use crate::{
    gossip::{peer_id, state::TopicState},
    metrics::{CauseLabels, Metrics},
    pipeline::{Candidate, EventReader, Ingest, Origin, Outcome, Target},
    protocol::{Event, EventId, Prefix, TopicName, frame::SYNC_ALPN},
};

/// Open connections that are kept for the next fetch.
const KEPT: usize = 64;
const CONNECT: Duration = Duration::from_secs(5);
/// How long one fetch may go without progress.
const STALLED: Duration = Duration::from_secs(10);
/// Announcements of one topic that are being worked off at once.
const PULLS: usize = 256;
/// Requests of one topic at once: first attempts, and those after a pause. Ids that nobody has cannot
/// hold up the others for long.
const FIRST_REQUESTS: usize = 8;
const LATER_REQUESTS: usize = 4;
/// Fetched events of one fetch in the pipeline at once.
const SUBMISSIONS: usize = 16;
/// Ids of one topic that are being fetched; announcements beyond that are dropped.
const UNDER_WAY: usize = 20_000;
/// Ids that were refused lately and are not fetched again.
const REFUSED: usize = 8_192;
/// Pauses before the second, third, … attempt. Whoever announced an event may be fetching it
/// itself, and so may the one before it.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// Ids that a neighbor passed on to us.
#[derive(Debug)]
pub struct Announcement {
    /// The last hop: the likeliest to have the events, and a neighbor.
    pub peer: EndpointId,
    pub ids: Vec<EventId>,
}

/// Connections for fetches, kept between them. Shared by all topics.
pub struct Connections {
    endpoint: Endpoint,
    kept: Mutex<HashMap<EndpointId, Kept>>,
}

struct Kept {
    /// Locked while connecting: fetches from one peer share one connection.
    connection: Arc<tokio::sync::Mutex<Option<Connection>>>,
    used: Instant,
}

impl Connections {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, kept: Mutex::default() }
    }

    /// # Errors
    /// When the peer cannot be reached in time; the text is for a debug log.
    async fn to(&self, peer: EndpointId) -> Result<Connection, String> {
        let slot = self.slot(peer);
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|known| known.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        match timeout(CONNECT, self.endpoint.connect(peer, SYNC_ALPN)).await {
            Ok(Ok(connection)) => Ok(slot.insert(connection).clone()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("timed out".to_owned()),
        }
    }

    fn slot(&self, peer: EndpointId) -> Arc<tokio::sync::Mutex<Option<Connection>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT && !kept.contains_key(&peer) {
            // A connection closes when its last user drops it.
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(peer, _)| *peer);
            oldest.and_then(|peer| kept.remove(&peer));
        }
        let used = Instant::now();
        let kept = kept.entry(peer).or_insert_with(|| Kept { connection: Arc::default(), used });
        kept.used = used;
        kept.connection.clone()
    }
}

/// Fetches the announced events of one topic.
pub struct Puller {
    pub state: Arc<TopicState>,
    pub reader: Arc<dyn EventReader>,
    pub ingest: Ingest,
    pub connections: Arc<Connections>,
    /// The longest event taken, in bytes.
    pub max_event_bytes: usize,
    pub metrics: Arc<Metrics>,
}

impl Puller {
    /// Fetches until shutdown or the topic ends.
    pub async fn run(self, mut queue: mpsc::Receiver<Announcement>, token: CancellationToken) {
        let mut under_way = HashSet::new();
        let mut refused = Remembered::default();
        let requests = Requests {
            first: Semaphore::new(FIRST_REQUESTS),
            later: Semaphore::new(LATER_REQUESTS),
        };
        let mut fetches = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                Some(done) = fetches.next(), if !fetches.is_empty() => {
                    let Fetched { ids, refused: no } = done;
                    ids.iter().for_each(|id| { under_way.remove(id); });
                    no.into_iter().for_each(|id| refused.insert(id));
                }
                announcement = queue.recv(), if fetches.len() < PULLS => {
                    let Some(Announcement { peer, mut ids }) = announcement else { return };
                    ids.retain(|id| !refused.contains(id) && !under_way.contains(id));
                    if under_way.len() + ids.len() > UNDER_WAY {
                        self.count("too many under way");
                    } else if !ids.is_empty() {
                        ids.truncate(MAX_IDS);
                        under_way.extend(ids.iter().copied());
                        fetches.push(self.pull(&requests, peer, ids));
                    }
                }
            }
        }
    }

    /// Asks the last hop and then other neighbors until nothing is missing, or gives up: a later
    /// sync brings what nobody had.
    async fn pull(&self, requests: &Requests, last_hop: EndpointId, ids: Vec<EventId>) -> Fetched {
        let mut verdicts = Verdicts::default();
        let mut asked = BTreeMap::from([(last_hop, 0)]);
        for attempt in 0..=PAUSES.len() {
            if let Some(pause) = attempt.checked_sub(1).and_then(|n| PAUSES.get(n)) {
                tokio::time::sleep(*pause).await;
            }
            let _permit = match attempt {
                0 => requests.first.acquire().await,
                _ => requests.later.acquire().await,
            };
            // Asked again each time: events also come by gossip and from others.
            let topic = self.state.name().clone();
            let mut wanted = match self.reader.missing(topic, ids.clone()).await {
                Ok(missing) => missing,
                Err(error) => {
                    tracing::warn!(%error, "cannot look up announced events");
                    continue;
                }
            };
            wanted.retain(|id| !verdicts.refused.contains(id));
            if wanted.is_empty() {
                return Fetched { ids, refused: verdicts.refused };
            }
            let peer = self.provider(&mut asked, last_hop);
            match self.fetch(peer, wanted, &mut verdicts).await {
                Ok(0) => self.count("not there"),
                Ok(_) => self.count("fetched"),
                Err(error) => {
                    self.count("failed");
                    tracing::debug!(peer = %peer.fmt_short(), error, "a fetch failed");
                }
            }
        }
        let topic = self.state.name().clone();
        let left = self.reader.missing(topic, ids.clone()).await.map_or(0, |ids| ids.len());
        if left > verdicts.refused.len() {
            self.count("given up");
            tracing::debug!(left, "nobody had some announced events");
        }
        Fetched { ids, refused: verdicts.refused }
    }

    /// The peer asked least often: first the last hop, then one neighbor after the other.
    fn provider(&self, asked: &mut BTreeMap<EndpointId, u32>, last_hop: EndpointId) -> EndpointId {
        for neighbor in self.state.neighbors() {
            asked.entry(neighbor).or_insert(0);
        }
        let least = asked.iter().min_by_key(|(peer, times)| (**times, **peer != last_hop));
        let peer = least.map_or(last_hop, |(peer, _)| *peer);
        *asked.entry(peer).or_insert(0) += 1;
        peer
    }

    /// One request to one peer. Returns how many events came.
    async fn fetch(
        &self,
        peer: EndpointId,
        wanted: Vec<EventId>,
        verdicts: &mut Verdicts,
    ) -> Result<usize, String> {
        let answer = self.ask(peer, &wanted).await?;
        let mut events = pin!(events(answer, wanted.into_iter().collect(), self.max_event_bytes));
        let mut submissions = FuturesUnordered::new();
        let mut came = 0;
        let result = loop {
            tokio::select! {
                Some((id, outcome)) = submissions.next(), if !submissions.is_empty() => {
                    verdicts.note(id, &outcome);
                }
                event = events.next(), if submissions.len() < SUBMISSIONS => match event {
                    Some(Ok(event)) => {
                        came += 1;
                        submissions.push(self.submit(event, peer));
                    }
                    Some(Err(error)) => break Err(error.to_string()),
                    None => break Ok(came),
                },
            }
        };
        while let Some((id, outcome)) = submissions.next().await {
            verdicts.note(id, &outcome);
        }
        result
    }

    async fn ask(&self, peer: EndpointId, wanted: &[EventId]) -> Result<RecvStream, String> {
        let connection = self.connections.to(peer).await?;
        let topic: TopicName = self.state.name().clone();
        let request = wire::encode_request(&Request { topic, ids: wanted.to_vec() });
        let sending = async {
            let (mut send, receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
            send.write_all(&request).await.map_err(|e| e.to_string())?;
            send.finish().map_err(|e| e.to_string())?;
            Ok(receive)
        };
        timeout(STALLED, sending).await.unwrap_or_else(|_| Err("stalled".to_owned()))
    }

    async fn submit(&self, event: Event, peer: EndpointId) -> (EventId, Outcome) {
        let id = event.id;
        let topic = self.state.name().clone();
        let target = Target::Topics(vec![topic.clone()]);
        let origin = Origin::Fetch { topic, peer: peer_id(&peer) };
        (id, self.ingest.submit(Candidate { event, origin, target }).await)
    }

    fn count(&self, cause: &'static str) {
        self.metrics.fetches.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// The events of an answer, until its end or its first fault.
fn events(
    answer: RecvStream,
    wanted: HashSet<EventId>,
    max: usize,
) -> impl Stream<Item = Result<Event, WireError>> {
    stream::unfold(Some((answer, wanted)), move |state| async move {
        let (mut answer, mut wanted) = state?;
        let event = match timeout(STALLED, next(&mut answer, &mut wanted, max)).await {
            Ok(event) => event.transpose()?,
            Err(_) => Err(WireError::Io(io::ErrorKind::TimedOut.into())),
        };
        let state = event.is_ok().then_some((answer, wanted));
        Some((event, state))
    })
}

/// The next event of an answer: one that was asked for, and only once.
async fn next(
    answer: &mut (impl AsyncRead + Unpin),
    wanted: &mut HashSet<EventId>,
    max: usize,
) -> Result<Option<Event>, WireError> {
    let Some(json) = wire::read_event(answer, max).await? else { return Ok(None) };
    if wanted.is_empty() {
        return Err(WireError::TooMany);
    }
    let event = Event::parse(&json).map_err(|error| WireError::Event(error.to_string()))?;
    if wanted.remove(&event.id) { Ok(Some(event)) } else { Err(WireError::NotAsked) }
}

/// What the pipeline said of the events of one announcement.
#[derive(Default)]
struct Verdicts {
    refused: HashSet<EventId>,
    doubted: HashSet<EventId>,
}

impl Verdicts {
    /// Remembers what the gateway does not want. A copy that is invalid says nothing about the real
    /// event, so a second one is asked for; a failure of ours says nothing at all.
    fn note(&mut self, id: EventId, outcome: &Outcome) {
        let is_final = match outcome {
            Outcome::Refused(reason) => match reason.prefix {
                Prefix::Error => false,
                Prefix::Invalid => !self.doubted.insert(id),
                _ => true,
            },
            Outcome::Shadowed => true,
            _ => false,
        };
        if is_final {
            self.refused.insert(id);
        }
    }
}

/// How many requests may be under way.
struct Requests {
    first: Semaphore,
    later: Semaphore,
}

/// How a pull ended: its ids, and those of them that were refused.
struct Fetched {
    ids: Vec<EventId>,
    refused: HashSet<EventId>,
}

/// A bounded set: when it is full it begins anew, and a few events are fetched in vain once more.
#[derive(Default)]
struct Remembered(HashSet<EventId>);

impl Remembered {
    fn contains(&self, id: &EventId) -> bool {
        self.0.contains(id)
    }

    fn insert(&mut self, id: EventId) {
        if self.0.len() >= REFUSED {
            self.0.clear();
        }
        self.0.insert(id);
    }
}
