//! What is known of one topic: its neighbors, who found them, and how each step of discovery went.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use iroh::EndpointId;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::{
    clock::unix_now,
    metrics::{Metrics, TopicLabels},
    protocol::TopicName,
};

/// How many endpoints are remembered with the step that found them.
const MAX_SOURCES: usize = 1_024;
/// Neighbors that arrived and were not looked at; there are never that many.
const MAX_ARRIVED: usize = 64;

/// How we came to know a neighbor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// `discovery.peers`.
    Configured,
    Mdns,
    Dht,
    /// It came to us, or another neighbor introduced it.
    Incoming,
}

/// A step of the discovery ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    DhtLookup,
    DhtPublish,
    Mdns,
    Configured,
}

/// How a step went the last time.
#[derive(Debug, Clone, Serialize)]
pub struct StepResult {
    /// When it ended, in Unix seconds.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    pub ok: bool,
    /// What came of it, in a few words.
    pub result: String,
}

/// Where a topic is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicPhase {
    /// The gossip topic is not subscribed yet.
    Starting,
    /// Subscribed; no step of discovery has ended yet.
    Discovering,
    /// There is at least one neighbor.
    Joined,
    /// Nobody else was found so far, or all are gone. Looking on.
    Alone,
}

/// One topic, for `status`.
#[derive(Debug, Clone, Serialize)]
pub struct TopicStatus {
    pub name: TopicName,
    pub state: TopicPhase,
    pub neighbors: Vec<NeighborStatus>,
    /// What we have is being compared with what a neighbor has.
    pub syncing: bool,
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
    joining_since: Instant,
    known: Mutex<Known>,
    /// How many neighbors there are; wakes whoever waits for the first or the loss of the last.
    count: watch::Sender<usize>,
    /// Something happened that calls for a comparison with neighbors.
    stirred: Notify,
    metrics: std::sync::Arc<Metrics>,
}

#[derive(Default)]
struct Known {
    subscribed: bool,
    neighbors: BTreeSet<EndpointId>,
    sources: HashMap<EndpointId, FoundBy>,
    first_neighbor: Option<Duration>,
    /// When the last neighbor went.
    left_alone: Option<Instant>,
    steps: BTreeMap<Step, StepResult>,
    /// Neighbors that came since [`TopicState::stirred`] was last asked.
    arrived: Vec<EndpointId>,
    /// Messages of gossip were missed since then.
    lagged: bool,
    /// Who has our own protocol beside gossip, as far as it was tried.
    speaks: HashMap<EndpointId, bool>,
    /// Comparisons under way.
    syncing: usize,
}

impl TopicState {
    pub fn new(name: TopicName, metrics: std::sync::Arc<Metrics>) -> Self {
        Self {
            name,
            joining_since: Instant::now(),
            known: Mutex::default(),
            count: watch::Sender::new(0),
            stirred: Notify::new(),
            metrics,
        }
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
        let found_by = known.source(&peer);
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

    /// Counts a comparison that this side leads, from its begin to its end.
    pub fn syncing(&self, begins: bool) {
        let mut known = self.known();
        known.syncing = if begins { known.syncing + 1 } else { known.syncing.saturating_sub(1) };
    }

    pub fn subscribed(&self, yes: bool) {
        self.known().subscribed = yes;
    }

    pub fn step(&self, step: Step, began: Instant, result: Result<String, String>) {
        let took_ms = millis(began.elapsed());
        let (ok, result) = match result {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        tracing::debug!(?step, ok, took_ms, result, "discovery");
        self.known().steps.insert(step, StepResult { at: unix_now(), took_ms, ok, result });
    }

    pub fn status(&self) -> TopicStatus {
        let known = self.known();
        let state = match (known.subscribed, known.neighbors.is_empty(), known.steps.is_empty()) {
            (false, ..) => TopicPhase::Starting,
            (_, false, _) => TopicPhase::Joined,
            (_, true, true) => TopicPhase::Discovering,
            (_, true, false) => TopicPhase::Alone,
        };
        let neighbors = known
            .neighbors
            .iter()
            .map(|id| NeighborStatus { id: id.to_string(), found_by: known.source(id) })
            .collect();
        TopicStatus {
            name: self.name.clone(),
            state,
            neighbors,
            syncing: known.syncing > 0,
            first_neighbor_ms: known.first_neighbor.map(millis),
            steps: known.steps.clone(),
        }
    }

    /// Tells the count to those who wait for it, while the lock still keeps its order.
    fn publish(&self, mut known: MutexGuard<'_, Known>) {
        if known.neighbors.is_empty() {
            known.left_alone = Some(Instant::now());
        }
        if !known.arrived.is_empty() {
            self.stirred.notify_one();
        }
        let count = known.neighbors.len();
        self.count.send_if_modified(|old| std::mem::replace(old, count) != count);
        let labels = TopicLabels { topic: self.name.to_string() };
        self.metrics.neighbors.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
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
mod tests {
    use iroh::SecretKey;

    use super::*;

    #[test]
    fn a_topic_goes_from_starting_to_joined_to_alone() {
        let state = TopicState::new(TopicName::new("t").unwrap(), Default::default());
        let peer = SecretKey::from_bytes(&[1; 32]).public();
        assert_eq!(state.status().state, TopicPhase::Starting);
        state.subscribed(true);
        assert_eq!(state.status().state, TopicPhase::Discovering);
        state.found(peer, FoundBy::Mdns);
        state.found(peer, FoundBy::Dht);
        state.up(peer);
        state.up(peer);
        let status = state.status();
        assert_eq!(status.state, TopicPhase::Joined);
        assert_eq!(status.neighbors.len(), 1);
        assert_eq!(status.neighbors[0].found_by, FoundBy::Mdns, "the first finder counts");
        assert!(status.first_neighbor_ms.is_some());
        state.down(peer);
        state.step(Step::DhtLookup, Instant::now(), Ok("nobody".into()));
        assert_eq!(state.status().state, TopicPhase::Alone);
        assert!(serde_json::to_string(&state.status()).unwrap().contains("dht_lookup"));
    }
}
