//! Asking endpoints to let us into a topic, and asking again those that hold us for somebody they
//! know.
//!
//! iroh-gossip 0.101 answers the join of an endpoint once, until its connection to it ends. A gateway
//! that is killed and comes back with the same key within the idle timeout makes a new connection
//! before the old one ends; its join then stays unanswered for ever, and both sides sit there, one
//! alone. A connection that opens and closes at once ends that: the other side takes the newest
//! connection for the one that counts, sees it close, and forgets us.
//!
//! It also goes on sending into a connection that has ended when the peer was no neighbor yet, and
//! never dials that peer again. Two that do so to one another never meet. A connection that is handed
//! to gossip takes the place of the ended one on both sides, so the one that closes is followed by one
//! that stays.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::{Endpoint, EndpointId, endpoint::Connection};
use iroh_gossip::{api::GossipSender, net::Gossip};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{state::TopicState, swarms::Swarms};

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
const DIAL: Duration = Duration::from_secs(5);
/// What the other side gets to see the connection close, before we join again.
const FORGET: Duration = Duration::from_millis(200);
/// One endpoint is not disturbed more often than this, up to twice as rarely, at random: two that came
/// back at the same time would else go on disturbing one another in step.
const AGAIN: Duration = Duration::from_secs(10);
/// Endpoints knocked at once, and remembered.
const AT_ONCE: usize = 4;
const REMEMBERED: usize = 1_024;
/// Requests that may wait; a topic that is still alone asks again.
pub const QUEUE: usize = 32;

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
    let mut asked: BTreeMap<EndpointId, Instant> = BTreeMap::new();
    let mut check = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            Some(peers) = found.recv() => {
                for peer in &peers {
                    if asked.len() < ASKED {
                        asked.entry(*peer).or_insert_with(Instant::now);
                    }
                }
                // Discovery repeats itself; a call that failed is not worth more than a line.
                if !matches!(timeout(CALL, sender.join_peers(peers)).await, Ok(Ok(()))) {
                    tracing::debug!("gossip did not take the endpoints to join");
                }
            }
            _ = check.tick(), if !asked.is_empty() => {
                let neighbors = state.neighbors();
                asked.retain(|peer, since| {
                    let patience = if me < *peer { ANSWER } else { ANSWER_TO_HIGHER };
                    if since.elapsed() < patience {
                        return true;
                    }
                    // An answered peer may have made room for others by now; alone, we need it.
                    if neighbors.is_empty() {
                        let _ = knock.try_send(*peer);
                    }
                    false
                });
            }
            // Discovery has ended and nobody is waited for; without this, select! panics.
            else => std::future::pending().await,
        }
    }
}

/// Makes endpoints forget an earlier life of ours, one task for all topics.
pub struct Knocker {
    pub endpoint: Endpoint,
    pub gossip: Gossip,
    pub swarms: Arc<Swarms>,
}

impl Knocker {
    /// Knocks where it is asked to, until shutdown.
    pub async fn run(self, mut queue: mpsc::Receiver<EndpointId>, token: CancellationToken) {
        let mut last: HashMap<EndpointId, Instant> = HashMap::new();
        let mut knocks = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                Some(()) = knocks.next(), if !knocks.is_empty() => {}
                peer = queue.recv(), if knocks.len() < AT_ONCE => {
                    let Some(peer) = peer else { return };
                    let now = Instant::now();
                    if last.get(&peer).is_some_and(|until| now < *until) {
                        continue;
                    }
                    if last.len() >= REMEMBERED {
                        last.retain(|_, until| now < *until);
                    }
                    last.insert(peer, now + AGAIN.mul_f64(1.0 + rand::random::<f64>()));
                    knocks.push(self.knock(peer));
                }
            }
        }
    }

    async fn knock(&self, peer: EndpointId) {
        let Some(connection) = self.dial(peer).await else { return };
        tracing::debug!(
            peer = %peer.fmt_short(),
            "no answer to our join; making the other side forget us and joining again"
        );
        connection.close(0u32.into(), b"joining again");
        sleep(FORGET).await;
        let Some(connection) = self.dial(peer).await else { return };
        if self.gossip.handle_connection(connection).await.is_err() {
            return;
        }
        // It has forgotten us in all topics, also where we were neighbors.
        for (state, join) in self.swarms.entrances() {
            let neighbors = state.neighbors();
            if neighbors.is_empty() || neighbors.contains(&peer) {
                let _ = join.try_send(vec![peer]);
            }
        }
    }

    async fn dial(&self, peer: EndpointId) -> Option<Connection> {
        timeout(DIAL, self.endpoint.connect(peer, iroh_gossip::ALPN)).await.ok()?.ok()
    }
}
