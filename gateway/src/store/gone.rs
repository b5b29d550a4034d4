//! Ids of events that were verified and are not held, so that they are not fetched again and again.
//!
//! What is removed gets there in the transaction that removes it; what is refused, a little later and
//! many at a time.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    names::Names,
    writes::{Order, Writes},
};
use crate::{
    pipeline::{Gone, StoreError},
    protocol::{Event, EventId, TopicName, VerifiedEvent, kinds::Part},
};

/// Rows of one topic; beyond that the oldest are dropped, those of [`Part::Rest`] first.
pub(super) const MAX_OF_TOPIC: u64 = 200_000;
/// Rows dropped with one order.
const CHUNK: u64 = 2_000;
/// Refused events that wait to be written.
const WAITING: usize = 10_000;

/// As it stands in the column `cause`.
const fn number(gone: Gone) -> u8 {
    match gone {
        Gone::Refused => 1,
        Gone::Banned => 2,
        Gone::Replaced => 3,
        Gone::Deleted => 4,
        Gone::Vanished => 5,
        Gone::Evicted => 6,
    }
}

/// What a change of the operator's rules can bring back.
pub(super) const BANNED: u8 = number(Gone::Banned);

/// An event that is not stored, in one topic, whose number is known.
pub(super) fn add(
    connection: &Connection,
    topic: i64,
    event: &Event,
    gone: Gone,
) -> rusqlite::Result<()> {
    insert(connection, topic, Part::of(event.kind), event.created_at, &event.id, gone)
}

fn insert(
    connection: &Connection,
    topic: i64,
    part: Part,
    created_at: u64,
    id: &EventId,
    gone: Gone,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO gone (topic, part, created_at, id, cause) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![topic, part.number(), created_at.cast_signed(), id.0, number(gone)])?;
    Ok(())
}

/// A held event that is about to be removed, in all of its topics.
pub(super) fn add_row(
    connection: &Connection,
    row: i64,
    event: &Event,
    gone: Gone,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO gone (topic, part, created_at, id, cause) \
             SELECT topic, ?3, ?1, ?4, ?5 FROM memberships \
             WHERE topic IN (SELECT topic FROM topics) AND created_at = ?1 AND event = ?2",
        )?
        .execute(params![
            event.created_at.cast_signed(),
            row,
            Part::of(event.kind).number(),
            event.id.0,
            number(gone)
        ])?;
    Ok(())
}

struct Refused {
    topic: TopicName,
    part: Part,
    created_at: u64,
    id: EventId,
    why: Gone,
}

/// Refused events on their way into the table.
#[derive(Default)]
pub(super) struct Refusals(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Vec<Refused>>,
    /// The writer has an order to take what waits.
    ordered: AtomicBool,
}

impl Refusals {
    /// Never waits.
    pub fn add(
        &self,
        writes: &Writes,
        changes: &Arc<AtomicU64>,
        event: &VerifiedEvent,
        topics: &[TopicName],
        why: Gone,
    ) {
        let queue = &self.0;
        {
            let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() + topics.len() > WAITING {
                return;
            }
            waiting.extend(topics.iter().map(|topic| Refused {
                topic: topic.clone(),
                part: Part::of(event.kind),
                created_at: event.created_at,
                id: event.id,
                why,
            }));
        }
        if queue.ordered.swap(true, Ordering::AcqRel) {
            return;
        }
        let (taken, changes) = (queue.clone(), changes.clone());
        let change = Box::new(move |connection: &Connection| {
            taken.ordered.store(false, Ordering::Release);
            let waiting =
                std::mem::take(&mut *taken.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let mut topics = Names::topics();
            for refused in waiting {
                let Refused { topic, part, created_at, id, why } = refused;
                let topic = topics.number(connection, topic.as_str())?;
                insert(connection, topic, part, created_at, &id, why)?;
            }
            changes.fetch_add(1, Ordering::Relaxed);
            Ok(0)
        });
        // A busy writer is not waited for: the next refusal tries again.
        if !writes.try_send(Order::Run(change, Box::new(drop))) {
            queue.ordered.store(false, Ordering::Release);
        }
    }
}

/// Those of the ids that are gone from the topic.
pub(super) fn find(
    connection: &Connection,
    topic: i64,
    ids: &[EventId],
) -> rusqlite::Result<Vec<(u64, EventId)>> {
    let mut statement = connection.prepare_cached(
        "SELECT created_at FROM gone INDEXED BY gone_by_id \
         WHERE substr(id, 1, 8) = ?1 AND id = ?2 AND topic = ?3",
    )?;
    let mut found = Vec::new();
    for id in ids {
        let at: Option<i64> =
            statement.query_row(params![&id.0[..8], id.0, topic], |row| row.get(0)).optional()?;
        found.extend(at.map(|at| (at.cast_unsigned(), *id)));
    }
    Ok(found)
}

/// Drops the oldest where a topic has too many. Returns how many rows there are over all topics.
pub(super) fn trim(
    connection: &Connection,
    writes: &Writes,
    most: u64,
    changes: &AtomicU64,
) -> Result<u64, StoreError> {
    let counts: Vec<(i64, i64)> = connection
        .prepare_cached("SELECT topic, count(*) FROM gone GROUP BY topic")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut total = 0;
    for (topic, count) in counts {
        let mut count = count.unsigned_abs();
        while count > most {
            let drop = (count - most).min(CHUNK).cast_signed();
            let change = Box::new(move |connection: &Connection| {
                let dropped = connection.execute(
                    "DELETE FROM gone WHERE (topic, part, created_at, id) IN ( \
                     SELECT topic, part, created_at, id FROM gone WHERE topic = ?1 \
                     AND part = (SELECT max(part) FROM gone WHERE topic = ?1) \
                     ORDER BY created_at LIMIT ?2)",
                    [topic, drop],
                )?;
                Ok(dropped as u64)
            });
            let dropped = writes.ask(|answer| Order::Run(change, answer))?;
            if dropped == 0 {
                break;
            }
            count = count.saturating_sub(dropped);
            changes.fetch_add(1, Ordering::Relaxed);
        }
        total += count;
    }
    Ok(total)
}

/// With other limits, plugins or retention, what these refused may be welcome: forgets it, once.
/// `rules` stands for all of them.
pub(super) fn rules_are(writes: &Writes, rules: i64) -> Result<u64, StoreError> {
    let change = Box::new(move |connection: &Connection| {
        let known: Option<i64> = connection
            .query_row("SELECT value FROM state WHERE name = 'rules'", [], |row| row.get(0))
            .optional()?;
        if known == Some(rules) {
            return Ok(0);
        }
        let forgotten = connection.execute(
            "DELETE FROM gone WHERE cause IN (?1, ?2)",
            [number(Gone::Refused), number(Gone::Evicted)],
        )?;
        connection
            .execute("INSERT OR REPLACE INTO state (name, value) VALUES ('rules', ?1)", [rules])?;
        Ok(forgotten as u64)
    });
    writes.ask(|answer| Order::Run(change, answer))
}
