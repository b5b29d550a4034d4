//! A backup: one SQLite file with the database as it was at a moment, and in a table of its own the small
//! files that belong to it.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::ControlFlow,
    path::{Component, Path, PathBuf},
};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension,
    backup::{Backup, StepResult},
    params,
};

use sha2::{Digest, Sha256};

use super::open;

/// Pages that are copied in one go: 4 MiB.
const STEP: i32 = 1_024;
/// The name of the table, which no database in use has.
const TABLE: &str = "backup_files";

/// A file that goes along with the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Relative to the data directory.
    pub name: String,
    /// Permissions, as Unix has them.
    pub mode: u32,
    pub content: Vec<u8>,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub events: u64,
    /// Of the whole file.
    pub bytes: u64,
}

/// Why there is no backup, or nothing could be restored from one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already; name another file, or remove it", .0.display())]
    Exists(PathBuf),
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot write {}: {error}; it needs as much room as the database", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("cannot copy the database to {}: {error}", path.display())]
    Copy { path: PathBuf, error: rusqlite::Error },
    #[error("{} is no backup of a nostr-gateway: {why}", path.display())]
    NotOne { path: PathBuf, why: String },
    #[error("{} is damaged, nothing was changed: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "{} was written by another version of nostr-gateway (migration {version}); use that version or \
         a newer one",
        path.display()
    )]
    OtherVersion { path: PathBuf, version: i64 },
    #[error("the backup was given up")]
    GivenUp,
}

/// Copies the database as it is when this begins; commits go on meanwhile and are not part of it. Only the
/// write-ahead log grows until it ends. `others` is called after that and says what goes along. The
/// file is its owner's alone, and there when it is whole and on the disk. Blocks.
///
/// # Errors
/// When the file exists or cannot be written, or `progress`, which hears of bytes, says to stop.
pub fn write<N>(
    data_dir: &Path,
    file: &Path,
    others: impl FnOnce() -> Result<(Vec<Kept>, N), BackupError>,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(Copied, N), BackupError> {
    let unwritten = |error| BackupError::Write { path: file.to_owned(), error };
    let uncopied = |error| BackupError::Copy { path: file.to_owned(), error };
    if fs::symlink_metadata(file).is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Only its owner can read it, and it goes away when this fails.
    let draft = tempfile::Builder::new().prefix(".backup-").tempfile_in(directory);
    let draft = draft.map_err(unwritten)?;
    let source = open::reader(&data_dir.join("gateway.db")).map_err(uncopied)?;
    let mut copy = Connection::open(draft.path()).map_err(uncopied)?;
    let events = copy_all(&source, &mut copy, &mut progress).map_err(|error| match error {
        Some(error) => uncopied(error),
        None => BackupError::GivenUp,
    })?;
    drop(source);
    let (kept, said) = others()?;
    put_files(&mut copy, &kept).map_err(uncopied)?;
    copy.close().map_err(|(_, error)| uncopied(error))?;
    draft.as_file().sync_all().map_err(unwritten)?;
    let bytes = draft.as_file().metadata().map_err(unwritten)?.len();
    draft.persist_noclobber(file).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(file.to_owned()),
        _ => unwritten(error.error),
    })?;
    #[cfg(unix)]
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(unwritten)?;
    Ok((Copied { events, bytes }, said))
}

