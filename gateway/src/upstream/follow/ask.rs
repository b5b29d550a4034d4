//! What one relay is asked for: who is in which group, and the filters that follow from it.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::{
    groups::{self, Group},
    lists::{FOLLOWS, RELAY_LIST},
};
use crate::{
    pipeline::{SavedGroup, streams::Part},
    protocol::{Filter, PublicKey},
    upstream::{
        config::{History, UpstreamConfig},
        demand::{Demand, Wanted},
    },
};

/// What a relay is to be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Authors of whom what the stream's filter says is wanted.
    pub notes: BTreeSet<PublicKey>,
    /// Authors whose relay list is wanted.
    pub lists: BTreeSet<PublicKey>,
    /// Whether the lists of follows are.
    pub follows: bool,
}

/// Who is asked for at one relay.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    notes: Vec<Group>,
    lists: Vec<Group>,
    follows: bool,
}

impl Asked {
    /// Adds a group that was kept on disk.
    pub fn restore(&mut self, saved: SavedGroup) {
        let groups = if saved.lists { &mut self.lists } else { &mut self.notes };
        groups.push(Group { id: saved.id, authors: saved.authors });
    }

    /// Asks for this from now on. Returns whether the groups changed, which then must be saved before
    /// anybody is asked: what is on disk says whom the cursors hold for.
    pub fn regroup(&mut self, wish: &Wish, now: u64) -> bool {
        self.follows = wish.follows;
        let notes = groups::regroup(&mut self.notes, &wish.notes, now);
        let lists = groups::regroup(&mut self.lists, &wish.lists, now);
        notes || lists
    }

    /// As it is kept on disk.
    pub fn saved(&self, url: &str, open: bool) -> Vec<SavedGroup> {
        let save = |groups: &[Group], lists: bool| {
            let saved = groups.iter().map(|group| SavedGroup {
                url: url.into(),
                lists,
                open,
                id: group.id,
                authors: group.authors.clone(),
            });
            saved.collect::<Vec<_>>()
        };
        [save(&self.notes, false), save(&self.lists, true)].concat()
    }

    /// The demand of the stream's relay.
    pub fn demand(&self, config: &UpstreamConfig) -> Demand {
        let mut wanted = Vec::new();
        let stream = fingerprint(&config.filter);
        for group in &self.notes {
            let Some(filter) = narrowed(&config.filter, &group.authors) else { continue };
            let part = part(b"notes", stream, group.id);
            wanted.extend(Wanted::with_requests(&filter, config.history_down(), part));
        }
        let lists = |kinds: &[u16], authors: Vec<PublicKey>, part| Wanted {
            filter: Filter {
                kinds: Some(kinds.to_vec()),
                authors: Some(authors),
                ..Filter::default()
            },
            concerning: None,
            history: History::All,
            part,
        };
        if self.follows {
            let mut roots = config.follow.clone();
            roots.sort_unstable();
            roots.dedup();
            let mut hash = Sha256::new();
            roots.iter().for_each(|root| hash.update(root.0));
            let id = first_eight(&hash.finalize().into());
            wanted.push(lists(&[FOLLOWS, RELAY_LIST], roots, part(b"follows", 0, id)));
        }
        for group in &self.lists {
            let authors = group.authors.iter().copied().collect();
            wanted.push(lists(&[RELAY_LIST], authors, part(b"lists", 0, group.id)));
        }
        Demand { wanted, events_per_s: config.rates.down_events_per_s }
    }
}

/// The stream's filter for some authors; `None` when it allows none of them.
fn narrowed(filter: &Filter, authors: &BTreeSet<PublicKey>) -> Option<Filter> {
    let allowed = |author: &&PublicKey| match &filter.authors {
        Some(allowed) => allowed.binary_search(author).is_ok(),
        None => true,
    };
    let authors: Vec<PublicKey> = authors.iter().filter(allowed).copied().collect();
    (!authors.is_empty()).then(|| Filter { authors: Some(authors), ..filter.clone() })
}

/// With another filter all begins anew.
fn fingerprint(filter: &Filter) -> u64 {
    let filter = Filter { limit: None, ..filter.clone() };
    let text = serde_json::to_string(&filter).unwrap_or_default();
    first_eight(&Sha256::digest(text).into())
}

