//! Index ranges that yield newest first, and their lazy merge.
//!
//! A filter becomes a set of ranges in one index: one for each author, author and kind, kind, tag
//! value or topic. Each is read in small pages; the merge takes the newest head until the caller has
//! enough, so a query reads about as many rows as it answers.

use std::{cmp::Reverse, collections::BinaryHeap};

use rusqlite::{Connection, ToSql, types::Value};

use crate::protocol::{Filter, PublicKey, hex};

/// An event's place: newer ones compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub created_at: i64,
    pub row: i64,
}

/// The part of an index that a range covers.
#[derive(Debug, Clone)]
pub(super) enum Key {
    /// Single events, found by id beforehand; newest last.
    Places(Vec<Place>),
    AuthorKind(PublicKey, u16),
    Author(PublicKey),
    Tag(u8, Vec<u8>),
    Kind(u16),
    Topic(i64),
    Everything,
}

/// Above this many (author, kind) pairs, ranges are by author alone.
const MAX_PAIRS: usize = 4_096;

/// Chooses the index: the fewest ranges win, more selective ones first. `ids` are the places of the
/// filter's ids, when it has any; `topic` is the number of the topic that is looked at.
pub(super) fn keys(filter: &Filter, ids: Option<Vec<Place>>, topic: Option<i64>) -> Vec<Key> {
    if let Some(places) = ids {
        return vec![Key::Places(places)];
    }
    let tag = filter.tags.iter().min_by_key(|(_, values)| values.len());
    let authors = filter.authors.as_ref();
    if let Some((letter, values)) = tag
        && authors.is_none_or(|authors| values.len() < authors.len())
    {
        return values.iter().map(|value| Key::Tag(*letter, tag_key(value))).collect();
    }
    if let Some(authors) = authors {
        return match &filter.kinds {
            Some(kinds) if authors.len().saturating_mul(kinds.len()) <= MAX_PAIRS => authors
                .iter()
                .flat_map(|author| kinds.iter().map(|kind| Key::AuthorKind(*author, *kind)))
                .collect(),
            _ => authors.iter().copied().map(Key::Author).collect(),
        };
    }
    match (topic, &filter.kinds) {
        (Some(topic), _) => vec![Key::Topic(topic)],
        (None, Some(kinds)) => kinds.iter().copied().map(Key::Kind).collect(),
        (None, None) => vec![Key::Everything],
    }
}

/// Longest tag value in the index, in bytes; the rest is compared on the event.
const MAX_TAG_KEY: usize = 64;

/// How a tag value stands in the index: the bytes that 64 hexadecimal digits stand for, otherwise the
/// text, cut.
pub(super) fn tag_key(value: &str) -> Vec<u8> {
    match hex::decode::<32>(value) {
        Some(bytes) => bytes.to_vec(),
        None => value.as_bytes()[..value.len().min(MAX_TAG_KEY)].to_vec(),
    }
}

impl Key {
    /// Columns, table and fixed conditions of the range. The index is named so that SQLite cannot
    /// choose to sort or to scan.
    const fn sql(&self) -> &'static str {
        match self {
            Self::Places(_) => "",
            Self::AuthorKind(..) => {
                "SELECT created_at, row FROM events INDEXED BY events_by_author_kind \
                 WHERE pubkey = ?5 AND kind = ?6 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC LIMIT ?4"
            }
            Self::Author(_) => {
                "SELECT created_at, row FROM events INDEXED BY events_by_author \
                 WHERE pubkey = ?5 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC LIMIT ?4"
            }
            Self::Kind(_) => {
                "SELECT created_at, row FROM events INDEXED BY events_by_kind \
                 WHERE kind = ?5 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC LIMIT ?4"
            }
            Self::Everything => {
                "SELECT created_at, row FROM events INDEXED BY events_by_time \
                 WHERE (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC LIMIT ?4"
            }
            Self::Tag(..) => {
                "SELECT created_at, event FROM tags \
                 WHERE letter = ?5 AND value = ?6 AND (created_at, event) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, event DESC LIMIT ?4"
            }
            Self::Topic(_) => {
                "SELECT created_at, event FROM memberships \
                 WHERE topic = ?5 AND (created_at, event) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, event DESC LIMIT ?4"
            }
        }
    }

    fn parameters(&self) -> Vec<Value> {
        match self {
            Self::Places(_) | Self::Everything => vec![],
            Self::AuthorKind(author, kind) => {
                vec![Value::Blob(author.0.to_vec()), Value::Integer(i64::from(*kind))]
            }
            Self::Author(author) => vec![Value::Blob(author.0.to_vec())],
            Self::Tag(letter, value) => {
                vec![Value::Integer(i64::from(*letter)), Value::Blob(value.clone())]
            }
            Self::Kind(kind) => vec![Value::Integer(i64::from(*kind))],
            Self::Topic(topic) => vec![Value::Integer(*topic)],
        }
    }
}