/// One snapshot, however long it takes. Returns how many events it has; no error means that it was stopped.
fn copy_all(
    source: &Connection,
    copy: &mut Connection,
    progress: &mut impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<u64, Option<rusqlite::Error>> {
    // While this transaction lasts, all steps see the same: without it, each commit of the writer would
    // make the copy begin anew.
    let snapshot = source.unchecked_transaction()?;
    let count = "SELECT count(*) FROM events";
    let events: i64 = snapshot.query_row(count, [], |row| row.get(0))?;
    let page: i64 = snapshot.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    {
        let backup = Backup::new(&snapshot, copy)?;
        loop {
            let step = backup.step(STEP)?;
            let of = i64::from(backup.progress().pagecount);
            let done = of - i64::from(backup.progress().remaining);
            let bytes = |pages: i64| (pages * page).unsigned_abs();
            if progress(bytes(done), bytes(of)).is_break() {
                return Err(None);
            }
            match step {
                StepResult::Done => break,
                // Nobody else has the new file, and readers of the old one are never locked out.
                StepResult::More => {}
                _ => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }
    // One file, that can be moved.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    Ok(events.unsigned_abs())
}

fn put_files(copy: &mut Connection, kept: &[Kept]) -> rusqlite::Result<()> {
    let transaction = copy.transaction()?;
    transaction.execute_batch(&format!(
        "CREATE TABLE {TABLE} (name TEXT PRIMARY KEY, mode INTEGER NOT NULL, content BLOB NOT NULL, \
         sha256 BLOB NOT NULL) STRICT"
    ))?;
    for Kept { name, mode, content } in kept {
        let insert =
            format!("INSERT INTO {TABLE} (name, mode, content, sha256) VALUES (?1, ?2, ?3, ?4)");
        // SQLite's own check does not see what is wrong within a content.
        let digest = Sha256::digest(content);
        transaction.execute(&insert, params![name, mode, content, digest.as_slice()])?;
    }
    transaction.commit()
}

/// Makes the database and the files of a backup in an empty directory, after it was found whole and of a
/// version that is known here. The database of another data directory will do, too. Returns how many
/// events it has, and the names of the files. Blocks.
///
/// # Errors
/// When the file is no sound backup, or the directory cannot be written.
pub fn unpack(
    file: &Path,
    directory: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<(u64, Vec<String>), BackupError> {
    let no_backup =
        |why: rusqlite::Error| BackupError::NotOne { path: file.to_owned(), why: why.to_string() };
    let database = directory.join("gateway.db");
    let uncopied = |error| BackupError::Copy { path: database.clone(), error };
    fs::File::open(file).map_err(|error| BackupError::Read { path: file.to_owned(), error })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(file, flags).map_err(no_backup)?;
    check_version(file, &source)?;
    let mut copy = Connection::open(&database).map_err(uncopied)?;
    let events = copy_all(&source, &mut copy, &mut |done, of| {
        progress(done, of);
        ControlFlow::Continue(())
    });
    let events = events.map_err(|error| error.map_or(BackupError::GivenUp, no_backup))?;
    drop(source);
    // The copy and not the file: what is put in place was looked at.
    let damaged = |why: String| BackupError::Damaged { path: file.to_owned(), why };
    let found: String = copy
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| damaged(error.to_string()))?;
    if found != "ok" {
        return Err(damaged(found));
    }
    let kept = take_files(&copy).map_err(|error| damaged(error.to_string()))?;
    let kept = kept.ok_or_else(|| damaged("a file in it is not what it was".to_owned()))?;
    copy.close().map_err(|(_, error)| uncopied(error))?;
    let mut names = Vec::new();
    for kept in kept {
        if !is_ours(&kept.name) {
            let why = format!("it has a file {:?}, which no backup has", kept.name);
            return Err(BackupError::NotOne { path: file.to_owned(), why });
        }
        let path = directory.join(&kept.name);
        place(&path, &kept).map_err(|error| BackupError::Write { path, error })?;
        names.push(kept.name);
    }
    Ok((events, names))
}

/// All of its migrations are ours: it may be older than this version, and not newer.
fn check_version(file: &Path, source: &Connection) -> Result<(), BackupError> {
    let not_one = |why: String| BackupError::NotOne { path: file.to_owned(), why };
    let ours: BTreeMap<i64, Vec<u8>> = sqlx::migrate!("../migrations")
        .iter()
        .map(|migration| (migration.version, migration.checksum.to_vec()))
        .collect();
    let applied = || -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
        let mut statement = source.prepare(
            "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect()
    };
    let applied = applied().map_err(|error| not_one(error.to_string()))?;
    if applied.is_empty() {
        return Err(not_one("its database is empty".to_owned()));
    }
    for (version, checksum) in applied {
        if ours.get(&version) != Some(&checksum) {
            return Err(BackupError::OtherVersion { path: file.to_owned(), version });
        }
    }
    Ok(())
}

/// Reads the files out of the copy and leaves the database alone there. Nothing when one is damaged.
fn take_files(copy: &Connection) -> rusqlite::Result<Option<Vec<Kept>>> {
    let there: Option<i64> = copy
        .query_row("SELECT 1 FROM sqlite_master WHERE name = ?1", [TABLE], |row| row.get(0))
        .optional()?;
    if there.is_none() {
        return Ok(Some(Vec::new()));
    }
    let kept = {
        let select = format!("SELECT name, mode, content, sha256 FROM {TABLE}");
        let mut statement = copy.prepare(&select)?;
        let rows = statement.query_map([], |row| {
            let kept = Kept { name: row.get(0)?, mode: row.get(1)?, content: row.get(2)? };
            let is_whole = row.get_ref(3)?.as_blob()? == Sha256::digest(&kept.content).as_slice();
            Ok(is_whole.then_some(kept))
        })?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    copy.execute_batch(&format!("DROP TABLE {TABLE}"))?;
    Ok(kept)
}

/// A backup comes from anywhere: only what belongs into a data directory is written, and nothing beside it.
fn is_ours(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let Some(Component::Normal(first)) = parts.next() else { return false };
    let rest: Vec<_> = parts.collect();
    match first.to_str() {
        Some("secrets.age" | "secrets.key" | "keyring.json" | "grants.toml") => rest.is_empty(),
        Some("plugins") => {
            !rest.is_empty() && rest.iter().all(|part| matches!(part, Component::Normal(_)))
        }
        _ => false,
    }
}

fn place(path: &Path, kept: &Kept) -> io::Result<()> {
    use io::Write as _;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, kept.mode & 0o700);
    let mut file = options.open(path)?;
    file.write_all(&kept.content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_beside_a_data_directory() {
        for name in ["secrets.age", "grants.toml", "plugins/a/plugin.toml", "plugins/x"] {
            assert!(is_ours(name), "{name}");
        }
        for name in [
            "",
            ".",
            "plugins",
            "gateway.db",
            "lock",
            "/etc/passwd",
            "../secrets.age",
            "plugins/../lock",
            "plugins/../../x",
            "secrets.age/x",
            "config.toml",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
