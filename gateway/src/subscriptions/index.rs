//! From an event to the subscriptions that may want it, without testing every filter.

use std::{collections::HashMap, hash::Hash};

use crate::protocol::{Event, EventId, Filter, PublicKey};

/// The place of a live subscription in the registry.
pub type Slot = u32;

/// Each filter stands under its most selective condition, once for each of its values.
#[derive(Default)]
pub struct Index {
    ids: HashMap<EventId, Vec<Slot>>,
    authors: HashMap<PublicKey, Vec<Slot>>,
    /// By letter, then by value.
    tags: HashMap<u8, HashMap<Box<str>, Vec<Slot>>>,
    kinds: HashMap<u16, Vec<Slot>>,
    any: Vec<Slot>,
}

impl Index {
    pub fn insert(&mut self, slot: Slot, filters: &[Filter]) {
        for condition in filters.iter().map(condition) {
            match condition {
                Condition::Nothing => {}
                Condition::Ids(ids) => insert_each(&mut self.ids, ids, slot),
                Condition::Authors(authors) => insert_each(&mut self.authors, authors, slot),
                Condition::Tag(letter, values) => {
                    let by_value = self.tags.entry(letter).or_default();
                    for value in values {
                        by_value.entry(value.as_str().into()).or_default().push(slot);
                    }
                }
                Condition::Kinds(kinds) => insert_each(&mut self.kinds, kinds, slot),
                Condition::Any => self.any.push(slot),
            }
        }
    }

    /// Takes out what [`Self::insert`] put in for the same filters.
    pub fn remove(&mut self, slot: Slot, filters: &[Filter]) {
        for condition in filters.iter().map(condition) {
            match condition {
                Condition::Nothing => {}
                Condition::Ids(ids) => remove_each(&mut self.ids, ids, slot),
                Condition::Authors(authors) => remove_each(&mut self.authors, authors, slot),
                Condition::Tag(letter, values) => {
                    let Some(by_value) = self.tags.get_mut(&letter) else { continue };
                    for value in values {
                        remove_one(by_value, value.as_str(), slot);
                    }
                    if by_value.is_empty() {
                        self.tags.remove(&letter);
                    }
                }
                Condition::Kinds(kinds) => remove_each(&mut self.kinds, kinds, slot),
                Condition::Any => take_out(&mut self.any, slot),
            }
        }
    }

    /// The subscriptions one of whose filters may match. One may be named several times.
    pub fn candidates(&self, event: &Event, found: &mut Vec<Slot>) {
        found.extend_from_slice(&self.any);
        let mut add = |slots: Option<&Vec<Slot>>| {
            found.extend_from_slice(slots.map_or(&[], Vec::as_slice));
        };
        add(self.kinds.get(&event.kind));
        add(self.authors.get(&event.pubkey));
        add(self.ids.get(&event.id));
        if self.tags.is_empty() {
            return;
        }
        for tag in &event.tags {
            if let [name, value, ..] = tag.as_slice()
                && let [letter] = *name.as_bytes()
                && let Some(by_value) = self.tags.get(&letter)
            {
                add(by_value.get(value.as_str()));
            }
        }
    }
}

/// Where a filter stands.
enum Condition<'f> {
    Nothing,
    Ids(&'f [EventId]),
    Authors(&'f [PublicKey]),
    Tag(u8, &'f [String]),
    Kinds(&'f [u16]),
    Any,
}

fn condition(filter: &Filter) -> Condition<'_> {
    // A search is answered from what is stored (NIP-50).
    if filter.matches_nothing() || filter.words().is_some() {
        return Condition::Nothing;
    }
    if let Some(ids) = &filter.ids {
        return Condition::Ids(ids);
    }
    if let Some(authors) = &filter.authors {
        return Condition::Authors(authors);
    }
    if let Some((letter, values)) = filter.tags.iter().min_by_key(|(_, values)| values.len()) {
        return Condition::Tag(*letter, values);
    }
    filter.kinds.as_ref().map_or(Condition::Any, |kinds| Condition::Kinds(kinds))
}

fn insert_each<K: Copy + Eq + Hash>(map: &mut HashMap<K, Vec<Slot>>, keys: &[K], slot: Slot) {
    for key in keys {
        map.entry(*key).or_default().push(slot);
    }
}

fn remove_each<K: Eq + Hash>(map: &mut HashMap<K, Vec<Slot>>, keys: &[K], slot: Slot) {
    for key in keys {
        remove_one(map, key, slot);
    }
}

fn remove_one<K, Q>(map: &mut HashMap<K, Vec<Slot>>, key: &Q, slot: Slot)
where
    K: Eq + Hash + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    let Some(slots) = map.get_mut(key) else { return };
    take_out(slots, slot);
    if slots.is_empty() {
        map.remove(key);
    }
}

fn take_out(slots: &mut Vec<Slot>, slot: Slot) {
    if let Some(at) = slots.iter().position(|other| *other == slot) {
        slots.swap_remove(at);
    }
    // A crowd that has gone leaves no memory behind.
    if slots.capacity() > 64 && slots.len() < slots.capacity() / 4 {
        slots.shrink_to(slots.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    #[test]
    fn a_filter_is_found_by_its_most_selective_condition_and_leaves_nothing_behind() {
        let author = Author::new(1);
        let event = author.sign(1, 7, &[&["t", "x"], &["e", "y"]], "");
        let key = author.pubkey();
        let filters: Vec<Vec<Filter>> = [
            format!(r#"[{{"ids":["{}"]}}]"#, event.id),
            format!(r#"[{{"authors":["{key}"],"kinds":[7]}}]"#),
            r##"[{"#t":["x","z"]},{"#e":["y"]}]"##.to_owned(),
            r#"[{"kinds":[7]}]"#.to_owned(),
            "[{}]".to_owned(),
            r#"[{"kinds":[8]}]"#.to_owned(),
            r##"[{"#t":["y"]}]"##.to_owned(),
            r#"[{"search":"x"}]"#.to_owned(),
            r#"[{"ids":[]}]"#.to_owned(),
        ]
        .iter()
        .map(|text| {
            let texts: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
            texts.iter().map(|text| Filter::parse(&text.to_string()).unwrap()).collect()
        })
        .collect();
        let mut index = Index::default();
        for (slot, filters) in filters.iter().enumerate() {
            index.insert(u32::try_from(slot).unwrap(), filters);
        }
        let mut found = Vec::new();
        index.candidates(&event, &mut found);
        found.sort_unstable();
        // The third stands under two conditions of the event.
        assert_eq!(found, [0, 1, 2, 2, 3, 4]);
        for (slot, filters) in filters.iter().enumerate() {
            index.remove(u32::try_from(slot).unwrap(), filters);
        }
        assert!(index.ids.is_empty() && index.authors.is_empty() && index.tags.is_empty());
        assert!(index.kinds.is_empty() && index.any.is_empty());
    }
}
