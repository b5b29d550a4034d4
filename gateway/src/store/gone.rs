//! Ids of events that were verified and are not held, so that they are not fetched again and again.
//!
//! What is removed gets there in the transaction that removes it; what is refused, a little later and
//! many at a time.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    names::Names,
    privacy,
    versions::Changed,
    writes::{Order, Writes},
};
use crate::{
    pipeline::{Gone, StoreError},
    protocol::{Event, EventId, TopicName, VerifiedEvent, kinds::Part},
};

/// Rows of one topic; beyond that the oldest are dropped, those of [`Part::Rest`] first.
pub(super) const MAX_OF_TOPIC: u64 = 1_000_000;
/// Rows dropped with one order.
const CHUNK: u64 = 2_000;
/// How long one order may look for what to forget while events wait, and rows between two looks at
/// the clock.
const SLICE: Duration = Duration::from_millis(2);
const STEP: u64 = 100;
/// Refused events that wait to be written.
const WAITING: usize = 10_000;

/// As it stands in the column `cause`.
const fn number(gone: Gone) -> i64 {
    match gone {
        Gone::Refused => 1,
        Gone::Banned => 2,
        Gone::Replaced => 3,
        Gone::Deleted => 4,
        Gone::Vanished => 5,
        Gone::Evicted => 6,
        Gone::Removed => 7,
    }
}

/// In place of a topic's number: what the operator deleted, whatever topics it was in. Theirs begin at 1.
const EVERYWHERE: i64 = 0;
/// What a change of the operator's rules can bring back.
pub(super) const BANNED: i64 = number(Gone::Banned);
/// Added to the cause of what was in private topics alone.
const PRIVATE: i64 = 16;

/// The causes of what a topic's members may be told are below this: a public topic may have been private
/// once.
pub(super) const fn causes_below(topic_is_private: bool) -> i64 {
    if topic_is_private { i64::MAX } else { PRIVATE }
}

/// An event that is not stored, in one topic, whose number is known.
pub(super) fn add(
    connection: &Connection,
    changed: &Changed,
    topic: i64,
    event: &Event,
    is_private: bool,
    gone: Gone,
) -> rusqlite::Result<()> {
    let cause = number(gone) + if is_private { PRIVATE } else { 0 };
    insert(connection, changed, topic, Part::of(event.kind), event.created_at, &event.id, cause)
}

fn insert(
    connection: &Connection,
    changed: &Changed,
    topic: i64,
    part: Part,
    created_at: u64,
    id: &EventId,
    cause: i64,
) -> rusqlite::Result<()> {
    // What comes again in public is no secret any more.
    let inserted = connection
        .prepare_cached(
            "INSERT INTO gone (topic, part, created_at, id, cause) VALUES (?1, ?2, ?3, ?4, ?5) \
             ON CONFLICT DO UPDATE SET cause = excluded.cause \
             WHERE cause >= 16 AND excluded.cause < 16",
        )?
        .execute(params![topic, part.number(), created_at.cast_signed(), id.0, cause])?;
    if inserted > 0 {
        changed.topic(topic);
    }
    Ok(())
}

/// An event that the operator deletes: also what comes by no topic is to stay away.
pub(super) fn add_removed(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO gone (topic, part, created_at, id, cause) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            EVERYWHERE,
            Part::of(event.kind).number(),
            event.created_at.cast_signed(),
            event.id.0,
            number(Gone::Removed)
        ])?;
    Ok(())
}

/// Whether the operator deleted it.
pub(super) fn is_removed(connection: &Connection, id: &EventId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM gone INDEXED BY gone_by_id \
             WHERE substr(id, 1, 8) = ?1 AND id = ?2 AND topic = ?3",
        )?
        .exists(params![&id.0[..8], id.0, EVERYWHERE])
}

/// It is here again.
pub(super) fn forget_removed(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM gone WHERE topic = ?1 AND part = ?2 AND created_at = ?3 AND id = ?4",
        )?
        .execute(params![
            EVERYWHERE,
            Part::of(event.kind).number(),
            event.created_at.cast_signed(),
            event.id.0
        ])?;
    Ok(())
}

/// Where [`is_removed`] can be true, in the order of an index.
pub(super) const REMOVED_IDS: &str = "SELECT substr(id, 1, 8) FROM gone WHERE topic = 0";

