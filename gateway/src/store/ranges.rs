//! Index ranges that yield newest first, and their lazy merge.
//!
//! A filter becomes a set of ranges in one index: one for each author, author and kind, kind, tag
//! value or topic. Each is read in small pages; the merge takes the newest head until the caller has
//! enough, so a query reads about as many rows as it answers.

use std::{cmp::Reverse, collections::BinaryHeap};

use rusqlite::{Connection, OptionalExtension, ToSql, types::Value};

use super::{memory::Memory, tag_keys::tag_key};
use crate::protocol::Filter;

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
    AuthorKind(u32, u16),
    Tag(i64),
    Kind(u16),
    Topic(i64),
    /// All of them. Kind and author of the last one that was read: within a second, that is the order
    /// of the index.
    Everything(i64, i64),
}

/// Chooses the index: the fewest ranges win, more selective ones first. `ids` are the places of the
/// filter's ids, when it has any; `topic` is the number of the topic that is looked at.
pub(super) fn keys(
    connection: &Connection,
    memory: &Memory,
    filter: &Filter,
    ids: Option<Vec<Place>>,
    topic: Option<i64>,
) -> rusqlite::Result<Vec<Key>> {
    if let Some(places) = ids {
        return Ok(vec![Key::Places(places)]);
    }
    let tag = filter.tags.iter().min_by_key(|(_, values)| values.len());
    let authors = filter.authors.as_ref();
    if let Some((letter, values)) = tag
        && authors.is_none_or(|authors| values.len() < authors.len())
    {
        let mut keys: Vec<i64> = values.iter().map(|value| tag_key(*letter, value)).collect();
        keys.sort_unstable();
        keys.dedup();
        return Ok(keys.into_iter().map(Key::Tag).collect());
    }
    if let Some(authors) = authors {
        let mut keys = Vec::new();
        for author in authors {
            let Some(author) = memory.author(connection, author)? else { continue };
            match &filter.kinds {
                Some(kinds) => keys.extend(kinds.iter().map(|kind| Key::AuthorKind(author, *kind))),
                None => {
                    let kinds = kinds_of(connection, author)?;
                    keys.extend(kinds.into_iter().map(|kind| Key::AuthorKind(author, kind)));
                }
            }
        }
        return Ok(keys);
    }
    Ok(match (topic, &filter.kinds) {
        (Some(topic), _) => vec![Key::Topic(topic)],
        (None, Some(kinds)) => kinds.iter().copied().map(Key::Kind).collect(),
        (None, None) => vec![Key::Everything(i64::MAX, i64::MAX)],
    })
}

/// The kinds of which an author has events: one look-up for each.
fn kinds_of(connection: &Connection, author: u32) -> rusqlite::Result<Vec<u16>> {
    let mut statement = connection.prepare_cached(
        "SELECT kind FROM events INDEXED BY events_by_author \
         WHERE author = ?1 AND kind > ?2 ORDER BY kind LIMIT 1",
    )?;
    let (mut kinds, mut last) = (Vec::new(), -1_i64);
    while let Some(kind) =
        statement.query_row([i64::from(author), last], |row| row.get::<_, u16>(0)).optional()?
    {
        kinds.push(kind);
        last = i64::from(kind);
    }
    Ok(kinds)
}

impl Key {
    /// Columns, table and fixed conditions of the range. The index is named so that SQLite cannot
    /// choose to sort or to scan.
    const fn sql(&self) -> &'static str {
        match self {
            Self::Places(_) => "",
            Self::AuthorKind(..) => {
                "SELECT created_at, row FROM events INDEXED BY events_by_author \
                 WHERE author = ?5 AND kind = ?6 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC LIMIT ?4"
            }
            Self::Kind(_) => {
                "SELECT created_at, row FROM events INDEXED BY events_by_kind \
                 WHERE kind = ?5 AND (created_at, row) < (?1, ?2) \
                 AND created_at >= ?3 ORDER BY created_at DESC, row DESC LIMIT ?4"
            }
            Self::Everything(..) => {
                "SELECT created_at, row, kind, author FROM events INDEXED BY events_by_time \
                 WHERE (created_at, kind, author, row) < (?1, ?5, ?6, ?2) AND created_at >= ?3 \
                 ORDER BY created_at DESC, kind DESC, author DESC, row DESC LIMIT ?4"
            }
            Self::Tag(_) => {
                "SELECT created_at, event FROM tags \
                 WHERE key = ?5 AND (created_at, event) < (?1, ?2) \
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
            Self::Places(_) => vec![],
            Self::Everything(kind, author) => vec![Value::Integer(*kind), Value::Integer(*author)],
            Self::AuthorKind(author, kind) => {
                vec![Value::Integer(i64::from(*author)), Value::Integer(i64::from(*kind))]
            }
            Self::Tag(key) => vec![Value::Integer(*key)],
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
            let mut rows = statement.query(&*parameters)?;
            while let Some(row) = rows.next()? {
                range.page.push(Place { created_at: row.get(0)?, row: row.get(1)? });
                if let Key::Everything(kind, author) = &mut range.key {
                    (*kind, *author) = (row.get(2)?, row.get(3)?);
                }
            }
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
