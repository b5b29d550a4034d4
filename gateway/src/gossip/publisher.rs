//! Carries what was committed into the topics: follows the store's log from a cursor of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::outbound::Outgoing;
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics},
    pipeline::{EventReader, LogEntry, Passing, Seq, origin::swarm_name},
    protocol::{Event, TopicName, frame::MAX_GOSSIP_BYTES, kinds},
};

/// Log entries read at a time.
const PAGE: usize = 500;

/// Topics that are being joined or left at once; more of them wait.
const CHANGES: usize = 8;

/// How often a topic that fell behind is tried again, and the log when it could not be read.
const BEHIND: Duration = Duration::from_millis(100);

/// Without neighbors for this long a topic is alone. For a moment it is so whenever gossip is replaced.
const ALONE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Follows the log for all topics. One topic that is stuck does not hold up the others: it is left
/// behind, and catches up from the log later.
pub struct Publisher {
    reader: Arc<dyn EventReader>,
    head: watch::Receiver<Seq>,
    passing: broadcast::Receiver<Passing>,
    changes: mpsc::Receiver<Change>,
    lanes: BTreeMap<TopicName, Lane>,
    cursor: Seq,
    metrics: Arc<Metrics>,
}

/// Opens and closes the ways into the topics while the publisher runs. Cheap to clone.
#[derive(Clone)]
pub struct Lanes(mpsc::Sender<Change>);

struct Change {
    topic: TopicName,
    /// The way into it, and how many neighbors are there; `None` when it is left.
    way: Option<(mpsc::Sender<Outgoing>, watch::Receiver<usize>)>,
    done: oneshot::Sender<()>,
}

impl Lanes {
    /// After this returns, all that is committed for the topic goes into the queue. What has no room
    /// there while there are no neighbors for long is left out: the comparison with the first that comes
    /// has it.
    pub async fn open(
        &self,
        topic: TopicName,
        queue: mpsc::Sender<Outgoing>,
        neighbors: watch::Receiver<usize>,
    ) {
        self.change(topic, Some((queue, neighbors))).await;
    }

    /// Forgets a topic that was left.
    pub async fn close(&self, topic: TopicName) {
        self.change(topic, None).await;
    }

    /// At shutdown there is nobody to change anything.
    async fn change(
        &self,
        topic: TopicName,
        way: Option<(mpsc::Sender<Outgoing>, watch::Receiver<usize>)>,
    ) {
        let (done, changed) = oneshot::channel();
        if self.0.send(Change { topic, way, done }).await.is_ok() {
            let _ = changed.await;
        }
    }
}

/// The way into one topic.
struct Lane {
    topic: TopicName,
    /// The log's name for what the topic itself brought.
    swarm: String,
    queue: mpsc::Sender<Outgoing>,
    neighbors: watch::Receiver<usize>,
    /// Since when there are none.
    lonely: Option<Instant>,
    /// The last position handed over, if the topic is behind the common cursor.
    behind: Option<Seq>,
}

impl Publisher {
    /// Starts at the log's head, in no topic: what is older, the topics have had their chance to
    /// hear.
    pub fn new(
        reader: Arc<dyn EventReader>,
        passing: broadcast::Receiver<Passing>,
        metrics: Arc<Metrics>,
    ) -> (Self, Lanes) {
        let (lanes, changes) = mpsc::channel(CHANGES);
        // This very receiver is waited on later: a commit in between must wake us.
        let mut head = reader.head();
        let cursor = *head.borrow_and_update();
        let publisher =
            Self { reader, head, passing, changes, lanes: BTreeMap::new(), cursor, metrics };
        (publisher, Lanes(lanes))
    }

    /// Follows the log until shutdown.
    pub async fn run(mut self, token: CancellationToken) {
        let mut passing_ended = false;
        loop {
            let is_behind = self.lanes.values().any(|lane| lane.behind.is_some());
            tokio::select! {
                () = token.cancelled() => return,
                changed = self.head.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let newest = *self.head.borrow_and_update();
                    self.advance(newest).await;
                }
                event = self.passing.recv(), if !passing_ended => match event {
                    Ok(event) => self.pass(&event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.dropped("ephemeral lagged"),
                    Err(broadcast::error::RecvError::Closed) => passing_ended = true,
                },
                Some(change) = self.changes.recv() => self.change(change),
                () = tokio::time::sleep(BEHIND), if is_behind => {}
            }
            self.catch_up().await;
        }
    }