/// A held event that is about to be removed, in all of its topics. The caller says that they change.
pub(super) fn add_row(
    connection: &Connection,
    row: i64,
    event: &Event,
    gone: Gone,
) -> rusqlite::Result<()> {
    let private = if privacy::of_row(connection, row)? { PRIVATE } else { 0 };
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO gone (topic, part, created_at, id, cause) \
             SELECT topic, ?3, ?1, ?4, ?5 + ?6 FROM memberships \
             WHERE topic IN (SELECT topic FROM topics) AND created_at = ?1 AND event = ?2",
        )?
        .execute(params![
            event.created_at.cast_signed(),
            row,
            Part::of(event.kind).number(),
            event.id.0,
            number(gone),
            private
        ])?;
    Ok(())
}

struct Refused {
    topic: TopicName,
    part: Part,
    created_at: u64,
    id: EventId,
    cause: i64,
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
    /// Never waits. Each topic comes with whether it is private.
    pub fn add(
        &self,
        writes: &Writes,
        event: &VerifiedEvent,
        topics: impl ExactSizeIterator<Item = (TopicName, bool)>,
        why: Gone,
    ) {
        let queue = &self.0;
        {
            let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() + topics.len() > WAITING {
                return;
            }
            waiting.extend(topics.map(|(topic, is_private)| Refused {
                topic,
                part: Part::of(event.kind),
                created_at: event.created_at,
                id: event.id,
                cause: number(why) + if is_private { PRIVATE } else { 0 },
            }));
        }
        if queue.ordered.swap(true, Ordering::AcqRel) {
            return;
        }
        let taken = queue.clone();
        let change = Box::new(move |connection: &Connection, changed: &Changed| {
            taken.ordered.store(false, Ordering::Release);
            let waiting =
                std::mem::take(&mut *taken.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let mut topics = Names::topics();
            for refused in waiting {
                let Refused { topic, part, created_at, id, cause } = refused;
                let topic = topics.number(connection, topic.as_str())?;
                insert(connection, changed, topic, part, created_at, &id, cause)?;
            }
            Ok(0)
        });
        // A busy writer is not waited for: the next refusal tries again.
        if !writes.try_send(Order::Run(change, Box::new(|_| {}))) {
            queue.ordered.store(false, Ordering::Release);
        }
    }
}

/// Those of the ids that are gone from the topic.
pub(super) fn find(
    connection: &Connection,
    topic: i64,
    is_private: bool,
    ids: &[EventId],
) -> rusqlite::Result<Vec<(u64, EventId)>> {
    let mut statement = connection.prepare_cached(
        "SELECT created_at FROM gone INDEXED BY gone_by_id \
         WHERE substr(id, 1, 8) = ?1 AND id = ?2 AND topic = ?3 AND cause < ?4",
    )?;
    let mut found = Vec::new();
    for id in ids {
        let asked = params![&id.0[..8], id.0, topic, causes_below(is_private)];
        let at: Option<i64> = statement.query_row(asked, |row| row.get(0)).optional()?;
        found.extend(at.map(|at| (at.cast_unsigned(), *id)));
    }
    Ok(found)
}

/// Drops the oldest where a topic has too many. Returns how many rows there are over all topics.
pub(super) fn trim(connection: &Connection, writes: &Writes, most: u64) -> Result<u64, StoreError> {
    let counts: Vec<(i64, i64)> = connection
        .prepare_cached("SELECT topic, count(*) FROM gone GROUP BY topic")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut total = 0;
    for (topic, count) in counts {
        let mut count = count.unsigned_abs();
        while count > most {
            let drop = (count - most).min(CHUNK).cast_signed();
            let change = Box::new(move |connection: &Connection, changed: &Changed| {
                changed.topic(topic);
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
        }
        total += count;
    }
    Ok(total)
}

/// The way of a row of the table: its primary key.
type Key = (i64, i64, i64, EventId);

/// Retention has room again for what it removed from a topic, or from all: forgets it, chunk by chunk,
/// so that others may bring it.
pub(super) fn forget_evicted(
    connection: &Connection,
    writes: &Writes,
    topic: Option<&str>,
) -> Result<u64, StoreError> {
    let evicted = number(Gone::Evicted);
    let (mut forgotten, mut after) = (0, (0, 0, 0, EventId([0; 32])));
    loop {
        let mut next = connection.prepare_cached(
            "SELECT topic, part, created_at, id FROM gone \
             WHERE (topic, part, created_at, id) > (?1, ?2, ?3, ?4) AND cause & 15 = ?5 \
             AND (?6 IS NULL OR topic = (SELECT topic FROM topics WHERE name = ?6)) \
             ORDER BY topic, part, created_at, id LIMIT ?7",
        )?;
        let (number, part, at, id) = after;
        let asked = params![number, part, at, id.0, evicted, topic, CHUNK.cast_signed()];
        let rows = next.query_map(asked, |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, EventId(row.get(3)?)))
        })?;
        let keys: Vec<Key> = rows.collect::<rusqlite::Result<_>>()?;
        let Some(last) = keys.last() else { return Ok(forgotten) };
        after = *last;
        let change = Box::new(move |connection: &Connection, changed: &Changed| {
            let mut delete = connection.prepare_cached(
                "DELETE FROM gone WHERE topic = ?1 AND part = ?2 AND created_at = ?3 AND id = ?4",
            )?;
            let mut deleted = 0;
            for (topic, part, at, id) in &keys {
                deleted += delete.execute(params![topic, part, at, id.0])? as u64;
                changed.topic(*topic);
            }
            Ok(deleted)
        });
        forgotten += writes.ask(|answer| Order::Run(change, answer))?;
    }
}

