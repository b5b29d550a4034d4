//! What lies between the nodes: links, and the slots of a DHT.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng, rngs::StdRng};

use crate::gossip::record::Sighting;

/// One way, between any two.
const NEAR_US: u64 = 5_000;
const FAR_US: u64 = 60_000;

/// Which nodes reach one another, and how fast.
pub struct Links {
    seed: u64,
    /// The side of a partition that each node is on.
    sides: BTreeMap<usize, u8>,
    /// The share of gossip messages that vanish. QUIC would repeat packets: what vanishes here is
    /// what a reader that lagged, or a connection that broke, takes away.
    pub loss: f64,
}

impl Links {
    pub const fn new(seed: u64) -> Self {
        Self { seed, sides: BTreeMap::new(), loss: 0.0 }
    }

    /// The same both ways, and for as long as the swarm exists.
    pub fn latency(&self, a: usize, b: usize) -> Duration {
        let (low, high) = (a.min(b) as u64, a.max(b) as u64);
        let spread = mix(mix(self.seed ^ low) ^ high) % (FAR_US - NEAR_US);
        Duration::from_micros(NEAR_US + spread)
    }

    pub fn connects(&self, a: usize, b: usize) -> bool {
        self.side(a) == self.side(b)
    }

    pub fn side(&self, node: usize) -> u8 {
        self.sides.get(&node).copied().unwrap_or(0)
    }

    pub fn put(&mut self, node: usize, side: u8) {
        self.sides.insert(node, side);
    }

    pub fn loses(&self, random: &mut StdRng) -> bool {
        self.loss > 0.0 && random.random_bool(self.loss)
    }
}

/// One step of SplitMix64: spreads a number over all 64 bits.
pub const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Nodes of the DHT that hold the slot of a minute. They are asked at once, and two who write at the
/// same time leave their records on different ones.
const HOLDERS: usize = 8;

/// The slots of one topic, on each side of a partition.
#[derive(Default)]
pub struct Dht {
    slots: BTreeMap<(u8, u64), [Option<Sighting>; HOLDERS]>,
}

impl Dht {
    /// The last writer wins, on those holders that it reaches last.
    pub fn put(&mut self, side: u8, minute: u64, record: &Sighting, random: &mut StdRng) {
        let holders = self.slots.entry((side, minute)).or_default();
        for holder in holders {
            if random.random_bool(0.8) {
                *holder = Some(record.clone());
            }
        }
    }

    /// The distinct records of a minute.
    pub fn get(&self, side: u8, minute: u64) -> Vec<Sighting> {
        let mut found: Vec<Sighting> = Vec::new();
        for record in self.slots.get(&(side, minute)).into_iter().flatten().flatten() {
            if !found.contains(record) {
                found.push(record.clone());
            }
        }
        found
    }
}
