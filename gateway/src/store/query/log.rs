//! The log, and events that a peer of a topic asks for.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::lookup::{is_member, place_of, places_of, topic_number};
use crate::{
    pipeline::{Audience, LogEntry, Seq, StoreError},
    protocol::{Event, EventId, TopicName, VerifiedEvent},
    store::{presence, privacy},
};

pub(super) const FIRSTS: &str = "SELECT row, row, topics.name, origins.name, private, json FROM events \
         JOIN origins USING (origin) LEFT JOIN topics USING (topic) \
         WHERE row > ?1 ORDER BY row";

/// Without a topic where the event only became public.
pub(super) const JOINS: &str = "SELECT seq, event, topics.name, origins.name, private, json, first.name FROM joins \
         JOIN events ON events.row = joins.event \
         JOIN origins ON origins.origin = joins.origin \
         LEFT JOIN topics ON topics.topic = joins.topic \
         LEFT JOIN topics AS first ON first.topic = events.topic \
         WHERE seq > ?1 ORDER BY seq";

/// The topics that an event joined before a position.
pub(super) const JOINED_BEFORE: &str = "SELECT name FROM joins JOIN topics USING (topic) \
         WHERE seq > ?1 AND seq < ?2 AND event = ?1 ORDER BY seq";

pub(super) const TEXT: &str = "SELECT json FROM events WHERE row = ?1";

/// Bytes of JSON after which a page of the log ends.
const PAGE_BYTES: usize = 4 << 20;

/// Log entries after a position, oldest first: the events' own rows and the later joins, merged.
pub(in crate::store) fn log_after(
    connection: &Connection,
    seq: Seq,
    max: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    // Both statements must see the same commit.
    let snapshot = connection.unchecked_transaction()?;
    let after = seq.cast_signed();
    let mut firsts = snapshot.prepare_cached(FIRSTS)?;
    let mut joins = snapshot.prepare_cached(JOINS)?;
    let (mut firsts, mut joins) = (firsts.query([after])?, joins.query([after])?);
    let (mut first, mut join) =
        (first_entry(firsts.next()?)?, later_entry(&snapshot, joins.next()?)?);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while entries.len() < max && bytes < PAGE_BYTES {
        let join_is_next = match (&first, &join) {
            (Some(first), Some(join)) => join.seq < first.seq,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => break,
        };
        let next = if join_is_next {
            std::mem::replace(&mut join, later_entry(&snapshot, joins.next()?)?)
        } else {
            std::mem::replace(&mut first, first_entry(firsts.next()?)?)
        };
        bytes += next.as_ref().map_or(0, |entry| entry.event.json().len());
        entries.extend(next);
    }
    Ok(entries)
}

fn first_entry(row: Option<&Row<'_>>) -> Result<Option<LogEntry>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let audience = privacy::first_audience(row.get(4)?, row.get(0)?);
    let event = stored_event(row, 5)?.shared().clone();
    log_entry(row, event, audience).map(Some)
}

fn later_entry(
    connection: &Connection,
    row: Option<&Row<'_>>,
) -> Result<Option<LogEntry>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let event = stored_event(row, 5)?.shared().clone();
    let before = || topics_before(connection, row, &event);
    let audience = privacy::later_audience(row.get(4)?, row.get(0)?, before)?;
    log_entry(row, event, audience).map(Some)
}

fn log_entry(row: &Row<'_>, event: Arc<Event>, audience: Audience) -> Result<LogEntry, StoreError> {
    let seq: i64 = row.get(0)?;
    Ok(LogEntry {
        seq: seq.cast_unsigned(),
        event,
        topic: topic_name(row, 2)?,
        first: seq == row.get::<_, i64>(1)?,
        audience,
        origin: row.get::<_, Box<str>>(3)?.into(),
    })
}

fn topic_name(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<TopicName>> {
    let name: Option<String> = row.get(column)?;
    Ok(name.and_then(|name| TopicName::new(&name).ok()))
}

/// The topics that an event was part of before this row of [`JOINS`].
fn topics_before(
    connection: &Connection,
    row: &Row<'_>,
    event: &Event,
) -> rusqlite::Result<Vec<TopicName>> {
    let (seq, of): (i64, i64) = (row.get(0)?, row.get(1)?);
    let (own, first) = (topic_name(row, 2)?, topic_name(row, 6)?);
    let mut others = presence::topics_of(connection, (event.created_at.cast_signed(), of))?;
    for topic in own.iter().chain(&first) {
        others.remove(topic);
    }
    let mut before = Vec::from_iter(first);
    // Nearly never are there more than two, and then the log between need not be read.
    if !others.is_empty() {
        let mut joined = connection.prepare_cached(JOINED_BEFORE)?;
        for name in joined.query_map([of, seq], |row| row.get::<_, String>(0))? {
            before.extend(TopicName::new(&name?).ok());
        }
    }
    Ok(before)
}

/// The canonical JSON of those of these events that are in the topic. Those that are in private topics
/// alone only if this `is_private`: it may have been so once.
pub(in crate::store) fn fetch(
    connection: &Connection,
    topic: &TopicName,
    is_private: bool,
    ids: &[EventId],
) -> Result<Vec<Arc<str>>, StoreError> {
    let Some(topic) = topic_number(connection, topic)? else { return Ok(Vec::new()) };
    let mut text = connection.prepare_cached(TEXT)?;
    let mut found = Vec::new();
    for place in places_of(connection, ids)? {
        if is_member(connection, topic, place.created_at, place.row)?
            && (is_private || !privacy::of_row(connection, place.row)?)
        {
            let json: Box<str> = text.query_row([place.row], |row| row.get(0))?;
            found.push(json.into());
        }
    }
    Ok(found)
}

/// Those of the ids that are not in the topic.
pub(in crate::store) fn missing(
    connection: &Connection,
    topic: &TopicName,
    ids: Vec<EventId>,
) -> Result<Vec<EventId>, StoreError> {
    let Some(topic) = topic_number(connection, topic)? else { return Ok(ids) };
    let mut missing = Vec::new();
    for id in ids {
        let held = match place_of(connection, &id)? {
            Some(place) => is_member(connection, topic, place.created_at, place.row)?,
            None => false,
        };
        if !held {
            missing.push(id);
        }
    }
    Ok(missing)
}

fn stored_event(row: &Row<'_>, column: usize) -> Result<VerifiedEvent, StoreError> {
    let json = row.get_ref(column)?.as_str().map_err(|error| StoreError(error.to_string()))?;
    VerifiedEvent::from_store(json)
        .map_err(|error| StoreError(format!("the database holds a broken event: {error}")))
}
