//! Which folders of a directory hold plugins, and whether what lies there has changed.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::manifest;

/// How long a file must stay as it is before it counts as written to its end.
pub const QUIET: Duration = Duration::from_secs(1);

/// The most files of one folder that are watched.
const MAX_FILES: usize = 256;

/// The folders that hold a plugin. One that cannot be looked into counts as one, so that its plugin
/// is not skipped silently. `misplaced` hears of what looks like a plugin and is none: a guard that
/// does not run is worse than one that refuses too much.
///
/// # Errors
/// When the directory cannot be read.
pub fn folders(dir: &Path, mut misplaced: impl FnMut(&Path, bool)) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_hidden(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        // Follows a symbolic link; one that leads nowhere was meant for a plugin.
        let is_folder = fs::metadata(&path).map_or(true, |metadata| metadata.is_dir());
        let has_manifest = || match fs::symlink_metadata(path.join(manifest::FILE_NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => !path.exists(),
            _ => true,
        };
        if is_folder && has_manifest() {
            folders.push(path);
        } else {
            misplaced(&path, is_folder);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Says that something looks like a plugin and is none.
pub fn warn_of_misplaced(path: &Path, is_folder: bool) {
    let is_component = |path: &Path| path.extension().is_some_and(|extension| extension == "wasm");
    if !is_folder {
        if is_component(path) || path.file_name().is_some_and(|name| name == manifest::FILE_NAME) {
            tracing::warn!(
                file = %path.display(),
                "not part of a plugin: each needs a folder of its own with {} in it",
                manifest::FILE_NAME
            );
        }
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    if entries.flatten().any(|entry| is_component(&entry.path())) {
        tracing::warn!(
            folder = %path.display(),
            "not a plugin: there is a component in the folder, but no {}",
            manifest::FILE_NAME
        );
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// What can be seen of some files without reading them.
#[derive(Debug, Clone, Default)]
pub struct Stamp {
    files: BTreeMap<OsString, FileStamp>,
    /// Of the folder, if it is one's. Anything passing through the folder changes it, so it does not
    /// count when two stamps are compared.
    folder: Option<FileStamp>,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Which file it is, and when anything of it last changed, its name included.
    #[cfg(unix)]
    inode: (u64, i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Some(Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// When anything of it last changed, if that was not its content: then it was moved, or whoever
    /// copied it is done and set its times.
    fn settled_at(&self) -> Option<SystemTime> {
        self.changed().filter(|changed| self.modified.is_some_and(|modified| *changed > modified))
    }

    #[cfg(unix)]
    fn changed(&self) -> Option<SystemTime> {
        let (_, seconds, nanoseconds) = self.inode;
        let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
        Some(SystemTime::UNIX_EPOCH + since)
    }

    #[cfg(not(unix))]
    fn changed(&self) -> Option<SystemTime> {
        None
    }
}

impl Stamp {
    /// Of the files in a folder; what is hidden is somebody's draft.
    pub fn of_folder(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name()).filter(|name| !is_hidden(name));
        let stamps = names.take(MAX_FILES).filter_map(|name| {
            let stamp = FileStamp::of(&folder.join(&name))?;
            Some((name, stamp))
        });
        Self { files: stamps.collect(), folder: FileStamp::of(folder) }
    }

    /// Of one file.
    pub fn of_file(path: &Path) -> Self {
        let stamp = FileStamp::of(path).map(|stamp| (OsString::new(), stamp));
        Self { files: stamp.into_iter().collect(), folder: None }
    }

    /// Whether everything that is new was put there whole: moved there, or finished by a program
    /// that copies times too.
    fn is_whole(&self, before: Option<&Self>) -> bool {
        // A folder that was moved has brought its files along.
        let moved = self.folder.as_ref().and_then(FileStamp::settled_at);
        let came_along = |file: &FileStamp| match (moved, file.changed()) {
            (Some(moved), Some(changed)) => changed <= moved,
            _ => false,
        };
        let Some(before) = before else {
            // Of a new folder more files may come.
            return !self.files.is_empty()
                && match self.folder {
                    Some(_) => self.files.values().all(came_along),
                    None => self.files.values().all(|file| file.settled_at().is_some()),
                };
        };
        let mut new = self
            .files
            .iter()
            .filter(|(name, file)| before.files.get(*name) != Some(*file))
            .peekable();
        new.peek().is_some() && new.all(|(_, file)| file.settled_at().is_some() || came_along(file))
    }
}

/// What of some files was taken, and what is waited for.
#[derive(Debug, Default)]
pub struct Settling {
    taken: Option<Stamp>,
    waiting: Option<(Stamp, Instant)>,
}

impl Settling {
    pub const fn taken(stamp: Stamp) -> Self {
        Self { taken: Some(stamp), waiting: None }
    }

    /// Whether there is something new that is whole: it was put there whole, `at_once` says so, or
    /// nobody changed it for [`QUIET`]. Whoever takes it says so with [`Self::take`].
    pub fn is_ready(&mut self, stamp: &Stamp, at_once: bool, now: Instant) -> bool {
        if self.taken.as_ref() == Some(stamp) {
            self.waiting = None;
            return false;
        }
        if at_once || stamp.is_whole(self.taken.as_ref()) {
            return true;
        }
        match &self.waiting {
            Some((waiting, since)) if waiting == stamp => now.duration_since(*since) >= QUIET,
            _ => {
                self.waiting = Some((stamp.clone(), now));
                false
            }
        }
    }

    /// Whether this is what was taken.
    pub fn is_taken(&self, stamp: &Stamp) -> bool {
        self.taken.as_ref() == Some(stamp)
    }

    pub fn take(&mut self, stamp: Stamp) {
        *self = Self::taken(stamp);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Longer than the clock of file systems is coarse.
    const MOMENT: Duration = Duration::from_millis(30);

    #[test]
    fn what_is_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plugin.toml");
        fs::write(&file, "a").unwrap();
        let (mut settling, now) = (Settling::default(), Instant::now());
        let first = Stamp::of_folder(dir.path());
        assert!(!settling.is_ready(&first, false, now));
        assert!(!settling.is_ready(&first, false, now + QUIET / 2));
        fs::write(&file, "abc").unwrap();
        let second = Stamp::of_folder(dir.path());
        assert!(!settling.is_ready(&second, false, now + QUIET));
        assert!(settling.is_ready(&second, true, now + QUIET));
        assert!(settling.is_ready(&second, false, now + 2 * QUIET));
        settling.take(second.clone());
        assert!(!settling.is_ready(&second, true, now + 9 * QUIET));
        // Somebody's draft.
        fs::write(dir.path().join(".plugin.toml.swp"), "x").unwrap();
        assert!(Stamp::of_folder(dir.path()) == second);
        fs::remove_file(&file).unwrap();
        let gone = Stamp::of_folder(dir.path());
        assert!(!settling.is_ready(&gone, false, now));
        assert!(settling.is_ready(&gone, false, now + QUIET));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_moved_into_place_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (draft, folder) = (dir.path().join(".draft"), dir.path().join("a"));
        fs::create_dir(&draft).unwrap();
        fs::write(draft.join("plugin.toml"), "a").unwrap();
        thread::sleep(MOMENT);
        fs::rename(&draft, &folder).unwrap();
        let (mut settling, now) = (Settling::default(), Instant::now());
        let whole = Stamp::of_folder(&folder);
        assert!(settling.is_ready(&whole, false, now));
        settling.take(whole);
        // A file after it.
        fs::write(dir.path().join("new"), "ab").unwrap();
        thread::sleep(MOMENT);
        fs::rename(dir.path().join("new"), folder.join("plugin.toml")).unwrap();
        let moved = Stamp::of_folder(&folder);
        assert!(settling.is_ready(&moved, false, now));
        settling.take(moved);
        // Written where it stands, it may not be whole yet.
        thread::sleep(MOMENT);
        fs::write(folder.join("plugin.toml"), "abc").unwrap();
        assert!(!settling.is_ready(&Stamp::of_folder(&folder), false, now));
        // Nor is a folder that files are being copied into.
        let copied = dir.path().join("b");
        fs::create_dir(&copied).unwrap();
        fs::copy(folder.join("plugin.toml"), copied.join("plugin.toml")).unwrap();
        assert!(!Settling::default().is_ready(&Stamp::of_folder(&copied), false, now));
    }
}
