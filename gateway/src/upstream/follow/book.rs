//! What is known of whom is followed and where they write.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    address::{AddressRules, Unusable},
    lists::{self, FOLLOWS, RELAY_LIST, WriteRelays},
    plan::List,
};
use crate::protocol::{Event, EventId, PublicKey};

/// The most authors of one stream. Of more, those who are followed by the first keys count, in the order
/// of their lists.
pub const MAX_AUTHORS: usize = 10_000;

/// Which version of a list it is: of two, the later counts, and of two of the same second the one with
/// the lower id (NIP-01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    created_at: u64,
    id: EventId,
}

impl Version {
    fn of(event: &Event) -> Self {
        Self { created_at: event.created_at, id: event.id }
    }

    fn is_after(self, other: Self) -> bool {
        (self.created_at, other.id) > (other.created_at, self.id)
    }
}

/// What a list changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// Who is followed.
    Authors,
    /// Where one of them writes.
    Relays,
}

impl Change {
    /// Both of two changes: who is followed matters more.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Authors, _) | (_, Self::Authors) => Self::Authors,
            (Self::Relays, _) | (_, Self::Relays) => Self::Relays,
            _ => Self::Nothing,
        }
    }
}

pub struct Book {
    /// The keys that the stream follows.
    roots: Vec<PublicKey>,
    rules: AddressRules,
    follows: BTreeMap<PublicKey, (Version, Vec<PublicKey>)>,
    relays: BTreeMap<PublicKey, (Version, WriteRelays)>,
    authors: BTreeSet<PublicKey>,
    /// Authors too many to be followed.
    too_many: usize,
}

impl Book {
    pub fn new(roots: &[PublicKey], rules: AddressRules) -> Self {
        let mut book = Self {
            roots: roots.to_vec(),
            rules,
            follows: BTreeMap::new(),
            relays: BTreeMap::new(),
            authors: BTreeSet::new(),
            too_many: 0,
        };
        book.count();
        book
    }

    /// Whose lists of follows count.
    pub fn roots(&self) -> &[PublicKey] {
        &self.roots
    }

    /// Those who are followed, and the keys themselves.
    pub fn authors(&self) -> &BTreeSet<PublicKey> {
        &self.authors
    }

    pub fn too_many(&self) -> usize {
        self.too_many
    }

    /// Those of the keys whose list of follows is not known.
    pub fn without_follows(&self) -> impl Iterator<Item = &PublicKey> {
        self.roots.iter().filter(|root| !self.follows.contains_key(*root))
    }

    /// Those whose list of relays is not known.
    pub fn without_relays(&self) -> impl Iterator<Item = &PublicKey> {
        self.authors.iter().filter(|author| !self.relays.contains_key(*author))
    }

    /// What of all lists was not used, by what was wrong with it.
    pub fn refused(&self) -> BTreeMap<Unusable, usize> {
        let mut refused = BTreeMap::new();
        for (_, relays) in self.relays.values() {
            for (why, count) in &relays.refused {
                *refused.entry(*why).or_default() += count;
            }
        }
        refused
    }

    /// Whether the event may say something new: for what reads many events.
    pub fn concerns(&self, kind: u16, author: &PublicKey) -> bool {
        match kind {
            FOLLOWS => self.roots.contains(author),
            RELAY_LIST => self.authors.contains(author),
            _ => false,
        }
    }

    /// Takes a list that the store holds.
    pub fn take(&mut self, event: &Event) -> Change {
        if !self.concerns(event.kind, &event.pubkey) {
            return Change::Nothing;
        }
        let version = Version::of(event);
        let is_news = |known: Option<Version>| known.is_none_or(|known| version.is_after(known));
        if event.kind == FOLLOWS {
            if !is_news(self.follows.get(&event.pubkey).map(|(version, _)| *version)) {
                return Change::Nothing;
            }
            let (keys, _) = lists::follows(event);
            let before = self.follows.insert(event.pubkey, (version, keys.clone()));
            if before.is_some_and(|(_, before)| before == keys) {
                return Change::Nothing;
            }
            return if self.count() { Change::Authors } else { Change::Nothing };
        }
        if !is_news(self.relays.get(&event.pubkey).map(|(version, _)| *version)) {
            return Change::Nothing;
        }
        let relays = lists::write_relays(event, &self.rules);
        let before = self.relays.insert(event.pubkey, (version, relays.clone()));
        let same = before.is_some_and(|(_, before)| before.relays == relays.relays);
        if same { Change::Nothing } else { Change::Relays }
    }

