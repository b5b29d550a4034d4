//! What is kept about the comparisons of one topic while it is joined.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use iroh::EndpointId;
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::turns::Turns;
use crate::{
    gossip::{retell::Retell, state::TopicState},
    pipeline::Span,
    protocol::{EventId, TopicName, kinds::Part},
};

/// Ids that a neighbor said are gone there; beyond that its oldest are forgotten.
const GONE_THERE: usize = 200_000;
/// The same of a peer that is no neighbor: anybody can make up such.
const GONE_AT_STRANGER: usize = 5_000;
/// Peers of whom such ids are kept.
const GONE_PEERS: usize = 32;
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
    /// Neighbors with whom it came to its end, and those with whom it failed.
    pub compared: usize,
    pub failed: usize,
    /// Neighbors that know gossip alone: there is nothing to compare with them.
    pub gossip_only: usize,
    pub ranges_done: usize,
    /// Events that this side lacked, and those of them that came.
    pub needed: usize,
    pub fetched: usize,
    /// Ids that the neighbors lacked.
    pub offered: usize,
    pub finished: bool,
}

/// How the comparison with a neighbor ended for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Compared,
    Failed,
    /// It does not speak our protocol.
    GossipOnly,
}

/// What calls for a comparison, or came of one that the other side led.
#[derive(Debug)]
pub enum Call {
    /// A neighbor has something new.
    Hint(EndpointId),
    /// A neighbor compared with us; it brought so many events.
    Followed(EndpointId, usize),
    /// A comparison with it was broken off and had brought so many events.
    Gained(EndpointId, usize),
    /// Somebody watches: with everybody, now.
    All,
}

/// One topic's desk.
pub struct Desk {
    pub state: Arc<TopicState>,
    pub calls: mpsc::Sender<Call>,
    pub retell: Retell,
    /// The topic was left.
    pub closed: CancellationToken,
    kept: Mutex<Kept>,
    claims: Arc<Mutex<HashSet<EventId>>>,
}

#[derive(Default)]
struct Kept {
    turns: Turns,
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
        self.desk.kept().turns.end(&self.peer, self.leads);
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

/// Counts what a comparison brings. That is news to others whatever came after it: unless its end tells
/// of it, the desk hears of it when this is dropped.
pub struct Gained<'a> {
    desk: &'a Desk,
    peer: EndpointId,
    events: AtomicUsize,
}

impl<'a> Gained<'a> {
    pub fn new(desk: &'a Desk, peer: EndpointId) -> Self {
        Self { desk, peer, events: AtomicUsize::new(0) }
    }

    pub fn add(&self, events: usize) {
        self.events.fetch_add(events, Ordering::Relaxed);
    }

    /// The comparison ended well, and its end tells what it brought.
    pub fn settled(mut self) {
        *self.events.get_mut() = 0;
    }
}

impl Drop for Gained<'_> {
    fn drop(&mut self) {
        let gained = *self.events.get_mut();
        if gained > 0 {
            let _ = self.desk.calls.try_send(Call::Gained(self.peer, gained));
        }
    }
}

impl Desk {
    pub fn new(state: Arc<TopicState>, retell: Retell, calls: mpsc::Sender<Call>) -> Self {
        let closed = CancellationToken::new();
        Self { state, calls, retell, closed, kept: Mutex::default(), claims: Arc::default() }
    }

    pub fn topic(&self) -> &TopicName {
        self.state.name()
    }

