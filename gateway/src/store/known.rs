//! What the store may hold, in memory: a look-up that is answered "no" costs no query.
//!
//! Bloom filters (Bloom 1970) over the first eight bytes of ids and public keys, which are uniformly
//! distributed by themselves. A false "maybe" costs one query; there is no false "no".

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;

/// Entries of the first layer. Each further one has room for twice as many.
const FIRST_LAYER: u64 = 1 << 20;
/// Bits for each entry: about one false "maybe" in 150.
const BITS: u64 = 12;
/// Bits that are set for each entry.
const PROBES: u64 = 6;

/// A set that forgets nothing and may claim too much.
#[derive(Debug)]
pub(super) struct Known {
    layers: ArcSwap<Vec<Arc<Layer>>>,
    /// Everything that was stored before the start has been added.
    complete: AtomicBool,
}

#[derive(Debug)]
struct Layer {
    words: Box<[AtomicU64]>,
    left: AtomicU64,
    capacity: u64,
}

impl Known {
    /// An empty set, about to be filled with this many entries.
    pub fn new(expected: u64) -> Self {
        let layer = Layer::new(expected.saturating_mul(2).max(FIRST_LAYER));
        Self {
            layers: ArcSwap::from_pointee(vec![Arc::new(layer)]),
            complete: AtomicBool::new(false),
        }
    }

    /// Called by one thread at a time.
    pub fn insert(&self, prefix: u64) {
        let layers = self.layers.load();
        let Some(layer) = layers.last() else { return };
        layer.insert(prefix);
        if layer.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let mut layers = Vec::clone(&layers);
            layers.push(Arc::new(Layer::new(layer.capacity * 2)));
            self.layers.store(Arc::new(layers));
        }
    }

    /// Whether it may be there; always, until the set is complete.
    pub fn may_contain(&self, prefix: u64) -> bool {
        !self.complete.load(Ordering::Acquire)
            || self.layers.load().iter().any(|layer| layer.may_contain(prefix))
    }

    pub fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }
}

impl Layer {
    fn new(capacity: u64) -> Self {
        let words = (capacity * BITS).div_ceil(64);
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { words, left: AtomicU64::new(capacity), capacity }
    }

    /// Word and mask of each probe: double hashing (Kirsch and Mitzenmacher 2006).
    fn probes(&self, prefix: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let step = prefix.rotate_left(32).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let bits = self.words.len() as u64 * 64;
        (0..PROBES).filter_map(move |n| {
            let bit = prefix.wrapping_add(n.wrapping_mul(step)) % bits;
            let word = self.words.get(usize::try_from(bit / 64).ok()?)?;
            Some((word, 1 << (bit % 64)))
        })
    }

    fn insert(&self, prefix: u64) {
        for (word, mask) in self.probes(prefix) {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }

    fn may_contain(&self, prefix: u64) -> bool {
        self.probes(prefix).all(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }
}

/// The first eight bytes of an id or a public key.
pub(super) fn prefix(bytes: &[u8; 32]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn id(n: u64) -> u64 {
        prefix(&Sha256::digest(n.to_le_bytes()).into())
    }

    #[test]
    fn nothing_is_forgotten_and_little_is_invented() {
        let known = Known::new(0);
        assert!(known.may_contain(id(7)), "until it is complete, everything may be there");
        known.set_complete();
        assert!(!known.may_contain(id(7)));
        // More than the first layer holds.
        let many = FIRST_LAYER + 100_000;
        (0..many).for_each(|n| known.insert(id(n)));
        assert!((0..many).all(|n| known.may_contain(id(n))));
        let invented = (many..many + 100_000).filter(|n| known.may_contain(id(*n))).count();
        assert!(invented < 2_000, "{invented} of 100,000");
    }
}
