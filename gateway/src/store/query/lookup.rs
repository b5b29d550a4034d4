//! Single look-ups: an event by its id, a topic by its name, a membership.

use rusqlite::{Connection, OptionalExtension, params};

use super::merge::Place;
use crate::protocol::{EventId, TopicName};

pub(super) const ID: &str =
    "SELECT created_at, row FROM events WHERE substr(id, 1, 8) = ?1 AND id = ?2";
pub(super) const MEMBER: &str =
    "SELECT 1 FROM memberships WHERE topic = ?1 AND created_at = ?2 AND event = ?3";

pub(super) const TOPIC: &str = "SELECT topic FROM topics WHERE name = ?1";

pub(super) fn place_of(connection: &Connection, id: &EventId) -> rusqlite::Result<Option<Place>> {
    connection
        .prepare_cached(ID)?
        .query_row(params![&id.0[..8], &id.0], |row| {
            Ok(Place { created_at: row.get(0)?, row: row.get(1)? })
        })
        .optional()
}

/// The places of those that are held, oldest first.
pub(super) fn places_of(connection: &Connection, ids: &[EventId]) -> rusqlite::Result<Vec<Place>> {
    let mut statement = connection.prepare_cached(ID)?;
    let mut places = Vec::new();
    for id in ids {
        let mut rows = statement.query(params![&id.0[..8], &id.0])?;
        if let Some(row) = rows.next()? {
            places.push(Place { created_at: row.get(0)?, row: row.get(1)? });
        }
    }
    places.sort_unstable();
    Ok(places)
}

pub(in crate::store) fn topic_number(
    connection: &Connection,
    name: &TopicName,
) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached(TOPIC)?.query_row([name.as_str()], |row| row.get(0)).optional()
}

pub(in crate::store) fn is_member(
    connection: &Connection,
    topic: i64,
    created_at: i64,
    event: i64,
) -> rusqlite::Result<bool> {
    connection.prepare_cached(MEMBER)?.exists([topic, created_at, event])
}
