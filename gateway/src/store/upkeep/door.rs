//! What retention would remove at once is not let in: else upstream relays and topics would bring the
//! same old events back for ever.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;

use crate::{
    protocol::{Event, TopicName},
    store::config::RetentionConfig,
};

/// The rules as the way in asks them. Without rules it costs one load.
#[derive(Default)]
pub(in crate::store) struct Door {
    closed: AtomicBool,
    entries: ArcSwap<Vec<Arc<Entry>>>,
}

/// One rule, and how far it has come.
pub(super) struct Entry {
    pub rule: RetentionConfig,
    /// Events before this time were removed because there were too many.
    pub removed_before: AtomicU64,
}

impl Door {
    pub(super) fn set(&self, entries: Vec<Arc<Entry>>) {
        self.closed.store(!entries.is_empty(), Ordering::Release);
        self.entries.store(entries.into());
    }

    /// From when on ordinary events of the topic are kept, in Unix seconds. Rules for some kinds alone
    /// do not count.
    pub fn open_since(&self, topic: &TopicName, now: u64) -> u64 {
        if !self.closed.load(Ordering::Acquire) {
            return 0;
        }
        let entries = self.entries.load();
        let rules = entries.iter().filter(|entry| {
            entry.rule.kinds.is_empty() && entry.rule.concerns(std::slice::from_ref(topic))
        });
        let since = rules.map(|entry| {
            let max_age = entry.rule.max_age_s;
            let by_age = if max_age == 0 { 0 } else { now.saturating_sub(max_age) };
            by_age.max(entry.removed_before.load(Ordering::Acquire))
        });
        since.max().unwrap_or(0)
    }

    /// Whether an event for these topics is past what is kept. `now` is in Unix seconds.
    pub fn refuses(&self, event: &Event, topics: &[TopicName], now: impl Fn() -> u64) -> bool {
        if !self.closed.load(Ordering::Acquire) {
            return false;
        }
        self.entries.load().iter().any(|entry| {
            let (rule, max_age) = (&entry.rule, entry.rule.max_age_s);
            let removed_before = entry.removed_before.load(Ordering::Acquire);
            let too_old = max_age != 0 && event.created_at < now().saturating_sub(max_age);
            (too_old || event.created_at < removed_before)
                && rule.covers(event.kind)
                && rule.concerns(topics)
        })
    }
}
