//! Which events a relay has, because it gave them to us.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use crate::protocol::EventId;

/// A bounded memory of ids. Of the oldest it forgets, so that an event may be sent there that the relay
/// has: it says `duplicate:` then.
pub struct Seen {
    /// Ids of the younger generation before it becomes the older one; 0 remembers nothing.
    generation: usize,
    generations: Mutex<[HashSet<u64>; 2]>,
}

impl Seen {
    /// Remembers at least the last `least` ids, and at most twice as many.
    pub fn new(least: usize) -> Self {
        Self { generation: least, generations: Mutex::default() }
    }

    pub(super) fn insert(&self, id: &EventId) {
        if self.generation == 0 {
            return;
        }
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        if young.len() >= self.generation {
            *old = std::mem::take(young);
        }
        young.insert(beginning(id));
    }

    pub fn contains(&self, id: &EventId) -> bool {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.iter().any(|ids| ids.contains(&beginning(id)))
    }
}

/// Nobody makes two ids with the same eight bytes to no more end than that one is not sent to a relay.
fn beginning(id: &EventId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let id = |n: u8| EventId([n; 32]);
        let seen = Seen::new(3);
        for n in 0..10 {
            seen.insert(&id(n));
        }
        assert!((7..10).all(|n| seen.contains(&id(n))));
        assert!(!seen.contains(&id(0)) && !seen.contains(&id(200)));
        let nothing = Seen::new(0);
        nothing.insert(&id(1));
        assert!(!nothing.contains(&id(1)));
    }
}
