//! What the store has of each author and kind, in memory: when the newest is from, and about how many
//! there are. Lets a query over many authors skip those who have written nothing lately.

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

/// An upper bound for `created_at` of what the store has of an author and kind, and of a kind.
///
/// Removals do not lower it, and it is raised *before* a commit is visible, so a reader with any
/// snapshot may rely on it. The numbers of events are estimates: removed ones are still counted.
#[derive(Debug, Default)]
pub(super) struct Newest {
    pairs: RwLock<Pairs>,
    /// What was stored before the start is in it, and nothing was left out.
    complete: AtomicBool,
}

#[derive(Debug, Default)]
struct Pairs {
    authors: HashMap<u32, BTreeMap<u16, Held>>,
    kinds: BTreeMap<u16, Held>,
    /// Pairs in `authors`.
    count: usize,
    events: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    newest: i64,
    count: u32,
}

impl Held {
    const NOTHING: Self = Self { newest: i64::MIN, count: 0 };

    fn add(&mut self, newest: i64, count: u32) {
        self.newest = self.newest.max(newest);
        self.count = self.count.saturating_add(count);
    }
}

/// What is known of an author and kind, or of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Nothing is stored.
    Nothing,
    /// Nothing newer than this is stored, and about so many.
    Held {
        newest: i64,
        count: u64,
    },
    Unknown,
}

impl Newest {
    /// One more event is about to be stored.
    pub fn raise(&self, author: u32, kind: u16, created_at: i64) {
        self.add(author, kind, created_at, 1);
    }

    /// So many are stored, the newest of them at this time.
    pub fn add(&self, author: u32, kind: u16, newest: i64, count: u32) {
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        let pairs = &mut *pairs;
        let room = pairs.count < MAX_PAIRS;
        pairs.events += u64::from(count);
        pairs.kinds.entry(kind).or_insert(Held::NOTHING).add(newest, count);
        match pairs.authors.entry(author).or_default().entry(kind) {
            Entry::Occupied(mut held) => held.get_mut().add(newest, count),
            Entry::Vacant(place) if room => {
                place.insert(Held { newest, count });
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
        let complete = self.complete.load(Ordering::Acquire);
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        Bounds { complete, pairs }
    }
}

/// See [`Newest::ask`].
pub(super) struct Bounds<'n> {
    complete: bool,
    pairs: RwLockReadGuard<'n, Pairs>,
}

impl Bounds<'_> {
    /// About how many events there are; `None` until everything is known.
    pub fn total(&self) -> Option<u64> {
        self.complete.then_some(self.pairs.events)
    }

    /// What is known of an author's events of each of these kinds.
    pub fn of_each(&self, author: u32, kinds: &[u16], mut take: impl FnMut(u16, Bound)) {
        let known = self.pairs.authors.get(&author);
        for kind in kinds {
            take(*kind, self.bound(known.and_then(|known| known.get(kind))));
        }
    }

    /// The same for every kind of which the author has events. To be asked only once there is a
    /// [`Self::total`].
    pub fn of_all(&self, author: u32, mut take: impl FnMut(u16, Bound)) {
        for (kind, held) in self.pairs.authors.get(&author).into_iter().flatten() {
            take(*kind, self.bound(Some(held)));
        }
    }

    pub fn of_kind(&self, kind: u16) -> Bound {
        self.bound(self.pairs.kinds.get(&kind))
    }

    fn bound(&self, held: Option<&Held>) -> Bound {
        match held {
            _ if !self.complete => Bound::Unknown,
            Some(held) => Bound::Held { newest: held.newest, count: u64::from(held.count) },
            None => Bound::Nothing,
        }
    }
}

/// The numbers of authors. Only committed ones, or such that are about to be.
#[derive(Debug, Default)]
pub(super) struct AuthorNumbers(RwLock<HashMap<PublicKey, u32>>);

impl AuthorNumbers {
    pub fn get(&self, key: &PublicKey) -> Option<u32> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Splits keys into the numbers that are known and the keys that are not.
    pub fn get_all(&self, keys: &[PublicKey]) -> (Vec<u32>, Vec<PublicKey>) {
        let numbers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (mut known, mut unknown) = (Vec::with_capacity(keys.len()), Vec::new());
        for key in keys {
            match numbers.get(key) {
                Some(number) => known.push(*number),
                None => unknown.push(*key),
            }
        }
        (known, unknown)
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
