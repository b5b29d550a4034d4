//! What peers may do on direct streams: how many bytes in a minute, and who has lied too often.
//!
//! Gossip is not asked here: it forwards before anybody verifies, so there nobody can be blamed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use iroh::EndpointId;
use tokio::time::Instant;

use crate::metrics::{CauseLabels, Metrics};

/// So many lies within [`MEMORY`] and the peer is banned for as long.
const LIES: u32 = 8;
const MEMORY: Duration = Duration::from_secs(600);
/// Peers that are remembered; beyond that the one that was not heard of longest is forgotten.
const PEERS: usize = 4_096;
const MINUTE: f64 = 60.0;

/// Shared by all that opens or answers direct streams.
pub struct Trust {
    peers: Mutex<HashMap<EndpointId, Record>>,
    bytes_per_minute: f64,
    metrics: Arc<Metrics>,
}

/// Which way events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From us to the peer.
    Out,
    In,
}

struct Record {
    lies: u32,
    first_lie: Instant,
    banned_until: Option<Instant>,
    out: Bucket,
    into: Bucket,
    seen: Instant,
}

/// Bytes that were not worked off yet.
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn drain(&mut self, per_minute: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level - passed * per_minute / MINUTE).max(0.0);
        self.at = now;
    }
}

impl Trust {
    pub fn new(bytes_per_minute: u64, metrics: Arc<Metrics>) -> Self {
        Self { peers: Mutex::default(), bytes_per_minute: bytes_per_minute as f64, metrics }
    }

    /// Whether direct streams of this peer are refused at the moment.
    pub fn is_banned(&self, peer: &EndpointId) -> bool {
        let peers = self.lock();
        let until = peers.get(peer).and_then(|record| record.banned_until);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes note of something that no honest gateway sends.
    pub fn lied(&self, peer: EndpointId, what: &'static str) {
        self.metrics.lies.get_or_create(&CauseLabels { cause: what }).inc();
        let now = Instant::now();
        let mut peers = self.lock();
        let record = record(&mut peers, peer, now);
        if now.saturating_duration_since(record.first_lie) > MEMORY {
            record.lies = 0;
        }
        if record.lies == 0 {
            record.first_lie = now;
        }
        record.lies += 1;
        if record.lies >= LIES {
            record.lies = 0;
            record.banned_until = Some(now + MEMORY);
            tracing::warn!(
                peer = %peer.fmt_short(), what,
                "a gateway broke the protocol again and again; no direct streams with it for a while"
            );
        }
    }

    /// Counts bytes of events. Returns whether the peer has used up its minute.
    pub fn spend(&self, peer: EndpointId, way: Way, bytes: usize) -> bool {
        let now = Instant::now();
        let most = self.bytes_per_minute;
        let mut peers = self.lock();
        let bucket = record(&mut peers, peer, now).bucket(way);
        bucket.drain(most, now);
        bucket.level += bytes as f64;
        bucket.level > most
    }

    /// How long until more may be sent or fetched; zero mostly.
    pub fn pause(&self, peer: EndpointId, way: Way) -> Duration {
        let now = Instant::now();
        let most = self.bytes_per_minute;
        let mut peers = self.lock();
        let bucket = record(&mut peers, peer, now).bucket(way);
        bucket.drain(most, now);
        Duration::from_secs_f64((bucket.level - most).max(0.0) / most * MINUTE)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EndpointId, Record>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn bucket(&mut self, way: Way) -> &mut Bucket {
        match way {
            Way::Out => &mut self.out,
            Way::In => &mut self.into,
        }
    }
}

fn record(peers: &mut HashMap<EndpointId, Record>, peer: EndpointId, now: Instant) -> &mut Record {
    if peers.len() >= PEERS && !peers.contains_key(&peer) {
        // Those that are banned go last: another endpoint id costs a peer nothing, though.
        let oldest = peers
            .iter()
            .min_by_key(|(_, record)| (record.banned_until.is_some_and(|at| at > now), record.seen))
            .map(|(peer, _)| *peer);
        oldest.and_then(|oldest| peers.remove(&oldest));
    }
    let record = peers.entry(peer).or_insert_with(|| Record {
        lies: 0,
        first_lie: now,
        banned_until: None,
        out: Bucket { level: 0.0, at: now },
        into: Bucket { level: 0.0, at: now },
        seen: now,
    });
    record.seen = now;
    record
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    fn peer(n: u32) -> EndpointId {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        SecretKey::from_bytes(&seed).public()
    }

    #[tokio::test(start_paused = true)]
    async fn a_liar_is_banned_for_a_while_and_nobody_else() {
        let trust = Trust::new(1_000, Arc::default());
        for _ in 1..LIES {
            trust.lied(peer(1), "answer");
        }
        assert!(!trust.is_banned(&peer(1)));
        trust.lied(peer(1), "answer");
        assert!(trust.is_banned(&peer(1)) && !trust.is_banned(&peer(2)));
        tokio::time::advance(MEMORY + Duration::from_secs(1)).await;
        assert!(!trust.is_banned(&peer(1)));
        // Slips that lie far apart are forgiven.
        for _ in 0..3 * LIES {
            trust.lied(peer(3), "answer");
            tokio::time::advance(MEMORY / 2).await;
        }
        assert!(!trust.is_banned(&peer(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_a_minute_are_used_up_and_come_back() {
        let trust = Trust::new(1_000, Arc::default());
        assert!(!trust.spend(peer(1), Way::Out, 900));
        assert!(trust.spend(peer(1), Way::Out, 600));
        assert_eq!(trust.pause(peer(1), Way::In), Duration::ZERO);
        let pause = trust.pause(peer(1), Way::Out);
        assert!((29..=31).contains(&pause.as_secs()), "{pause:?}");
        tokio::time::advance(pause).await;
        assert_eq!(trust.pause(peer(1), Way::Out).as_millis(), 0);
        for n in 0..PEERS as u32 + 10 {
            trust.spend(peer(n + 2), Way::In, 1);
        }
        assert!(trust.lock().len() <= PEERS);
    }
}
