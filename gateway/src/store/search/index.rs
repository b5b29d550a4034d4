//! The file of the search index: `search.db`, beside the database.
//!
//! It holds no texts, only which words stand where (FTS5, contentless), so it can be made again from
//! the database at any time. The words are in parts, one for a stretch of the log: the merging of a
//! full-text index then costs the same however much is stored, the frequency of a word (for bm25) is
//! counted in one part alone, and what retention removed goes as a whole.

use std::{io, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::texts;
use crate::{
    pipeline::{LogEntry, Seq},
    protocol::Event,
};

/// Raised when words are made or kept in another way: an older file is made again.
const FORMAT: i64 = 1;
/// Log positions of one part, as a power of two.
const PART_BITS: u32 = 17;
/// From so many entries at a time on, what they add is not merged until there is less to do: merging is
/// a third of the work. A part then has as many segments as it took transactions, and looking a word up
/// in each of them costs microseconds.
const BULK: usize = 2_048;

/// The writing side; there is one.
pub(super) struct Index {
    connection: Connection,
    cursor: Seq,
    newest_part: Option<i64>,
    /// Whether what is added is merged at once, and whether the newest part is told so.
    merges: bool,
    merges_told: Option<bool>,
    text: String,
}

/// The part that holds a row.
fn part_of(row: i64) -> i64 {
    row >> PART_BITS
}

impl Index {
    /// Opens the file, or begins a new one: when there is none, it is of another format, it belongs to
    /// another database (`instance` differs), or it knows more than the database (`head`).
    pub fn open(path: &Path, instance: i64, head: Seq) -> rusqlite::Result<Self> {
        match Self::open_existing(path, instance, head) {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => {}
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, "the search index is damaged and made again");
            }
            Err(error) => return Err(error),
        }
        remove_file(path)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        let connection = connect(path)?;
        connection.execute_batch(&format!(
            "BEGIN; \
             CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) \
                 STRICT, WITHOUT ROWID; \
             INSERT INTO state VALUES ('cursor', 0), ('instance', {instance}); \
             CREATE TABLE parts (part INTEGER PRIMARY KEY, merged INTEGER NOT NULL) STRICT; \
             PRAGMA user_version = {FORMAT}; \
             COMMIT;"
        ))?;
        Ok(Self::new(connection, 0))
    }

    fn new(connection: Connection, cursor: Seq) -> Self {
        Self {
            connection,
            cursor,
            newest_part: None,
            merges: true,
            merges_told: None,
            text: String::new(),
        }
    }

    fn open_existing(path: &Path, instance: i64, head: Seq) -> rusqlite::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = connect(path)?;
        let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if format != FORMAT {
            return Ok(None);
        }
        let state = |name: &str| -> rusqlite::Result<Option<i64>> {
            connection
                .query_row("SELECT value FROM state WHERE name = ?1", [name], |row| row.get(0))
                .optional()
        };
        let (cursor, of) = (state("cursor")?, state("instance")?);
        let cursor = cursor.map(i64::cast_unsigned).filter(|cursor| *cursor <= head);
        Ok(match cursor {
            Some(cursor) if of == Some(instance) => Some(Self::new(connection, cursor)),
            _ => None,
        })
    }

    /// All log entries up to this position are indexed.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// Indexes log entries, in their order, up to the position `until`.
    pub fn add(&mut self, entries: &[LogEntry], until: Seq) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let added = self.add_all(entries, until);
        self.end(added)?;
        self.cursor = until;
        Ok(())
    }

    fn add_all(&mut self, entries: &[LogEntry], until: Seq) -> rusqlite::Result<()> {
        self.merges = entries.len() < BULK;
        for entry in entries.iter().filter(|entry| entry.first) {
            self.add_event(entry.seq.cast_signed(), &entry.event)?;
        }
        self.connection
            .prepare_cached("UPDATE state SET value = ?1 WHERE name = 'cursor'")?
            .execute([until.cast_signed()])?;
        Ok(())
    }

    fn add_event(&mut self, row: i64, event: &Event) -> rusqlite::Result<()> {
        if !texts::words(event, &mut self.text) {
            return Ok(());
        }
        let part = part_of(row);
        if self.newest_part != Some(part) {
            self.begin_part(part)?;
        }
        if self.merges_told != Some(self.merges) {
            self.tell_merging(part)?;
        }
        self.connection
            .prepare_cached(&format!("INSERT INTO part_{part} (rowid, words) VALUES (?1, ?2)"))?
            .execute(params![row, self.text])?;
        Ok(())
    }

    fn begin_part(&mut self, part: i64) -> rusqlite::Result<()> {
        // The words come prepared (`protocol/text.rs`); the tokenizer folds accents and cuts at the
        // spaces. Positions are kept (detail=full, the default): phrases and bm25 need them.
        self.connection.execute_batch(&format!(
            "CREATE VIRTUAL TABLE IF NOT EXISTS part_{part} USING fts5 (words, content='', \
             contentless_delete=1, \
             tokenize=\"unicode61 remove_diacritics 2 categories 'L* N* Co M*'\"); \
             INSERT OR IGNORE INTO parts (part, merged) VALUES ({part}, 0);"
        ))?;
        self.newest_part = Some(part);
        self.merges_told = None;
        Ok(())
    }

    /// How many segments there may be on one level before they are merged little by little (0: never),
    /// and how many before all are at once. The former of each pair is FTS5's default: with it, what a
    /// flood has left is merged with the next transaction.
    fn tell_merging(&mut self, part: i64) -> rusqlite::Result<()> {
        let (little, all) = if self.merges { (4, 16) } else { (0, 64) };
        self.connection.execute_batch(&format!(
            "INSERT INTO part_{part} (part_{part}, rank) VALUES ('automerge', {little}); \
             INSERT INTO part_{part} (part_{part}, rank) VALUES ('crisismerge', {all});"
        ))?;
        self.merges_told = Some(self.merges);
        Ok(())
    }

    /// Takes rows out. It is on disk when this returns: after that, nobody knows of them any more.
    pub fn remove(&mut self, rows: &[i64]) -> rusqlite::Result<()> {
        self.synced(|index| {
            index.connection.execute_batch("BEGIN IMMEDIATE")?;
            let removed = index.remove_all(rows);
            index.end(removed)
        })
    }

    /// Does something whose commits are synced, and with them all that came before.
    fn synced<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let done = work(self);
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        done
    }

    fn remove_all(&self, rows: &[i64]) -> rusqlite::Result<()> {
        let mut known = self.connection.prepare_cached("SELECT 1 FROM parts WHERE part = ?1")?;
        for row in rows {
            let part = part_of(*row);
            if known.exists([part])? {
                self.connection
                    .prepare_cached(&format!("DELETE FROM part_{part} WHERE rowid = ?1"))?
                    .execute([row])?;
            }
        }
        Ok(())
    }

    /// Commits, or takes back what was done before the error.
    fn end(&mut self, result: rusqlite::Result<()>) -> rusqlite::Result<()> {
        match result {
            Ok(()) => self.connection.execute_batch("COMMIT"),
            Err(error) => {
                // So is what it was told.
                self.merges_told = None;
                // A roll-back that fails too has nothing to add.
                let _ = self.connection.execute_batch("ROLLBACK");
                Err(error)
            }
        }
    }

    /// Merges one part to which nothing is added any more, or drops it when it is empty. A few tenths
    /// of a second; for when there is nothing else to do. Returns whether there was one.
    pub fn tidy(&mut self) -> rusqlite::Result<bool> {
        let now = part_of(self.cursor.cast_signed());
        let part: Option<i64> = self
            .connection
            .prepare_cached("SELECT part FROM parts WHERE part < ?1 AND merged = 0 LIMIT 1")?
            .query_row([now], |row| row.get(0))
            .optional()?;
        let Some(part) = part else { return Ok(false) };
        self.connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; \
             INSERT INTO part_{part} (part_{part}) VALUES ('optimize'); \
             UPDATE parts SET merged = 1 WHERE part = {part}; \
             COMMIT;"
        ))?;
        self.drop_if_empty(part)?;
        Ok(true)
    }

    /// Drops the parts that retention has emptied.
    pub fn drop_empty(&mut self) -> rusqlite::Result<()> {
        let now = part_of(self.cursor.cast_signed());
        let parts: Vec<i64> = self
            .connection
            .prepare_cached("SELECT part FROM parts WHERE part < ?1")?
            .query_map([now], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for part in parts {
            self.drop_if_empty(part)?;
        }
        Ok(())
    }

    fn drop_if_empty(&mut self, part: i64) -> rusqlite::Result<()> {
        // The shadow table with one row for each document; the file format of FTS5 documents it.
        let sql = format!("SELECT 1 FROM part_{part}_docsize LIMIT 1");
        if self.connection.prepare(&sql)?.exists([])? {
            return Ok(());
        }
        self.connection.flush_prepared_statement_cache();
        self.connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; DROP TABLE part_{part}; \
             DELETE FROM parts WHERE part = {part}; COMMIT;"
        ))?;
        self.newest_part = None;
        Ok(())
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Synced when the log is copied into the file, not at each commit: after a power failure the
    // index is an older one, and its cursor is of the same age. Removals are another matter
    // ([`Index::remove`]).
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -4_000)?;
    connection.pragma_update(None, "wal_autocheckpoint", 1_000)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// A connection that cannot write.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(1))?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -1_000)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Whether the file is no longer a database.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

