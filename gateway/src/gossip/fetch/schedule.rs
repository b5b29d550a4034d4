//! Which announced ids are asked for next, and whom. Everything is bounded, and announcements of
//! what nobody has cannot hold up the others: first attempts have room of their own, and what waits
//! for another attempt takes none of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use iroh::EndpointId;
use tokio::time::Instant;

use super::wire::MAX_IDS;
use crate::{
    metrics::{CauseLabels, Metrics},
    pipeline::Outcome,
    protocol::{EventId, Prefix},
};

/// Requests of one topic at once: first attempts, and those after a pause.
const FIRST_REQUESTS: usize = 8;
const LATER_REQUESTS: usize = 4;
/// Requests of one topic to one peer at once: one that answers slowly leaves room for the others.
const PEER_REQUESTS: usize = 2;
/// Pulls of one topic that wait for their first attempt, and those of them by one last hop. Beyond
/// that the oldest waits among the retries, where others are asked as well.
const FRESH: usize = 256;
const PEER_FRESH: usize = 64;
/// Pulls of one topic that wait for another attempt; beyond that the oldest is dropped.
const RETRIES: usize = 256;
/// Ids of one topic that are being fetched; beyond that the oldest retries are dropped.
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

/// Ids that are asked for together.
struct Pull {
    last_hop: EndpointId,
    ids: Vec<EventId>,
    attempts: usize,
    asked: BTreeMap<EndpointId, u32>,
    /// Peers that lied or have nothing of value left.
    distrusted: HashSet<EndpointId>,
    /// Who sent an invalid copy of what.
    doubted: HashSet<(EndpointId, EventId)>,
}

impl Pull {
    fn new(last_hop: EndpointId, ids: Vec<EventId>) -> Self {
        Self {
            last_hop,
            ids,
            attempts: 0,
            asked: BTreeMap::from([(last_hop, 0)]),
            distrusted: HashSet::new(),
            doubted: HashSet::new(),
        }
    }

    /// The free peer asked least often: first the last hop, then one neighbor after the other.
    fn provider(
        &mut self,
        neighbors: &[EndpointId],
        is_free: impl Fn(&EndpointId) -> bool,
    ) -> Provider {
        for neighbor in neighbors {
            self.asked.entry(*neighbor).or_insert(0);
        }
        let trusted = || self.asked.iter().filter(|(peer, _)| !self.distrusted.contains(*peer));
        let least = trusted()
            .filter(|(peer, _)| is_free(peer))
            .min_by_key(|(peer, times)| (**times, **peer != self.last_hop));
        match least {
            Some((peer, _)) => Provider::Peer(*peer),
            None if trusted().next().is_some() => Provider::Busy,
            None => Provider::Nobody,
        }
    }
}

enum Provider {
    Peer(EndpointId),
    Busy,
    Nobody,
}

/// One request to one peer.
pub struct Job {
    pull: Pull,
    peer: EndpointId,
    is_first: bool,
    /// Ids that need no further attempt; those of them that the gateway does not want.
    settled: HashSet<EventId>,
    refused: Vec<EventId>,
}

impl Job {
    pub const fn peer(&self) -> EndpointId {
        self.peer
    }

    pub fn ids(&self) -> &[EventId] {
        &self.pull.ids
    }

    /// Settles all ids but these.
    pub fn keep(&mut self, missing: &HashSet<EventId>) {
        self.settled.extend(self.pull.ids.iter().filter(|id| !missing.contains(*id)));
    }

    /// What to ask this peer for. If that is nothing it is not asked again.
    pub fn wanted(&mut self) -> Vec<EventId> {
        let open = self.pull.ids.iter().filter(|id| !self.settled.contains(*id));
        let wanted: Vec<_> =
            open.filter(|id| !self.pull.doubted.contains(&(self.peer, **id))).copied().collect();
        if wanted.is_empty() {
            self.distrust();
        }
        wanted
    }

    /// Asks this peer no more for these ids.
    pub fn distrust(&mut self) {
        self.pull.distrusted.insert(self.peer);
    }

    /// Asks this peer no more for this id.
    pub fn doubt(&mut self, id: EventId) {
        self.pull.doubted.insert((self.peer, id));
    }

    /// Takes note of what the pipeline said. A copy that is invalid says nothing about the real
    /// event, which others may have; a failure of ours says nothing at all.
    pub fn note(&mut self, id: EventId, outcome: &Outcome) {
        match outcome {
            Outcome::Refused(reason) if reason.prefix == Prefix::Error => return,
            Outcome::Refused(reason) if reason.prefix == Prefix::Invalid => {
                self.pull.doubted.insert((self.peer, id));
                return;
            }
            Outcome::Refused(_) | Outcome::Shadowed => self.refused.push(id),
            Outcome::Stored(_) | Outcome::Joined(_) | Outcome::Duplicate | Outcome::Passed => {}
        }
        self.settled.insert(id);
    }
}

/// The announced ids of one topic.
pub struct Schedule {
    /// Waiting for their first attempt, oldest first.
    fresh: VecDeque<Pull>,
    /// Waiting for another, and since when they may have it.
    retries: VecDeque<(Instant, Pull)>,
    under_way: HashSet<EventId>,
    refused: Remembered,
    /// Requests under way.
    first: usize,
    later: usize,
    busy: HashMap<EndpointId, usize>,
    metrics: Arc<Metrics>,
}

