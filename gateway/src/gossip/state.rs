//! What is known of one topic: its neighbors, who found them, and how each step of discovery went.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use iroh::{
    EndpointId,
    endpoint::{Connection, RecvStream, SendStream},
};
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::{
    ladder::{FoundBy, Step, StepResult},
    phase::TopicPhase,
    private::{self, Circle},
};
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics, TopicLabels, WayLabels},
    pipeline::HowJoined,
    protocol::TopicName,
};

/// How many endpoints are remembered with the step that found them.
const MAX_SOURCES: usize = 1_024;
/// Neighbors that arrived and were not looked at; there are never that many.
const MAX_ARRIVED: usize = 64;

/// How long a topic that lost its last neighbor counts as cut off. After that it is alone: nobody
/// may have been left.
const CUT_OFF: Duration = Duration::from_secs(300);

/// What a topic is busy with for a while, beside its everyday life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Sync,
    Rotation,
}

/// The topic is busy as long as this lives.
pub struct Busy {
    state: Arc<TopicState>,
    work: Work,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.known().busy(self.work, |count| count.saturating_sub(1));
    }
}

/// One topic, for `status`.
#[derive(Debug, Clone, Serialize)]
pub struct TopicStatus {
    pub name: TopicName,
    pub private: bool,
    pub how: HowJoined,
    /// Unix seconds.
    pub joined_at: u64,
    pub state: TopicPhase,
    /// Why it failed.
    pub reason: Option<String>,
    pub neighbors: Vec<NeighborStatus>,
    /// From joining to the first neighbor, in milliseconds.
    pub first_neighbor_ms: Option<u64>,
    pub steps: BTreeMap<Step, StepResult>,
}

/// One neighbor, for `status`.
#[derive(Debug, Clone, Serialize)]
pub struct NeighborStatus {
    /// Its endpoint id, hexadecimal.
    pub id: String,
    pub found_by: FoundBy,
}

/// Shared by the tasks of one topic.
pub struct TopicState {
    name: TopicName,
    /// The members, if the topic is private.
    circle: Option<Arc<Circle>>,
    joining_since: Instant,
    known: Mutex<Known>,
    /// How many neighbors there are; wakes whoever waits for the first or the loss of the last.
    count: watch::Sender<usize>,
    /// Something happened that calls for a comparison with neighbors.
    stirred: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Known {
    subscribed: bool,
    /// Why subscribing failed the last time.
    failure: Option<String>,
    /// The swarms of a private topic's epochs, each with its neighbors.
    swarms: BTreeMap<u64, BTreeSet<EndpointId>>,
    syncs: usize,
    rotations: usize,
    neighbors: BTreeSet<EndpointId>,
    sources: HashMap<EndpointId, FoundBy>,
    first_neighbor: Option<Duration>,
    /// When the last neighbor went.
    left_alone: Option<Instant>,
    steps: BTreeMap<Step, StepResult>,
    /// How many neighbors came by each way.
    came_by: BTreeMap<FoundBy, u64>,
    /// Neighbors that came since [`TopicState::stirred`] was last asked.
    arrived: Vec<EndpointId>,
    /// Messages of gossip were missed since then.
    lagged: bool,
    /// Who has our own protocol beside gossip, as far as it was tried.
    speaks: HashMap<EndpointId, bool>,
    /// The topic was left: it is in no figures any more.
    is_over: bool,
}

impl TopicState {
    pub fn new(name: TopicName, metrics: Arc<Metrics>) -> Self {
        Self {
            name,
            circle: None,
            joining_since: Instant::now(),
            known: Mutex::default(),
            count: watch::Sender::new(0),
            stirred: Notify::new(),
            metrics,
        }
    }

    /// Counts a frame that is not sent.
    pub fn frame_dropped(&self, cause: &'static str) {
        self.metrics.frames_dropped.get_or_create(&CauseLabels { cause }).inc();
    }

    pub fn private(circle: Arc<Circle>, metrics: Arc<Metrics>) -> Self {
        let name = circle.topic().name.clone();
        Self { circle: Some(circle), ..Self::new(name, metrics) }
    }

