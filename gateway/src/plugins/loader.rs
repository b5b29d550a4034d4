//! From a plugin's folder to its place in the chain.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use sha2::{Digest, Sha256};
use wasmtime::{Engine, component::Component};

use super::{
    capabilities::PluginLog,
    compiled::{self, Cache},
    engine::{self, EngineError},
    entry::{Entry, Loaded},
    granted::Granted,
    instance::Instance,
    manifest::{self, AppliesTo, Manifest, ManifestError, OnFailure, World},
    plugin::{self, Plugin, PluginError},
    printable::one_line,
    program::{self, Program, Programs},
    quarantine::Rest,
    schema,
    services::Services,
};
use crate::metrics::SwapLabels;

/// Loads plugins, with what they share.
pub struct Loader {
    engines: OnceLock<Engines>,
    /// Whether events are judged meanwhile: compiling is to leave them the machine.
    is_live: AtomicBool,
    cache: Option<Cache>,
    /// Failures in a row that lead into quarantine.
    quarantine_after: u32,
    services: Services,
    pub programs: Programs,
    /// By id, for as long as the gateway runs.
    logs: Mutex<BTreeMap<String, Arc<PluginLog>>>,
}

struct Engines {
    run: Engine,
    quiet: Engine,
}

impl Loader {
    /// Without a cache, every start compiles.
    pub fn new(cache: Option<Cache>, quarantine_after: u32, services: Services) -> Self {
        let is_live = AtomicBool::new(false);
        Self {
            engines: OnceLock::new(),
            is_live,
            cache,
            quarantine_after,
            services,
            programs: Programs::new(None),
            logs: Mutex::default(),
        }
    }

    /// Starts programs by this executable.
    pub fn launching_with(mut self, launcher: Option<PathBuf>) -> Self {
        self.programs = Programs::new(launcher);
        self
    }

    /// From now on events are judged while plugins are loaded.
    pub fn goes_live(&self) {
        self.is_live.store(true, Ordering::Relaxed);
    }

    /// Starts the engine. Not before it is needed: its clock wakes the machine.
    ///
    /// # Errors
    /// When WebAssembly does not run here.
    pub fn start_engine(&self) -> Result<(), EngineError> {
        if self.engines.get().is_none() {
            let engines = Engines { run: engine::start()?, quiet: engine::quiet_compiler()? };
            // Plugins are loaded by one thread at a time.
            let _ = self.engines.set(engines);
        }
        Ok(())
    }

    /// Loads what was found in a folder; `workers` threads will call it. Takes as long as compiling
    /// does and runs guest code.
    ///
    /// When that does not run, an earlier version that does stays, unless the operator took back
    /// what it may use: a mistake in an update is to cost nothing. Nor is anything done when there is
    /// no change.
    pub fn load(
        &self,
        found: Found,
        granted: &Granted,
        earlier: Option<&Arc<Entry>>,
        workers: usize,
    ) -> Arc<Entry> {
        let id = found.id();
        if !granted.is_enabled(&id) {
            let is_off = |entry: &&Arc<Entry>| !entry.is_on() && entry.digest == found.digest;
            if let Some(same) = earlier.filter(is_off) {
                return Arc::clone(same);
            }
            tracing::info!(plugin = %id, "the plugin is switched off; nobody asks it");
            return Arc::new(found.entry(id, Loaded::Disabled, self.quarantine_after));
        }
        let earlier = earlier.filter(|entry| is_allowed(entry, granted));
        if let Some(same) = earlier.filter(|entry| entry.digest == found.digest) {
            same.note_update(None);
            return Arc::clone(same);
        }
        let result = self.run(&found, &id, granted);
        let swap = |result| {
            let labels = SwapLabels { plugin: id.clone(), result };
            self.services.metrics.plugin_swaps.get_or_create(&labels).inc();
        };
        match (result, earlier) {
            (Ok(running), _) => {
                let (loaded, spares) = running.for_workers(workers);
                let mut entry = found.entry(id.clone(), loaded, self.quarantine_after);
                entry.spares = Mutex::new(spares);
                if self.is_live.load(Ordering::Relaxed) {
                    tracing::info!(plugin = %id, version = %entry.version, "the plugin runs");
                    swap("taken");
                }
                Arc::new(entry)
            }
            (Err(cause), Some(earlier)) => {
                tracing::error!(
                    plugin = %earlier.id, running = %earlier.version,
                    "what lies in the plugin's folder now does not run, the earlier version goes \
                     on: {cause}"
                );
                swap("refused");
                earlier.note_update(Some(cause));
                Arc::clone(earlier)
            }
            (Err(cause), None) => {
                let entry = found.entry(id, Loaded::Broken(cause), self.quarantine_after);
                tell_broken(&entry, &found.file());
                Arc::new(entry)
            }
        }
    }