impl Schedule {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            fresh: VecDeque::new(),
            retries: VecDeque::new(),
            under_way: HashSet::new(),
            refused: Remembered::default(),
            first: 0,
            later: 0,
            busy: HashMap::new(),
            metrics,
        }
    }

    /// Takes an announcement.
    pub fn add(&mut self, last_hop: EndpointId, mut ids: Vec<EventId>, now: Instant) {
        ids.truncate(MAX_IDS);
        ids.retain(|id| !self.refused.contains(id) && self.under_way.insert(*id));
        if ids.is_empty() {
            return;
        }
        while self.under_way.len() > UNDER_WAY {
            let oldest = self.retries.pop_front().map(|(_, pull)| pull);
            let Some(oldest) = oldest.or_else(|| self.fresh.pop_front()) else { break };
            self.drop(&oldest, "too many under way");
        }
        let of_this_peer = |pull: &Pull| pull.last_hop == last_hop;
        let excess = if self.fresh.iter().filter(|pull| of_this_peer(pull)).count() >= PEER_FRESH {
            self.fresh.iter().position(of_this_peer)
        } else {
            (self.fresh.len() >= FRESH).then_some(0)
        };
        if let Some(pull) = excess.and_then(|at| self.fresh.remove(at)) {
            self.retry(now, pull);
        }
        self.fresh.push_back(Pull::new(last_hop, ids));
    }

    /// The next request that may begin, if any.
    pub fn start(&mut self, neighbors: &[EndpointId], now: Instant) -> Option<Job> {
        if self.first < FIRST_REQUESTS
            && let Some(at) = self.fresh.iter().position(|pull| self.is_free(&pull.last_hop))
            && let Some(mut pull) = self.fresh.remove(at)
        {
            self.merge(&mut pull);
            let peer = pull.last_hop;
            return Some(self.launch(pull, peer, true));
        }
        let mut at = 0;
        while self.later < LATER_REQUESTS && at < self.retries.len() {
            let busy = &self.busy;
            let is_free = |peer: &EndpointId| has_room(busy, peer);
            let provider = match self.retries.get_mut(at) {
                Some((due, pull)) if *due <= now => pull.provider(neighbors, is_free),
                _ => Provider::Busy,
            };
            match provider {
                Provider::Busy => at += 1,
                Provider::Peer(peer) => {
                    let (_, pull) = self.retries.remove(at)?;
                    return Some(self.launch(pull, peer, false));
                }
                Provider::Nobody => {
                    let (_, pull) = self.retries.remove(at)?;
                    self.drop(&pull, "given up");
                }
            }
        }
        None
    }

    /// When something may begin that waits for nothing but the time.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        self.retries.iter().map(|(due, _)| *due).filter(|due| *due > now).min()
    }

    /// Takes a request back.
    pub fn ended(&mut self, job: Job, now: Instant) {
        let Job { mut pull, peer, is_first, settled, refused } = job;
        let running = if is_first { &mut self.first } else { &mut self.later };
        *running -= 1;
        if let Some(count) = self.busy.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&peer);
            }
        }
        settled.iter().for_each(|id| {
            self.under_way.remove(id);
        });
        refused.into_iter().for_each(|id| self.refused.insert(id));
        pull.ids.retain(|id| !settled.contains(id));
        if pull.ids.is_empty() {
            return;
        }
        match pull.attempts.checked_sub(1).and_then(|n| PAUSES.get(n)) {
            Some(pause) => self.retry(now + *pause, pull),
            None => self.drop(&pull, "given up"),
        }
    }

    /// Small announcements of one peer go into one request.
    fn merge(&mut self, pull: &mut Pull) {
        self.fresh.retain(|other| {
            let fits =
                other.last_hop == pull.last_hop && pull.ids.len() + other.ids.len() <= MAX_IDS;
            if fits {
                pull.ids.extend_from_slice(&other.ids);
            }
            !fits
        });
    }

    fn launch(&mut self, mut pull: Pull, peer: EndpointId, is_first: bool) -> Job {
        *if is_first { &mut self.first } else { &mut self.later } += 1;
        *self.busy.entry(peer).or_insert(0) += 1;
        *pull.asked.entry(peer).or_insert(0) += 1;
        pull.attempts += 1;
        Job { pull, peer, is_first, settled: HashSet::new(), refused: Vec::new() }
    }

    fn retry(&mut self, due: Instant, pull: Pull) {
        if self.retries.len() >= RETRIES
            && let Some((_, oldest)) = self.retries.pop_front()
        {
            self.drop(&oldest, "too many retries");
        }
        self.retries.push_back((due, pull));
    }

    fn drop(&mut self, pull: &Pull, cause: &'static str) {
        pull.ids.iter().for_each(|id| {
            self.under_way.remove(id);
        });
        self.metrics.fetches.get_or_create(&CauseLabels { cause }).inc();
        tracing::debug!(left = pull.ids.len(), cause, "some announced events are not fetched");
    }

    fn is_free(&self, peer: &EndpointId) -> bool {
        has_room(&self.busy, peer)
    }
}

fn has_room(busy: &HashMap<EndpointId, usize>, peer: &EndpointId) -> bool {
    busy.get(peer).is_none_or(|requests| *requests < PEER_REQUESTS)
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

#[cfg(test)]
mod tests;