    /// The members of a private topic.
    pub fn circle(&self) -> Option<&Arc<Circle>> {
        self.circle.as_ref()
    }

    /// Opens a stream for a request about this topic. Of a private one, only a member answers.
    ///
    /// # Errors
    /// When the stream breaks, or the other side is no member; the text is for a debug log.
    pub async fn open(&self, connection: &Connection) -> Result<(SendStream, RecvStream), String> {
        match &self.circle {
            None => connection.open_bi().await.map_err(|error| error.to_string()),
            Some(circle) => {
                private::call(circle, connection).await.map_err(|error| error.to_string())
            }
        }
    }

    /// Takes over the neighbors that one epoch's swarm has now, or none when it was left. The newest
    /// swarm also says how the topic is doing. Swarms are numbered as they begin.
    pub fn mirror(&self, number: u64, swarm: Option<&Self>) {
        let seen = swarm.map(|swarm| {
            let seen = swarm.known();
            (
                seen.neighbors.clone(),
                seen.sources.clone(),
                seen.subscribed,
                seen.failure.clone(),
                seen.steps.clone(),
            )
        });
        let mut known = self.known();
        match seen {
            Some((neighbors, sources, subscribed, failure, steps)) => {
                for id in &neighbors {
                    let source = sources.get(id).copied().unwrap_or(FoundBy::Incoming);
                    known.sources.entry(*id).or_insert(source);
                }
                if known.sources.len() > MAX_SOURCES {
                    known.sources = sources;
                }
                known.swarms.insert(number, neighbors);
                if known.swarms.keys().next_back() == Some(&number) {
                    known.subscribed = subscribed;
                    known.failure = failure;
                    known.steps.extend(steps);
                }
            }
            None => drop(known.swarms.remove(&number)),
        }
        let all: BTreeSet<_> = known.swarms.values().flatten().copied().collect();
        if known.first_neighbor.is_none() && !all.is_empty() {
            known.first_neighbor = Some(self.joining_since.elapsed());
        }
        let before = std::mem::replace(&mut known.neighbors, all);
        let new: Vec<_> = known.neighbors.difference(&before).copied().collect();
        for peer in new {
            self.came(&mut known, &peer);
            known.arrive(peer);
        }
        self.publish(known);
    }

    /// Neighbors came to one epoch's swarm, also if they are in that of another.
    pub fn arrived(&self, peers: impl IntoIterator<Item = EndpointId>) {
        let mut known = self.known();
        peers.into_iter().for_each(|peer| known.arrive(peer));
        self.publish(known);
    }

    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// The number of neighbors, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    pub fn neighbors(&self) -> Vec<EndpointId> {
        self.known().neighbors.iter().copied().collect()
    }

    /// The neighbors, each with who found it.
    pub fn sources(&self) -> Vec<(EndpointId, FoundBy)> {
        let known = self.known();
        known.neighbors.iter().map(|id| (*id, known.source(id))).collect()
    }

    /// Who found an endpoint, if anybody has.
    pub fn found_by(&self, peer: &EndpointId) -> Option<FoundBy> {
        self.known().sources.get(peer).copied()
    }

    /// How long there has been no neighbor; zero while there is one.
    pub fn alone_for(&self) -> Duration {
        let known = self.known();
        match known.neighbors.is_empty() {
            true => known.left_alone.unwrap_or(self.joining_since).elapsed(),
            false => Duration::ZERO,
        }
    }

    /// Takes note of who found an endpoint. The first finder counts.
    pub fn found(&self, peer: EndpointId, by: FoundBy) {
        let mut known = self.known();
        if known.sources.len() < MAX_SOURCES || known.sources.contains_key(&peer) {
            known.sources.entry(peer).or_insert(by);
        }
    }

