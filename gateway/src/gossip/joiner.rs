//! Asking endpoints to let us into a topic, and asking again those that hold us for somebody they
//! know.
//!
//! iroh-gossip 0.101 answers the join of an endpoint once, until its connection to it ends. A gateway
//! that is killed and comes back with the same key within the idle timeout makes a new connection
//! before the old one ends; its join then stays unanswered for ever, and both sides sit there, one
//! alone. A connection that opens and closes at once ends that: the other side takes the newest
//! connection for the one that counts, sees it close, and forgets us.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::{Endpoint, EndpointId};
use iroh_gossip::api::GossipSender;
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::state::TopicState;

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
/// One endpoint is not disturbed more often than this.
const AGAIN: Duration = Duration::from_secs(10);
/// Endpoints knocked at once, and remembered.
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

    /// Those whose time is up and whom we need: they are to be made to forget us. A peer that
    /// answered may have made room for others by now; as long as anybody is there, we need it not.
    pub fn overdue(&mut self, neighbors: usize, now: Instant) -> Vec<EndpointId> {
        let me = self.me;
        let is_over = |peer: &EndpointId, since: &mut Instant| {
            let patience = if me < *peer { ANSWER } else { ANSWER_TO_HIGHER };
            now.saturating_duration_since(*since) >= patience
        };
        let over: Vec<_> = self.since.extract_if(.., is_over).map(|(peer, _)| peer).collect();
        if neighbors == 0 { over } else { Vec::new() }
    }
}

/// Who was made to forget us lately.
#[derive(Default)]
pub struct Disturbed(HashMap<EndpointId, Instant>);

impl Disturbed {
    /// Whether an endpoint may be disturbed now; it then counts as disturbed.
    pub fn may(&mut self, peer: EndpointId, now: Instant) -> bool {
        let lately = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        if self.0.get(&peer).is_some_and(lately) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| lately(at));
        }
        self.0.insert(peer, now);
        true
    }
}

/// Whether a topic with these neighbors joins a peer again that has forgotten us in all topics.
pub fn joins_again(neighbors: &[EndpointId], peer: &EndpointId) -> bool {
    neighbors.is_empty() || neighbors.contains(peer)
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
    knock: &mpsc::Sender<EndpointId>,
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
                for peer in asked.overdue(state.neighbors().len(), Instant::now()) {
                    let _ = knock.try_send(peer);
                }
            }
            // Discovery has ended and nobody is waited for; without this, select! panics.
            else => std::future::pending().await,
        }
    }
}

/// A topic's state, and the way to have it join endpoints.
pub type TopicEntrance = (Arc<TopicState>, mpsc::Sender<Vec<EndpointId>>);

/// Makes endpoints forget an earlier life of ours, one task for all topics.
pub struct Knocker {
    pub endpoint: Endpoint,
    pub topics: Vec<TopicEntrance>,
}

impl Knocker {
    /// Knocks where it is asked to, until shutdown.
    pub async fn run(self, mut queue: mpsc::Receiver<EndpointId>, token: CancellationToken) {
        let mut disturbed = Disturbed::default();
        let mut knocks = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                Some(()) = knocks.next(), if !knocks.is_empty() => {}
                peer = queue.recv(), if knocks.len() < AT_ONCE => {
                    let Some(peer) = peer else { return };
                    if disturbed.may(peer, Instant::now()) {
                        knocks.push(self.knock(peer));
                    }
                }
            }
        }
    }

    async fn knock(&self, peer: EndpointId) {
        let dialed = timeout(DIAL, self.endpoint.connect(peer, iroh_gossip::ALPN)).await;
        let Ok(Ok(connection)) = dialed else { return };
        tracing::debug!(
            peer = %peer.fmt_short(),
            "no answer to our join; making the other side forget us and joining again"
        );
        connection.close(0u32.into(), b"joining again");
        sleep(FORGET).await;
        // It has forgotten us in all topics, also where we were neighbors.
        for (state, join) in &self.topics {
            if joins_again(&state.neighbors(), &peer) {
                let _ = join.try_send(vec![peer]);
            }
        }
    }
}
