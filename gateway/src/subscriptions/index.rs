//! From an event to the subscriptions that may want it, without testing every filter.

use std::collections::{BTreeSet, HashMap};

use super::Key;
use crate::protocol::{Event, EventId, Filter, PublicKey};

/// Each filter stands under its most selective condition, once for each of its values.
#[derive(Default)]
pub(super) struct Index {
    buckets: HashMap<Condition, HashMap<Key, usize>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Condition {
    Id(EventId),
    Author(PublicKey),
    Tag(u8, String),
    Kind(u16),
    Any,
}

impl Index {
    pub fn insert(&mut self, key: &Key, filters: &[Filter]) {
        for condition in filters.iter().flat_map(conditions) {
            *self.buckets.entry(condition).or_default().entry(key.clone()).or_insert(0) += 1;
        }
    }

    /// Takes out what [`Self::insert`] put in for the same filters.
    pub fn remove(&mut self, key: &Key, filters: &[Filter]) {
        for condition in filters.iter().flat_map(conditions) {
            let Some(bucket) = self.buckets.get_mut(&condition) else { continue };
            if let Some(count) = bucket.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    bucket.remove(key);
                }
            }
            if bucket.is_empty() {
                self.buckets.remove(&condition);
            }
        }
    }

    /// The subscriptions one of whose filters may match, each once.
    pub fn candidates(&self, event: &Event) -> BTreeSet<Key> {
        let mut found = BTreeSet::new();
        let mut collect = |condition: &Condition| {
            if let Some(bucket) = self.buckets.get(condition) {
                found.extend(bucket.keys().cloned());
            }
        };
        collect(&Condition::Any);
        collect(&Condition::Id(event.id));
        collect(&Condition::Author(event.pubkey));
        collect(&Condition::Kind(event.kind));
        for tag in &event.tags {
            if let [name, value, ..] = tag.as_slice()
                && let [letter] = *name.as_bytes()
            {
                collect(&Condition::Tag(letter, value.clone()));
            }
        }
        found
    }
}

fn conditions(filter: &Filter) -> Vec<Condition> {
    if filter.matches_nothing() {
        return Vec::new();
    }
    if let Some(ids) = &filter.ids {
        return ids.iter().copied().map(Condition::Id).collect();
    }
    if let Some(authors) = &filter.authors {
        return authors.iter().copied().map(Condition::Author).collect();
    }
    if let Some((letter, values)) = filter.tags.iter().min_by_key(|(_, values)| values.len()) {
        return values.iter().map(|value| Condition::Tag(*letter, value.clone())).collect();
    }
    match &filter.kinds {
        Some(kinds) => kinds.iter().copied().map(Condition::Kind).collect(),
        None => vec![Condition::Any],
    }
}
