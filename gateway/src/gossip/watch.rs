//! Notices when a part that nobody replaces has died: iroh's router or the gossip actor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use iroh::protocol::Router;
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_secs(1);
/// Subscriptions that fail in a row, over all topics, before gossip counts as dead. It answers calls
/// from memory, so one failure is already unusual.
const FAILURES: u64 = 5;

const ROUTER: &str = "the endpoint takes no more connections";
const GOSSIP: &str = "gossip has ended or does not answer";

/// How the parts are that the topics share.
#[derive(Default)]
pub struct Health {
    /// Subscriptions that failed since one succeeded.
    failures: AtomicU64,
    router_ended: AtomicBool,
}

impl Health {
    pub fn subscribed(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    pub fn subscribe_failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// What does not work and will not come back without a restart, if anything.
    pub fn trouble(&self) -> Option<&'static str> {
        if self.router_ended.load(Ordering::Relaxed) {
            Some(ROUTER)
        } else if self.failures.load(Ordering::Relaxed) >= FAILURES {
            Some(GOSSIP)
        } else {
            None
        }
    }
}

/// Looks until shutdown, and says once what it found.
pub async fn watch(router: Router, health: Arc<Health>, token: CancellationToken) {
    let mut said = false;
    while token.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if router.is_shutdown() {
            health.router_ended.store(true, Ordering::Relaxed);
        }
        if let Some(trouble) = health.trouble()
            && !said
        {
            said = true;
            tracing::error!("{trouble}; restart the gateway");
        }
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
        health.router_ended.store(true, Ordering::Relaxed);
        assert_eq!(health.trouble(), Some(ROUTER));
    }
}