    /// The store holds no such list of these authors any more.
    pub fn forget(&mut self, kind: u16, authors: impl IntoIterator<Item = PublicKey>) -> Change {
        let mut change = Change::Nothing;
        for author in authors {
            if kind == FOLLOWS && self.follows.remove(&author).is_some() {
                change = Change::Authors;
            }
            if kind == RELAY_LIST && self.relays.remove(&author).is_some() {
                change = Change::Relays;
            }
        }
        if change == Change::Authors && !self.count() { Change::Nothing } else { change }
    }

    /// Counts anew who is followed. Returns whether that changed.
    fn count(&mut self) -> bool {
        let mut authors: BTreeSet<PublicKey> = self.roots.iter().copied().collect();
        let mut too_many = BTreeSet::new();
        for root in &self.roots {
            for key in self.follows.get(root).map(|(_, keys)| keys).into_iter().flatten() {
                if authors.len() < MAX_AUTHORS || authors.contains(key) {
                    authors.insert(*key);
                } else {
                    too_many.insert(*key);
                }
            }
        }
        self.too_many = too_many.len();
        self.relays.retain(|author, _| authors.contains(author));
        let changed = authors != self.authors;
        self.authors = authors;
        changed
    }

    /// For the planner.
    pub fn lists(&self) -> BTreeMap<PublicKey, List> {
        let list = |author: &PublicKey| match self.relays.get(author) {
            Some((_, relays)) => List::Relays(relays.relays.clone()),
            None => List::Absent,
        };
        self.authors.iter().map(|author| (*author, list(author))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    fn book(roots: &[&Author]) -> Book {
        let roots: Vec<_> = roots.iter().map(|root| root.pubkey()).collect();
        Book::new(&roots, AddressRules::default())
    }

    fn follow(root: &Author, at: u64, whom: &[&Author]) -> Event {
        let keys: Vec<String> = whom.iter().map(|author| author.pubkey().to_string()).collect();
        let tags: Vec<[&str; 2]> = keys.iter().map(|key| ["p", key]).collect();
        let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
        root.sign(at, FOLLOWS, &tags, "")
    }

    fn relay_list(author: &Author, at: u64, url: &str) -> Event {
        author.sign(at, RELAY_LIST, &[&["r", url]], "")
    }

    #[test]
    fn the_keys_and_whom_they_follow_are_the_authors() {
        let [me, a, b, c] = [1, 2, 3, 4].map(Author::new);
        let mut book = book(&[&me]);
        assert_eq!(book.take(&relay_list(&a, 1, "wss://a.example.org")), Change::Nothing);
        assert_eq!(book.without_follows().count(), 1);
        assert_eq!(book.take(&follow(&me, 5, &[&a, &b])), Change::Authors);
        assert_eq!(book.take(&follow(&a, 5, &[&c])), Change::Nothing, "theirs do not count");
        assert_eq!(book.authors().len(), 3);
        assert_eq!(book.take(&follow(&me, 4, &[&c])), Change::Nothing, "it is older");
        assert_eq!(book.take(&follow(&me, 6, &[&b, &a])), Change::Nothing, "the same people");
        assert_eq!(book.take(&relay_list(&a, 1, "wss://a.example.org")), Change::Relays);
        assert_eq!(book.take(&relay_list(&a, 2, "wss://a.example.org")), Change::Nothing);
        assert_eq!(book.take(&relay_list(&a, 3, "wss://b.example.org")), Change::Relays);
        assert_eq!(book.take(&relay_list(&a, 2, "wss://c.example.org")), Change::Nothing);
        let lists = book.lists();
        assert_eq!(lists[&a.pubkey()].relays()[0].as_str(), "wss://b.example.org");
        assert_eq!(lists[&b.pubkey()], List::Absent);
        assert_eq!(book.without_relays().count(), 2);

        assert_eq!(book.forget(RELAY_LIST, [a.pubkey(), b.pubkey()]), Change::Relays);
        assert_eq!(book.forget(FOLLOWS, [me.pubkey()]), Change::Authors);
        assert_eq!(book.authors().len(), 1);
    }

    #[test]
    fn of_two_lists_of_one_second_the_lower_id_counts() {
        let [me, a, b] = [1, 2, 3].map(Author::new);
        let (one, other) = (follow(&me, 5, &[&a]), follow(&me, 5, &[&b]));
        let lower = if one.id < other.id { a.pubkey() } else { b.pubkey() };
        for order in [[&one, &other], [&other, &one]] {
            let mut book = book(&[&me]);
            for event in order {
                book.take(event);
            }
            assert_eq!(book.authors(), &BTreeSet::from([me.pubkey(), lower]));
        }
    }
}
