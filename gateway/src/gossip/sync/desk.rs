//! What is kept about the comparisons of one topic while it is joined.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use iroh::EndpointId;
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    gossip::state::TopicState,
    pipeline::Span,
    protocol::{EventId, TopicName, kinds::Part},
};

/// Ids that peers of one topic said are gone there; beyond that all are forgotten.
const GONE_THERE: usize = 200_000;
/// After this time a peer is asked again for what it said was gone.
const GONE_FOR: Duration = Duration::from_secs(3_600);
/// After this time two sides compare although neither has changed: the span of time moves on.
const UNCHANGED_FOR: Duration = Duration::from_secs(600);
/// Who watches the progress at once.
const WATCHERS: usize = 16;
/// Peers of which something is remembered.
const PEERS: usize = 64;

/// How a comparison goes that somebody asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncProgress {
    /// The neighbor of the last change, hexadecimal.
    pub neighbor: Option<String>,
    /// Neighbors that are still to come, or under way.
    pub neighbors_left: usize,
    /// Neighbors with whom it failed.
    pub failed: usize,
    pub ranges_done: usize,
    /// Events that this side lacked, and those of them that came.
    pub needed: usize,
    pub fetched: usize,
    /// Ids that the neighbors lacked.
    pub offered: usize,
    pub finished: bool,
}

/// What calls for a comparison, or came of one that the other side led.
#[derive(Debug)]
pub enum Call {
    /// A neighbor has something new.
    Hint(EndpointId),
    /// A neighbor compared with us; it brought so many events.
    Followed(EndpointId, usize),
    /// Somebody watches: with everybody, now.
    All,
}

/// One topic's desk.
pub struct Desk {
    pub state: Arc<TopicState>,
    pub calls: mpsc::Sender<Call>,
    kept: Mutex<Kept>,
    claims: Arc<Mutex<HashSet<EventId>>>,
}

#[derive(Default)]
struct Kept {
    /// With whom we compare at the moment, and whether we lead.
    open: HashMap<EndpointId, bool>,
    /// When a peer last led.
    followed: HashMap<EndpointId, Instant>,
    gone: HashMap<EndpointId, GoneThere>,
    equal: HashMap<EndpointId, Equal>,
    watchers: Vec<Watcher>,
}

struct GoneThere {
    since: Instant,
    ids: BTreeSet<(Part, u64, EventId)>,
}

/// The states of both sides when they last had the same.
struct Equal {
    at: Instant,
    states: ([u8; 16], [u8; 16]),
}

struct Watcher {
    left: HashSet<EndpointId>,
    progress: watch::Sender<SyncProgress>,
}

/// The right to compare with one peer. Given back when dropped.
pub struct Turn<'a> {
    desk: &'a Desk,
    peer: EndpointId,
    leads: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut kept = self.desk.kept();
        // When both began at once, the other's turn stands there by now.
        if kept.open.get(&self.peer) == Some(&self.leads) {
            kept.open.remove(&self.peer);
        }
    }
}

/// Ids that nobody else fetches meanwhile. Given back when dropped.
pub struct Claim {
    claims: Arc<Mutex<HashSet<EventId>>>,
    pub ids: Vec<EventId>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        self.ids.iter().for_each(|id| {
            claims.remove(id);
        });
    }
}

impl Desk {
    pub fn new(state: Arc<TopicState>, calls: mpsc::Sender<Call>) -> Self {
        Self { state, calls, kept: Mutex::default(), claims: Arc::default() }
    }

    pub fn topic(&self) -> &TopicName {
        self.state.name()
    }

