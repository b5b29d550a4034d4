//! Taking events out: replaced, deleted, vanished, banned, evicted.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    gone,
    memory::Memory,
    open,
    tag_keys::{tag_key, tag_keys},
    versions::Changed,
};
use crate::{
    pipeline::{Gone, Removal},
    protocol::{Event, EventId, PublicKey, kinds},
};

/// Removes an event and all that finds it; its id is remembered as gone. Its later log entries stay
/// and are skipped by readers.
/// Returns whether there was one.
pub(super) fn row(
    connection: &Connection,
    changed: &Changed,
    row: i64,
    why: Gone,
) -> rusqlite::Result<bool> {
    let Some(json) = connection
        .prepare_cached("SELECT json FROM events WHERE row = ?1")?
        .query_row([row], |found| found.get::<_, Box<str>>(0))
        .optional()?
    else {
        return Ok(false);
    };
    let event = parse(&json)?;
    let created_at = event.created_at.cast_signed();
    let mut statement = connection
        .prepare_cached("DELETE FROM tags WHERE key = ?1 AND created_at = ?2 AND event = ?3")?;
    for key in tag_keys(&event) {
        statement.execute(params![key, created_at, row])?;
    }
    gone::add_row(connection, row, &event, why)?;
    if why == Gone::Removed {
        gone::add_removed(connection, &event)?;
    }
    let mut leave = connection.prepare_cached(
        "DELETE FROM memberships WHERE topic IN (SELECT topic FROM topics) \
         AND created_at = ?1 AND event = ?2 RETURNING topic",
    )?;
    for topic in leave.query_map([created_at, row], |found| found.get(0))? {
        changed.topic(topic?);
    }
    connection.prepare_cached("DELETE FROM events WHERE row = ?1")?.execute([row])?;
    Ok(true)
}

/// A held event.
pub(super) fn event(connection: &Connection, row: i64) -> rusqlite::Result<Event> {
    let json: Box<str> = connection
        .prepare_cached("SELECT json FROM events WHERE row = ?1")?
        .query_row([row], |found| found.get(0))?;
    parse(&json)
}

fn parse(json: &str) -> rusqlite::Result<Event> {
    // It was parsed before it was stored, so an error means that the file was changed from outside.
    Event::parse(json).map_err(|_| rusqlite::Error::InvalidQuery)
}

/// What an operator asked for.
pub(super) fn asked(
    connection: &Connection,
    memory: &Memory,
    changed: &Changed,
    removal: &Removal,
) -> rusqlite::Result<u64> {
    match removal {
        Removal::Event(id) => match open::row_of(connection, id)? {
            Some(found) => row(connection, changed, found, Gone::Banned).map(u64::from),
            None => Ok(0),
        },
        Removal::Author { key, keep } => match memory.author(connection, key)? {
            Some(author) => of_author(connection, changed, author, i64::MAX, keep, Gone::Banned),
            None => Ok(0),
        },
        Removal::Events(ids) => {
            let mut removed = 0;
            for id in ids {
                if let Some(found) = open::row_of(connection, id)? {
                    removed += u64::from(row(connection, changed, found, Gone::Removed)?);
                }
            }
            Ok(removed)
        }
    }
}

/// Everything of an author who vanished, and the gift wraps for them, up to a time (NIP-62). These
/// events of theirs stay; they are sorted.
pub(super) fn vanished(
    connection: &Connection,
    changed: &Changed,
    author: u32,
    key: &PublicKey,
    until: u64,
    keep: &[EventId],
) -> rusqlite::Result<()> {
    let until = until.cast_signed();
    of_author(connection, changed, author, until, keep, Gone::Vanished)?;
    let mut statement =
        connection.prepare_cached("SELECT event FROM tags WHERE key = ?1 AND created_at <= ?2")?;
    let key_text = key.to_string();
    let tagged: Vec<i64> = statement
        .query_map(params![tag_key(b'p', &key_text), until], |found| found.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for found in tagged {
        let kind: Option<u16> = connection
            .prepare_cached("SELECT kind FROM events WHERE row = ?1")?
            .query_row([found], |kind| kind.get(0))
            .optional()?;
        if kind == Some(kinds::GIFT_WRAP)
            && event(connection, found)?.tag_values("p").any(|p| p == key_text)
        {
            row(connection, changed, found, Gone::Vanished)?;
        }
    }
    Ok(())
}

fn of_author(
    connection: &Connection,
    changed: &Changed,
    author: u32,
    until: i64,
    keep: &[EventId],
    why: Gone,
) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(
        "SELECT row, id FROM events INDEXED BY events_by_author \
         WHERE author = ?1 AND created_at <= ?2",
    )?;
    let rows: Vec<(i64, EventId)> = statement
        .query_map(params![author, until], |found| Ok((found.get(0)?, EventId(found.get(1)?))))?
        .collect::<rusqlite::Result<_>>()?;
    let mut removed = 0;
    for (found, id) in &rows {
        if keep.binary_search(id).is_err() {
            removed += u64::from(row(connection, changed, *found, why)?);
        }
    }
    Ok(removed)
}

/// The version of an addressable or replaceable event, if it is not newer than the request.
pub(super) fn address(
    connection: &Connection,
    changed: &Changed,
    key: &PublicKey,
    kind: u16,
    identifier: &str,
    until: u64,
) -> rusqlite::Result<()> {
    let held: Option<i64> = connection
        .prepare_cached(
            "SELECT row FROM events WHERE author = (SELECT author FROM authors WHERE pubkey = ?1) \
             AND kind = ?2 AND identifier = ?3 AND created_at <= ?4",
        )?
        .query_row(params![key.0, kind, identifier, until.cast_signed()], |found| found.get(0))
        .optional()?;
    if let Some(held) = held {
        row(connection, changed, held, Gone::Deleted)?;
    }
    Ok(())
}