fn part(what: &[u8], stream: u64, group: u64) -> Part {
    let hash = Sha256::new_with_prefix(what)
        .chain_update(stream.to_be_bytes())
        .chain_update(group.to_be_bytes());
    first_eight(&hash.finalize().into())
}

fn first_eight(digest: &[u8; 32]) -> u64 {
    let (first, _) = digest.split_first_chunk().expect("a digest is longer than eight bytes");
    u64::from_be_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(filter: &str) -> UpstreamConfig {
        let text = format!(
            r#"{{"name":"n","follow":["{}"],"filter":{filter},"history":"7d"}}"#,
            "1".repeat(64)
        );
        serde_json::from_str(&text).unwrap()
    }

    fn keys(numbers: &[u8]) -> BTreeSet<PublicKey> {
        numbers.iter().map(|number| PublicKey([*number; 32])).collect()
    }

    fn authors(wanted: &Wanted) -> Vec<u8> {
        wanted.filter.authors.iter().flatten().map(|key| key.0[0]).collect()
    }

    #[test]
    fn notes_have_the_history_of_the_stream_and_lists_all_of_it() {
        let mut asked = Asked::default();
        let wish = Wish { notes: keys(&[2, 3]), lists: keys(&[2, 3, 4]), follows: true };
        assert!(asked.regroup(&wish, 1));
        assert!(!asked.regroup(&wish, 2));
        let demand = asked.demand(&config(r#"{"kinds":[1],"limit":9}"#));
        let [notes, requests, follows, lists] = &demand.wanted[..] else { panic!("{demand:?}") };
        assert_eq!((authors(notes), notes.history), (vec![2, 3], History::Seconds(604_800)));
        assert_eq!(notes.filter.kinds, Some(vec![1]));
        assert_eq!((authors(requests), requests.concerning.is_some()), (vec![2, 3], true));
        assert_eq!((authors(follows), follows.history), (vec![0x11], History::All));
        assert_eq!(follows.filter.kinds, Some(vec![FOLLOWS, RELAY_LIST]));
        assert_eq!((authors(lists), lists.history), (vec![2, 3, 4], History::All));
        let parts: BTreeSet<_> = demand.wanted.iter().map(|wanted| wanted.part).collect();
        assert_eq!(parts.len(), 4);
    }

    #[test]
    fn a_cursor_is_that_of_a_group_and_a_filter() {
        let mut asked = Asked::default();
        let parts = |asked: &Asked, filter| -> Vec<Part> {
            asked.demand(&config(filter)).wanted.iter().map(|wanted| wanted.part).collect()
        };
        asked.regroup(&Wish { notes: keys(&[2, 3]), ..Wish::default() }, 1);
        let before = parts(&asked, r#"{"kinds":[1]}"#);
        asked.regroup(&Wish { notes: keys(&[3]), ..Wish::default() }, 2);
        assert_eq!(parts(&asked, r#"{"kinds":[1]}"#), before, "one left");
        assert_eq!(parts(&asked, r#"{"kinds":[1],"limit":5}"#), before);
        assert_ne!(parts(&asked, r#"{"kinds":[1,7]}"#), before);
        let mut restored = Asked::default();
        for group in asked.saved("wss://a", true) {
            restored.restore(group);
        }
        assert_eq!(parts(&restored, r#"{"kinds":[1]}"#), before, "a restart changes nothing");
        asked.regroup(&Wish { notes: keys(&[2, 3]), ..Wish::default() }, 3);
        let after = parts(&asked, r#"{"kinds":[1]}"#);
        assert_eq!((after.len(), &after[..2]), (4, &before[..]), "one came");
    }

    #[test]
    fn the_authors_of_the_filter_are_the_only_ones() {
        let mut asked = Asked::default();
        asked.regroup(&Wish { notes: keys(&[0x22, 0x33]), ..Wish::default() }, 1);
        let only = format!(r#"{{"authors":["{}"]}}"#, "3".repeat(64));
        assert_eq!(authors(&asked.demand(&config(&only)).wanted[0]), [0x33]);
        let other = format!(r#"{{"authors":["{}"]}}"#, "4".repeat(64));
        assert!(asked.demand(&config(&other)).wanted.is_empty());
    }
}
