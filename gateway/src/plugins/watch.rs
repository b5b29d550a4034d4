//! Watches the plugins' directory while the gateway runs.
//!
//! It looks twice a second at names, sizes and times, which costs a few system calls. The system's own
//! notifications would come a moment earlier, but not from network file systems and not through links
//! and mounts made anew, and whether a file has been written to its end must be waited for anyway.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{
    chain::{Generation, Shared},
    entry::Entry,
    folders::{QUIET, Settling, Stamp, folders, warn_of_misplaced},
    granted::{self, Granted},
    loader::{Found, is_allowed},
    quiet::be_quiet,
};
use crate::tasks;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(500);

/// A wish to look now.
pub struct Look {
    /// What lies in the folder with this name is complete.
    pub folder: Option<String>,
    /// Told when it has been looked.
    pub done: Sender<()>,
}

/// The watching thread.
pub struct Watcher {
    shared: Arc<Shared>,
    changed: Box<dyn Fn() + Send>,
    granted: Granted,
    grants: Settling,
    folders: BTreeMap<PathBuf, Settling>,
    /// Folders whose plugins are still to be looked at because the grants changed.
    affected: BTreeSet<PathBuf>,
    /// Since when folders are missing that held a plugin.
    missing: BTreeMap<PathBuf, Instant>,
    /// What looks like a plugin and is none: since when, or nothing once it was told.
    misplaced: BTreeMap<PathBuf, Option<Instant>>,
    /// Why the directory could not be read the last time.
    trouble: Option<String>,
    /// Kept until no worker asks them any more: what they hold is to be given back by this thread.
    former: Vec<Arc<Generation>>,
}

