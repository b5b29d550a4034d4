//! Asking endpoints to let us into a topic, and asking again those that do not answer.
//!
//! iroh-gossip 0.101 leaves joins without an answer for ever in these cases, each seen in the simulator:
//!
//! - An endpoint that holds us for a neighbor has answered the join of an earlier life of ours, and
//!   answers none until its connection to us ends. A gateway that is killed and comes back with the
//!   same key makes a new connection before that. A connection that opens and closes at once ends it:
//!   the other side takes the newest connection for the one that counts, sees it close, and forgets us.
//! - It does not dial an endpoint again that it could not reach once, and what it sends over a
//!   connection that has ended is lost. Two gateways that knew one another's addresses, and were
//!   parted for longer than a dial takes, would wait for one another. So we dial, and hand the
//!   connection to gossip: both sides then send over it.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::{
    EndpointId,
    endpoint::{Connection, WeakConnectionHandle},
};
use iroh_gossip::api::GossipSender;
use rand::Rng;
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{net::Net, pace::FEW, state::TopicState, swarms::Swarms};
use crate::protocol::TopicName;

/// How long gossip may take to answer a call.
const CALL: Duration = Duration::from_secs(5);
/// A join is answered within a round trip. After this time it was not.
const ANSWER: Duration = Duration::from_secs(2);
/// Of two that wait for one another, both alone, the one with the higher id waits longer: if both
/// made the other forget them at once, and again each time, neither would get its answer.
const ANSWER_TO_HIGHER: Duration = Duration::from_secs(7);
/// Endpoints whose answer is waited for; discovery names them again.
const ASKED: usize = 64;

/// Dialing an endpoint that may be gone.
pub const DIAL: Duration = Duration::from_secs(5);
/// What the other side gets to see the connection close, before we join again.
pub const FORGET: Duration = Duration::from_millis(200);
/// One endpoint is not disturbed more often than this, up to twice as rarely, at random: two that came
/// back at the same time would else go on disturbing one another in step.
const AGAIN: Duration = Duration::from_secs(10);
/// Endpoints knocked at once, and remembered.
const AGAIN_REASON: &[u8] = b"joining again";
const AT_ONCE: usize = 4;
const REMEMBERED: usize = 1_024;
/// Requests that may wait; a topic that is still alone asks again.
pub const QUEUE: usize = 32;

/// How often it is looked whether answers are overdue.
pub const CHECK: Duration = Duration::from_secs(1);

/// Endpoints that were asked to let us into one topic, until their time is up. Decides only; time
/// and the number of neighbors come from whoever asks.
pub struct Asked {
    me: EndpointId,
    since: BTreeMap<EndpointId, Instant>,
}

impl Asked {
    pub const fn new(me: EndpointId) -> Self {
        Self { me, since: BTreeMap::new() }
    }