/// With other limits, plugins or retention, what these refused may be welcome: forgets it, once.
/// `rules` stands for all of them. Plugins change while events are stored, and there may be a million
/// rows, so it is done in slices, each a moment of the writer's time.
pub(super) fn rules_are(writes: &Writes, rules: i64) -> Result<u64, StoreError> {
    let known = Box::new(move |connection: &Connection, _: &Changed| {
        let known: Option<i64> = connection
            .query_row("SELECT value FROM state WHERE name = 'rules'", [], |row| row.get(0))
            .optional()?;
        Ok(u64::from(known == Some(rules)))
    });
    if writes.ask(|answer| Order::Run(known, answer))? == 1 {
        return Ok(0);
    }
    let mut forgotten = 0;
    let reached = Arc::new(Mutex::new(Some((0, 0, 0, EventId([0; 32])))));
    while reached.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
        let reached = Arc::clone(&reached);
        let slice = Box::new(move |connection: &Connection, changed: &Changed| {
            let mut after = reached.lock().unwrap_or_else(PoisonError::into_inner);
            forget_refused(connection, changed, &mut after)
        });
        forgotten += writes.ask(|answer| Order::Run(slice, answer))?;
    }
    // At the end: what was interrupted begins anew at the next start.
    let done = Box::new(move |connection: &Connection, changed: &Changed| {
        changed.all();
        let done = connection
            .execute("INSERT OR REPLACE INTO state (name, value) VALUES ('rules', ?1)", [rules])?;
        Ok(done as u64)
    });
    writes.ask(|answer| Order::Run(done, answer))?;
    Ok(forgotten)
}

/// For [`SLICE`], from this row on; leaves nothing there at the end of the table.
fn forget_refused(
    connection: &Connection,
    changed: &Changed,
    after: &mut Option<Key>,
) -> rusqlite::Result<u64> {
    let mut next = connection.prepare_cached(
        "SELECT topic, part, created_at, id, cause & 15 FROM gone \
         WHERE (topic, part, created_at, id) > (?1, ?2, ?3, ?4) \
         ORDER BY topic, part, created_at, id LIMIT ?5",
    )?;
    let mut delete = connection.prepare_cached(
        "DELETE FROM gone WHERE topic = ?1 AND part = ?2 AND created_at = ?3 AND id = ?4",
    )?;
    let began = Instant::now();
    let mut forgotten = 0;
    while let Some((topic, part, at, id)) = *after
        && began.elapsed() < SLICE
    {
        let asked = params![topic, part, at, id.0, STEP.cast_signed()];
        let rows = next.query_map(asked, |row| {
            let key = (row.get(0)?, row.get(1)?, row.get(2)?, EventId(row.get(3)?));
            Ok((key, row.get::<_, i64>(4)?))
        })?;
        let rows: Vec<(Key, i64)> = rows.collect::<rusqlite::Result<_>>()?;
        for ((topic, part, at, id), cause) in &rows {
            if [number(Gone::Refused), number(Gone::Evicted)].contains(cause) {
                forgotten += delete.execute(params![topic, part, at, id.0])? as u64;
                changed.topic(*topic);
            }
        }
        *after = rows.last().filter(|_| rows.len() as u64 == STEP).map(|(key, _)| *key);
    }
    Ok(forgotten)
}
