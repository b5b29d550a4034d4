//! Putting the files of a backup in place of those that are there, so that a crash at any moment leaves
//! the old ones or the new ones, and never a mixture.
//!
//! All of it is renames within the data directory. `restore.new` is being filled and means nothing. Renamed
//! to `restore.ready` it is decided: first all that is there goes aside, then, as `restore.placing`, the
//! new files come in. Whoever opens the data directory finishes what was begun.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const NEW: &str = "restore.new";
const READY: &str = "restore.ready";
const PLACING: &str = "restore.placing";
/// Where the old files go, as text, in the folder itself.
const ASIDE: &str = "aside";
/// What a restored data directory has from the backup, or not at all.
const REPLACED: [&str; 8] = [
    "gateway.db",
    "gateway.db-wal",
    "gateway.db-shm",
    "secrets.age",
    "keyring.json",
    "grants.toml",
    "plugins",
    "import.json",
];
/// Can be made again.
const INDEX: [&str; 3] = ["search.db", "search.db-wal", "search.db-shm"];

/// An empty folder for the new files.
///
/// # Errors
/// When it cannot be made.
pub fn begin(data_dir: &Path) -> io::Result<PathBuf> {
    let new = data_dir.join(NEW);
    remove(&new)?;
    fs::create_dir(&new)?;
    Ok(new)
}

/// The new files are complete: puts them in place. Returns the folder into which the old ones went, if
/// there were any.
///
/// # Errors
/// When a file cannot be moved; opening the data directory tries again.
pub fn commit(data_dir: &Path, aside: &str) -> io::Result<Option<PathBuf>> {
    let new = data_dir.join(NEW);
    fs::write(new.join(ASIDE), aside)?;
    fs::File::open(new.join(ASIDE))?.sync_all()?;
    sync(&new)?;
    fs::rename(new, data_dir.join(READY))?;
    sync(data_dir)?;
    finish(data_dir)?;
    let aside = data_dir.join(aside);
    Ok(aside.exists().then_some(aside))
}

/// Whether a restore was decided and broken off: the files may be in any of its folders until it is
/// finished.
pub fn is_begun(data_dir: &Path) -> bool {
    [READY, PLACING].iter().any(|name| data_dir.join(name).exists())
}

