//! The newest event of each author and kind, in memory: lets a query over many authors skip those who
//! have written nothing lately.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::protocol::PublicKey;

/// Pairs of author and kind that are kept; above it, nothing is known about the rest.
const MAX_PAIRS: usize = 2_000_000;
/// Authors whose number is kept.
const MAX_AUTHORS: usize = 200_000;

/// An upper bound for `created_at` of what the store has of an author and kind.
///
/// Removals do not lower it, and it is raised *before* a commit is visible, so a reader with any
/// snapshot may rely on it.
#[derive(Debug, Default)]
pub(super) struct Newest {
    pairs: RwLock<Pairs>,
    /// What was stored before the start is in it, and nothing was left out.
    complete: AtomicBool,
}

#[derive(Debug, Default)]
struct Pairs {
    authors: HashMap<u32, BTreeMap<u16, i64>>,
    count: usize,
}

/// What is known of an author and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Nothing is stored.
    Nothing,
    /// Nothing newer than this is stored.
    AtMost(i64),
    Unknown,
}

impl Newest {
    pub fn raise(&self, author: u32, kind: u16, created_at: i64) {
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        let room = pairs.count < MAX_PAIRS;
        match pairs.authors.entry(author).or_default().entry(kind) {
            Entry::Occupied(mut newest) => {
                let bound = (*newest.get()).max(created_at);
                newest.insert(bound);
            }
            Entry::Vacant(place) if room => {
                place.insert(created_at);
                pairs.count += 1;
            }
            Entry::Vacant(_) => self.complete.store(false, Ordering::Release),
        }
    }

    /// Everything that was stored before has been added.
    pub fn set_complete(&self) {
        let count = self.pairs.read().unwrap_or_else(PoisonError::into_inner).count;
        self.complete.store(count < MAX_PAIRS, Ordering::Release);
    }

    /// Asks about many at once, under one lock.
    pub fn ask(&self) -> Bounds<'_> {
        Bounds {
            complete: self.complete.load(Ordering::Acquire),
            pairs: self.pairs.read().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// See [`Newest::ask`].
pub(super) struct Bounds<'n> {
    complete: bool,
    pairs: RwLockReadGuard<'n, Pairs>,
}

impl Bounds<'_> {
    pub fn of(&self, author: u32, kind: u16) -> Bound {
        match self.pairs.authors.get(&author).and_then(|kinds| kinds.get(&kind)) {
            _ if !self.complete => Bound::Unknown,
            Some(newest) => Bound::AtMost(*newest),
            None => Bound::Nothing,
        }
    }

    /// Every kind of which the author may have events, with its bound; `None` when not all are known.
    pub fn kinds(&self, author: u32) -> Option<Vec<(u16, i64)>> {
        let known = self.pairs.authors.get(&author);
        self.complete.then(|| {
            known.map_or(Vec::new(), |kinds| kinds.iter().map(|(k, at)| (*k, *at)).collect())
        })
    }
}

/// The numbers of authors. Only committed ones, or such that are about to be.
#[derive(Debug, Default)]
pub(super) struct AuthorNumbers(RwLock<HashMap<PublicKey, u32>>);

impl AuthorNumbers {
    pub fn get(&self, key: &PublicKey) -> Option<u32> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    pub fn insert(&self, key: PublicKey, number: u32) {
        let mut numbers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if numbers.len() < MAX_AUTHORS {
            numbers.insert(key, number);
        }
    }

    /// After a roll-back: a number may not have been given after all.
    pub fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
