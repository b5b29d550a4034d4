//! Rules for what is kept: by age, number and size, of some kinds or all, of a topic or everywhere.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rusqlite::{Connection, OptionalExtension};

use super::{CHUNK, Upkeep, compaction, door::Entry};
use crate::{
    clock::unix_now,
    pipeline::StoreError,
    store::{
        config::{EXEMPT, RetentionConfig},
        gone,
        versions::Changed,
        writes::Order,
    },
};

/// A rule and what is known about the events it covers.
pub(super) struct Rule {
    config: RetentionConfig,
    /// The whole database may take up this much.
    whole: Option<u64>,
    /// JSON of the events that it covers, up to a row: counting it anew reads every one of them.
    bytes: u64,
    counted_to: i64,
    entry: Arc<Entry>,
    cause: &'static str,
}

/// An event to be removed, with its time.
type Found = (i64, i64);

impl Rule {
    pub fn new(config: RetentionConfig) -> Self {
        let entry = Arc::new(Entry { rule: config.clone(), removed_before: AtomicU64::new(0) });
        Self { config, whole: None, bytes: 0, counted_to: 0, entry, cause: "rule" }
    }

    /// `storage.max_bytes`.
    pub fn whole(bytes: u64) -> Self {
        Self { whole: Some(bytes), cause: "size", ..Self::new(RetentionConfig::default()) }
    }

    /// What the way in knows of it.
    pub fn entry(&self) -> Arc<Entry> {
        self.entry.clone()
    }

    /// The tables and conditions of the events that it covers; `None` when there cannot be any. All
    /// that goes into the text are numbers.
    fn events(&self, connection: &Connection, index: &str) -> rusqlite::Result<Option<String>> {
        let list =
            |kinds: &[u16]| kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let kinds = match self.config.kinds.as_slice() {
            [] => format!("events.kind NOT IN ({})", list(&EXEMPT)),
            kinds => format!("events.kind IN ({})", list(kinds)),
        };
        if self.config.topic.is_empty() {
            return Ok(Some(format!("FROM events {index} WHERE {kinds}")));
        }
        let topic: Option<i64> = connection
            .query_row("SELECT topic FROM topics WHERE name = ?1", [&self.config.topic], |row| {
                row.get(0)
            })
            .optional()?;
        Ok(topic.map(|topic| {
            format!(
                "FROM memberships CROSS JOIN events ON events.row = memberships.event \
                 WHERE memberships.topic = {topic} AND {kinds}"
            )
        }))
    }