    pub fn up(&self, peer: EndpointId) {
        let mut known = self.known();
        if !known.neighbors.insert(peer) {
            return;
        }
        known.arrive(peer);
        let found_by = self.came(&mut known, &peer);
        if known.first_neighbor.is_none() {
            let took = self.joining_since.elapsed();
            known.first_neighbor = Some(took);
            let took_ms = millis(took);
            tracing::info!(peer = %peer.fmt_short(), ?found_by, took_ms, "first neighbor");
        } else if known.neighbors.len() == 1 {
            tracing::info!(peer = %peer.fmt_short(), ?found_by, "a neighbor again");
        } else {
            tracing::debug!(peer = %peer.fmt_short(), ?found_by, "neighbor up");
        }
        self.publish(known);
    }

    /// Counts a new neighbor for whoever found it.
    fn came(&self, known: &mut Known, peer: &EndpointId) -> FoundBy {
        let found_by = known.source(peer);
        *known.came_by.entry(found_by).or_default() += 1;
        self.metrics.neighbors_found.get_or_create(&WayLabels { by: found_by.name() }).inc();
        found_by
    }

    pub fn down(&self, peer: EndpointId) {
        let mut known = self.known();
        if !known.neighbors.remove(&peer) {
            return;
        }
        if known.neighbors.is_empty() {
            tracing::info!(peer = %peer.fmt_short(), "the last neighbor is gone; looking for others");
        } else {
            tracing::debug!(peer = %peer.fmt_short(), "neighbor down");
        }
        self.publish(known);
    }

    /// Replaces all neighbors, after a subscription was made anew.
    pub fn reset(&self, neighbors: impl IntoIterator<Item = EndpointId>) {
        let mut known = self.known();
        let before = std::mem::replace(&mut known.neighbors, neighbors.into_iter().collect());
        let new: Vec<_> = known.neighbors.difference(&before).copied().collect();
        new.into_iter().for_each(|peer| known.arrive(peer));
        self.publish(known);
    }

    /// The topic was left. Takes it out of all figures, for good: what of it ends late does not bring
    /// it back.
    pub fn over(&self) {
        let mut known = self.known();
        known.is_over = true;
        let states = TopicPhase::ALL.map(TopicPhase::name);
        self.metrics.forget_topic(self.name.as_str(), &states);
    }

    /// Messages of gossip were missed.
    pub fn lagged(&self) {
        self.known().lagged = true;
        self.stirred.notify_one();
    }

    /// Waits until neighbors arrived or messages were missed. Returns the neighbors, and whether
    /// messages were missed. For one caller; cancel safe.
    pub async fn stirred(&self) -> (Vec<EndpointId>, bool) {
        loop {
            let told = self.stirred.notified();
            {
                let mut known = self.known();
                let arrived = std::mem::take(&mut known.arrived);
                let lagged = std::mem::take(&mut known.lagged);
                if lagged || !arrived.is_empty() {
                    return (arrived, lagged);
                }
            }
            told.await;
        }
    }

    /// Takes note of whether a peer has our own protocol beside gossip.
    pub fn speaks(&self, peer: EndpointId, yes: bool) {
        let mut known = self.known();
        if known.speaks.len() >= MAX_SOURCES && !known.speaks.contains_key(&peer) {
            known.speaks.clear();
        }
        known.speaks.insert(peer, yes);
    }

    /// Whether a peer has our own protocol beside gossip; `None` while it was not tried. One that has
    /// not can fetch nothing.
    pub fn speaks_sync(&self, peer: &EndpointId) -> Option<bool> {
        self.known().speaks.get(peer).copied()
    }

    /// Whether there is a neighbor that only understands whole events, or may be one: it was not
    /// tried yet.
    pub fn has_deaf_neighbor(&self) -> bool {
        let known = self.known();
        known.neighbors.iter().any(|peer| known.speaks.get(peer) != Some(&true))
    }

    pub fn subscribed(&self, yes: bool) {
        let mut known = self.known();
        known.subscribed = yes;
        if yes {
            known.failure = None;
        }
    }

    /// Subscribing failed.
    pub fn failed(&self, why: &str) {
        self.known().failure = Some(why.to_owned());
    }

