//! The plugins of a directory, in their order: the pipeline's policy.

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};

use super::{
    compiled::Cache,
    engine::EngineError,
    entry::{self, Entry, PluginState, PluginSummary},
    folders::{Stamp, folders, warn_of_misplaced},
    granted::{self, Granted},
    instance::Instance,
    loader::{Found, Loader},
    manifest::{self, Manifest, World},
    services::Services,
    watch::{Look, Watcher},
    worker::ChainWorker,
};
use crate::{
    metrics::{Metrics, PluginIdLabels, PluginLabels, PluginStateLabels},
    pipeline::{Direction, Policy, PolicyWorker, StoreError, StreamScopes},
    tasks,
};

/// Why there is no chain at all. A plugin that does not run is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum PluginsError {
    #[error("the plugins folder {} cannot be read: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Where plugins are, and what holds for all of them.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The directory with one folder per plugin.
    pub dir: PathBuf,
    /// Whether it is an error that there is no such directory.
    pub must_exist: bool,
    /// Where grants are, and compiled components may be kept.
    pub data_dir: Option<PathBuf>,
    /// Failures in a row that lead into quarantine; 0 for never.
    pub quarantine_after: u32,
    /// The gateway's own executable, if programs are to end with it whatever ends it.
    pub launcher: Option<PathBuf>,
}

/// The chain of plugins. Cheap to clone; clones are the same chain.
#[derive(Clone)]
pub struct PluginChain {
    shared: Arc<Shared>,
    /// Asks the watcher to look now. Not among what the workers share: when the last chain is dropped,
    /// the watcher ends.
    looks: Arc<OnceLock<crossbeam_channel::Sender<Look>>>,
}

/// What the chain, its workers and the watcher share.
pub(super) struct Shared {
    pub setup: Setup,
    pub loader: Loader,
    pub services: Services,
    current: ArcSwap<Generation>,
    /// How many workers there are.
    workers: AtomicUsize,
    /// Instances that are no longer asked. The watcher drops them: unmapping memory takes time that
    /// the workers have for events.
    retired: Mutex<Vec<Instance>>,
    /// What was seen before it was read, for the watcher to go on from.
    pub seen: Mutex<Seen>,
}

/// What the chain was made from.
#[derive(Default)]
pub(super) struct Seen {
    pub folders: Vec<(PathBuf, Stamp)>,
    pub grants: Stamp,
    pub granted: Granted,
}

/// The plugins at one time, in the order in which they are asked. Never changed: another one takes
/// its place as a whole.
#[derive(Default)]
pub(super) struct Generation {
    pub entries: Vec<Arc<Entry>>,
}

impl Generation {
    /// Those of one world that the operator has not switched off.
    pub fn of(&self, world: World) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().filter(move |entry| entry.world == world && entry.is_on())
    }

    /// Those that are asked about events.
    pub fn judges(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().filter(|entry| entry.world.judges_events() && entry.is_on())
    }

    /// The first of these plugins that is not among those that are asked.
    pub fn lacks<'a>(&self, plugins: &'a [String]) -> Option<&'a String> {
        plugins.iter().find(|id| !self.judges().any(|entry| entry.id == **id))
    }

    /// Brings plugins into their order. Of those with the same id the first one counts.
    pub fn new(mut entries: Vec<Arc<Entry>>) -> Self {
        // Unreadable ones come first: they refuse everything anyway.
        fn place(entry: &Entry) -> (Option<i32>, &str, &Path) {
            (entry.order, &entry.id, &entry.folder)
        }
        entries.sort_by(|a, b| place(a).cmp(&place(b)));
        let mut ordered: Vec<Arc<Entry>> = Vec::with_capacity(entries.len());
        for entry in entries {
            let taken = ordered.iter().any(|other| other.id == entry.id);
            ordered.push(if taken && !entry.is_twin() { entry.twin() } else { entry });
        }
        Self { entries: ordered }
    }
}

impl PluginChain {
    /// [`Self::open`] with everything granted that manifests list, and nothing kept.
    ///
    /// # Errors
    /// As there.
    pub fn load(dir: &Path, must_exist: bool, services: Services) -> Result<Self, PluginsError> {
        let dir = dir.to_owned();
        let (data_dir, quarantine_after, launcher) = (None, 0, None);
        Self::open(Setup { dir, must_exist, data_dir, quarantine_after, launcher }, services)
    }

