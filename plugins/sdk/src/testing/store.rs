//! `lookup` over the events that a test gives. Nothing is too expensive here.

use crate::{
    Event,
    lookup::{Author, Error, Query},
};

const MOST_OF_AUTHOR: usize = 1_000;
const MOST_NAMED: usize = 100;
const PROFILE: u16 = 0;
const FOLLOWS: u16 = 3;

#[derive(Default)]
pub struct Store {
    events: Vec<Event>,
}

impl Store {
    pub fn hold(&mut self, event: &Event) {
        if self.events.iter().any(|held| held.id == event.id) {
            return;
        }
        if is_replaceable(event.kind) {
            // The newest stays; of equally old ones the lower id (NIP-01).
            let place = |event: &Event| (event.created_at, std::cmp::Reverse(event.id.clone()));
            if self.newest(&event.pubkey, event.kind).is_some_and(|held| place(held) > place(event))
            {
                return;
            }
            self.events.retain(|held| held.pubkey != event.pubkey || held.kind != event.kind);
        }
        self.events.push(event.clone());
    }

    pub fn author(&self, pubkey: &str) -> Result<Author, Error> {
        require_key(pubkey)?;
        let own = self.events.iter().filter(|event| event.pubkey == pubkey);
        let events = u32::try_from(own.take(MOST_OF_AUTHOR).count()).unwrap_or(u32::MAX);
        let has = |kind| self.newest(pubkey, kind).is_some();
        Ok(Author { events, has_profile: has(PROFILE), has_follows: has(FOLLOWS) })
    }

    pub fn count(&self, query: &Query, most: u32) -> Result<u32, Error> {
        if query.authors.len() > MOST_NAMED || query.kinds.len() > MOST_NAMED {
            return Err(Error::Invalid);
        }
        query.authors.iter().try_for_each(|author| require_key(author))?;
        let matching = self.events.iter().filter(|event| {
            (query.authors.is_empty() || query.authors.contains(&event.pubkey))
                && (query.kinds.is_empty() || query.kinds.contains(&event.kind))
                && event.created_at >= query.since.unwrap_or(0)
        });
        Ok(u32::try_from(matching.count()).unwrap_or(u32::MAX).min(most))
    }

    pub fn follows(&self, pubkey: &str, whom: &str) -> Result<bool, Error> {
        require_key(whom)?;
        Ok(self.list_follows(pubkey, u32::MAX)?.iter().any(|followed| followed == whom))
    }

    pub fn list_follows(&self, pubkey: &str, most: u32) -> Result<Vec<String>, Error> {
        require_key(pubkey)?;
        let mut followed: Vec<String> = Vec::new();
        let tags = self.newest(pubkey, FOLLOWS).map(|event| event.tags.as_slice());
        for tag in tags.unwrap_or_default() {
            let [name, key, ..] = tag.as_slice() else { continue };
            if name == "p" && require_key(key).is_ok() && !followed.contains(key) {
                followed.push(key.clone());
            }
        }
        followed.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(followed)
    }

    pub fn list_tags(&self, pubkey: &str, kind: u16, most: u32) -> Result<Vec<Vec<String>>, Error> {
        require_key(pubkey)?;
        if !is_replaceable(kind) {
            return Err(Error::Invalid);
        }
        let mut tags =
            self.newest(pubkey, kind).map(|event| event.tags.clone()).unwrap_or_default();
        tags.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(tags)
    }

    fn newest(&self, pubkey: &str, kind: u16) -> Option<&Event> {
        self.events.iter().find(|event| event.pubkey == pubkey && event.kind == kind)
    }
}

/// Of these kinds one event is held of each author (NIP-01).
fn is_replaceable(kind: u16) -> bool {
    matches!(kind, PROFILE | FOLLOWS | 10_000..20_000)
}

fn require_key(text: &str) -> Result<(), Error> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == 64 && text.bytes().all(is_digit) { Ok(()) } else { Err(Error::Invalid) }
}
