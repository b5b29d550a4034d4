//! The plugins of a directory, in their order: the pipeline's policy.

use std::{
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use wasmtime::Engine;

use super::{
    engine::{self, EngineError},
    manifest::{self, AppliesTo, Manifest, OnFailure, World},
    plugin::Plugin,
    printable::one_line,
    services::Services,
    worker::ChainWorker,
};
use crate::{
    metrics::Metrics,
    pipeline::{Policy, PolicyWorker},
};

/// Why there is no chain at all. A plugin that does not run is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum PluginsError {
    #[error("the plugins folder {} cannot be read: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The chain of plugins. Cheap to clone; clones are the same chain.
#[derive(Clone)]
pub struct PluginChain {
    entries: Arc<[Arc<Entry>]>,
    services: Services,
}

/// One plugin's place in the chain.
pub(super) struct Entry {
    pub id: String,
    pub version: String,
    /// One with an unreadable manifest counts as an event filter.
    pub world: World,
    pub applies_to: AppliesTo,
    pub on_failure: OnFailure,
    pub loaded: Loaded,
    /// Since the start, in all threads.
    pub failures: AtomicU64,
}

pub(super) enum Loaded {
    Ready(Arc<Plugin>),
    /// Why it does not run. It keeps its place: what it was to judge must not pass unjudged.
    Broken(String),
}

/// What people want to know about a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PluginSummary {
    /// The manifest's id, or the folder's name when the manifest is unreadable.
    pub id: String,
    /// Empty when the manifest is unreadable.
    pub version: String,
    pub state: PluginState,
}

impl fmt::Display for PluginSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            PluginState::Ready { .. } => write!(f, "{} {}", self.id, self.version),
            PluginState::Broken { .. } => write!(f, "{} (broken)", self.id),
        }
    }
}

/// Whether a plugin runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginState {
    /// It runs; `failures` calls have failed since the start.
    Ready { failures: u64 },
    /// It does not run, for this cause. Events in its scope are refused, or passed if its manifest
    /// says so.
    Broken { cause: String },
}

impl PluginChain {
    /// Reads, compiles and tries the plugins in `dir`: each folder in it, or symbolic link to one,
    /// that holds a `plugin.toml`; names that begin with a dot are ignored. Blocks for as long as
    /// compiling takes and runs guest code: never call it on an async worker.
    ///
    /// A plugin that does not run is logged once, keeps its place and refuses the events in its
    /// scope, or passes them if its manifest says so. One with an unreadable manifest refuses every
    /// event.
    ///
    /// # Errors
    /// When `dir` is unreadable, or `must_exist` and absent; when WebAssembly does not run here.
    pub fn load(dir: &Path, must_exist: bool, services: Services) -> Result<Self, PluginsError> {
        let folders = match folders(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Vec::new(),
            result => {
                result.map_err(|source| PluginsError::Directory { dir: dir.to_owned(), source })?
            }
        };
        if folders.is_empty() {
            // No engine either: its ticker would wake the machine for nothing.
            return Ok(Self { entries: Arc::new([]), services });
        }
        let engine = engine::start()?;
        let mut found: Vec<Found> = folders.into_iter().map(Found::read).collect();
        found.sort_by(|a, b| a.place().cmp(&b.place()));

        let mut entries: Vec<Arc<Entry>> = Vec::with_capacity(found.len());
        for plugin in found {
            let id = plugin.id();
            let taken = entries.iter().any(|entry| entry.id == id);
            entries.push(Arc::new(plugin.load(&engine, id, taken, &services)));
        }
        Ok(Self { entries: entries.into(), services })
    }

    /// The plugins in the order in which they are asked.
    pub fn summary(&self) -> Vec<PluginSummary> {
        self.entries.iter().map(|entry| entry.summary()).collect()
    }

