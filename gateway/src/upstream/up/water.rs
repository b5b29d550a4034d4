//! Up to where everything is answered, while answers come in any order.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::pipeline::Seq;

/// The positions of the log that were read and are not answered yet.
#[derive(Debug, Default)]
pub struct Water {
    /// And since when.
    open: BTreeMap<Seq, Instant>,
    read: Seq,
}

impl Water {
    /// Nothing is open, and everything up to here is done.
    pub fn at(read: Seq) -> Self {
        Self { open: BTreeMap::new(), read }
    }

    /// Every position up to this one was read; those that are to be answered are open.
    pub fn read_to(&mut self, seq: Seq) {
        self.read = self.read.max(seq);
    }

    /// This position is to be answered.
    pub fn open(&mut self, seq: Seq, now: Instant) {
        self.open.insert(seq, now);
    }

    pub fn close(&mut self, seq: Seq) {
        self.open.remove(&seq);
    }

    /// Up to here everything is answered or was not to be: what the cursor may say.
    pub fn mark(&self) -> Seq {
        self.open.first_key_value().map_or(self.read, |(first, _)| first - 1)
    }

    /// Up to here everything was read.
    pub fn read(&self) -> Seq {
        self.read
    }

    /// Since when the oldest open position has been so.
    pub fn oldest(&self) -> Option<Instant> {
        self.open.first_key_value().map(|(_, since)| *since)
    }

    /// How many positions are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_waits_for_the_oldest_answer() {
        let mut water = Water::at(10);
        let now = Instant::now();
        assert_eq!(water.mark(), 10);
        for seq in [12, 15, 17] {
            water.open(seq, now);
        }
        water.read_to(20);
        assert_eq!((water.mark(), water.read(), water.len()), (11, 20, 3));
        water.close(15);
        assert_eq!(water.mark(), 11);
        water.close(12);
        assert_eq!(water.mark(), 16, "15 was answered before");
        water.close(17);
        water.close(17);
        assert_eq!((water.mark(), water.len()), (20, 0));
        water.read_to(5);
        assert_eq!(water.mark(), 20, "it never goes back");
    }
}
