//! Index ranges that yield newest first, and their lazy merge.
//!
//! One range for each author and kind, kind or tag value. Each is read in small pages, and only when
//! what is known of its newest event says that it may be next; the merge takes the newest head until
//! the caller has enough, so a query reads about as many rows as it answers.

use std::collections::{BinaryHeap, VecDeque};

use rusqlite::{CachedStatement, Connection};

use super::stop::{QueryEnd, Stop};

/// An event's place: newer ones compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub created_at: i64,
    pub row: i64,
}

/// The index that all ranges of a merge are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Index {
    AuthorKind,
    Kind,
    Tag,
    Topic,
}

/// Which range of the index, as one number: see [`author_kind`]; else what the index begins with.
pub(super) type Key = i64;

pub(super) fn author_kind(author: u32, kind: u16) -> Key {
    i64::from(author) << 16 | i64::from(kind)
}

impl Index {
    /// The index is named so that SQLite can choose neither to sort nor to scan. There is no LIMIT:
    /// SQLite looks at the value of a LIMIT when it plans, so a bound one would make it plan anew at
    /// each execution; the caller just stops reading.
    pub const fn sql(self) -> &'static str {
        match self {
            Self::AuthorKind => {
                "SELECT created_at, row FROM events INDEXED BY events_by_author \
                 WHERE author = ?4 >> 16 AND kind = ?4 & 65535 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC"
            }
            Self::Kind => {
                "SELECT created_at, row FROM events INDEXED BY events_by_kind \
                 WHERE kind = ?4 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC"
            }
            Self::Tag => {
                "SELECT created_at, event FROM tags \
                 WHERE key = ?4 AND (created_at, event) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, event DESC"
            }
            Self::Topic => {
                "SELECT created_at, event FROM memberships \
                 WHERE topic = ?4 AND (created_at, event) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, event DESC"
            }
        }
    }
}

/// The most rows that are read from one range at a time.
const MAX_PAGE: usize = 1_024;

/// A range that was begun.
struct Open {
    key: Key,
    /// Read but not yet taken; newest last.
    page: Vec<Place>,
    /// Everything at or after this place has been read.
    before: Place,
    page_size: usize,
    exhausted: bool,
}

/// A range as the heap sees it: its next place, or a bound of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    place: Place,
    range: Range,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Range {
    /// Index into [`Merge::open`].
    Open(usize),
    /// Not read yet: `place` is a bound.
    Unopened(Key),
}

/// The ranges of one filter, merged newest first.
pub(super) struct Merge<'c> {
    /// None when nothing is left to be read.
    statement: Option<CachedStatement<'c>>,
    open: Vec<Open>,
    heads: BinaryHeap<Head>,
    since: i64,
    until: i64,
    first_page: usize,
    /// Taken from the heap to see how far it reaches back: whole seconds, newest first.
    sampled: VecDeque<Place>,
}

impl<'c> Merge<'c> {
    /// Ranges of an index, each with a bound of its newest `created_at`. `wanted` is how many events
    /// the caller will probably take.
    pub fn new(
        connection: &'c Connection,
        index: Index,
        ranges: impl IntoIterator<Item = (Key, i64)>,
        (since, until): (i64, i64),
        wanted: usize,
    ) -> rusqlite::Result<Self> {
        let heads: Vec<Head> = ranges
            .into_iter()
            .filter(|(_, newest)| *newest >= since)
            .map(|(key, newest)| Head {
                place: Place { created_at: newest.min(until), row: i64::MAX },
                range: Range::Unopened(key),
            })
            .collect();
        // A few rows of each range, more of those that turn out to be needed.
        let first_page = (wanted / heads.len().max(1)).min(508) + 4;
        Ok(Self {
            statement: Some(connection.prepare_cached(index.sql())?),
            open: Vec::new(),
            heads: heads.into(),
            since,
            until,
            first_page,
            sampled: VecDeque::new(),
        })
    }

    /// Places that were looked up beforehand, newest last.
    pub fn of_places(mut places: Vec<Place>, (since, until): (i64, i64)) -> Self {
        places.retain(|place| place.created_at >= since && place.created_at <= until);
        Self {
            statement: None,
            open: Vec::new(),
            heads: BinaryHeap::new(),
            since,
            until,
            first_page: 0,
            sampled: places.into_iter().rev().collect(),
        }
    }

