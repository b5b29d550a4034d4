//! The one writer: takes what is waiting, commits it as a group, then says so.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::mpsc;

use super::{names::Names, ranges::tag_key, tail::Tail};
use crate::{
    metrics::Metrics,
    pipeline::{Committed, LogEntry, Origin, Seq, StoreError, Write},
    protocol::{Event, TopicName, VerifiedEvent, kinds::Class},
};

/// The most events of one commit.
const MAX_GROUP: usize = 1_024;

/// Runs until the queue is closed and empty.
pub(super) fn run(
    mut connection: Connection,
    mut queue: mpsc::Receiver<Write>,
    tail: &Tail,
    failing: &AtomicBool,
    metrics: &Metrics,
) {
    let mut writer = Writer { topics: Names::topics(), origins: Names::origins() };
    let mut group = Vec::new();
    while queue.blocking_recv_many(&mut group, MAX_GROUP) > 0 {
        match writer.commit(&mut connection, &group) {
            Ok(commit) => {
                metrics.store_commits.inc();
                failing.store(false, Ordering::Relaxed);
                tail.append(commit.entries);
                for (write, outcome) in group.drain(..).zip(commit.outcomes) {
                    (write.done)(Ok(outcome));
                }
            }
            Err(error) => {
                tracing::error!(%error, events = group.len(), "a commit failed");
                failing.store(true, Ordering::Relaxed);
                metrics.store_failures.inc_by(group.len() as u64);
                writer.topics.forget();
                writer.origins.forget();
                for write in group.drain(..) {
                    (write.done)(Err(StoreError(format!("the database failed: {error}"))));
                }
            }
        }
    }
    // Leaves one tidy file behind; a reader that is still at work makes it wait for the next start.
    if let Err(error) = connection.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
        tracing::debug!(%error, "no checkpoint at the end");
    }
}

struct Writer {
    topics: Names,
    origins: Names,
}

#[derive(Default)]
struct Commit {
    outcomes: Vec<Committed>,
    entries: Vec<LogEntry>,
}

impl Writer {
    fn commit(&mut self, connection: &mut Connection, group: &[Write]) -> rusqlite::Result<Commit> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut commit = Commit::default();
        for write in group {
            let outcome = self.apply(&transaction, write, &mut commit.entries)?;
            commit.outcomes.push(outcome);
        }
        transaction.commit()?;
        Ok(commit)
    }

    fn apply(
        &mut self,
        connection: &Connection,
        write: &Write,
        entries: &mut Vec<LogEntry>,
    ) -> rusqlite::Result<Committed> {
        let event = &write.event;
        let held: Option<i64> = connection
            .prepare_cached("SELECT row FROM events WHERE id = ?1")?
            .query_row([event.id.0], |row| row.get(0))
            .optional()?;
        if let Some(row) = held {
            let before = entries.len();
            for topic in &write.topics {
                self.join(connection, row, event, topic, &write.origin, entries)?;
            }
            return Ok(match entries.get(before..).and_then(<[_]>::last) {
                Some(entry) => Committed::Joined(entry.seq),
                None => Committed::Duplicate,
            });
        }

        let identifier = identifier(event);
        if let Some(identifier) = identifier {
            match older_version(connection, event, identifier)? {
                Older::None => {}
                Older::Newer => return Ok(Committed::Superseded),
                Older::Replaceable { row, json } => {
                    remove(connection, row, &json)?;
                }
            }
        }

        let mut topics = write.topics.iter();
        let first = topics.next();
        let row = self.log(connection, None, first, event, &write.origin, entries)?;
        insert(connection, row, event, identifier)?;
        if let Some(topic) = first {
            self.add_membership(connection, row, event, topic)?;
        }
        for topic in topics {
            self.join(connection, row, event, topic, &write.origin, entries)?;
        }
        Ok(Committed::New(row.cast_unsigned()))
    }

    /// Makes a stored event part of a topic, with a log entry of its own, unless it is already.
    fn join(
        &mut self,
        connection: &Connection,
        row: i64,
        event: &VerifiedEvent,
        topic: &TopicName,
        origin: &Origin,
        entries: &mut Vec<LogEntry>,
    ) -> rusqlite::Result<()> {
        if self.add_membership(connection, row, event, topic)? {
            self.log(connection, Some(row), Some(topic), event, origin, entries)?;
        }
        Ok(())
    }

    fn add_membership(
        &mut self,
        connection: &Connection,
        row: i64,
        event: &Event,
        topic: &TopicName,
    ) -> rusqlite::Result<bool> {
        let topic = self.topics.number(connection, topic.as_str())?;
        let added = connection
            .prepare_cached(
                "INSERT OR IGNORE INTO memberships (topic, created_at, event) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![topic, event.created_at.cast_signed(), row])?;
        Ok(added > 0)
    }

    /// Appends to the log; without a row the entry is the first of a new event, whose row number is
    /// the position. Returns the row.
    fn log(
        &mut self,
        connection: &Connection,
        row: Option<i64>,
        topic: Option<&TopicName>,
        event: &VerifiedEvent,
        origin: &Origin,
        entries: &mut Vec<LogEntry>,
    ) -> rusqlite::Result<i64> {
        let origin = origin.log_name();
        let topic_number = match topic {
            Some(name) => Some(self.topics.number(connection, name.as_str())?),
            None => None,
        };
        let origin_number = self.origins.number(connection, &origin)?;
        connection
            .prepare_cached("INSERT INTO log (event, topic, origin) VALUES (?1, ?2, ?3)")?
            .execute(params![row.unwrap_or(0), topic_number, origin_number])?;
        let position = connection.last_insert_rowid();
        if row.is_none() {
            connection
                .prepare_cached("UPDATE log SET event = seq WHERE seq = ?1")?
                .execute([position])?;
        }
        let seq: Seq = position.cast_unsigned();
        entries.push(LogEntry {
            seq,
            event: event.shared().clone(),
            topic: topic.cloned(),
            first: row.is_none(),
            origin: origin.into(),
        });
        Ok(row.unwrap_or(position))
    }
}

