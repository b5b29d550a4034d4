//! Bringing a backup back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    clock::unix_now,
    data_dir::{DataDir, swap},
    store::backup::{self, BackupError},
};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub events: u64,
    /// What the backup had beside the database.
    pub files: Vec<String>,
    /// The folder with what was there before, if anything was.
    pub before: Option<PathBuf>,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "there is a database in {} already; --force puts it aside, into a folder beside the new one, and \
         removes nothing",
        .0.display()
    )]
    Occupied(PathBuf),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("cannot change the data directory {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Puts a backup into a data directory that nobody else works on. The backup is looked at and completely
/// copied first; only then what is there goes aside. Blocks.
///
/// # Errors
/// When there is something and `force` does not say that it may go aside, or the backup is not sound.
pub fn restore(
    data_dir: &DataDir,
    file: &Path,
    force: bool,
    progress: impl FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    let path = data_dir.path();
    let failed = |error| RestoreError::Io { path: path.to_owned(), error };
    if !force && path.join("gateway.db").exists() {
        return Err(RestoreError::Occupied(path.to_owned()));
    }
    let new = swap::begin(path).map_err(failed)?;
    let unpacked = backup::unpack(file, &new, progress);
    let (events, files) = match unpacked {
        Ok(unpacked) => unpacked,
        Err(error) => {
            // What is left of it means nothing, and the next one begins anew.
            let _ = fs::remove_dir_all(&new);
            return Err(error.into());
        }
    };
    let names = (0..).map(|n: u32| match n {
        0 => format!("before-restore-{}", unix_now()),
        n => format!("before-restore-{}-{n}", unix_now()),
    });
    // Nothing of an earlier restore is overwritten.
    let name = names.skip_while(|name| path.join(name).exists()).next().unwrap_or_default();
    let before = swap::commit(path, &name).map_err(failed)?;
    Ok(Restored { events, files, before })
}