/// Finishes what was decided and broken off. Returns whether there was anything.
///
/// # Errors
/// When a file cannot be moved.
pub fn finish(data_dir: &Path) -> io::Result<bool> {
    let (ready, placing) = (data_dir.join(READY), data_dir.join(PLACING));
    if ready.exists() {
        let aside = fs::read_to_string(ready.join(ASIDE))?;
        let aside = data_dir.join(Path::new(aside.trim()).file_name().unwrap_or_default());
        // The key opens what was there, and perhaps what comes: a copy goes aside.
        let replaces_key = ready.join("secrets.key").exists();
        for name in REPLACED {
            let path = data_dir.join(name);
            if fs::symlink_metadata(&path).is_ok() {
                fs::create_dir_all(&aside)?;
                fs::rename(&path, aside.join(name))?;
            }
        }
        let key = data_dir.join("secrets.key");
        if aside.exists() && key.exists() && !aside.join("secrets.key").exists() {
            match replaces_key {
                true => fs::rename(&key, aside.join("secrets.key"))?,
                false => fs::hard_link(&key, aside.join("secrets.key"))?,
            }
        }
        for name in INDEX {
            remove(&data_dir.join(name))?;
        }
        sync(data_dir)?;
        fs::rename(&ready, &placing)?;
        sync(data_dir)?;
    }
    if !placing.exists() {
        return Ok(false);
    }
    for entry in fs::read_dir(&placing)? {
        let entry = entry?;
        if entry.file_name() != ASIDE {
            fs::rename(entry.path(), data_dir.join(entry.file_name()))?;
        }
    }
    sync(data_dir)?;
    remove(&placing)?;
    Ok(true)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::File::open(directory)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = directory;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn old_directory() -> TempDir {
        let data = TempDir::new().unwrap();
        for name in
            ["gateway.db", "gateway.db-wal", "secrets.age", "secrets.key", "search.db", "lock"]
        {
            fs::write(data.path().join(name), format!("old {name}")).unwrap();
        }
        fs::create_dir(data.path().join("plugins")).unwrap();
        fs::write(data.path().join("plugins/a"), "old a").unwrap();
        data
    }

    fn fill(new: &Path) {
        fs::write(new.join("gateway.db"), "new gateway.db").unwrap();
        fs::write(new.join("secrets.age"), "new secrets.age").unwrap();
        fs::create_dir(new.join("plugins")).unwrap();
        fs::write(new.join("plugins/b"), "new b").unwrap();
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    fn check(data: &Path) {
        assert_eq!(read(data.join("gateway.db")), "new gateway.db");
        assert_eq!(read(data.join("secrets.age")), "new secrets.age");
        assert_eq!(read(data.join("secrets.key")), "old secrets.key", "it may open them");
        assert_eq!(read(data.join("plugins/b")), "new b");
        let gone = ["gateway.db-wal", "search.db", "plugins/a", NEW, READY, PLACING];
        assert!(gone.iter().all(|name| !data.join(name).exists()));
        let aside = data.join("before");
        for name in ["gateway.db", "gateway.db-wal", "secrets.age", "secrets.key"] {
            assert_eq!(read(aside.join(name)), format!("old {name}"));
        }
        assert_eq!(read(aside.join("plugins/a")), "old a");
    }

    #[test]
    fn the_new_files_are_in_place_and_the_old_ones_aside() {
        let data = old_directory();
        fill(&begin(data.path()).unwrap());
        let aside = commit(data.path(), "before").unwrap();
        assert_eq!(aside, Some(data.path().join("before")));
        check(data.path());
        assert!(!finish(data.path()).unwrap());
        check(data.path());
    }

    #[test]
    fn an_empty_directory_has_nothing_to_put_aside() {
        let data = TempDir::new().unwrap();
        fill(&begin(data.path()).unwrap());
        assert_eq!(commit(data.path(), "before").unwrap(), None);
        assert_eq!(read(data.path().join("gateway.db")), "new gateway.db");
    }

    /// A crash before, between and after the renames.
    #[test]
    fn what_was_broken_off_is_finished_or_never_was() {
        let data = old_directory();
        fill(&begin(data.path()).unwrap());
        assert!(!finish(data.path()).unwrap(), "it was not decided");
        assert_eq!(read(data.path().join("gateway.db")), "old gateway.db");

        let moved = ["gateway.db", "gateway.db-wal", "secrets.age"];
        for count in 0..=moved.len() {
            let data = old_directory();
            let new = begin(data.path()).unwrap();
            fill(&new);
            fs::write(new.join(ASIDE), "before").unwrap();
            fs::rename(new, data.path().join(READY)).unwrap();
            fs::create_dir(data.path().join("before")).unwrap();
            for name in &moved[..count] {
                fs::rename(data.path().join(name), data.path().join("before").join(name)).unwrap();
            }
            assert!(is_begun(data.path()));
            assert!(finish(data.path()).unwrap());
            assert!(!is_begun(data.path()));
            check(data.path());
        }

        for placed in [vec![], vec!["gateway.db"], vec!["gateway.db", "plugins", "secrets.age"]] {
            let data = old_directory();
            let new = begin(data.path()).unwrap();
            fill(&new);
            commit(data.path(), "before").unwrap();
            let placing = data.path().join(PLACING);
            fs::create_dir(&placing).unwrap();
            fs::write(placing.join(ASIDE), "before").unwrap();
            for name in ["gateway.db", "plugins", "secrets.age"] {
                if !placed.contains(&name) {
                    fs::rename(data.path().join(name), placing.join(name)).unwrap();
                }
            }
            assert!(is_begun(data.path()));
            assert!(finish(data.path()).unwrap());
            assert!(!is_begun(data.path()));
            check(data.path());
        }
    }
}