/// One range being read.
struct Range {
    key: Key,
    /// Read but not yet taken; newest last.
    page: Vec<Place>,
    /// Everything at or after this place has been read.
    before: Place,
    page_size: i64,
    exhausted: bool,
}

/// The ranges of one filter, merged newest first.
pub(super) struct Merge<'c> {
    connection: &'c Connection,
    ranges: Vec<Range>,
    heads: BinaryHeap<(Place, Reverse<usize>)>,
    since: i64,
}

impl<'c> Merge<'c> {
    /// `wanted` is how many events the caller will probably take.
    pub fn new(
        connection: &'c Connection,
        keys: Vec<Key>,
        filter: &Filter,
        wanted: usize,
    ) -> rusqlite::Result<Self> {
        let until = filter.until.and_then(|until| i64::try_from(until).ok()).unwrap_or(i64::MAX);
        let since = filter.since.map_or(0, |since| i64::try_from(since).unwrap_or(i64::MAX));
        let before = Place { created_at: until, row: i64::MAX };
        // A few rows of each range, more of those that turn out to be needed.
        let first = (2 * wanted / keys.len().max(1)).clamp(4, 512);
        let ranges: Vec<_> = keys
            .into_iter()
            .map(|key| match key {
                Key::Places(mut page) => {
                    page.retain(|place| place.created_at >= since && place.created_at <= until);
                    let key = Key::Places(Vec::new());
                    Range { key, page, before, page_size: 0, exhausted: true }
                }
                key => Range {
                    key,
                    page: Vec::new(),
                    before,
                    page_size: i64::try_from(first).unwrap_or(i64::MAX),
                    exhausted: false,
                },
            })
            .collect();
        let mut merge = Self { connection, ranges, heads: BinaryHeap::new(), since };
        for n in 0..merge.ranges.len() {
            merge.advance(n)?;
        }
        Ok(merge)
    }

    /// All places with the newest remaining `created_at`, each once; empty at the end.
    pub fn next_second(&mut self, places: &mut Vec<Place>) -> rusqlite::Result<()> {
        places.clear();
        while let Some(&(place, Reverse(n))) = self.heads.peek() {
            if places.first().is_some_and(|first| first.created_at != place.created_at) {
                break;
            }
            self.heads.pop();
            // Two tag values of one event put it into two ranges.
            if places.last() != Some(&place) {
                places.push(place);
            }
            self.advance(n)?;
        }
        Ok(())
    }

    /// Puts the next place of a range into the heap.
    fn advance(&mut self, n: usize) -> rusqlite::Result<()> {
        let range = &mut self.ranges[n];
        if range.page.is_empty() && !range.exhausted {
            let mut statement = self.connection.prepare_cached(range.key.sql())?;
            let fixed = range.key.parameters();
            let (before, page_size) = (range.before, range.page_size);
            let mut parameters: Vec<&dyn ToSql> =
                vec![&before.created_at, &before.row, &self.since, &page_size];
            parameters.extend(fixed.iter().map(|value| value as &dyn ToSql));
            let rows = statement.query_map(&*parameters, |row| {
                Ok(Place { created_at: row.get(0)?, row: row.get(1)? })
            })?;
            range.page = rows.collect::<rusqlite::Result<_>>()?;
            range.exhausted = range.page.len() < usize::try_from(page_size).unwrap_or(usize::MAX);
            if let Some(oldest) = range.page.last() {
                range.before = *oldest;
            }
            range.page.reverse();
            range.page_size = (page_size * 2).min(1_024);
        }
        if let Some(place) = range.page.pop() {
            self.heads.push((place, Reverse(n)));
        }
        Ok(())
    }
}
