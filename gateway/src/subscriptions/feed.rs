//! One connection's end of the registry: a bounded queue of deliveries that is taken as a whole.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::{Interest, Subscriptions};
use crate::{
    clock::unix_now,
    pipeline::{LogEntry, Seq},
    protocol::Event,
};

/// Deliveries that may wait for one connection.
const MAX_WAITING: usize = 1_024;
/// Bytes of JSON that may wait for one connection.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// An event for one subscription.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub subscription: Arc<str>,
    /// Tells a subscription from an earlier one with the same id.
    pub generation: u64,
    pub event: Arc<Event>,
}

/// A subscription that must read on from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lagged {
    pub subscription: Arc<str>,
    pub generation: u64,
    pub after: Seq,
}

/// What a feed tells its connection, at once.
#[derive(Debug, Default)]
pub struct News {
    pub deliveries: VecDeque<Delivery>,
    /// The queue was full: these left the index.
    pub lagged: Vec<Lagged>,
}

/// Where the registry puts what a connection is to get.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    ready: Notify,
    /// The registry will wake the connection.
    marked: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    news: News,
    bytes: usize,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns false when there is no room. The caller calls [`Self::wake`] after its last one.
    pub fn push(&self, delivery: Delivery, bytes: usize) -> bool {
        let mut waiting = self.lock();
        let count = waiting.news.deliveries.len();
        if count >= MAX_WAITING || (count > 0 && waiting.bytes + bytes > MAX_WAITING_BYTES) {
            return false;
        }
        waiting.bytes += bytes;
        waiting.news.deliveries.push_back(delivery);
        true
    }

    pub fn push_lagged(&self, lagged: Lagged) {
        self.lock().news.lagged.push(lagged);
    }

    pub fn forget_lagged(&self, subscription: &str) {
        self.lock().news.lagged.retain(|lagged| &*lagged.subscription != subscription);
    }

    /// Notes that the connection is to be woken; false when that was noted before.
    pub fn mark(&self) -> bool {
        !self.marked.swap(true, Ordering::Relaxed)
    }

    pub fn wake(&self) {
        self.marked.store(false, Ordering::Relaxed);
        self.ready.notify_one();
    }

    fn take(&self) -> News {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.news)
    }
}

/// A connection's end of the registry; dropping it removes all its subscriptions.
pub struct Feed {
    pub(super) connection: u64,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) inbox: Arc<Inbox>,
}

impl Feed {
    /// Makes a subscription live: from now on it gets what the log has after `after`.
    ///
    /// Returns what was delivered to others already; the caller sends it first. `None` when that is
    /// no longer in memory: read the log on from `after` and try again.
    pub fn activate(
        &self,
        subscription: &Arc<str>,
        generation: u64,
        interest: &Arc<Interest>,
        after: Seq,
    ) -> Option<Vec<Arc<Event>>> {
        // Without the lock, for there may be thousands; what comes meanwhile are few.
        let now = unix_now();
        let reader = &self.subscriptions.reader;
        let mut missed = Vec::new();
        let mut reached = after;
        let collect = |entries: Vec<LogEntry>, missed: &mut Vec<LogEntry>, reached: &mut Seq| {
            *reached = entries.last().map_or(*reached, |entry| entry.seq);
            missed.extend(entries.into_iter().filter(|entry| interest.wants(entry, now)));
        };
        collect(reader.recent_log_after(after)?, &mut missed, &mut reached);
        let mut registry = self.subscriptions.lock();
        if reached < registry.position {
            collect(reader.recent_log_after(reached)?, &mut missed, &mut reached);
        }
        // What others have not got yet, the registry delivers to all.
        missed.retain(|entry| entry.seq <= registry.position);
        registry.insert(self.connection, subscription, generation, interest, after);
        Some(missed.into_iter().map(|entry| entry.event).collect())
    }

    /// Ends a live subscription. Deliveries that already wait are told apart by their generation.
    pub fn close(&self, subscription: &Arc<str>) {
        self.subscriptions.lock().remove(self.connection, subscription);
        self.inbox.forget_lagged(subscription);
    }

    /// What came since the last call; waits until there is something. Cancel safe.
    pub async fn next(&self) -> News {
        loop {
            let news = self.inbox.take();
            if !news.deliveries.is_empty() || !news.lagged.is_empty() {
                return news;
            }
            self.inbox.ready.notified().await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.subscriptions.lock().disconnect(self.connection);
    }
}
