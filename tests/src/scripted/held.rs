//! The events of a scripted relay, newest first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use nostr_sdk::{Event, EventId, Filter, filter::MatchEventOptions};

use crate::events;

/// An event and its canonical JSON.
pub(super) struct Stored {
    pub event: Event,
    pub json: String,
}

/// In the order of NIP-01: ties by the lowest id.
#[derive(Default)]
pub(super) struct Held {
    order: BTreeMap<(Reverse<u64>, EventId), Arc<Stored>>,
    ids: HashSet<EventId>,
}

impl Held {
    /// The event, if it is new.
    pub fn insert(&mut self, event: &Event) -> Option<Arc<Stored>> {
        if !self.ids.insert(event.id) {
            return None;
        }
        let stored = Arc::new(Stored { event: event.clone(), json: events::json(event) });
        self.order.insert((Reverse(event.created_at.as_secs()), event.id), stored.clone());
        Some(stored)
    }

    /// What one filter matches, at most so many.
    pub fn matching(&self, filter: &Filter, limit: usize) -> Vec<Arc<Stored>> {
        let limit = filter.limit.unwrap_or(usize::MAX).min(limit);
        let until = filter.until.map_or(u64::MAX, |until| until.as_secs());
        let since = filter.since.map_or(0, |since| since.as_secs());
        let begin = (Reverse(until), EventId::all_zeros());
        self.order
            .range(begin..)
            .map(|(_, stored)| stored)
            .take_while(|stored| stored.event.created_at.as_secs() >= since)
            .filter(|stored| filter.match_event(&stored.event, MatchEventOptions::new()))
            .take(limit)
            .cloned()
            .collect()
    }

    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.ids.iter().map(EventId::to_hex).collect();
        ids.sort();
        ids
    }
}