    pub(super) fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.services.metrics
    }

    /// Whether there is no plugin.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Policy for PluginChain {
    fn worker(&self) -> Box<dyn PolicyWorker> {
        let filters: Vec<_> =
            self.entries.iter().filter(|entry| entry.world.judges_events()).cloned().collect();
        Box::new(ChainWorker::new(&filters, &self.services))
    }
}

impl Entry {
    fn summary(&self) -> PluginSummary {
        let state = match &self.loaded {
            Loaded::Ready(_) => {
                PluginState::Ready { failures: self.failures.load(Ordering::Relaxed) }
            }
            Loaded::Broken(cause) => PluginState::Broken { cause: cause.clone() },
        };
        PluginSummary { id: self.id.clone(), version: self.version.clone(), state }
    }
}

/// A plugin's folder, with what its manifest says.
struct Found {
    folder: PathBuf,
    manifest: Result<Manifest, manifest::ManifestError>,
}

impl Found {
    fn read(folder: PathBuf) -> Self {
        let manifest = Manifest::read(&folder.join(manifest::FILE_NAME));
        Self { folder, manifest }
    }

    /// Unreadable ones come first: they refuse everything anyway.
    fn place(&self) -> (Option<i32>, Option<&str>, &Path) {
        let manifest = self.manifest.as_ref().ok();
        (manifest.map(|m| m.order), manifest.map(|m| m.id.as_str()), &self.folder)
    }

    fn id(&self) -> String {
        match &self.manifest {
            Ok(manifest) => manifest.id.clone(),
            Err(_) => {
                let name = self.folder.file_name().unwrap_or_default().to_string_lossy();
                one_line(&name, 64)
            }
        }
    }

    fn load(self, engine: &Engine, id: String, taken: bool, services: &Services) -> Entry {
        let manifest_file = self.folder.join(manifest::FILE_NAME);
        let world = self.manifest.as_ref().map_or(World::EventFilter, |manifest| manifest.world);
        let broken = |version, applies_to, on_failure, file: &Path, cause: String| {
            let consequence = match (world, on_failure) {
                (World::SecretRotation, _) => "it rotates no secrets",
                (_, OnFailure::Stop) => "events in its scope are refused",
                (_, OnFailure::Pass) => "events in its scope pass unseen",
            };
            tracing::error!(
                plugin = %id, file = %file.display(),
                "the plugin does not run, {consequence}: {cause}"
            );
            let loaded = Loaded::Broken(cause);
            let id = id.clone();
            Entry { id, version, world, applies_to, on_failure, loaded, failures: 0.into() }
        };
        let manifest = match self.manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                let cause = format!("{}: {error}", manifest::FILE_NAME);
                let all = AppliesTo::default();
                return broken(String::new(), all, OnFailure::Stop, &manifest_file, cause);
            }
        };
        let version = manifest.version.clone();
        let (applies_to, on_failure) = (manifest.applies_to.clone(), manifest.on_failure);
        if taken {
            let cause = format!("another plugin has the id \"{id}\" already");
            return broken(version, applies_to, on_failure, &manifest_file, cause);
        }
        let file = manifest.file.clone();
        match Plugin::load(engine, &self.folder, manifest, services) {
            Ok(plugin) => {
                let loaded = Loaded::Ready(plugin);
                Entry { id, version, world, applies_to, on_failure, loaded, failures: 0.into() }
            }
            Err(error) => {
                let cause = format!("{file}: {error}");
                broken(version, applies_to, on_failure, &self.folder.join(file), cause)
            }
        }
    }
}

/// The folders that hold a plugin. One that cannot be looked into counts as one, so that its plugin
/// is not skipped silently.
fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
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
            warn_of_misplaced(&path, is_folder);
        }
    }
    Ok(folders)
}

/// Says that something looks like a plugin and is none: a guard that does not run is worse than one
/// that refuses too much.
fn warn_of_misplaced(path: &Path, is_folder: bool) {
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

fn is_hidden(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