/// Removes the file and what SQLite keeps beside it.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    for end in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The database forgets removed rows as soon as the index is rid of them.
    #[test]
    fn removals_are_synced_and_additions_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("search.db"), 1, 0).unwrap();
        let synchronous = |index: &Index| -> i64 {
            index.connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap()
        };
        const NORMAL: i64 = 1;
        const FULL: i64 = 2;
        assert_eq!(synchronous(&index), NORMAL);
        let seen = index.synced(|index| Ok(synchronous(index))).unwrap();
        assert_eq!((seen, synchronous(&index)), (FULL, NORMAL));
        let failed: rusqlite::Result<()> = index.synced(|_| Err(rusqlite::Error::InvalidQuery));
        assert!(failed.is_err());
        assert_eq!(synchronous(&index), NORMAL);
        index.remove(&[1, 2]).unwrap();
        assert_eq!(synchronous(&index), NORMAL);
    }

    #[test]
    fn a_flood_is_merged_when_it_is_over() {
        use crate::pipeline::Audience;
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("search.db"), 1, 0).unwrap();
        let event = crate::protocol::signing::Author::new(1).verified(1, 1, &[], "a few words");
        let add = |index: &mut Index, count: usize| {
            let first = index.cursor() + 1;
            let until = first + count as u64 - 1;
            let entry = |seq| LogEntry {
                seq,
                event: event.shared().clone(),
                topic: None,
                first: true,
                audience: Audience::first(false),
                origin: "client".into(),
            };
            index.add(&(first..=until).map(entry).collect::<Vec<_>>(), until).unwrap();
        };
        let asked = |index: &Index, sql: &str| -> i64 {
            index.connection.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        // What FTS5's file format says of the ids of its pages.
        let segments = "SELECT count(DISTINCT id >> 37) FROM part_0_data WHERE id >> 37 > 0";
        let found = "SELECT count(*) FROM part_0 WHERE part_0 MATCH 'words'";
        add(&mut index, 10);
        for _ in 0..20 {
            add(&mut index, BULK);
        }
        assert_eq!(asked(&index, segments), 21);
        assert_eq!(asked(&index, found), 10 + 20 * BULK as i64);
        add(&mut index, 10);
        assert!(asked(&index, segments) <= 4, "{}", asked(&index, segments));
        assert_eq!(asked(&index, found), 20 + 20 * BULK as i64);
    }
}