    /// Loads it and tries whether it starts.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn run(&self, found: &Found, id: &str, granted: &Granted) -> Result<Running, String> {
        let in_manifest =
            |error: &dyn std::fmt::Display| format!("{}: {error}", manifest::FILE_NAME);
        let manifest = found.manifest.as_ref().map_err(|error| in_manifest(error))?;
        let missing = granted.missing(id, &manifest.capabilities);
        if !missing.is_empty() {
            let error = PluginError::NotGranted { id: id.to_owned(), missing };
            return Err(in_manifest(&error));
        }
        if manifest.is_program() {
            let (log, metrics) = (self.log(id), &self.services.metrics);
            let program = self.programs.start(manifest.clone(), &found.folder, log, metrics);
            return program.map(Running::Program).map_err(|error| error.to_string());
        }
        if let Some((name, text)) = &found.schema {
            let text = text.as_ref().map_err(|error| format!("{name}: {error}"))?;
            let schema = schema::Schema::parse(text).map_err(|error| format!("{name}: {error}"))?;
            schema.check(&manifest.config_values()).map_err(|error| in_manifest(&error))?;
        }
        let in_component = |error: PluginError| format!("{}: {error}", manifest.file);
        let component = self.component(found).map_err(in_component)?;
        let denied = granted.missing(id, &manifest.optional_capabilities);
        Plugin::load(&component, manifest.clone(), denied, self.log(id), &self.services)
            .map(|(plugin, first)| Running::Component(plugin, first))
            .map_err(in_component)
    }

    /// Whether a plugin runs with what is granted.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self, found: &Found, granted: &Granted) -> Result<(), String> {
        self.run(found, &found.id(), granted).map(drop)
    }

    /// The log of a plugin, whatever its version.
    fn log(&self, id: &str) -> Arc<PluginLog> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let log = logs.entry(id.to_owned()).or_insert_with(|| Arc::new(PluginLog::new(id)));
        Arc::clone(log)
    }

    fn component(&self, found: &Found) -> Result<Component, PluginError> {
        self.start_engine().map_err(|error| PluginError::Compile(error.to_string()))?;
        let engines = self.engines.get().expect("it was started one line above");
        let bytes = found.component.as_ref().map_err(|error| error.repeated())?;
        if bytes.starts_with(plugin::CORE_MODULE) {
            return Err(PluginError::CoreModule);
        }
        let is_live = self.is_live.load(Ordering::Relaxed);
        let compiler = if is_live { &engines.quiet } else { &engines.run };
        let compiled = match &self.cache {
            Some(cache) => cache.component(&engines.run, compiler, bytes),
            None => compiled::compile(&engines.run, compiler, bytes),
        };
        compiled.map_err(|error| PluginError::Compile(plugin::brief(&error)))
    }
}

/// What was tried and runs.
pub enum Running {
    /// With the instance in which it was tried.
    Component(Arc<Plugin>, Option<Instance>),
    Program(Arc<Program>),
}

impl Running {
    /// With an instance for each of so many workers.
    fn for_workers(self, workers: usize) -> (Loaded, Vec<Instance>) {
        let (plugin, first) = match self {
            Self::Program(program) => return (Loaded::Program(program), Vec::new()),
            Self::Component(plugin, first) => (plugin, first),
        };
        let mut spares: Vec<_> = first.into_iter().collect();
        while !spares.is_empty() && spares.len() < workers {
            // One that cannot be made here fails when it is asked for.
            let Ok(spare) = Instance::new(&plugin) else { break };
            spares.push(spare);
        }
        (Loaded::Ready(plugin), spares)
    }
}

/// Whether what runs may go on, with neither more nor less than it has.
pub fn is_allowed(entry: &Entry, granted: &Granted) -> bool {
    entry.manifest().is_some_and(|manifest| {
        let missing = |wanted| granted.missing(&entry.id, wanted);
        let denied = entry.plugin().map(|plugin| plugin.denied.as_slice()).unwrap_or_default();
        granted.is_enabled(&entry.id)
            && missing(&manifest.capabilities).is_empty()
            && missing(&manifest.optional_capabilities) == denied
    })
}