    /// The topic counts as busy until the answer is dropped.
    pub fn busy(self: &Arc<Self>, work: Work) -> Busy {
        self.known().busy(work, |count| count + 1);
        Busy { state: self.clone(), work }
    }

    pub fn step(&self, step: Step, began: Instant, result: Result<String, String>) {
        let took_ms = millis(began.elapsed());
        let (ok, result) = match result {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        tracing::debug!(?step, ok, took_ms, result, "discovery");
        let at = unix_now();
        self.metrics.discovery_step(step.name(), ok, began.elapsed(), at);
        let mut known = self.known();
        let before = known.steps.get(&step);
        let (attempts, failures) = before.map_or((0, 0), |b| (b.attempts, b.failures));
        let error = if ok { before.and_then(|b| b.error.clone()) } else { Some(result.clone()) };
        let result = StepResult {
            at,
            took_ms,
            ok,
            result,
            attempts: attempts + 1,
            failures: failures + u64::from(!ok),
            neighbors: 0,
            error,
        };
        known.steps.insert(step, result);
    }

    pub fn phase(&self) -> TopicPhase {
        self.known().phase()
    }

    /// The topic as `how` and `joined_at` (Unix seconds) say it came to be joined.
    pub fn status(&self, how: HowJoined, joined_at: u64) -> TopicStatus {
        let known = self.known();
        let neighbors = known
            .neighbors
            .iter()
            .map(|id| NeighborStatus { id: id.to_string(), found_by: known.source(id) })
            .collect();
        TopicStatus {
            name: self.name.clone(),
            private: self.circle.is_some(),
            how,
            joined_at,
            state: known.phase(),
            reason: known.failure.clone(),
            neighbors,
            first_neighbor_ms: known.first_neighbor.map(millis),
            steps: known.steps(),
        }
    }

    /// Tells the count to those who wait for it, while the lock still keeps its order.
    fn publish(&self, mut known: MutexGuard<'_, Known>) {
        // Only whoever had a neighbor can have lost it.
        if known.neighbors.is_empty() && *self.count.borrow() > 0 {
            known.left_alone = Some(Instant::now());
        }
        if !known.arrived.is_empty() {
            self.stirred.notify_one();
        }
        let count = known.neighbors.len();
        self.count.send_if_modified(|old| std::mem::replace(old, count) != count);
        if known.is_over {
            return;
        }
        let labels = TopicLabels { topic: self.name.to_string() };
        self.metrics.neighbors.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn phase(&self) -> TopicPhase {
        let cut_off = self.left_alone.is_some_and(|at| at.elapsed() < CUT_OFF);
        match () {
            () if self.failure.is_some() => TopicPhase::Failed,
            () if !self.subscribed => TopicPhase::Starting,
            () if self.rotations > 0 => TopicPhase::Rotating,
            () if !self.neighbors.is_empty() && self.syncs > 0 => TopicPhase::Syncing,
            () if !self.neighbors.is_empty() => TopicPhase::Joined,
            () if cut_off => TopicPhase::Disconnected,
            () if self.steps.is_empty() => TopicPhase::Discovering,
            () => TopicPhase::Alone,
        }
    }

    fn steps(&self) -> BTreeMap<Step, StepResult> {
        let mut steps = self.steps.clone();
        for (step, result) in &mut steps {
            let came = step.finds().and_then(|by| self.came_by.get(&by));
            result.neighbors = came.copied().unwrap_or(0);
        }
        steps
    }

    fn busy(&mut self, work: Work, change: impl Fn(usize) -> usize) {
        let count = match work {
            Work::Sync => &mut self.syncs,
            Work::Rotation => &mut self.rotations,
        };
        *count = change(*count);
    }

    fn arrive(&mut self, peer: EndpointId) {
        if self.arrived.len() < MAX_ARRIVED && !self.arrived.contains(&peer) {
            self.arrived.push(peer);
        }
    }

    fn source(&self, peer: &EndpointId) -> FoundBy {
        self.sources.get(peer).copied().unwrap_or(FoundBy::Incoming)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