    /// The turn to lead, unless the two of us compare already.
    pub fn lead(&self, peer: EndpointId) -> Option<Turn<'_>> {
        let takes = self.kept().turns.lead(peer);
        // Not `then_some`: a turn that is made and not given away would end the one that is under way.
        takes.then(|| Turn { desk: self, peer, leads: true })
    }

    /// The turn to follow. Nobody leads again within `pause`.
    pub fn follow(&self, me: EndpointId, peer: EndpointId, pause: Duration) -> Option<Turn<'_>> {
        let takes = self.kept().turns.follow(me, peer, pause, Instant::now());
        takes.then(|| Turn { desk: self, peer, leads: false })
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
        if gone.is_empty() {
            return;
        }
        let neighbors: HashSet<_> = self.state.neighbors().into_iter().collect();
        let most = if neighbors.contains(&peer) { GONE_THERE } else { GONE_AT_STRANGER };
        let mut kept = self.kept();
        let now = Instant::now();
        kept.gone.retain(|_, there| now.duration_since(there.since) < GONE_FOR);
        if kept.gone.len() >= GONE_PEERS && !kept.gone.contains_key(&peer) {
            let strangers = kept.gone.iter().filter(|(peer, _)| !neighbors.contains(*peer));
            let oldest = strangers.min_by_key(|(_, there)| there.since).map(|(peer, _)| *peer);
            let Some(oldest) = oldest else { return };
            kept.gone.remove(&oldest);
        }
        let there =
            kept.gone.entry(peer).or_insert_with(|| GoneThere { since: now, ids: BTreeSet::new() });
        there.ids.extend(gone.iter().map(|(at, id)| (part, *at, *id)));
        while there.ids.len() > most {
            let rest = (Part::Rest, 0, EventId([0; 32]))..;
            let oldest = there.ids.range(rest).next().or_else(|| there.ids.first()).copied();
            let Some(oldest) = oldest else { break };
            there.ids.remove(&oldest);
        }
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
    pub fn over(&self, peer: EndpointId, ending: Ending) {
        let mut kept = self.kept();
        for watcher in &mut kept.watchers {
            if watcher.left.remove(&peer) {
                let left = watcher.left.len();
                watcher.progress.send_modify(|progress| {
                    progress.neighbor = Some(peer.to_string());
                    *match ending {
                        Ending::Compared => &mut progress.compared,
                        Ending::Failed => &mut progress.failed,
                        Ending::GossipOnly => &mut progress.gossip_only,
                    } += 1;
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

    /// Ends the comparisons that others lead, and the watching: the topic was left.
    pub fn close(&self) {
        self.closed.cancel();
        for watcher in self.kept().watchers.drain(..) {
            watcher.progress.send_modify(|progress| {
                progress.failed += watcher.left.len();
                progress.neighbors_left = 0;
                progress.finished = true;
            });
        }
    }

    /// Those of the ids that this peer said are gone there.
    pub fn gone_at(&self, peer: EndpointId, ids: &[EventId]) -> Vec<(u64, EventId)> {
        let wanted: HashSet<_> = ids.iter().collect();
        let kept = self.kept();
        let there = kept.gone.get(&peer).into_iter().flat_map(|there| &there.ids);
        there.filter(|(_, _, id)| wanted.contains(id)).map(|(_, at, id)| (*at, *id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A desk, and two peers: the one with the lower id first.
    fn desk() -> (Desk, [EndpointId; 2]) {
        let topic = TopicName::new("x").unwrap();
        let state = Arc::new(TopicState::new(topic, Arc::new(Metrics::default())));
        let mut peers = [0; 2].map(|_| iroh::SecretKey::generate().public());
        peers.sort();
        (Desk::new(state.clone(), Retell::off(state), mpsc::channel(1).0), peers)
    }

    #[test]
    fn a_turn_that_is_refused_leaves_the_one_under_way() {
        let (desk, [me, peer]) = desk();
        let leading = desk.lead(peer).expect("nobody compares");
        assert!(desk.lead(peer).is_none());
        assert!(desk.lead(peer).is_none(), "the first is under way yet");
        assert!(desk.follow(me, peer, Duration::ZERO).is_none(), "the lower id leads");
        drop(leading);
        let following = desk.follow(me, peer, Duration::ZERO).expect("it was given back");
        assert!(desk.follow(me, peer, Duration::ZERO).is_none());
        assert!(desk.follow(me, peer, Duration::ZERO).is_none(), "the first is under way yet");
        assert!(desk.lead(peer).is_none());
        drop(following);
        assert!(desk.lead(peer).is_some());
    }

    #[test]
    fn what_came_is_told_however_a_comparison_is_given_up() {
        let (_, [_, peer]) = desk();
        let state =
            Arc::new(TopicState::new(TopicName::new("x").unwrap(), Arc::new(Metrics::default())));
        let (calls, mut called) = mpsc::channel(4);
        let desk = Desk::new(state.clone(), Retell::off(state), calls);
        drop(Gained::new(&desk, peer));
        let well = Gained::new(&desk, peer);
        well.add(1);
        well.settled();
        assert!(called.try_recv().is_err());
        let gained = Gained::new(&desk, peer);
        let following = async {
            gained.add(2);
            gained.add(3);
            std::future::pending::<()>().await;
            gained.settled();
        };
        assert!(futures_util::FutureExt::now_or_never(following).is_none());
        assert!(matches!(called.try_recv(), Ok(Call::Gained(from, 5)) if from == peer));
    }

    #[test]
    fn a_peer_that_says_much_is_gone_makes_us_forget_its_own_words_alone() {
        let (desk, _) = desk();
        let peers: Vec<_> = (0..100).map(|_| iroh::SecretKey::generate().public()).collect();
        let (neighbor, chatty) = (peers[0], peers[1]);
        desk.state.up(neighbor);
        let id = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            EventId(id)
        };
        desk.gone_there(neighbor, Part::Rest, &[(1, id(1))]);
        desk.gone_there(chatty, Part::Requests, &[(1, id(0))]);
        for n in 0..20 {
            let ids: Vec<_> = (0..1_000).map(|i| (u64::from(n), id(1 + n * 1_000 + i))).collect();
            desk.gone_there(chatty, Part::Rest, &ids);
        }
        let all = Span { from: 0, until: u64::MAX };
        let kept = desk.known_gone(chatty, Part::Rest, all);
        assert_eq!(kept.len(), GONE_AT_STRANGER - 1);
        assert!(kept.iter().all(|(at, _)| *at >= 15), "the oldest went");
        assert_eq!(
            desk.known_gone(chatty, Part::Requests, all).len(),
            1,
            "they are few and matter"
        );
        peers[2..].iter().for_each(|peer| desk.gone_there(*peer, Part::Rest, &[(1, id(1))]));
        assert_eq!(desk.known_gone(neighbor, Part::Rest, all), [(1, id(1))]);
        assert_eq!(desk.kept().gone.len(), GONE_PEERS);
        assert_eq!(desk.gone_at(neighbor, &[id(1), id(2)]), [(1, id(1))]);
    }
}