/// What replaces: `""` for a replaceable event, the `d` tag for an addressable one (NIP-01).
pub(super) fn identifier(event: &Event) -> Option<&str> {
    match event.class() {
        Class::Replaceable => Some(""),
        Class::Addressable => Some(event.identifier()),
        Class::Regular | Class::Ephemeral => None,
    }
}

/// The held event with the same address.
enum Older {
    None,
    /// It is the one to keep: newer, or as old with a lower id (NIP-01).
    Newer,
    Replaceable {
        row: i64,
        json: Arc<str>,
    },
}

fn older_version(
    connection: &Connection,
    event: &Event,
    identifier: &str,
) -> rusqlite::Result<Older> {
    let held = connection
        .prepare_cached(
            "SELECT row, created_at, id, json FROM events \
             WHERE pubkey = ?1 AND kind = ?2 AND identifier = ?3",
        )?
        .query_row(params![event.pubkey.0, event.kind, identifier], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?.cast_unsigned(),
                row.get::<_, [u8; 32]>(2)?,
                row.get::<_, Box<str>>(3)?,
            ))
        })
        .optional()?;
    Ok(match held {
        None => Older::None,
        Some((row, created_at, id, json)) => {
            let replaces = event.created_at > created_at
                || (event.created_at == created_at && event.id.0 < id);
            if replaces { Older::Replaceable { row, json: json.into() } } else { Older::Newer }
        }
    })
}

fn insert(
    connection: &Connection,
    row: i64,
    event: &Event,
    identifier: Option<&str>,
) -> rusqlite::Result<()> {
    let created_at = event.created_at.cast_signed();
    connection
        .prepare_cached(
            "INSERT INTO events (row, id, pubkey, created_at, kind, identifier, expires_at, json) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            row,
            event.id.0,
            event.pubkey.0,
            created_at,
            event.kind,
            identifier,
            event.expires_at().map(|at| i64::try_from(at).unwrap_or(i64::MAX)),
            &**event.json(),
        ])?;
    let mut statement = connection.prepare_cached(
        "INSERT OR IGNORE INTO tags (letter, value, created_at, event) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for (letter, value) in indexed_tags(event) {
        statement.execute(params![letter, tag_key(value), created_at, row])?;
    }
    Ok(())
}

/// Removes an event and all that finds it. Its log entries stay and are skipped by readers.
fn remove(connection: &Connection, row: i64, json: &str) -> rusqlite::Result<()> {
    let Ok(event) = Event::parse(json) else {
        // It was parsed before it was stored, so the file was changed from outside.
        return Err(rusqlite::Error::InvalidQuery);
    };
    let created_at = event.created_at.cast_signed();
    let mut statement = connection.prepare_cached(
        "DELETE FROM tags WHERE letter = ?1 AND value = ?2 AND created_at = ?3 AND event = ?4",
    )?;
    for (letter, value) in indexed_tags(&event) {
        statement.execute(params![letter, tag_key(value), created_at, row])?;
    }
    connection.prepare_cached("DELETE FROM memberships WHERE event = ?1")?.execute([row])?;
    connection.prepare_cached("DELETE FROM events WHERE row = ?1")?.execute([row])?;
    Ok(())
}

/// The tags that filters can ask for: named by one letter, with a value (NIP-01).
fn indexed_tags(event: &Event) -> impl Iterator<Item = (u8, &str)> {
    event.tags.iter().filter_map(|tag| match tag.as_slice() {
        [name, value, ..] => match *name.as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some((letter, value.as_str())),
            _ => None,
        },
        _ => None,
    })
}