/// Says in the log that a plugin does not run, and what that means.
pub fn tell_broken(entry: &Entry, file: &Path) {
    let Loaded::Broken(cause) = &entry.loaded else { return };
    let consequence = match (entry.world, entry.on_failure) {
        (World::SecretRotation, _) => "it rotates no secrets",
        (_, OnFailure::Stop) => "events in its scope are refused",
        (_, OnFailure::Pass) => "events in its scope pass unseen",
    };
    tracing::error!(
        plugin = %entry.id, file = %file.display(),
        "the plugin does not run, {consequence}: {cause}"
    );
}

/// What lies in a plugin's folder, read once: what is checked is what runs.
pub struct Found {
    folder: PathBuf,
    manifest: Result<Manifest, ManifestError>,
    component: Result<Vec<u8>, PluginError>,
    /// The name and text of the schema, if the manifest names one.
    schema: Option<(String, Result<Vec<u8>, ManifestError>)>,
    digest: [u8; 32],
}

impl Found {
    pub fn read(folder: &Path) -> Self {
        let mut digest = Sha256::new();
        let mut hash = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        let text = Manifest::read_text(&folder.join(manifest::FILE_NAME));
        hash(text.as_deref().unwrap_or_default().as_bytes());
        let manifest = text.and_then(|text| Manifest::parse(&text));
        let (mut component, mut schema) = (Err(PluginError::TooLarge), None);
        if let Ok(manifest) = &manifest
            && manifest.is_program()
        {
            program::hash(folder, hash);
        } else if let Ok(manifest) = &manifest {
            component = plugin::read(&folder.join(&manifest.file));
            hash(component.as_deref().unwrap_or_default());
            schema = manifest.config_schema.as_ref().map(|name| {
                let read = manifest::read_bounded(&folder.join(name), manifest::MAX_BYTES);
                let bytes = read.map_err(ManifestError::Read);
                (name.clone(), bytes.and_then(|bytes| bytes.ok_or(ManifestError::TooLarge)))
            });
            if let Some((_, Ok(text))) = &schema {
                hash(text);
            }
        }
        Self {
            folder: folder.to_owned(),
            manifest,
            component,
            schema,
            digest: digest.finalize().into(),
        }
    }

    /// What is in no folder yet.
    pub fn of(manifest: &Manifest, component: &[u8], schema: Option<(String, Vec<u8>)>) -> Self {
        Self {
            folder: PathBuf::new(),
            manifest: Ok(manifest.clone()),
            component: Ok(component.to_vec()),
            schema: schema.map(|(name, text)| (name, Ok(text))),
            digest: [0; 32],
        }
    }

    /// A program in the folder from which it is to be installed.
    pub fn of_program(manifest: &Manifest, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), ..Self::of(manifest, &[], None) }
    }

    /// The manifest's id, or the folder's name.
    pub fn id(&self) -> String {
        match &self.manifest {
            Ok(manifest) => manifest.id.clone(),
            Err(_) => folder_name(&self.folder),
        }
    }

    /// The file that a failure is most likely about.
    fn file(&self) -> PathBuf {
        let component = self.manifest.as_ref().ok().map(|manifest| manifest.file.as_str());
        let component = component.filter(|name| !name.is_empty());
        self.folder.join(component.unwrap_or(manifest::FILE_NAME))
    }

    fn entry(&self, id: String, loaded: Loaded, quarantine_after: u32) -> Entry {
        let manifest = self.manifest.as_ref().ok();
        Entry {
            id,
            version: manifest.map(|m| m.version.clone()).unwrap_or_default(),
            folder: self.folder.clone(),
            order: manifest.map(|m| m.order),
            is_program: manifest.is_some_and(Manifest::is_program),
            world: manifest.map_or(World::EventFilter, |m| m.world),
            applies_to: manifest.map_or_else(AppliesTo::default, |m| m.applies_to.clone()),
            on_failure: manifest.map_or(OnFailure::Stop, |m| m.on_failure),
            loaded,
            digest: self.digest,
            failures: 0.into(),
            rest: Rest::new(quarantine_after),
            times: 0.into(),
            busy_ns: 0.into(),
            update: Mutex::default(),
            spares: Mutex::default(),
        }
    }
}

/// How a plugin without a readable manifest is called.
pub fn folder_name(folder: &Path) -> String {
    one_line(&folder.file_name().unwrap_or_default().to_string_lossy(), 64)
}
