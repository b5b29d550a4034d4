//! The data directory: made when missing, for one gateway at a time.

pub mod swap;

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How often, and how far apart, a lock that somebody holds is tried.
const LOOKS: usize = 15;
const LOOK: Duration = Duration::from_millis(20);

/// The directory, locked as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("cannot use the data directory {}: {error}; choose another one with --data-dir", path.display())]
    Unusable { path: PathBuf, error: io::Error },
    #[error(
        "the data directory {} is in use by another gateway, or by a command that works on its files; \
         stop it or choose another one with --data-dir",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(
        "a restore in {} was broken off and cannot be finished: {error}; see to that and try again",
        path.display()
    )]
    Restore { path: PathBuf, error: io::Error },
}

impl DataDir {
    /// Creates the directory, readable by its owner alone, and locks it. Finishes a restore that was
    /// broken off.
    ///
    /// # Errors
    /// When it cannot be made or written, or another gateway is running in it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let unusable = |error| DataDirError::Unusable { path: path.to_owned(), error };
        make(path).map_err(unusable)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(unusable)?;
        let mut tried = lock.try_lock();
        // A command that looks whether a gateway is running has it for a moment.
        for _ in 0..LOOKS {
            if !matches!(tried, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOOK);
            tried = lock.try_lock();
        }
        match tried {
            Ok(()) => {
                let finished = swap::finish(path);
                let failed = |error| DataDirError::Restore { path: path.to_owned(), error };
                if finished.map_err(failed)? {
                    tracing::info!("finished a restore that was broken off");
                }
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn make(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