    /// How many ranges there are, and what reads them.
    #[cfg(test)]
    pub fn describe(&self) -> (usize, Option<String>) {
        let sql = self.statement.as_ref().and_then(|statement| statement.expanded_sql());
        (self.heads.len(), sql)
    }

    /// All places with the newest remaining `created_at`, each once; empty at the end.
    pub fn next_second(
        &mut self,
        places: &mut Vec<Place>,
        stop: &impl Stop,
    ) -> Result<(), QueryEnd> {
        places.clear();
        let Some(first) = self.sampled.front().copied() else { return self.pull(places, stop) };
        while let Some(place) =
            self.sampled.pop_front_if(|place| place.created_at == first.created_at)
        {
            places.push(place);
        }
        Ok(())
    }

    /// Looks ahead until `size` places are known or there are no more. Returns how far back they
    /// reach, in seconds, or how many there are in all.
    pub fn sample(&mut self, size: usize, stop: &impl Stop) -> Result<Reach, QueryEnd> {
        let mut second = Vec::new();
        while self.sampled.len() < size {
            self.pull(&mut second, stop)?;
            if second.is_empty() {
                return Ok(Reach::All(self.sampled.len()));
            }
            self.sampled.extend(second.drain(..));
        }
        let oldest = self.sampled.back().map_or(i64::MIN, |place| place.created_at);
        Ok(Reach::DownTo(oldest))
    }

    fn pull(&mut self, places: &mut Vec<Place>, stop: &impl Stop) -> Result<(), QueryEnd> {
        while let Some(&Head { place, range }) = self.heads.peek() {
            stop.check_time()?;
            if places.first().is_some_and(|first| first.created_at != place.created_at) {
                break;
            }
            self.heads.pop();
            let n = match range {
                Range::Open(n) => {
                    // Two tag values of one event put it into two ranges.
                    if places.last() != Some(&place) {
                        places.push(place);
                    }
                    n
                }
                Range::Unopened(key) => {
                    let before = Place { created_at: self.until, row: i64::MAX };
                    let page_size = self.first_page;
                    self.open.push(Open {
                        key,
                        page: Vec::new(),
                        before,
                        page_size,
                        exhausted: false,
                    });
                    self.open.len() - 1
                }
            };
            self.advance(n, stop)?;
        }
        Ok(())
    }

    /// Puts the next place of a range into the heap.
    fn advance(&mut self, n: usize, stop: &impl Stop) -> Result<(), QueryEnd> {
        let Some(range) = self.open.get_mut(n) else { return Ok(()) };
        if range.page.is_empty()
            && !range.exhausted
            && let Some(statement) = &mut self.statement
        {
            let Place { created_at, row } = range.before;
            let mut rows = statement.query([created_at, row, self.since, range.key])?;
            while range.page.len() < range.page_size {
                let Some(row) = rows.next()? else {
                    range.exhausted = true;
                    break;
                };
                range.page.push(Place { created_at: row.get(0)?, row: row.get(1)? });
                stop.check_time()?;
            }
            if let Some(oldest) = range.page.last() {
                range.before = *oldest;
            }
            let in_one_second = range
                .page
                .first()
                .is_some_and(|newest| newest.created_at == range.before.created_at);
            range.page_size = next_page(range.page_size, in_one_second);
            range.page.reverse();
        }
        if let Some(place) = range.page.pop() {
            self.heads.push(Head { place, range: Range::Open(n) });
        }
        Ok(())
    }
}

/// Pages grow to a bound; but within a second that fills one, a page is found by passing over the
/// entries that were read before, so there they go on growing.
pub(super) fn next_page(size: usize, in_one_second: bool) -> usize {
    if in_one_second { size.saturating_mul(2) } else { (size * 2).min(MAX_PAGE) }
}

/// How far back a number of places reaches: the further, the fewer there are in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    DownTo(i64),
    /// There are no more than so many.
    All(usize),
}

impl Reach {
    /// Smaller for the index that has fewer.
    pub fn rank(self) -> (bool, i64) {
        match self {
            Self::All(count) => (false, i64::try_from(count).unwrap_or(i64::MAX)),
            Self::DownTo(oldest) => (true, oldest),
        }
    }
}
