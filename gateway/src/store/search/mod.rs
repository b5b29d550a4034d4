//! Search (NIP-50): an index of words in a file of its own, which follows the log and is never in the
//! way of the writer.

mod follow;
mod index;
mod rank;
#[cfg(test)]
mod tests;
mod texts;

use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension};

pub(super) use follow::{Follow, Following};
pub(super) use rank::Candidates;
#[cfg(test)]
pub(super) use {
    rank::{PARTS, matches_sql},
    texts::words,
};

use crate::{pipeline::Seq, protocol::search};

/// How long a search waits for the index to be opened.
const OPENING: Duration = Duration::from_secs(2);
/// Connections that are kept for the next search.
const KEPT: usize = 4;

/// The reading side of the index. Cheap to clone.
#[derive(Clone)]
pub(super) struct Search(Arc<Shared>);

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Search").field(&self.0.path).finish()
    }
}

struct Shared {
    path: PathBuf,
    /// Changes when the file is made again: older connections are of no use.
    generation: AtomicU64,
    cursor: AtomicU64,
    kept: Mutex<Vec<(u64, Connection)>>,
}

impl Search {
    fn new(path: PathBuf) -> Self {
        Self(Arc::new(Shared {
            path,
            generation: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
            kept: Mutex::default(),
        }))
    }

    /// The rows that match, in chunks. `ranked` is whether the best are to come first.
    pub fn candidates(
        &self,
        search: &search::Search,
        ranked: bool,
    ) -> rusqlite::Result<Candidates> {
        Candidates::new(self.lend()?, search, ranked)
    }

    /// All log entries up to this position can be found.
    pub fn cursor(&self) -> Seq {
        self.0.cursor.load(Ordering::Acquire)
    }

    fn lend(&self) -> rusqlite::Result<Lent> {
        // Right after the start the file may just be made. Whoever asks is on a thread of its own.
        let begun = Instant::now();
        while self.0.generation.load(Ordering::Acquire) == 0 && begun.elapsed() < OPENING {
            std::thread::sleep(Duration::from_millis(2));
        }
        let generation = self.0.generation.load(Ordering::Acquire);
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(of, _)| *of == generation);
        let connection = match kept.pop() {
            Some((_, connection)) => connection,
            None => index::reader(&self.0.path)?,
        };
        Ok(Lent { connection: Some(connection), generation, shared: self.0.clone() })
    }
}

/// A connection that goes back when it is dropped.
pub(super) struct Lent {
    /// Always there until it is dropped.
    connection: Option<Connection>,
    generation: u64,
    shared: Arc<Shared>,
}

impl Deref for Lent {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is taken only when this is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = self.connection.take()
            && kept.len() < KEPT
        {
            kept.push((self.generation, connection));
        }
    }
}

/// The file of the index in a data directory.
pub(super) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("search.db")
}

/// Prepares the database for being indexed: removed rows are noted from now on, and the file gets a
/// number by which the index knows whose it is.
pub(super) fn switch_on(database: &Connection) -> rusqlite::Result<i64> {
    let known: Option<i64> = database
        .query_row("SELECT value FROM state WHERE name = 'search'", [], |row| row.get(0))
        .optional()?;
    if let Some(instance) = known {
        return Ok(instance);
    }
    let instance: i64 = rand::random();
    database.execute_batch(&format!(
        "BEGIN IMMEDIATE; \
         CREATE TRIGGER IF NOT EXISTS note_removed_rows AFTER DELETE ON events \
         BEGIN INSERT INTO removed_rows VALUES (old.row); END; \
         INSERT OR REPLACE INTO state (name, value) VALUES ('search', {instance}); \
         COMMIT;"
    ))?;
    Ok(instance)
}

/// Forgets the index.
pub(super) fn switch_off(database: &Connection, data_dir: &Path) -> rusqlite::Result<()> {
    database.execute_batch(
        "BEGIN IMMEDIATE; \
         DROP TRIGGER IF EXISTS note_removed_rows; \
         DELETE FROM removed_rows; \
         DELETE FROM state WHERE name = 'search'; \
         COMMIT;",
    )?;
    if let Err(error) = index::remove_file(&path(data_dir)) {
        tracing::warn!(%error, "the search index could not be removed");
    }
    Ok(())
}
