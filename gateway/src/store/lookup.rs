//! What plugins ask about authors: bounded reads of an index, on the connection of the thread that
//! asks.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::Store;
use crate::{
    pipeline::{AuthorHeld, Cost, Lookup, LookupError},
    protocol::{Event, PublicKey},
};

/// NIP-01 and NIP-02.
const PROFILE: u16 = 0;
const FOLLOWS: u16 = 3;

/// How much text is as much work as reading a row.
const TEXT_OF_A_ROW: u64 = 256;

pub(super) const OF_AUTHOR: &str =
    "SELECT created_at FROM events INDEXED BY events_by_author WHERE author = ?1";
pub(super) const OF_AUTHOR_AND_KIND: &str = "SELECT created_at FROM events INDEXED BY events_by_author \
     WHERE author = ?1 AND kind = ?2 AND created_at >= ?3";
pub(super) const OF_KIND: &str = "SELECT created_at FROM events INDEXED BY events_by_kind \
     WHERE kind = ?1 AND created_at >= ?2";
pub(super) const SINCE: &str =
    "SELECT created_at FROM events INDEXED BY events_by_time WHERE created_at >= ?1";
pub(super) const NEWEST: &str = "SELECT json FROM events INDEXED BY events_by_author \
     WHERE author = ?1 AND kind = ?2 ORDER BY created_at DESC LIMIT 1";

impl From<rusqlite::Error> for LookupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Lookup for Store {
    fn author(
        &self,
        author: &PublicKey,
        most: u32,
        cost: &mut Cost,
    ) -> Result<AuthorHeld, LookupError> {
        self.look(|connection| {
            cost.pay(1)?;
            let Some(number) = self.memory.author(connection, author)? else {
                return Ok(AuthorHeld::default());
            };
            let mut holds = |kind: u16| -> Result<bool, LookupError> {
                let values = params![number, kind, i64::MIN];
                Ok(rows(connection, OF_AUTHOR_AND_KIND, values, 0, 1, cost)? > 0)
            };
            let (profile, follows) = (holds(PROFILE)?, holds(FOLLOWS)?);
            let events = rows(connection, OF_AUTHOR, params![number], i64::MIN, most, cost)?;
            Ok(AuthorHeld { events, profile, follows })
        })
    }

    fn how_many(
        &self,
        authors: &[PublicKey],
        kinds: &[u16],
        since: u64,
        most: u32,
        cost: &mut Cost,
    ) -> Result<u32, LookupError> {
        let since = i64::try_from(since).unwrap_or(i64::MAX);
        // Each event has one author and one kind: no event is counted twice.
        let kinds: HashSet<_> = kinds.iter().collect();
        let unique: HashSet<_> = authors.iter().collect();
        self.look(|connection| {
            let mut count = 0;
            let mut add = |sql, values: &[&dyn ToSql], since, cost: &mut Cost| {
                count += rows(connection, sql, values, since, most - count, cost)?;
                Ok::<_, LookupError>(count == most)
            };
            if authors.is_empty() && kinds.is_empty() {
                add(SINCE, params![since], since, cost)?;
            } else if authors.is_empty() {
                for kind in &kinds {
                    if add(OF_KIND, params![kind, since], since, cost)? {
                        break;
                    }
                }
            }
            for author in unique {
                cost.pay(1)?;
                let Some(number) = self.memory.author(connection, author)? else { continue };
                if kinds.is_empty() && add(OF_AUTHOR, params![number], since, cost)? {
                    break;
                }
                for kind in &kinds {
                    if add(OF_AUTHOR_AND_KIND, params![number, kind, since], since, cost)? {
                        break;
                    }
                }
            }
            Ok(count)
        })
    }

    fn follows(
        &self,
        author: &PublicKey,
        most: usize,
        cost: &mut Cost,
    ) -> Result<Vec<PublicKey>, LookupError> {
        self.look(|connection| {
            let Some(list) = self.newest(connection, author, FOLLOWS, cost)? else {
                return Ok(Vec::new());
            };
            let mut seen = HashSet::new();
            let each = keys(&list).filter(|key| seen.insert(*key)).take(most);
            Ok(each.collect())
        })
    }

    fn is_followed(
        &self,
        author: &PublicKey,
        whom: &PublicKey,
        cost: &mut Cost,
    ) -> Result<bool, LookupError> {
        self.look(|connection| {
            let list = self.newest(connection, author, FOLLOWS, cost)?;
            Ok(list.is_some_and(|list| keys(&list).any(|key| key == *whom)))
        })
    }

    fn newest_tags(
        &self,
        author: &PublicKey,
        kind: u16,
        most: usize,
        cost: &mut Cost,
    ) -> Result<Vec<Vec<String>>, LookupError> {
        self.look(|connection| {
            let newest = self.newest(connection, author, kind, cost)?;
            let mut tags = newest.map_or_else(Vec::new, |event| event.tags);
            tags.truncate(most);
            Ok(tags)
        })
    }
}

impl Store {
    fn look<T>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, LookupError>,
    ) -> Result<T, LookupError> {
        self.readers.with_own_connection(|connection| Ok(question(connection)))?
    }

    /// The newest event of an author and a kind.
    fn newest(
        &self,
        connection: &Connection,
        author: &PublicKey,
        kind: u16,
        cost: &mut Cost,
    ) -> Result<Option<Event>, LookupError> {
        cost.pay(1)?;
        let Some(number) = self.memory.author(connection, author)? else { return Ok(None) };
        let text: Option<String> = connection
            .prepare_cached(NEWEST)?
            .query_row(params![number, kind], |row| row.get(0))
            .optional()?;
        let Some(text) = text else { return Ok(None) };
        cost.pay(text.len() as u64 / TEXT_OF_A_ROW)?;
        Ok(Event::parse(&text).ok())
    }
}

/// Counts the rows that are not older, at most so many; each one that is read is paid for.
fn rows(
    connection: &Connection,
    sql: &str,
    values: &[&dyn ToSql],
    since: i64,
    most: u32,
    cost: &mut Cost,
) -> Result<u32, LookupError> {
    cost.pay(1)?;
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(values)?;
    let mut count = 0;
    while count < most {
        let Some(row) = found.next()? else { break };
        cost.pay(1)?;
        if row.get::<_, i64>(0)? >= since {
            count += 1;
        }
    }
    Ok(count)
}

/// Whom a list of follows names (NIP-02).
fn keys(list: &Event) -> impl Iterator<Item = PublicKey> {
    list.tag_values("p").filter_map(PublicKey::parse)
}