    /// How many events it covers.
    fn count(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let Some(sql) = self.count_sql(connection)? else { return Ok(0) };
        let count: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    fn count_sql(&self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        let index = match self.config.kinds.is_empty() {
            true => "INDEXED BY events_by_time",
            false => "INDEXED BY events_by_kind",
        };
        let events = self.events(connection, index)?;
        Ok(events.map(|events| format!("SELECT count(*) {events}")))
    }

    /// Adds up what came since the last time. What others removed stays counted until
    /// [`Self::count_bytes_anew`].
    fn count_bytes(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let head: i64 =
            connection
                .query_row("SELECT coalesce(max(row), 0) FROM events", [], |row| row.get(0))?;
        if let Some(sql) = self.bytes_sql(connection)? {
            let sum: i64 = connection.query_row(&sql, [self.counted_to, head], |row| row.get(0))?;
            self.bytes += sum.unsigned_abs();
        }
        self.counted_to = head;
        Ok(())
    }

    /// By row number, so that only new ones are read.
    fn bytes_sql(&self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        let events = self.events(connection, "NOT INDEXED")?;
        // Of a topic all are passed over that were counted before, without looking the events up.
        let row = if self.config.topic.is_empty() { "events.row" } else { "memberships.event" };
        Ok(events.map(|events| {
            format!(
                "SELECT coalesce(sum(octet_length(json)), 0) {events} \
                 AND {row} > ?1 AND {row} <= ?2"
            )
        }))
    }

    fn count_bytes_anew(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        (self.bytes, self.counted_to) = (0, 0);
        self.count_bytes(connection)
    }

    /// The oldest events that it covers, before a time, oldest first.
    fn oldest(
        &self,
        connection: &Connection,
        before: i64,
        most: usize,
    ) -> rusqlite::Result<Vec<Found>> {
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let mut found = Vec::new();
        let statements = self.oldest_sql(connection)?;
        for sql in &statements {
            let mut statement = connection.prepare(sql)?;
            let rows =
                statement.query_map([before, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
            for row in rows {
                found.push(row?);
            }
        }
        if statements.len() > 1 {
            found.sort_unstable();
            found.truncate(most);
        }
        Ok(found)
    }

    /// One for each kind, where it covers some everywhere; else one.
    fn oldest_sql(&self, connection: &Connection) -> rusqlite::Result<Vec<String>> {
        if self.config.topic.is_empty() && !self.config.kinds.is_empty() {
            let of_kind = |kind: &u16| {
                format!(
                    "SELECT created_at, row FROM events INDEXED BY events_by_kind \
                     WHERE kind = {kind} AND created_at < ?1 ORDER BY created_at LIMIT ?2"
                )
            };
            return Ok(self.config.kinds.iter().map(of_kind).collect());
        }
        let events = self.events(connection, "INDEXED BY events_by_time")?;
        let table = if self.config.topic.is_empty() { "events" } else { "memberships" };
        let all = events.map(|events| {
            format!(
                "SELECT {table}.created_at, events.row {events} \
                 AND {table}.created_at < ?1 ORDER BY {table}.created_at LIMIT ?2"
            )
        });
        Ok(all.into_iter().collect())
    }
}

/// What each sort of rule asks, for the snapshot of the plans. There is a topic of this name.
#[cfg(test)]
pub(in crate::store) fn statements(connection: &Connection, topic: &str) -> Vec<(String, String)> {
    let (no_kinds, kinds, everywhere) = (Vec::new(), vec![1, 7], String::new());
    let mut list = Vec::new();
    for (name, topic, kinds) in [
        ("everything", everywhere.clone(), no_kinds.clone()),
        ("some kinds", everywhere, kinds.clone()),
        ("a topic", topic.to_owned(), no_kinds),
        ("some kinds in a topic", topic.to_owned(), kinds),
    ] {
        let rule = Rule::new(RetentionConfig { topic, kinds, ..Default::default() });
        let of = |what: &str| format!("retention of {name}: {what}");
        list.extend(rule.count_sql(connection).unwrap().map(|sql| (of("count"), sql)));
        list.extend(rule.bytes_sql(connection).unwrap().map(|sql| (of("size"), sql)));
        let oldest = rule.oldest_sql(connection).unwrap().into_iter();
        list.extend(oldest.map(|sql| (of("oldest"), sql)));
    }
    list
}

/// Whether a tenth of a bound is free, so that older events may come again.
const fn leaves_room(held: u64, most: u64) -> bool {
    held < most - most.div_ceil(10)
}

pub(in crate::store) const SIZE: &str = "SELECT octet_length(json) FROM events WHERE row = ?1";

/// Bytes of this event's JSON.
fn size(connection: &Connection, row: i64) -> rusqlite::Result<u64> {
    let size: Option<i64> =
        connection.prepare_cached(SIZE)?.query_row([row], |found| found.get(0)).optional()?;
    Ok(size.unwrap_or(0).unsigned_abs())
}

impl Upkeep {
    /// Applies all rules.
    pub(super) fn retain(&mut self) -> Result<(), StoreError> {
        let mut rules = std::mem::take(&mut self.rules);
        let mut result = Ok(());
        for rule in &mut rules {
            if result.is_ok() && !self.is_stopped() {
                result = self.apply(rule);
            }
        }
        self.rules = rules;
        result
    }

    fn apply(&self, rule: &mut Rule) -> Result<(), StoreError> {
        let mut removed = 0;
        if rule.config.max_age_s != 0 {
            let before = unix_now().saturating_sub(rule.config.max_age_s);
            removed += self.remove_oldest(rule, before, u64::MAX, u64::MAX)?;
        }
        // Whether every bound that is set leaves room again.
        let (mut lack, mut bounded) = (true, false);
        if rule.config.max_events != 0 {
            let held = rule.count(&self.database)?;
            let over = held.saturating_sub(rule.config.max_events);
            bounded = true;
            lack &= leaves_room(held, rule.config.max_events);
            removed += self.remove_oldest(rule, u64::MAX, over, u64::MAX)?;
        }
        if rule.config.max_bytes != 0 {
            rule.count_bytes(&self.database)?;
            let most = rule.config.max_bytes;
            let mut over = 0;
            if rule.bytes > most {
                // Before an event goes, the sum should be true. To add it up takes long for many
                // events, so a little more goes at a time.
                rule.count_bytes_anew(&self.database)?;
                if rule.bytes > most {
                    over = rule.bytes - (most - most / 20);
                }
            }
            bounded = true;
            lack &= leaves_room(rule.bytes, most);
            if over > 0 {
                removed += self.remove_oldest(rule, u64::MAX, u64::MAX, over)?;
            }
        }
        if let Some(most) = rule.whole {
            let (chunks, room) = self.shrink(rule, most)?;
            removed += chunks;
            bounded = true;
            lack &= room;
        }
        if lack && bounded {
            // There is room again: older events may come.
            if rule.entry.removed_before.swap(0, Ordering::AcqRel) > 0 {
                let topic = Some(&*rule.config.topic).filter(|topic| !topic.is_empty());
                let events = gone::forget_evicted(&self.database, &self.writes, topic)?;
                // What is asked for reaches further back from here on, in topics without such events too.
                let widened = Box::new(|_: &Connection, changed: &Changed| {
                    changed.all();
                    Ok(0)
                });
                self.writes.ask(|answer| Order::Run(widened, answer))?;
                tracing::info!(
                    events,
                    cause = rule.cause,
                    "there is room again; they may come again"
                );
            }
        }
        if removed > 0 {
            tracing::info!(events = removed, cause = rule.cause, "removed by retention");
        }
        Ok(())
    }

    /// Brings the whole database below a size, and says whether there is room again. Pages that are
    /// free are used for what comes.
    fn shrink(&self, rule: &mut Rule, most: u64) -> Result<(u64, bool), StoreError> {
        let (mut removed, mut room) = (0, false);
        // The index of words follows later, and keeps its file: it is taken to shrink in proportion.
        let search_before = self.search_bytes();
        let database_before = compaction::file_size(&self.database)?.used().max(1);
        while !self.is_stopped() {
            let database = compaction::file_size(&self.database)?.used();
            let search = u128::from(search_before) * u128::from(database);
            let search = search / u128::from(database_before);
            let used = database + u64::try_from(search).unwrap_or(u64::MAX);
            room = leaves_room(used, most);
            if used <= most {
                break;
            }
            let chunk = self.remove_oldest(rule, u64::MAX, CHUNK as u64, u64::MAX)?;
            removed += chunk;
            if chunk == 0 {
                tracing::warn!(
                    used,
                    max = most,
                    "the database is larger than storage.max_bytes and nothing may be removed"
                );
                break;
            }
        }
        Ok((removed, room))
    }

    /// Bytes of `search.db` that are in use.
    fn search_bytes(&self) -> u64 {
        let path = crate::store::search::path(&self.data_dir);
        let size = || compaction::file_size(&crate::store::open::reader(&path)?);
        if path.exists() { size().map_or(0, |size| size.used()) } else { 0 }
    }

    /// Removes the oldest events that a rule covers: those before a time, not more than so many events
    /// and about so many bytes.
    fn remove_oldest(
        &self,
        rule: &mut Rule,
        before: u64,
        events: u64,
        bytes: u64,
    ) -> Result<u64, StoreError> {
        let by_time = before != u64::MAX;
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        let (mut left, mut bytes_left, mut removed) = (events, bytes, 0);
        while left > 0 && bytes_left > 0 && !self.is_stopped() {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let mut rows = Vec::new();
            let (mut newest, mut freed) = (0, 0);
            for (created_at, row) in rule.oldest(&self.database, before, most)? {
                if freed >= bytes_left {
                    break;
                }
                if bytes != u64::MAX || rule.config.max_bytes != 0 {
                    freed += size(&self.database, row)?;
                }
                newest = created_at.cast_unsigned();
                rows.push(row);
            }
            let found = rows.len();
            if found == 0 {
                break;
            }
            if !by_time {
                // First the door is closed.
                rule.entry.removed_before.fetch_max(newest, Ordering::AcqRel);
            }
            removed += self.evict(rows, rule.cause)?;
            rule.bytes = rule.bytes.saturating_sub(freed);
            bytes_left = if bytes == u64::MAX { bytes } else { bytes_left.saturating_sub(freed) };
            left -= found as u64;
            if by_time && found < most {
                break;
            }
        }
        Ok(removed)
    }
}
