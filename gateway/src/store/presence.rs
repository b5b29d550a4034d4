//! What the pipeline asks before an event is verified, on its own threads.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    gone,
    known::prefix,
    memory::Memory,
    open, privacy,
    query::{is_member, topic_number},
    tombstones::{self, Deleted, Tombstone},
    writer::identifier,
};
use crate::{
    pipeline::{Affected, Presence, StoreError},
    protocol::{Event, EventId, TopicName, kinds},
};

/// Whether the memory alone tells that the event is neither held nor deleted: so for nearly every new
/// one.
pub(super) fn is_surely_new(memory: &Memory, event: &Event) -> bool {
    !memory.ids.may_contain(prefix(&event.id.0))
        && !memory.vanished.may_contain(prefix(&event.pubkey.0))
        && identifier(event).is_none()
        && event.kind != kinds::GIFT_WRAP
}

/// What is held of an event, or stands against it.
pub(super) fn presence(
    connection: &Connection,
    memory: &Memory,
    event: &Event,
    topics: &[TopicName],
) -> Result<Presence, StoreError> {
    let Some(row) = open::row_of(connection, &event.id)? else {
        return Ok(match tombstones::find(connection, event, &memory.ids, &memory.vanished)? {
            None if memory.ids.may_contain(prefix(&event.id.0))
                && gone::is_removed(connection, &event.id)? =>
            {
                Presence::Removed
            }
            None => Presence::Unknown,
            Some(Tombstone::Deleted) => Presence::Deleted,
            Some(Tombstone::Vanished) => Presence::Vanished,
        });
    };
    let created_at = event.created_at.cast_signed();
    for topic in topics {
        let Some(topic) = topic_number(connection, topic)? else {
            return Ok(Presence::KnownElsewhere);
        };
        if !is_member(connection, topic, created_at, row)? {
            return Ok(Presence::KnownElsewhere);
        }
    }
    Ok(Presence::Known)
}

/// Whether it replaces, deletes or makes forget.
pub(super) fn acts_on_others(event: &Event) -> bool {
    identifier(event).is_some() || matches!(event.kind, kinds::DELETION | kinds::VANISH)
}

/// The most events named by a deletion request whose topics are looked up.
const MAX_NAMED: usize = 1_000;

/// What this event acts on.
pub(super) fn affected(
    connection: &Connection,
    memory: &Memory,
    event: &Event,
) -> Result<Affected, StoreError> {
    let Some(author) = memory.author(connection, &event.pubkey)? else {
        return Ok(Affected::default());
    };
    let (mut topics, mut public) = (BTreeSet::new(), false);
    let mut add = |place: (i64, i64)| -> rusqlite::Result<()> {
        topics.extend(topics_of(connection, place)?);
        public = public || !privacy::of_row(connection, place.1)?;
        Ok(())
    };
    match event.kind {
        kinds::DELETION => {
            for deleted in tombstones::named(event).take(MAX_NAMED) {
                let place = match deleted {
                    Deleted::Id(id) => own_place(connection, author, &id)?,
                    Deleted::Address { kind, identifier } => {
                        version(connection, author, kind, identifier)?
                    }
                };
                if let Some(place) = place {
                    add(place)?;
                }
            }
        }
        kinds::VANISH => {
            let mut statement = connection.prepare_cached(
                "SELECT name FROM topics WHERE EXISTS (SELECT 1 \
                 FROM events INDEXED BY events_by_author \
                 JOIN memberships ON memberships.topic = topics.topic \
                 AND memberships.created_at = events.created_at AND memberships.event = events.row \
                 WHERE events.author = ?1)",
            )?;
            let names = statement.query_map([author], |row| row.get::<_, String>(0))?;
            for name in names {
                topics.extend(TopicName::new(&name?).ok());
            }
            public = has_public(connection, author)?;
        }
        kind => {
            if let Some(identifier) = identifier(event)
                && let Some(place) = version(connection, author, kind, identifier)?
            {
                add(place)?;
            }
        }
    }
    Ok(Affected { topics: topics.into_iter().collect(), public })
}

/// Whether any event of this author is not in private topics alone.
fn has_public(connection: &Connection, author: u32) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT private FROM events INDEXED BY events_by_author WHERE author = ?1",
    )?;
    let mut rows = statement.query([author])?;
    while let Some(row) = rows.next()? {
        if !privacy::is_private(row.get(0)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `created_at` and row of an event of this author.
fn own_place(
    connection: &Connection,
    author: u32,
    id: &EventId,
) -> rusqlite::Result<Option<(i64, i64)>> {
    connection
        .prepare_cached(
            "SELECT created_at, row FROM events \
             WHERE substr(id, 1, 8) = ?1 AND id = ?2 AND author = ?3",
        )?
        .query_row(params![&id.0[..8], &id.0, author], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// `created_at` and row of the version that is held.
fn version(
    connection: &Connection,
    author: u32,
    kind: u16,
    identifier: &str,
) -> rusqlite::Result<Option<(i64, i64)>> {
    connection
        .prepare_cached(
            "SELECT created_at, row FROM events \
             WHERE author = ?1 AND kind = ?2 AND identifier = ?3",
        )?
        .query_row(params![author, kind, identifier], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// The topics that hold the event with this `created_at` and row.
pub(super) fn topics_of(
    connection: &Connection,
    (created_at, row): (i64, i64),
) -> rusqlite::Result<BTreeSet<TopicName>> {
    let mut statement = connection.prepare_cached(
        "SELECT name FROM topics WHERE EXISTS (SELECT 1 FROM memberships \
         WHERE memberships.topic = topics.topic AND created_at = ?1 AND event = ?2)",
    )?;
    let mut topics = BTreeSet::new();
    for name in statement.query_map([created_at, row], |row| row.get::<_, String>(0))? {
        topics.extend(TopicName::new(&name?).ok());
    }
    Ok(topics)
}