    /// The turn to lead, unless the two of us compare already.
    pub fn lead(&self, peer: EndpointId) -> Option<Turn<'_>> {
        let mut kept = self.kept();
        if kept.open.contains_key(&peer) {
            return None;
        }
        kept.open.insert(peer, true);
        Some(Turn { desk: self, peer, leads: true })
    }

    /// The turn to follow. When both sides begin at once, the one with the lower id leads. Nobody
    /// leads again within `pause`.
    pub fn follow(&self, me: EndpointId, peer: EndpointId, pause: Duration) -> Option<Turn<'_>> {
        let mut kept = self.kept();
        if kept.open.get(&peer).is_some_and(|we_lead| !we_lead || me < peer) {
            return None;
        }
        let now = Instant::now();
        if kept.followed.get(&peer).is_some_and(|at| now.duration_since(*at) < pause) {
            return None;
        }
        if kept.followed.len() >= PEERS {
            kept.followed.retain(|_, at| now.duration_since(*at) < pause);
        }
        kept.followed.insert(peer, now);
        kept.open.insert(peer, false);
        Some(Turn { desk: self, peer, leads: false })
    }

    /// Takes up to `max` ids off the queue that nobody fetches; those that others fetch go to `busy`.
    pub fn claim(
        &self,
        queue: &mut impl Iterator<Item = EventId>,
        busy: &mut Vec<EventId>,
        max: usize,
    ) -> Claim {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids = Vec::new();
        while ids.len() < max
            && let Some(id) = queue.next()
        {
            if claims.insert(id) { ids.push(id) } else { busy.push(id) }
        }
        Claim { claims: self.claims.clone(), ids }
    }

    /// What a peer said is gone there. It is that peer's word, and only remembered of it.
    pub fn gone_there(&self, peer: EndpointId, part: Part, gone: &[(u64, EventId)]) {
        let mut kept = self.kept();
        let now = Instant::now();
        kept.gone.retain(|_, there| now.duration_since(there.since) < GONE_FOR);
        let all: usize = kept.gone.values().map(|there| there.ids.len()).sum();
        if all + gone.len() > GONE_THERE {
            kept.gone.clear();
        }
        let there =
            kept.gone.entry(peer).or_insert_with(|| GoneThere { since: now, ids: BTreeSet::new() });
        there.ids.extend(gone.iter().map(|(at, id)| (part, *at, *id)));
    }

    /// The ids that this peer said are gone there, within a span.
    pub fn known_gone(&self, peer: EndpointId, part: Part, span: Span) -> Vec<(u64, EventId)> {
        if span.from > span.until {
            return Vec::new();
        }
        let kept = self.kept();
        let (first, last) = (EventId([0; 32]), EventId([0xff; 32]));
        let range = (part, span.from, first)..=(part, span.until, last);
        let there = kept.gone.get(&peer);
        there.map_or_else(Vec::new, |there| {
            there.ids.range(range).map(|(_, at, id)| (*at, *id)).collect()
        })
    }

    /// Both sides have the same, in these states of theirs.
    pub fn are_equal(&self, peer: EndpointId, ours: [u8; 16], theirs: [u8; 16]) {
        let mut kept = self.kept();
        if kept.equal.len() >= PEERS {
            kept.equal.clear();
        }
        kept.equal.insert(peer, Equal { at: Instant::now(), states: (ours, theirs) });
    }

    /// Whether nothing changed since both sides had the same.
    pub fn is_unchanged(&self, peer: EndpointId, ours: [u8; 16], theirs: [u8; 16]) -> bool {
        self.kept().equal.get(&peer).is_some_and(|equal| {
            equal.states == (ours, theirs) && equal.at.elapsed() < UNCHANGED_FOR
        })
    }

    /// Watches the next comparison with each of these neighbors; `None` when too many watch.
    pub fn watch(&self, neighbors: Vec<EndpointId>) -> Option<watch::Receiver<SyncProgress>> {
        let mut kept = self.kept();
        kept.watchers.retain(|watcher| !watcher.progress.is_closed());
        if kept.watchers.len() >= WATCHERS {
            return None;
        }
        let left: HashSet<_> = neighbors.into_iter().collect();
        let finished = left.is_empty();
        let start =
            SyncProgress { neighbors_left: left.len(), finished, ..SyncProgress::default() };
        let (progress, receiver) = watch::channel(start);
        if !finished {
            kept.watchers.push(Watcher { left, progress });
        }
        Some(receiver)
    }

    /// Tells those who watch this peer's comparison.
    pub fn tell(&self, peer: EndpointId, change: impl Fn(&mut SyncProgress)) {
        for watcher in self.kept().watchers.iter().filter(|watcher| watcher.left.contains(&peer)) {
            watcher.progress.send_modify(|progress| {
                progress.neighbor = Some(peer.to_string());
                change(progress);
            });
        }
    }

    /// The comparison with this peer is over, or will not be.
    pub fn over(&self, peer: EndpointId, failed: bool) {
        let mut kept = self.kept();
        for watcher in &mut kept.watchers {
            if watcher.left.remove(&peer) {
                let left = watcher.left.len();
                watcher.progress.send_modify(|progress| {
                    progress.neighbor = Some(peer.to_string());
                    progress.failed += usize::from(failed);
                    progress.neighbors_left = left;
                    progress.finished = left == 0;
                });
            }
        }
        kept.watchers.retain(|watcher| !watcher.left.is_empty());
    }

    /// Whose comparison is watched.
    pub fn watched(&self) -> HashSet<EndpointId> {
        self.kept().watchers.iter().flat_map(|watcher| watcher.left.iter().copied()).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the ids that this peer said are gone there.
    pub fn gone_at(&self, peer: EndpointId, ids: &[EventId]) -> Vec<(u64, EventId)> {
        let wanted: HashSet<_> = ids.iter().collect();
        let kept = self.kept();
        let there = kept.gone.get(&peer).into_iter().flat_map(|there| &there.ids);
        there.filter(|(_, _, id)| wanted.contains(id)).map(|(_, at, id)| (*at, *id)).collect()
    }
}
