//! What an instance may take, and what all instances of a plugin have taken.

use prometheus_client::metrics::gauge::Gauge;
use wasmtime::{ResourceLimiter, StoreLimits};

/// The limits of one instance. What it holds is given back when this is dropped with its store.
pub struct Memory {
    limits: StoreLimits,
    /// Bytes of all instances of the plugin.
    all: Gauge,
    /// Bytes of this one.
    own: i64,
    /// By how much it was just allowed to grow.
    growth: i64,
}

impl Memory {
    pub const fn new(limits: StoreLimits, all: Gauge) -> Self {
        Self { limits, all, own: 0, growth: 0 }
    }

    fn grow(&mut self, bytes: i64) {
        self.own += bytes;
        self.all.inc_by(bytes);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.all.dec_by(self.own);
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current);
        // All memories of the instance together are what is limited, not each of them. The bound that
        // one declares for itself is the engine's business.
        let held = usize::try_from(self.own).unwrap_or(0);
        let allowed = self.limits.memory_growing(held, held.saturating_add(growth), None)?;
        self.growth = if allowed { i64::try_from(growth).unwrap_or(0) } else { 0 };
        self.grow(self.growth);
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        let growth = std::mem::take(&mut self.growth);
        self.grow(-growth);
        self.limits.memory_grow_failed(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::StoreLimitsBuilder;

    use super::*;

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        let all = Gauge::default();
        let limits = || StoreLimitsBuilder::new().memory_size(100).build();
        let mut one = Memory::new(limits(), all.clone());
        let mut two = Memory::new(limits(), all.clone());
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(two.memory_growing(0, 10, None).unwrap());
        assert!(one.memory_growing(60, 90, None).unwrap());
        assert!(!one.memory_growing(90, 101, None).unwrap());
        assert_eq!(all.get(), 100);
        // The system had none left.
        assert!(two.memory_growing(10, 100, None).unwrap());
        let _ = two.memory_grow_failed(wasmtime::Error::msg("none left"));
        assert_eq!(all.get(), 100);
        drop(one);
        assert_eq!(all.get(), 10);
        drop(two);
        assert_eq!(all.get(), 0);
    }

    #[test]
    fn several_memories_share_one_limit() {
        let all = Gauge::default();
        let limits = StoreLimitsBuilder::new().memory_size(100).build();
        let mut memory = Memory::new(limits, all.clone());
        assert!(memory.memory_growing(0, 60, None).unwrap());
        assert!(!memory.memory_growing(0, 41, None).unwrap());
        assert!(memory.memory_growing(0, 40, None).unwrap());
        assert!(!memory.memory_growing(60, 61, None).unwrap());
        assert_eq!(all.get(), 100);
    }
}