    /// Reads, compiles and tries the plugins in a directory: each folder in it, or symbolic link to
    /// one, that holds a `plugin.toml`; names that begin with a dot are ignored. Blocks for as long
    /// as compiling takes and runs guest code: never call it on an async worker.
    ///
    /// A plugin that does not run is logged once, keeps its place and refuses the events in its
    /// scope, or passes them if its manifest says so. One with an unreadable manifest refuses every
    /// event.
    ///
    /// # Errors
    /// When the directory is unreadable, or must exist and does not; when WebAssembly does not run
    /// here.
    pub fn open(setup: Setup, services: Services) -> Result<Self, PluginsError> {
        let dir = &setup.dir;
        let folders = match folders(dir, warn_of_misplaced) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !setup.must_exist => {
                Vec::new()
            }
            result => {
                result.map_err(|source| PluginsError::Directory { dir: dir.clone(), source })?
            }
        };
        let cache = setup.data_dir.as_deref().map(Cache::open).transpose();
        let cache = cache.unwrap_or_else(|error| {
            tracing::warn!("compiled plugins cannot be kept: {error}; every start compiles them");
            None
        });
        let file = setup.data_dir.as_ref().map(|data_dir| data_dir.join(granted::FILE_NAME));
        let grants = file.as_deref().map(Stamp::of_file).unwrap_or_default();
        let granted = match setup.data_dir.as_deref().map(Granted::read) {
            Some(Ok(granted)) => granted,
            Some(Err(error)) => {
                tracing::error!("{error}; nothing counts as granted to any plugin");
                Granted::default()
            }
            None => Granted::everything(),
        };
        let loader = Loader::new(cache, setup.quarantine_after, services.clone())
            .launching_with(setup.launcher.clone());
        if !folders.is_empty() {
            loader.start_engine()?;
        }
        let folders: Vec<_> =
            folders.into_iter().map(|path| (path.clone(), Stamp::of_folder(&path))).collect();
        let load = |(folder, _): &(PathBuf, _)| loader.load(Found::read(folder), &granted, None, 1);
        let generation = Generation::new(folders.iter().map(load).collect());
        let seen = Seen { folders, grants, granted };
        let shared = Shared {
            setup,
            loader,
            services,
            current: ArcSwap::from_pointee(generation),
            workers: AtomicUsize::new(0),
            retired: Mutex::default(),
            seen: Mutex::new(seen),
        };
        Ok(Self { shared: Arc::new(shared), looks: Arc::default() })
    }

    /// Watches the directory from now on, on a thread of its own that ends with the chain. What
    /// changes there is loaded and swapped in between two events. `changed` is called on that thread
    /// after each swap.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn watch(&self, changed: impl Fn() + Send + 'static) -> io::Result<()> {
        let (sender, receiver) = crossbeam_channel::bounded(16);
        if self.looks.set(sender).is_ok() {
            let mut watcher = Watcher::new(Arc::clone(&self.shared), Box::new(changed));
            self.shared.loader.goes_live();
            tasks::thread("plugin-watch", move || watcher.run(&receiver))?;
        }
        Ok(())
    }

    /// Looks for changes now; what lies in the folder with this name is complete. Returns when
    /// they have been taken, or could not be; false when nobody watches. Blocks.
    pub fn look(&self, folder: Option<String>) -> bool {
        let Some(looks) = self.looks.get() else { return false };
        let (done, wait) = crossbeam_channel::bounded(1);
        looks.send(Look { folder, done }).is_ok() && wait.recv().is_ok()
    }

    /// Forgets all that a plugin remembers, if it is none of those that are here: theirs is theirs.
    ///
    /// # Errors
    /// When the store cannot be changed.
    pub fn forget(&self, id: &str) -> Result<(), StoreError> {
        if self.shared.current.load().entries.iter().any(|entry| entry.id == id) {
            return Err(StoreError(format!("there is a plugin {id}")));
        }
        self.shared.services.kv.forget(id)
    }

    /// Announces the end: what waits for a program has two seconds left, and is refused then.
    pub fn close(&self) {
        self.shared.loader.programs.close();
    }

    /// Ends the programs, and waits for that. Blocks.
    pub fn end(&self) {
        self.shared.loader.programs.end();
    }

    /// Which streams only some plugins judge.
    pub fn scopes(&self) -> &StreamScopes {
        &self.shared.services.scopes
    }

    /// The directory that the plugins are in.
    pub fn dir(&self) -> &Path {
        &self.shared.setup.dir
    }

    /// The plugins in the order in which they are asked.
    pub fn summary(&self) -> Vec<PluginSummary> {
        self.shared.current.load().entries.iter().map(|entry| entry.summary()).collect()
    }

    /// All that is known of one plugin; nothing when there is none with this id. Reads files.
    pub fn describe(&self, id: &str, data_dir: &Path) -> Option<Value> {
        let generation = self.shared.current.load();
        let entry = generation.entries.iter().find(|entry| entry.id == id)?;
        let granted = Granted::read(data_dir).unwrap_or_default();
        let mut told = json!(entry.summary());
        // What runs, which may not be what lies there by now.
        let read = || Manifest::read(&entry.folder.join(manifest::FILE_NAME)).ok();
        let manifest = entry.manifest().cloned().or_else(read);
        let described = manifest.map(|manifest| entry::described(&manifest, &granted));
        if let (Some(all), Some(Value::Object(more))) = (told.as_object_mut(), described) {
            all.extend(more);
        }
        told["folder"] = json!(entry.folder);
        if !entry.is_program {
            told["memory_bytes"] = json!(self.shared.memory(id));
        }
        let metrics = self.metrics();
        let calls = |verdict| {
            let labels = PluginLabels { plugin: id.to_owned(), verdict };
            metrics.plugin_calls.get(&labels).map_or(0, |calls| calls.get())
        };
        let verdicts = match entry.world {
            World::SecretRotation => ["keep", "rotate", "failed"].as_slice(),
            _ if entry.is_program => &["accept", "reject", "shadow-reject", "busy", "failed"],
            _ => &["accept", "reject", "shadow-reject", "route", "failed"],
        };
        let calls: Map<_, _> =
            verdicts.iter().map(|verdict| ((*verdict).to_owned(), calls(verdict).into())).collect();
        told["calls"] = Value::Object(calls);
        let (times, busy_ns) = entry.busy();
        if times > 0 {
            told["mean_call_us"] = json!(busy_ns as f64 / 1e3 / times as f64);
        }
        Some(told)
    }

    /// Ends the quarantine of a plugin. Returns whether it was in one; nothing when there is no such
    /// plugin.
    pub fn lift(&self, id: &str) -> Option<bool> {
        let generation = self.shared.current.load();
        let entry = generation.entries.iter().find(|entry| entry.id == id)?;
        let was = entry.rest.lift();
        if was {
            tracing::info!(plugin = %id, "the operator ended the plugin's quarantine");
        }
        Some(was)
    }

    /// Brings the figures up to date that nobody counts as they change.
    pub fn measure(&self) {
        for entry in &self.shared.current.load().entries {
            let now = entry.summary().state.name();
            for state in PluginState::NAMES {
                let labels = PluginStateLabels { plugin: entry.id.clone(), state };
                self.metrics().plugin_state.get_or_create(&labels).set((state == now).into());
            }
        }
    }

    pub(super) fn generation(&self) -> Arc<Generation> {
        self.shared.current.load_full()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.services.metrics
    }

    /// Whether there is no plugin.
    pub fn is_empty(&self) -> bool {
        self.shared.current.load().entries.is_empty()
    }
}

