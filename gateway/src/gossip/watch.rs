//! Notices when a part has died that all topics share, or takes nothing any more: iroh's router or
//! the gossip actor. `net.rs` replaces them then.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Subscriptions that fail in a row, over all topics, before gossip counts as dead. It answers calls
/// from memory, so one failure is already unusual.
const FAILURES: u64 = 5;
/// Messages that were not taken in time, within [`WEDGED_FOR`], before gossip counts as wedged. One
/// may be the fault of a neighbor that froze, until its connection is given up.
const WEDGES: usize = 3;
const WEDGED_FOR: Duration = Duration::from_secs(60);

const ROUTER: &str = "the endpoint takes no more connections";
const GOSSIP: &str = "gossip has ended or does not answer";
const WEDGED: &str = "gossip takes no messages";

/// How the parts are that the topics share.
#[derive(Default)]
pub struct Health {
    /// Subscriptions that failed since one succeeded.
    failures: AtomicU64,
    router_ended: AtomicBool,
    /// When messages were not taken.
    wedges: Mutex<VecDeque<Instant>>,
}

impl Health {
    pub fn subscribed(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    pub fn subscribe_failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Gossip took no message in time.
    pub fn wedged(&self) {
        let mut wedges = self.wedges.lock().unwrap_or_else(PoisonError::into_inner);
        wedges.truncate(WEDGES - 1);
        wedges.push_front(Instant::now());
    }

    pub fn router_ended(&self) {
        self.router_ended.store(true, Ordering::Relaxed);
    }

    /// All parts are new.
    pub fn rebuilt(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.router_ended.store(false, Ordering::Relaxed);
        self.wedges.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What does not work at the moment, if anything.
    pub fn trouble(&self) -> Option<&'static str> {
        if self.router_ended.load(Ordering::Relaxed) {
            Some(ROUTER)
        } else if self.failures.load(Ordering::Relaxed) >= FAILURES {
            Some(GOSSIP)
        } else if self.is_wedged() {
            Some(WEDGED)
        } else {
            None
        }
    }

    fn is_wedged(&self) -> bool {
        let wedges = self.wedges.lock().unwrap_or_else(PoisonError::into_inner);
        wedges.len() >= WEDGES && wedges.iter().all(|at| at.elapsed() < WEDGED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_are_trouble() {
        let health = Health::default();
        for _ in 1..FAILURES {
            health.subscribe_failed();
        }
        assert_eq!(health.trouble(), None);
        health.subscribed();
        health.subscribe_failed();
        assert_eq!(health.trouble(), None);
        for _ in 1..FAILURES {
            health.subscribe_failed();
        }
        assert_eq!(health.trouble(), Some(GOSSIP));
        health.router_ended();
        assert_eq!(health.trouble(), Some(ROUTER));
        health.rebuilt();
        assert_eq!(health.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_are_not_taken_again_and_again_are_trouble() {
        let health = Health::default();
        for _ in 0..2 * WEDGES {
            health.wedged();
            tokio::time::advance(WEDGED_FOR / 2).await;
        }
        tokio::time::advance(WEDGED_FOR).await;
        for _ in 0..WEDGES {
            assert_eq!(health.trouble(), None);
            health.wedged();
        }
        assert_eq!(health.trouble(), Some(WEDGED));
        health.rebuilt();
        assert_eq!(health.trouble(), None);
    }
}
