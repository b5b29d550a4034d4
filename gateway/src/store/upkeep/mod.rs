//! What is done to the database in the background, in small steps between the writer's commits.

mod checkpoint;
mod compaction;
mod door;
mod retention;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rusqlite::Connection;

pub(super) use checkpoint::{Checkpointing, start as start_checkpoints};
#[cfg(test)]
pub(super) use compaction::JOINS_SQL;
pub(super) use compaction::shrink_at_start;
pub(super) use door::Door;
#[cfg(test)]
pub(super) use retention::{SIZE, statements};

use super::{
    config::{RetentionConfig, StorageConfig},
    gone, open,
    writes::{Order, Writes},
};
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics},
    pipeline::StoreError,
    tasks,
};
use retention::Rule;

/// From one round to the next, at least. A round that takes long is followed by a longer pause.
const EVERY: Duration = Duration::from_secs(3);
/// Parts of its time that upkeep may work.
const SHARE: u32 = 20;
/// Events removed with one order: a commit that waits for it waits about ten milliseconds.
const CHUNK: usize = 500;
/// What is past its time (NIP-40), the longest past first.
pub(super) const EXPIRED: &str = "SELECT row FROM events INDEXED BY events_by_expiry \
     WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2";
/// Between two counts of all events, for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// What upkeep works with.
pub(super) struct Upkeep {
    database: Connection,
    data_dir: PathBuf,
    writes: Arc<Writes>,
    metrics: Arc<Metrics>,
    rules: Vec<Rule>,
    joins: compaction::Joins,
    /// Free bytes from which on a file is made smaller.
    least_free: u64,
    counted: Option<Instant>,
    stop: Receiver<()>,
}

/// The running thread.
pub(super) struct Keeping {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    /// Asks the thread to end, after the step it is at.
    pub fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.stop.take();
        self.thread.take()
    }
}

impl Upkeep {
    /// Prepares the upkeep of a data directory.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub fn new(
        data_dir: &Path,
        storage: &StorageConfig,
        retention: &[RetentionConfig],
        writes: Arc<Writes>,
        metrics: Arc<Metrics>,
        door: &Door,
    ) -> rusqlite::Result<(Self, Sender<()>)> {
        let (sender, stop) = bounded(0);
        let mut rules: Vec<Rule> = retention.iter().cloned().map(Rule::new).collect();
        if storage.max_bytes != 0 {
            rules.push(Rule::whole(storage.max_bytes));
        }
        door.set(rules.iter().map(Rule::entry).collect());
        let upkeep = Self {
            database: open::reader(&data_dir.join("gateway.db"))?,
            data_dir: data_dir.to_owned(),
            writes,
            metrics,
            rules,
            joins: compaction::Joins::default(),
            least_free: compaction::WORTHWHILE,
            counted: None,
            stop,
        };
        Ok((upkeep, sender))
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn start(mut self, stop: Sender<()>) -> std::io::Result<Keeping> {
        let thread = tasks::thread("store-upkeep", move || {
            let mut pause = EVERY;
            while matches!(self.stop.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
                let started = Instant::now();
                if let Err(error) = self.round() {
                    tracing::error!(%error, "the upkeep of the database failed");
                }
                pause = EVERY.max(started.elapsed() * SHARE);
            }
        })?;
        Ok(Keeping { stop: Some(stop), thread: Some(thread) })
    }

    /// Everything once.
    fn round(&mut self) -> Result<(), StoreError> {
        self.expire()?;
        self.retain()?;
        self.joins.clean(&self.database, &self.writes)?;
        self.give_back()?;
        self.measure()
    }

    /// Removes events whose time is over (NIP-40).
    fn expire(&self) -> Result<(), StoreError> {
        let mut statement = self.database.prepare_cached(EXPIRED)?;
        let now = unix_now().cast_signed();
        let chunk = i64::try_from(CHUNK).unwrap_or(i64::MAX);
        let mut total = 0;
        loop {
            let rows: Vec<i64> = statement
                .query_map([now, chunk], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let last = rows.len() < CHUNK;
            total += self.evict(rows, "expired")?;
            if last || self.is_stopped() {
                break;
            }
        }
        if total > 0 {
            tracing::info!(events = total, "removed what had expired");
        }
        Ok(())
    }

    /// Removes rows with one order and leaves the writer alone for a moment.
    fn evict(&self, rows: Vec<i64>, cause: &'static str) -> Result<u64, StoreError> {
        if rows.is_empty() {
            return Ok(0);
        }
        let started = Instant::now();
        let removed = self.writes.ask(|answer| Order::Evict(rows, answer))?;
        self.metrics.evicted.get_or_create(&CauseLabels { cause }).inc_by(removed);
        self.rest(started.elapsed());
        Ok(removed)
    }

    /// After a step that took so long. A busy writer took long to come to it, so it is left alone for longer.
    fn rest(&self, took: Duration) {
        let _ = self.stop.recv_timeout((took * 2).min(Duration::from_secs(1)));
    }

    /// Gives back what is free in the file, if it is much.
    fn give_back(&self) -> Result<(), StoreError> {
        let given_back =
            compaction::shrink(&self.database, &self.writes, self.least_free, |took| {
                self.rest(took);
                !self.is_stopped()
            })?;
        if given_back > 0 {
            tracing::info!(bytes = given_back, "made the database file smaller");
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        matches!(self.stop.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
    }

    fn measure(&mut self) -> Result<(), StoreError> {
        let file = compaction::file_size(&self.database)?;
        let search =
            std::fs::metadata(self.data_dir.join("search.db")).map_or(0, |file| file.len());
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.metrics.database_bytes, file.pages);
        set(&self.metrics.database_free_bytes, file.free);
        set(&self.metrics.search_bytes, search);
        if self.counted.is_none_or(|counted| counted.elapsed() > COUNT_EVERY) {
            let held: i64 = self
                .database
                .prepare_cached("SELECT count(*) FROM events")?
                .query_row([], |row| row.get(0))?;
            self.metrics.events_held.set(held);
            let most = gone::MAX_OF_TOPIC;
            let gone = gone::trim(&self.database, &self.writes, most)?;
            set(&self.metrics.events_gone, gone);
            self.counted = Some(Instant::now());
        }
        Ok(())
    }
}
