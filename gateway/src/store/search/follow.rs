//! The thread that keeps the index up with the log.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, TryRecvError};
use rusqlite::Connection;

use super::{
    Search,
    index::{self, Index},
};
use crate::{
    metrics::Metrics,
    pipeline::{LogEntry, Seq, StoreError},
    store::{
        bell::Stop,
        open, query,
        tail::Tail,
        versions::Changed,
        writes::{Order, Writes},
    },
    tasks,
};

/// Log entries of one transaction.
const BATCH: usize = 4_096;
/// How long what was committed may gather before it is indexed: a transaction costs about as much as
/// a hundred events.
const GATHER: Duration = Duration::from_millis(150);
/// How long nothing happens before parts are merged, and how often removed rows are looked for.
const IDLE: Duration = Duration::from_secs(2);
/// From this distance on, the way is told in the log.
const FAR: Seq = 20_000;
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// What the thread needs.
pub(in crate::store) struct Follow {
    pub database: PathBuf,
    pub data_dir: PathBuf,
    /// See [`super::switch_on`].
    pub instance: i64,
    pub tail: Arc<Tail>,
    pub writes: Arc<Writes>,
    pub metrics: Arc<Metrics>,
}

/// The running thread.
pub(in crate::store) struct Following {
    pub search: Search,
    stop: Stop,
    tail: Arc<Tail>,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    /// Asks the thread to end, after the transaction it is at.
    pub fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.stop.set();
        self.tail.bell.ring();
        self.thread.take().inspect(|thread| thread.thread().unpark())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Follow {
    /// Starts the thread.
    pub fn start(self) -> io::Result<Following> {
        let search = Search::new(super::path(&self.data_dir));
        let (stop, tail) = (Stop::default(), self.tail.clone());
        let mut follower = Follower {
            follow: self,
            search: search.clone(),
            stop: stop.clone(),
            tidied: false,
            clearing: None,
        };
        let thread = tasks::thread("store-search", move || follower.run())?;
        Ok(Following { search, stop, tail, thread: Some(thread) })
    }
}

struct Follower {
    follow: Follow,
    search: Search,
    stop: Stop,
    /// Nothing is left to be merged.
    tidied: bool,
    /// The writer is to forget removed rows that have left the index.
    clearing: Option<Receiver<Result<u64, StoreError>>>,
}

/// Why following stopped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the search index: {0}")]
    Index(#[from] rusqlite::Error),
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl Follower {
    fn run(&mut self) {
        let path = super::path(&self.follow.data_dir);
        while !self.stop.is_set() {
            let Err(failure) = self.follow(&path) else { continue };
            tracing::error!(error = %failure, "search does not keep up");
            if let Failure::Index(error) = &failure
                && index::is_damage(error)
            {
                tracing::warn!("the search index is damaged and made again");
                if let Err(error) = index::remove_file(&path) {
                    tracing::error!(%error, "it cannot be removed");
                }
            }
            self.stop.sleep(PAUSE);
        }
    }

    /// Follows until it is stopped or something fails.
    fn follow(&mut self, path: &Path) -> Result<(), Failure> {
        let head = self.follow.tail.newest();
        let mut index = Index::open(path, self.follow.instance, head)?;
        self.search.0.generation.fetch_add(1, Ordering::AcqRel);
        let database = open::reader(&self.follow.database)?;
        self.tidied = false;
        self.clearing = None;
        let mut cursor = index.cursor();
        loop {
            self.catch_up(&mut index, &database, &mut cursor)?;
            let removed = self.remove(&mut index, &database, cursor)?;
            if self.stop.is_set() {
                return Ok(());
            }
            if removed {
                index.drop_empty()?;
            } else if !self.changed(cursor) {
                // Nothing was committed for a while.
                if !self.tidied {
                    self.tidied = !index.tidy()?;
                }
            } else {
                self.stop.sleep(GATHER);
                self.tidied = false;
            }
        }
    }

    /// Indexes up to the head.
    fn catch_up(
        &mut self,
        index: &mut Index,
        database: &Connection,
        cursor: &mut Seq,
    ) -> Result<(), Failure> {
        let metrics = self.follow.metrics.clone();
        let started = Instant::now();
        let mut head = self.follow.tail.newest();
        let first = *cursor;
        let far = head.saturating_sub(first) >= FAR;
        if far {
            tracing::info!(entries = head - first, "indexing what is stored for search");
        }
        let mut told = Instant::now();
        while *cursor < head && !self.stop.is_set() {
            metrics.search_lag_entries.set(i64::try_from(head - *cursor).unwrap_or(i64::MAX));
            metrics.search_lag_seconds.set(started.elapsed().as_secs_f64());
            let entries = match self.follow.tail.after(*cursor) {
                Some(entries) => entries,
                None => query::log_after(database, *cursor, BATCH)?,
            };
            for batch in entries.chunks(BATCH) {
                let until = batch.last().map_or(*cursor, |entry: &LogEntry| entry.seq);
                index.add(batch, until)?;
                *cursor = until;
                metrics.search_indexed.inc_by(batch.len() as u64);
            }
            if entries.is_empty() {
                // What is left up to here is gone.
                *cursor = head;
            }
            self.search.0.cursor.store(*cursor, Ordering::Release);
            head = self.follow.tail.newest();
            if far && told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                let share = (*cursor - first) * 100 / (head - first).max(1);
                tracing::info!(percent = share, "indexing what is stored for search");
            }
        }
        if far && *cursor >= head {
            tracing::info!(seconds = started.elapsed().as_secs(), "search is up to date");
        }
        self.search.0.cursor.store(*cursor, Ordering::Release);
        metrics.search_lag_entries.set(0);
        metrics.search_lag_seconds.set(0.0);
        Ok(())
    }

    /// Takes out some of what was removed from the database. Returns whether there was anything.
    ///
    /// It does not wait for the writer: while many events come there is always more to take out, and
    /// the index would not follow meanwhile.
    fn remove(
        &mut self,
        index: &mut Index,
        database: &Connection,
        cursor: Seq,
    ) -> Result<bool, Failure> {
        if let Some(clearing) = &self.clearing {
            match clearing.try_recv() {
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => {}
                Ok(cleared) => drop(cleared?),
            }
            self.clearing = None;
        }
        let rows: Vec<i64> = database
            .prepare_cached("SELECT row FROM removed_rows WHERE row <= ?1 LIMIT 4096")?
            .query_map([cursor.cast_signed()], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if rows.is_empty() {
            return Ok(false);
        }
        index.remove(&rows)?;
        let clear = move |database: &Connection, _: &Changed| {
            let mut delete = database.prepare_cached("DELETE FROM removed_rows WHERE row = ?1")?;
            for row in &rows {
                delete.execute([row])?;
            }
            Ok(rows.len() as u64)
        };
        let (answer, cleared) = crossbeam_channel::bounded(1);
        let answer = Box::new(move |told| drop(answer.send(told)));
        self.follow.writes.send(Order::Run(Box::new(clear), answer))?;
        self.clearing = Some(cleared);
        Ok(true)
    }

    /// Waits for a commit; false when there is none for a while.
    fn changed(&self, cursor: Seq) -> bool {
        let tail = &self.follow.tail;
        tail.bell.wait(IDLE, || self.stop.is_set() || tail.newest() > cursor)
    }
}
