//! Opening the database file: migrations, connections, pragmas.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use sqlx::{
    ConnectOptions, Connection as _,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode},
};

use super::{config::Durability, requests, tag_keys::tag_keys, upkeep};
use crate::{
    pipeline::Seq,
    protocol::{Event, EventId},
};

/// Why the store cannot be opened. The text names the file.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the database {}: {why}", path.display())]
pub struct OpenError {
    path: PathBuf,
    why: String,
}

impl OpenError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }

    pub(super) fn sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        Self::new(path, error)
    }

    pub(super) fn thread(path: &Path, error: &io::Error) -> Self {
        Self::new(path, error)
    }
}

/// Reader threads, beside one connection for each worker of the pipeline: one for long queries of clients,
/// one for comparisons, three for everything else.
const READERS: usize = 5;

/// Applies the migrations and counts the events.
pub(super) async fn migrate(path: &Path) -> Result<u64, OpenError> {
    let failed = |error: sqlx::Error| OpenError::new(path, describe(&error));
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        // A file that another version began stays as it is until it is written anew.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
        .connect()
        .await
        .map_err(failed)?;
    sqlx::migrate!("../migrations").run(&mut connection).await.map_err(|error| {
        use sqlx::migrate::MigrateError::{VersionMismatch, VersionMissing};
        match error {
            VersionMissing(_) | VersionMismatch(_) => OpenError::new(
                path,
                format!("{error}; it was written by another version of nostr-gateway"),
            ),
            error => OpenError::new(path, error),
        }
    })?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM events")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    connection.close().await.map_err(failed)?;
    Ok(count.unsigned_abs())
}

fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) if error.message().contains("unable to open") => {
            format!("{}; is the data directory writable?", error.message())
        }
        sqlx::Error::Database(error) => error.message().to_owned(),
        error => error.to_string(),
    }
}

/// The writer's connection and those of the readers.
pub(super) fn connections(
    path: &Path,
    durability: Durability,
) -> Result<(Connection, Vec<Connection>), OpenError> {
    let failed = |error: rusqlite::Error| OpenError::new(path, error);
    let mut write = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(failed)?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    write.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    write.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    write.pragma_update(None, "synchronous", synchronous).map_err(failed)?;
    // Half of the pages of half a million events that one commit or another changes; emptied when
    // nothing is written (`spare.rs`).
    write.pragma_update(None, "cache_size", -32_000).map_err(failed)?;
    write.pragma_update(None, "journal_size_limit", 16 << 20).map_err(failed)?;
    upkeep::shrink_at_start(&write).map_err(failed)?;
    // A thread of its own does it (`upkeep/checkpoint.rs`).
    write.pragma_update(None, "wal_autocheckpoint", 0).map_err(failed)?;
    write.set_prepared_statement_cache_capacity(64);
    fill_tags(&mut write).map_err(failed)?;
    requests::carry_out_stored(&mut write).map_err(failed)?;
    let read = (0..READERS).map(|_| reader(path)).collect::<Result<_, _>>().map_err(failed)?;
    Ok((write, read))
}

/// A connection that cannot write.
pub(super) fn reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let read = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    read.busy_timeout(Duration::from_secs(5))?;
    read.pragma_update(None, "query_only", true)?;
    // It reads through a mapping of the file; only what is in the write-ahead log needs this.
    read.pragma_update(None, "cache_size", -2_000)?;
    read.set_prepared_statement_cache_capacity(64);
    Ok(read)
}

/// The log's newest position.
pub(super) fn head(connection: &Connection) -> Result<Seq, rusqlite::Error> {
    connection
        .prepare_cached("SELECT value FROM state WHERE name = 'head'")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

/// Part of the commit that gave the positions.
pub(super) fn set_head(connection: &Connection, head: Seq) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("UPDATE state SET value = ?1 WHERE name = 'head'")?
        .execute([head.cast_signed()])?;
    Ok(())
}

/// The row of a held event.
pub(super) fn row_of(
    connection: &Connection,
    id: &EventId,
) -> Result<Option<i64>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT row FROM events WHERE substr(id, 1, 8) = ?1 AND id = ?2")?
        .query_row(params![&id.0[..8], &id.0], |row| row.get(0))
        .optional()
}

/// What stands in `state` once the index of tags is that of [`tag_keys`].
const TAGS_VERSION: i64 = 1;

/// Fills the index of tags of a file that another version wrote. Once, in one transaction.
fn fill_tags(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    let version: Option<i64> = connection
        .query_row("SELECT value FROM state WHERE name = 'tags_version'", [], |row| row.get(0))
        .optional()?;
    if version == Some(TAGS_VERSION) {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    transaction.execute("DELETE FROM tags", [])?;
    {
        let mut events = transaction.prepare("SELECT row, json FROM events ORDER BY row")?;
        let mut insert =
            transaction.prepare("INSERT INTO tags (key, created_at, event) VALUES (?1, ?2, ?3)")?;
        let mut rows = events.query([])?;
        while let Some(found) = rows.next()? {
            let row: i64 = found.get(0)?;
            let Ok(event) = Event::parse(found.get_ref(1)?.as_str()?) else { continue };
            for key in tag_keys(&event) {
                insert.execute(params![key, event.created_at.cast_signed(), row])?;
            }
        }
    }
    transaction.execute(
        "INSERT OR REPLACE INTO state (name, value) VALUES ('tags_version', ?1)",
        [TAGS_VERSION],
    )?;
    transaction.commit()
}