    /// Takes note of whom we ask. One that was asked before keeps its time.
    pub fn ask(&mut self, peers: &[EndpointId], now: Instant) {
        for peer in peers {
            if self.since.len() < ASKED {
                self.since.entry(*peer).or_insert(now);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Those whose time is up without an answer, if we need them. One that answered may have made
    /// room for others by now; with enough neighbors nobody is disturbed.
    pub fn overdue(&mut self, neighbors: &[EndpointId], now: Instant) -> Vec<EndpointId> {
        self.since.retain(|peer, _| !neighbors.contains(peer));
        let me = self.me;
        let is_over = |peer: &EndpointId, since: &mut Instant| {
            let patience = if me < *peer { ANSWER } else { ANSWER_TO_HIGHER };
            now.saturating_duration_since(*since) >= patience
        };
        let over: Vec<_> = self.since.extract_if(.., is_over).map(|(peer, _)| peer).collect();
        if neighbors.len() < FEW { over } else { Vec::new() }
    }
}

/// An endpoint that did not answer the join of a topic.
#[derive(Debug, Clone)]
pub struct Unanswered {
    pub topic: TopicName,
    pub peer: EndpointId,
    /// The topic has no neighbor.
    pub alone: bool,
}

/// Whether a peer is to forget us before it is asked again. It then forgets us in all topics, so not
/// one that is our neighbor in some: that one does not take us for an earlier life of ours.
pub const fn forgets(alone: bool, is_neighbor: bool) -> bool {
    alone && !is_neighbor
}

/// Who was asked anew lately.
#[derive(Default)]
pub struct Disturbed(HashMap<EndpointId, Instant>);

impl Disturbed {
    /// Whether an endpoint may be disturbed now; it then counts as disturbed.
    pub fn may(&mut self, peer: EndpointId, now: Instant, random: &mut impl Rng) -> bool {
        let lately = |until: &Instant| now < *until;
        if self.0.get(&peer).is_some_and(lately) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, until| lately(until));
        }
        self.0.insert(peer, now + AGAIN.mul_f64(1.0 + random.random::<f64>()));
        true
    }

    /// It was not there to be disturbed.
    pub fn forgive(&mut self, peer: &EndpointId) {
        self.0.remove(peer);
    }
}

/// Joins whom discovery finds. Never ends, even when discovery does: without any of its steps we
/// still wait for others to come to us.
///
/// `me` is our own endpoint id.
pub async fn join(
    me: EndpointId,
    found: &mut mpsc::Receiver<Vec<EndpointId>>,
    sender: &GossipSender,
    state: &TopicState,
    knock: &mpsc::Sender<Unanswered>,
) -> Infallible {
    let mut asked = Asked::new(me);
    let mut check = interval(CHECK);
    loop {
        tokio::select! {
            Some(peers) = found.recv() => {
                asked.ask(&peers, Instant::now());
                // Discovery repeats itself; a call that failed is not worth more than a line.
                if !matches!(timeout(CALL, sender.join_peers(peers)).await, Ok(Ok(()))) {
                    tracing::debug!("gossip did not take the endpoints to join");
                }
            }
            _ = check.tick(), if !asked.is_empty() => {
                let neighbors = state.neighbors();
                for peer in asked.overdue(&neighbors, Instant::now()) {
                    let (topic, alone) = (state.name().clone(), neighbors.is_empty());
                    let _ = knock.try_send(Unanswered { topic, peer, alone });
                }
            }
            // Discovery has ended and nobody is waited for; without this, select! panics.
            else => std::future::pending().await,
        }
    }
}

/// Asks those anew that did not answer, one task for all topics.
pub struct Knocker {
    pub net: Arc<Net>,
    pub swarms: Arc<Swarms>,
}

impl Knocker {
    /// Knocks where it is asked to, until shutdown.
    pub async fn run(self, mut queue: mpsc::Receiver<Unanswered>, token: CancellationToken) {
        let mut disturbed = Disturbed::default();
        let mut handed: HashMap<EndpointId, WeakConnectionHandle> = HashMap::new();
        let mut knocks = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                Some((peer, connection)) = knocks.next(), if !knocks.is_empty() => {
                    if handed.len() >= REMEMBERED {
                        handed.retain(|_, handle| handle.upgrade().is_some());
                    }
                    match connection {
                        Some(connection) => {
                            handed.insert(peer, connection);
                        }
                        None => disturbed.forgive(&peer),
                    }
                }
                unanswered = queue.recv(), if knocks.len() < AT_ONCE => {
                    let Some(unanswered) = unanswered else { return };
                    if disturbed.may(unanswered.peer, Instant::now(), &mut rand::rng()) {
                        let before = handed.remove(&unanswered.peer);
                        let this = &self;
                        let peer = unanswered.peer;
                        knocks.push(async move { (peer, this.knock(unanswered, before).await) });
                    }
                }
            }
        }
    }

    /// Returns the connection that gossip was given, this time or before; nothing when the peer could
    /// not be reached.
    async fn knock(
        &self,
        unanswered: Unanswered,
        before: Option<WeakConnectionHandle>,
    ) -> Option<WeakConnectionHandle> {
        let Unanswered { topic, peer, alone } = unanswered;
        let entrances = self.swarms.entrances();
        let is_neighbor = entrances.iter().any(|(state, _)| state.neighbors().contains(&peer));
        let mut open = before.and_then(|handle| handle.upgrade());
        open = open.filter(|connection| connection.close_reason().is_none());
        tracing::debug!(peer = %peer.fmt_short(), alone, "no answer to our join; joining again");
        if forgets(alone, is_neighbor) {
            // What it would answer over is what it saw close last.
            open.take().iter().for_each(|connection| connection.close(0u32.into(), AGAIN_REASON));
            self.dial(peer).await?.close(0u32.into(), AGAIN_REASON);
            sleep(FORGET).await;
        }
        let connection = match open {
            Some(connection) => connection,
            None => {
                let new = self.dial(peer).await?;
                timeout(CALL, self.net.gossip().handle_connection(new.clone())).await.ok()?.ok()?;
                new
            }
        };
        if let Some((_, join)) = entrances.iter().find(|(state, _)| *state.name() == topic) {
            let _ = join.try_send(vec![peer]);
        }
        Some(connection.weak_handle())
    }

    async fn dial(&self, peer: EndpointId) -> Option<Connection> {
        timeout(DIAL, self.net.endpoint().connect(peer, iroh_gossip::ALPN)).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    fn id(n: u8) -> EndpointId {
        SecretKey::from_bytes(&[n; 32]).public()
    }

    #[test]
    fn of_two_that_wait_for_one_another_one_waits_longer() {
        let (low, high) = (id(1).min(id(2)), id(1).max(id(2)));
        let start = Instant::now();
        let waits = [(low, high), (high, low)].map(|(me, peer)| {
            let mut asked = Asked::new(me);
            asked.ask(&[peer], start);
            // Asked again it is not given more time.
            asked.ask(&[peer], start + ANSWER / 2);
            (0..20).find(|s| !asked.overdue(&[], start + Duration::from_secs(*s)).is_empty())
        });
        assert_eq!(waits, [Some(2), Some(7)]);
    }

    #[test]
    fn only_those_are_disturbed_that_we_need() {
        let start = Instant::now();
        let late = start + Duration::from_secs(60);
        let asked = || {
            let mut asked = Asked::new(id(1));
            asked.ask(&[id(2), id(3)], start);
            asked
        };
        let sorted = |mut ids: Vec<EndpointId>| {
            ids.sort_unstable();
            ids
        };
        assert_eq!(sorted(asked().overdue(&[], late)), sorted(vec![id(2), id(3)]));
        assert_eq!(asked().overdue(&[id(2)], late), [id(3)], "the other one has answered");
        let enough: Vec<_> = (10..10 + FEW as u8).map(id).collect();
        let mut asked = asked();
        assert_eq!(asked.overdue(&enough, late), []);
        assert!(asked.is_empty(), "nobody is waited for twice");
        assert!(forgets(true, false) && !forgets(true, true) && !forgets(false, false));
    }

    #[test]
    fn nobody_is_disturbed_all_the_time() {
        let (start, mut disturbed) = (Instant::now(), Disturbed::default());
        let r = &mut rand::rng();
        assert!(disturbed.may(id(1), start, r));
        assert!(!disturbed.may(id(1), start + AGAIN / 2, r));
        assert!(disturbed.may(id(2), start + AGAIN / 2, r));
        assert!(disturbed.may(id(1), start + AGAIN * 2, r));
        disturbed.forgive(&id(1));
        assert!(disturbed.may(id(1), start + AGAIN * 2, r), "it was not there");
    }
}