impl Shared {
    /// The plugins of now.
    pub fn generation(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Whether these are no longer the plugins of now. Costs next to nothing.
    pub fn has_changed(&self, since: &Arc<Generation>) -> bool {
        !Arc::ptr_eq(&self.current.load(), since)
    }

    /// Puts another generation in place of the one of now. Each worker goes on with it between two
    /// events.
    pub fn swap(&self, next: Generation) {
        let before = self.current.swap(Arc::new(next));
        let after = self.current.load();
        for entry in &before.entries {
            if !after.entries.iter().any(|other| other.id == entry.id) {
                self.services.metrics.forget_plugin(&entry.id, &PluginState::NAMES);
                tracing::info!(plugin = %entry.id, "the plugin is gone; nobody asks it any more");
            }
        }
    }

    /// Whether anybody judges events that go this way. A stream with plugins of its own needs them to be
    /// there, whatever they judge.
    pub fn judges(&self, direction: Direction<'_>) -> bool {
        let has_scope = matches!(direction, Direction::ToUpstream(stream)
            if self.services.scopes.of(stream).is_some());
        let way = direction.into();
        let generation = self.current.load();
        has_scope || generation.judges().any(|entry| entry.applies_to.directions.contains(&way))
    }

    /// How many workers are to be served.
    pub fn workers(&self) -> usize {
        self.workers.load(Ordering::Relaxed)
    }

    pub fn worker_came(&self) {
        self.workers.fetch_add(1, Ordering::Relaxed);
    }

    pub fn worker_left(&self) {
        self.workers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes instances that are no longer asked.
    pub fn retire(&self, instances: impl Iterator<Item = Instance>) {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).extend(instances);
    }

    /// Drops them.
    pub fn drop_retired(&self) {
        drop(mem::take(&mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    /// The memory that all instances of a plugin have taken, in bytes.
    pub fn memory(&self, id: &str) -> i64 {
        let labels = PluginIdLabels { plugin: id.to_owned() };
        self.services.metrics.plugin_memory.get(&labels).map_or(0, |bytes| bytes.get())
    }
}

impl Policy for PluginChain {
    fn worker(&self) -> Box<dyn PolicyWorker> {
        Box::new(ChainWorker::new(Arc::clone(&self.shared)))
    }

    fn judges(&self, direction: Direction<'_>) -> bool {
        self.shared.judges(direction)
    }

    fn lacks(&self, plugins: &[String]) -> Option<String> {
        self.shared.current.load().lacks(plugins).cloned()
    }
}
