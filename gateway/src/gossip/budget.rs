//! What gossip may bring by each neighbor, over all topics: frames and bytes in a second. What is
//! beyond is dropped before anybody parses it, and a comparison brings what was lost with it.
//!
//! Nobody is banned: iroh-gossip forwards before it is known what a message is, so the last hop may
//! be as honest as we are.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use iroh::EndpointId;
use tokio::time::Instant;

/// Several times what honest gateways bring: each says at most 500 frames a second, and under load a
/// frame names a hundred events.
const FRAMES_PER_S: f64 = 4_000.0;
const BYTES_PER_S: f64 = 8_388_608.0;
/// What may come at once, in seconds of the rates.
const BURST_S: f64 = 2.0;
/// Neighbors that are remembered; the one that was quiet longest makes room.
const NEIGHBORS: usize = 256;

/// Shared by all topics.
#[derive(Default)]
pub struct Budgets(Mutex<HashMap<EndpointId, Spent>>);

/// What was not worked off yet, in seconds.
struct Spent {
    frames: f64,
    bytes: f64,
    at: Instant,
}

impl Budgets {
    /// Whether a frame of this length is within what its last hop may bring.
    pub fn take(&self, peer: EndpointId, length: usize, now: Instant) -> bool {
        let mut neighbors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if neighbors.len() >= NEIGHBORS && !neighbors.contains_key(&peer) {
            let quiet = neighbors.iter().min_by_key(|(_, spent)| spent.at).map(|(peer, _)| *peer);
            quiet.and_then(|quiet| neighbors.remove(&quiet));
        }
        let spent = neighbors.entry(peer).or_insert(Spent { frames: 0.0, bytes: 0.0, at: now });
        let passed = now.saturating_duration_since(spent.at).as_secs_f64();
        spent.at = now;
        spent.frames = (spent.frames - passed).max(0.0);
        spent.bytes = (spent.bytes - passed).max(0.0);
        let frames = spent.frames + 1.0 / FRAMES_PER_S;
        let bytes = spent.bytes + length as f64 / BYTES_PER_S;
        if frames > BURST_S || bytes > BURST_S {
            return false;
        }
        (spent.frames, spent.bytes) = (frames, bytes);
        true
    }
}

/// What is missed because of floods calls for comparisons, but not for one after the other.
#[derive(Default)]
pub struct Missed(Option<Instant>);

/// From one comparison because of a flood to the next.
const COMPARE: Duration = Duration::from_secs(5);

impl Missed {
    /// Whether it is time for a comparison.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|at| now.saturating_duration_since(at) >= COMPARE);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    fn peer(n: u16) -> EndpointId {
        let mut seed = [3; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        SecretKey::from_bytes(&seed).public()
    }

    #[test]
    fn a_flood_is_cut_to_the_rate_and_takes_nothing_from_others() {
        let (budgets, start) = (Budgets::default(), Instant::now());
        let passed = |peer, length, at| {
            (0..20_000).filter(|_| budgets.take(peer, length, at)).count() as f64
        };
        let burst = passed(peer(1), 100, start);
        assert!((burst - BURST_S * FRAMES_PER_S).abs() <= 1.0, "{burst}");
        assert!(budgets.take(peer(2), 4_000, start));
        let later = passed(peer(1), 100, start + Duration::from_secs(1));
        assert!((later - FRAMES_PER_S).abs() <= 1.0, "{later}");
        // Few large frames are bounded by their bytes.
        let large = passed(peer(3), 4_096, start) * 4_096.0;
        assert!((large - BURST_S * BYTES_PER_S).abs() <= 4_096.0, "{large}");
    }

    #[test]
    fn only_so_many_neighbors_are_remembered() {
        let (budgets, start) = (Budgets::default(), Instant::now());
        for n in 0..NEIGHBORS as u16 + 50 {
            budgets.take(peer(n), 100, start + Duration::from_millis(n.into()));
        }
        let kept = budgets.0.lock().unwrap();
        assert_eq!(kept.len(), NEIGHBORS);
        assert!(!kept.contains_key(&peer(0)) && kept.contains_key(&peer(NEIGHBORS as u16)));
    }

    #[test]
    fn floods_do_not_call_for_one_comparison_after_the_other() {
        let (mut missed, start) = (Missed::default(), Instant::now());
        assert!(missed.is_due(start));
        assert!(!missed.is_due(start + COMPARE / 2));
        assert!(missed.is_due(start + COMPARE));
    }
}