    fn change(&mut self, Change { topic, way, done }: Change) {
        match way {
            Some((queue, neighbors)) => {
                let swarm = swarm_name(&topic);
                let name = topic.clone();
                let lane = Lane { topic, swarm, queue, neighbors, lonely: None, behind: None };
                self.lanes.insert(name, lane);
            }
            None => drop(self.lanes.remove(&topic)),
        }
        // Whoever asked may have gone.
        let _ = done.send(());
    }

    /// Hands everything up to `newest` to the topics that keep up.
    async fn advance(&mut self, newest: Seq) {
        while self.cursor < newest {
            let entries = match self.reader.recent_log_after(self.cursor) {
                Some(entries) => entries,
                None => match self.reader.log_after(self.cursor, PAGE).await {
                    Ok(entries) => entries,
                    Err(error) => {
                        tracing::warn!(%error, "cannot read the log for the topics; trying again");
                        tokio::time::sleep(BEHIND).await;
                        self.head.mark_changed();
                        return;
                    }
                },
            };
            let now = unix_now();
            for entry in &entries {
                if let Some(lane) = entry.topic.as_ref().and_then(|t| self.lanes.get_mut(t))
                    && lane.behind.is_none()
                    && !lane.offer(entry, now)
                {
                    lane.behind = Some(entry.seq - 1);
                }
            }
            // An empty answer means that all events up to the head are gone again.
            self.cursor = entries.last().map_or(newest, |entry| entry.seq);
        }
    }

    /// Reads on for the topics that were left behind and have room again.
    async fn catch_up(&mut self) {
        let now = unix_now();
        for lane in self.lanes.values_mut() {
            let is_alone = lane.is_alone();
            // A page for each topic and turn, so that one long way back does not hold up the rest.
            let Some(at) = lane.behind else { continue };
            if is_alone {
                lane.behind = None;
                continue;
            }
            if lane.queue.capacity() < lane.queue.max_capacity() / 2 {
                continue;
            }
            let entries = match self.reader.log_after(at, PAGE).await {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::warn!(%error, topic = %lane.topic, "cannot read the log");
                    continue;
                }
            };
            // Beyond the common cursor the entries are handed over with those of the other topics.
            let mut due = entries.iter().take_while(|entry| entry.seq <= self.cursor);
            lane.behind = match due.find(|entry| !lane.offer(entry, now)) {
                Some(full) => Some(full.seq - 1),
                None => {
                    let reached = entries.last().map_or(self.cursor, |entry| entry.seq);
                    (reached < self.cursor).then_some(reached)
                }
            };
        }
    }

    /// Ephemeral events are best effort: what does not fit at once is gone.
    fn pass(&self, passing: &Passing) {
        let now = unix_now();
        for topic in passing.topics.iter() {
            let Some(lane) = self.lanes.get(topic) else { continue };
            if passing.origin.topic() == Some(topic) || is_barred(&passing.event, now) {
                continue;
            }
            if passing.event.json().len() > MAX_GOSSIP_BYTES {
                self.dropped("ephemeral too long");
            } else if lane.queue.try_send(outgoing(passing.event.shared(), true)).is_err() {
                self.dropped("ephemeral, queue full");
            }
        }
    }

    fn dropped(&self, cause: &'static str) {
        self.metrics.frames_dropped.get_or_create(&CauseLabels { cause }).inc();
    }
}

impl Lane {
    /// Whether nobody is there, and was not lately. Whoever comes compares what both have, and is not
    /// told of a long time event by event as well.
    fn is_alone(&mut self) -> bool {
        if *self.neighbors.borrow() > 0 {
            self.lonely = None;
            return false;
        }
        self.lonely.get_or_insert_with(Instant::now).elapsed() >= ALONE
    }

    /// Hands an entry over if it is for this topic. False when it has to wait for room.
    fn offer(&self, entry: &LogEntry, now: u64) -> bool {
        if entry.topic.as_ref() != Some(&self.topic)
            || *entry.origin == *self.swarm
            || is_barred(&entry.event, now)
        {
            return true;
        }
        // A closed queue is a topic that is being left: nothing waits for it.
        let sent = self.queue.try_send(outgoing(&entry.event, false));
        !matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
    }
}

fn is_barred(event: &Event, now: u64) -> bool {
    kinds::barred_from_public_topics(event, now).is_some()
}

fn outgoing(event: &Arc<Event>, is_ephemeral: bool) -> Outgoing {
    Outgoing { event: Arc::clone(event), is_ephemeral, since: Instant::now() }
}
