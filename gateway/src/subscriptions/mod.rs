//! Who wants what: from an event to the open subscriptions that it concerns.
//!
//! One task follows the log. A subscription carries the log position that its stored events were read
//! at; whatever the log has after it is delivered, and nothing twice. A connection that does not keep
//! up loses no event: its subscriptions leave the index at a known position and come back by reading
//! the log.

mod index;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::unix_now,
    pipeline::{EventReader, LogEntry, Passing, Scope, Seq, SharedViewer},
    protocol::{Event, Filter, TopicName},
};
use index::Index;

/// Deliveries that may wait for one connection.
const QUEUE: usize = 512;
/// Log entries read at once when the tail in memory is too short.
const PAGE: usize = 1_000;
/// Before the log is read again after a failure.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// An event for one subscription.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub subscription: Arc<str>,
    /// Tells a subscription from an earlier one with the same id.
    pub generation: u64,
    pub event: Arc<Event>,
}

/// What one subscription wants.
pub struct Interest {
    pub filters: Vec<Filter>,
    pub scope: Scope,
    /// What its connection may see at all.
    pub viewer: SharedViewer,
}

impl Interest {
    /// Whether a log entry is news for this subscription. `now` is in Unix seconds.
    pub fn wants(&self, entry: &LogEntry, now: u64) -> bool {
        self.scope.sees(entry)
            && self.matches(&entry.event, now)
            && self.scope.may_show(entry, &self.viewer.load())
    }

    fn matches(&self, event: &Event, now: u64) -> bool {
        // A search is answered from what is stored (NIP-50).
        self.filters.iter().any(|filter| filter.search.is_none() && filter.matches(event))
            && !event.is_expired(now)
    }
}

/// The registry of live subscriptions.
pub struct Subscriptions {
    reader: Arc<dyn EventReader>,
    registry: Mutex<Registry>,
}

/// A live subscription.
type Key = (u64, Arc<str>);

struct Registry {
    /// Everything up to here has been delivered.
    position: Seq,
    connections: HashMap<u64, Connection>,
    live: HashMap<Key, Live>,
    index: Index,
}

struct Connection {
    queue: mpsc::Sender<Delivery>,
    lagging: Arc<Notify>,
    /// Its live subscriptions.
    live: HashSet<Arc<str>>,
    /// Subscriptions that left the index, and where.
    lagged: Vec<(Arc<str>, u64, Seq)>,
}

struct Live {
    interest: Arc<Interest>,
    generation: u64,
    /// Nothing up to here is delivered: the stored events had it.
    after: Seq,
}

/// A connection's end of the registry; dropping it removes all its subscriptions.
pub struct Feed {
    connection: u64,
    subscriptions: Arc<Subscriptions>,
    queue: mpsc::Receiver<Delivery>,
    lagging: Arc<Notify>,
}

/// What a feed tells its connection.
#[derive(Debug)]
pub enum News {
    Delivery(Delivery),
    /// The queue was full, and is empty now: see [`Feed::take_lagged`].
    Lagged,
}

/// A subscription that must read on from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lagged {
    pub subscription: Arc<str>,
    pub generation: u64,
    pub after: Seq,
}

impl Subscriptions {
    pub fn new(reader: Arc<dyn EventReader>) -> Arc<Self> {
        let position = *reader.head().borrow();
        let registry = Registry {
            position,
            connections: HashMap::new(),
            live: HashMap::new(),
            index: Index::default(),
        };
        Arc::new(Self { reader, registry: Mutex::new(registry) })
    }

