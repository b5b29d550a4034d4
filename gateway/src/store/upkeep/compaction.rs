//! What is left over when events are gone, and the room in the file.
//!
//! The pages of removed events are used for what comes next, so the file of a database under
//! retention stops growing. When much of a file is free, it is given back to the file system in small
//! steps between the commits ([`shrink`]): SQLite keeps account of which page belongs to what, which
//! costs 6 % of all writing. A file of a version that did not is written anew at a start, once most of
//! it is free ([`shrink_at_start`]). Statistics for SQLite's own planner are not kept: every query names
//! its index.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::{
    pipeline::StoreError,
    store::{
        versions::Changed,
        writes::{Order, Writes},
    },
};

/// How large the database file is, in bytes.
pub(super) struct FileSize {
    pub pages: u64,
    /// Of pages that hold nothing.
    pub free: u64,
}

impl FileSize {
    pub fn used(&self) -> u64 {
        self.pages.saturating_sub(self.free)
    }
}

pub(super) fn file_size(connection: &Connection) -> rusqlite::Result<FileSize> {
    let read = |name: &str| -> rusqlite::Result<u64> {
        let value: i64 = connection
            .prepare_cached(&format!("PRAGMA {name}"))?
            .query_row([], |row| row.get(0))?;
        Ok(value.unsigned_abs())
    };
    let page = read("page_size")?;
    Ok(FileSize { pages: read("page_count")? * page, free: read("freelist_count")? * page })
}

/// Free bytes from which on a file is worth being written anew.
pub(super) const WORTHWHILE: u64 = 64 << 20;

/// Pages given back with one order: a commit that waits for it waits a few milliseconds.
const STEP_PAGES: u64 = 256;
/// Whether a file can shrink while it is used: 2 is `INCREMENTAL`.
const CAN_SHRINK: i64 = 2;

fn can_shrink(connection: &Connection) -> rusqlite::Result<bool> {
    let mode: i64 = connection.query_row("PRAGMA auto_vacuum", [], |row| row.get(0))?;
    Ok(mode == CAN_SHRINK)
}

/// Whether so much is free that giving it back is worth the writing: a database under retention frees and
/// uses about as much, and is left alone.
fn has_much_free(size: &FileSize, least: u64) -> bool {
    size.free >= least && size.free >= size.used() / 2
}

/// Moves pages from the end of the file into the free ones, a step at a time, until an eighth of what is
/// used is free, or `rest` says that it is enough. Tells how many bytes were given back.
///
/// # Errors
/// When the database cannot be read or written.
pub(super) fn shrink(
    connection: &Connection,
    writes: &Writes,
    least: u64,
    mut rest: impl FnMut(Duration) -> bool,
) -> Result<u64, StoreError> {
    let before = file_size(connection)?;
    if !has_much_free(&before, least) || !can_shrink(connection)? {
        return Ok(0);
    }
    let enough = before.used() / 8;
    loop {
        let started = Instant::now();
        let step = |database: &Connection, _: &Changed| {
            // It gives a row for each page, and works only as far as they are read.
            let pragma = format!("PRAGMA incremental_vacuum({STEP_PAGES})");
            let mut pages = database.prepare_cached(&pragma)?;
            let mut pages = pages.query([])?;
            while pages.next()?.is_some() {}
            Ok(0)
        };
        writes.ask(|answer| Order::Run(Box::new(step), answer))?;
        let now = file_size(connection)?;
        if now.free <= enough || !rest(started.elapsed()) {
            return Ok(before.pages.saturating_sub(now.pages));
        }
    }
}

/// Writes a file anew of which at least half is free, if it cannot shrink while it is used. Seconds for each
/// gigabyte that is left. It can shrink afterwards.
pub(in crate::store) fn shrink_at_start(connection: &Connection) -> rusqlite::Result<()> {
    let size = file_size(connection)?;
    if size.free >= WORTHWHILE && size.free >= size.used() && !can_shrink(connection)? {
        tracing::info!(bytes = size.pages, free = size.free, "writing the database anew, smaller");
        // It needs as much room again for a while. Before it, because a file is laid out by it.
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
        if let Err(error) = connection.execute_batch("VACUUM") {
            tracing::warn!(%error, "the database could not be written anew; it stays as large");
        }
    }
    Ok(())
}

/// Rows of `joins` that are looked at in one round.
const JOINS: i64 = 5_000;
/// Some of them, and whether their events are still there.
pub(in crate::store) const JOINS_SQL: &str = "SELECT seq, EXISTS (SELECT 1 FROM events WHERE row = joins.event) \
     FROM joins WHERE seq > ?1 ORDER BY seq LIMIT ?2";
/// From the end of one walk to the beginning of the next.
const REST: Duration = Duration::from_secs(3_600);

/// A walk through the log entries of events that joined further topics: those of events that are gone
/// say nothing any more.
#[derive(Default)]
pub(super) struct Joins {
    reached: i64,
    finished: Option<Instant>,
}

impl Joins {
    /// One step.
    pub fn clean(&mut self, connection: &Connection, writes: &Writes) -> Result<(), StoreError> {
        if self.finished.is_some_and(|finished| finished.elapsed() < REST) {
            return Ok(());
        }
        let mut statement = connection.prepare_cached(JOINS_SQL)?;
        let seen: Vec<(i64, bool)> = statement
            .query_map([self.reached, JOINS], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        match seen.last() {
            Some((last, _)) => (self.reached, self.finished) = (*last, None),
            None => (self.reached, self.finished) = (0, Some(Instant::now())),
        }
        let gone: Vec<i64> =
            seen.into_iter().filter(|(_, held)| !held).map(|(seq, _)| seq).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let delete = move |database: &Connection, _: &Changed| {
            let mut delete = database.prepare_cached("DELETE FROM joins WHERE seq = ?1")?;
            for seq in &gone {
                delete.execute([seq])?;
            }
            Ok(gone.len() as u64)
        };
        let removed = writes.ask(|answer| Order::Run(Box::new(delete), answer))?;
        tracing::debug!(removed, "log entries of events that are gone");
        Ok(())
    }
}