impl Watcher {
    pub fn new(shared: Arc<Shared>, changed: Box<dyn Fn() + Send>) -> Self {
        let seen = std::mem::take(&mut *shared.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let folders = seen.folders.into_iter().map(|(path, stamp)| (path, Settling::taken(stamp)));
        Self {
            folders: folders.collect(),
            granted: seen.granted,
            grants: Settling::taken(seen.grants),
            affected: BTreeSet::new(),
            missing: BTreeMap::new(),
            misplaced: BTreeMap::new(),
            trouble: None,
            former: Vec::new(),
            changed,
            shared,
        }
    }

    /// Until the last chain is dropped.
    pub fn run(&mut self, looks: &Receiver<Look>) {
        // What is there now was told at the start.
        let misplaced = &mut self.misplaced;
        let _ = folders(&self.shared.setup.dir, |path, _| {
            misplaced.insert(path.to_owned(), None);
        });
        loop {
            let look = match looks.recv_timeout(PERIOD) {
                Ok(look) => Some(look),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let name = look.as_ref().and_then(|look| look.folder.clone());
            self.look(look.is_some(), name.as_deref());
            if let Some(look) = look {
                // Whoever asked may have gone.
                let _ = look.done.try_send(());
            }
            self.shared.drop_retired();
            self.former.retain(|generation| Arc::strong_count(generation) > 1);
        }
    }

    /// Takes what has changed. `asked`: by a command, which has written the grants to their end, and
    /// the folder of this name.
    fn look(&mut self, asked: bool, name: Option<&str>) {
        let now = Instant::now();
        let Some(found) = self.there(now, name) else { return };
        let before = self.shared.generation();
        if self.read_grants(asked, now) {
            self.affected.extend(before.entries.iter().map(|entry| entry.folder.clone()));
        }
        self.affected.retain(|folder| found.contains(folder));
        let mut ready = Vec::new();
        for folder in &found {
            let stamp = Stamp::of_folder(folder);
            let is_named = name.is_some_and(|name| is_called(folder, name));
            let settling = self.folders.entry(folder.clone()).or_default();
            if settling.is_ready(&stamp, is_named, now) {
                ready.push((folder.clone(), stamp));
            }
        }
        let gone = self.folders.keys().any(|folder| !found.contains(folder));
        if ready.is_empty() && !gone && self.affected.is_empty() {
            return;
        }
        self.folders.retain(|folder, _| found.contains(folder));
        let mut entries = Vec::with_capacity(found.len());
        for folder in &found {
            let earlier = before.entries.iter().find(|entry| entry.folder == *folder);
            let stamp = ready.iter().find(|(path, _)| path == folder).map(|(_, stamp)| stamp);
            entries.extend(self.entry(folder, stamp, earlier));
        }
        let next = Generation::new(entries);
        let is_same = next.entries.len() == before.entries.len()
            && next.entries.iter().zip(&before.entries).all(|(a, b)| Arc::ptr_eq(a, b));
        if !is_same {
            self.shared.swap(next);
            self.former.push(before);
            (self.changed)();
        }
    }

    /// What is to stand for a folder; nothing while its files are waited for.
    fn entry(
        &mut self,
        folder: &Path,
        ready: Option<&Stamp>,
        earlier: Option<&Arc<Entry>>,
    ) -> Option<Arc<Entry>> {
        let waits_for_another = earlier.is_some_and(|entry| entry.is_twin());
        let is_affected = self.affected.contains(folder);
        if ready.is_none() && !is_affected && !waits_for_another {
            return earlier.cloned();
        }
        let stamp = Stamp::of_folder(folder);
        let found = Found::read(folder);
        let settling = self.folders.entry(folder.to_owned()).or_default();
        // Without anything new, what lies there must be what was taken. Otherwise somebody writes there
        // after all, and it is looked at again. What may no longer be used is not, whatever is written.
        let is_whole = ready.map_or(settling.is_taken(&stamp), |ready| *ready == stamp)
            && stamp == Stamp::of_folder(folder);
        let must_go = earlier
            .is_some_and(|entry| entry.manifest().is_some() && !is_allowed(entry, &self.granted));
        if !is_whole && !must_go {
            return earlier.cloned();
        }
        self.affected.remove(folder);
        if ready.is_some() {
            settling.take(stamp);
        }
        self.load(found, earlier.cloned())
    }

    /// Loads on a thread of its own, with low priority. That cannot be taken back, so it is not this
    /// thread's; nor the engine's clock's, which begins here for the same reason.
    fn load(&self, found: Found, earlier: Option<Arc<Entry>>) -> Option<Arc<Entry>> {
        // The load says what is wrong with it.
        let _ = self.shared.loader.start_engine();
        let (done, loaded) = crossbeam_channel::bounded(1);
        let (shared, granted, before) =
            (Arc::clone(&self.shared), self.granted.clone(), earlier.clone());
        let started = tasks::thread("plugin-load", move || {
            be_quiet();
            let workers = shared.workers();
            let _ = done.send(shared.loader.load(found, &granted, before.as_ref(), workers));
        });
        if let Err(error) = started {
            tracing::error!("no thread to load a plugin: {error}; what runs goes on");
        }
        // Without an answer the thread is gone, or there was none.
        loaded.recv().ok().or(earlier)
    }

    /// The folders with plugins. One that is missing counts as there for a moment: whoever replaces
    /// it may take it away first. Nothing when the directory cannot be read: then all stays as it is.
    fn there(&mut self, now: Instant, name: Option<&str>) -> Option<Vec<PathBuf>> {
        let dir = &self.shared.setup.dir;
        let mut misplaced = Vec::new();
        let found = folders(dir, |path, is_folder| misplaced.push((path.to_owned(), is_folder)));
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                let error = error.to_string();
                if !self.folders.is_empty() && self.trouble.as_ref() != Some(&error) {
                    tracing::error!(
                        "the plugins folder {} cannot be read: {error}; the plugins stay as they \
                         are",
                        dir.display()
                    );
                }
                self.trouble = Some(error);
                return None;
            }
        };
        self.trouble = None;
        self.warn_of(&misplaced, now);
        self.missing.retain(|folder, _| !found.contains(folder));
        let absent: Vec<_> =
            self.folders.keys().filter(|folder| !found.contains(folder)).cloned().collect();
        for folder in absent {
            let since = *self.missing.entry(folder.clone()).or_insert(now);
            let is_meant = name.is_some_and(|name| is_called(&folder, name));
            if now.duration_since(since) < QUIET && !is_meant {
                found.push(folder);
            } else {
                self.missing.remove(&folder);
            }
        }
        found.sort();
        Some(found)
    }

    /// Says once what looks like a plugin and is none, when it stays so: a folder may be on its way.
    fn warn_of(&mut self, misplaced: &[(PathBuf, bool)], now: Instant) {
        self.misplaced.retain(|path, _| misplaced.iter().any(|(known, _)| known == path));
        for (path, is_folder) in misplaced {
            let since = self.misplaced.entry(path.clone()).or_insert(Some(now));
            if since.is_some_and(|since| now.duration_since(since) >= 2 * QUIET) {
                *since = None;
                warn_of_misplaced(path, *is_folder);
            }
        }
    }

    /// Whether the grants are others than before.
    fn read_grants(&mut self, asked: bool, now: Instant) -> bool {
        let Some(data_dir) = &self.shared.setup.data_dir else { return false };
        let stamp = Stamp::of_file(&data_dir.join(granted::FILE_NAME));
        if !self.grants.is_ready(&stamp, asked, now) {
            return false;
        }
        self.grants.take(stamp);
        match Granted::read(data_dir) {
            Ok(granted) if granted != self.granted => {
                self.granted = granted;
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::error!("{error}; what was granted before still counts");
                false
            }
        }
    }
}

fn is_called(folder: &Path, name: &str) -> bool {
    folder.file_name().is_some_and(|file_name| file_name == name)
}