    /// Delivers what is committed and what passes, until the token is cancelled.
    pub async fn run(
        self: Arc<Self>,
        mut passing: broadcast::Receiver<Passing>,
        token: CancellationToken,
    ) {
        let mut head = self.reader.head();
        let mut ephemeral_open = true;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                changed = head.changed() => {
                    if changed.is_err() { return }
                    let newest = *head.borrow_and_update();
                    if let Err(error) = self.catch_up(newest).await {
                        tracing::error!(%error, "live delivery cannot read the log; trying again");
                        tokio::time::sleep(AGAIN).await;
                        head.mark_changed();
                    }
                }
                passed = passing.recv(), if ephemeral_open => match passed {
                    Ok(passed) => self.lock().pass(&passed, unix_now()),
                    Err(broadcast::error::RecvError::Lagged(lost)) => {
                        tracing::warn!(lost, "ephemeral events were lost: too many at once");
                    }
                    Err(broadcast::error::RecvError::Closed) => ephemeral_open = false,
                },
            }
        }
    }

    async fn catch_up(&self, head: Seq) -> Result<(), crate::pipeline::StoreError> {
        loop {
            let position = self.lock().position;
            if position >= head {
                return Ok(());
            }
            let entries = match self.reader.recent_log_after(position) {
                Some(entries) => entries,
                None => self.reader.log_after(position, PAGE).await?,
            };
            let mut registry = self.lock();
            match entries.last() {
                Some(last) => {
                    let last = last.seq;
                    registry.deliver(&entries, unix_now());
                    registry.position = last;
                }
                // What was there is gone again: nothing to deliver.
                None => registry.position = head,
            }
        }
    }

    /// Opens a feed for a connection.
    pub fn connect(self: &Arc<Self>, connection: u64) -> Feed {
        let (sender, queue) = mpsc::channel(QUEUE);
        let lagging = Arc::new(Notify::new());
        let entry = Connection {
            queue: sender,
            lagging: lagging.clone(),
            live: HashSet::new(),
            lagged: Vec::new(),
        };
        self.lock().connections.insert(connection, entry);
        Feed { connection, subscriptions: self.clone(), queue, lagging }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    /// Makes a subscription live: from now on it gets what the log has after `after`.
    ///
    /// Returns what was delivered to others already; the caller sends it first. `None` when that is
    /// no longer in memory: read the log on from `after` and try again.
    pub fn activate(
        &self,
        subscription: &Arc<str>,
        generation: u64,
        interest: &Arc<Interest>,
        after: Seq,
    ) -> Option<Vec<Arc<Event>>> {
        let mut registry = self.subscriptions.lock();
        let mut missed = Vec::new();
        if after < registry.position {
            let now = unix_now();
            let position = registry.position;
            let entries = self.subscriptions.reader.recent_log_after(after)?;
            missed = entries
                .into_iter()
                .filter(|entry| entry.seq <= position && interest.wants(entry, now))
                .map(|entry| entry.event)
                .collect();
        }
        registry.insert((self.connection, subscription.clone()), generation, interest, after);
        Some(missed)
    }

    /// Ends a live subscription. Deliveries that already wait are told apart by their generation.
    pub fn close(&self, subscription: &Arc<str>) {
        let mut registry = self.subscriptions.lock();
        registry.remove(&(self.connection, subscription.clone()));
        if let Some(connection) = registry.connections.get_mut(&self.connection) {
            connection.lagged.retain(|(id, _, _)| id != subscription);
        }
    }

    /// The next delivery, or the news that some were held back. `None` when the registry is gone.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<News> {
        tokio::select! {
            biased;
            delivery = self.queue.recv() => delivery.map(News::Delivery),
            () = self.lagging.notified() => Some(News::Lagged),
        }
    }

    /// The next delivery, if one waits.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.queue.try_recv().ok()
    }

    /// The subscriptions that were taken out because the queue was full.
    pub fn take_lagged(&self) -> Vec<Lagged> {
        let mut registry = self.subscriptions.lock();
        let lagged = registry
            .connections
            .get_mut(&self.connection)
            .map(|connection| std::mem::take(&mut connection.lagged));
        lagged
            .unwrap_or_default()
            .into_iter()
            .map(|(subscription, generation, after)| Lagged { subscription, generation, after })
            .collect()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.subscriptions.lock().disconnect(self.connection);
    }
}

impl Registry {
    fn insert(&mut self, key: Key, generation: u64, interest: &Arc<Interest>, after: Seq) {
        self.remove(&key);
        let Some(connection) = self.connections.get_mut(&key.0) else { return };
        connection.live.insert(key.1.clone());
        self.index.insert(&key, &interest.filters);
        self.live.insert(key, Live { interest: interest.clone(), generation, after });
    }

    fn remove(&mut self, key: &Key) -> Option<Live> {
        let live = self.live.remove(key)?;
        self.index.remove(key, &live.interest.filters);
        if let Some(connection) = self.connections.get_mut(&key.0) {
            connection.live.remove(&key.1);
        }
        Some(live)
    }

    fn disconnect(&mut self, connection: u64) {
        let Some(Connection { live, .. }) = self.connections.remove(&connection) else { return };
        for subscription in live {
            self.remove(&(connection, subscription));
        }
    }

    fn deliver(&mut self, entries: &[LogEntry], now: u64) {
        for entry in entries {
            for key in self.index.candidates(&entry.event) {
                let Some(live) = self.live.get(&key) else { continue };
                if entry.seq > live.after && live.interest.wants(entry, now) {
                    self.send(&key, &entry.event, Some(entry.seq));
                }
            }
        }
    }

    fn pass(&mut self, passed: &Passing, now: u64) {
        let event = passed.event.shared();
        let in_topic = |name: &TopicName| passed.topics.contains(name);
        for key in self.index.candidates(event) {
            let Some(live) = self.live.get(&key) else { continue };
            let in_scope = match &live.interest.scope {
                Scope::All => passed.first && !passed.private,
                Scope::Topic(name) => in_topic(name),
            };
            let interest = &live.interest;
            if in_scope && interest.matches(event, now) && interest.viewer.load().may_read(event) {
                self.send(&key, event, None);
            }
        }
    }

    /// Queues a delivery. When the queue is full, a stored event (`seq`) takes the subscription out of
    /// the index; an ephemeral one is lost.
    fn send(&mut self, key: &Key, event: &Arc<Event>, seq: Option<Seq>) {
        let (Some(connection), Some(live)) = (self.connections.get_mut(&key.0), self.live.get(key))
        else {
            return;
        };
        let generation = live.generation;
        let delivery = Delivery { subscription: key.1.clone(), generation, event: event.clone() };
        if connection.queue.try_send(delivery).is_err()
            && let Some(seq) = seq
        {
            connection.lagged.push((key.1.clone(), generation, seq - 1));
            connection.lagging.notify_one();
            self.remove(key);
        }
    }
}
