//! One plugin's place in the chain, and what people want to know about it.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    granted::Granted,
    instance::Instance,
    loader,
    manifest::{self, AppliesTo, Manifest, OnFailure, World},
    plugin::Plugin,
    program::Program,
    quarantine::{Quarantine, Rest},
};

/// One plugin's place in the chain. A new version gets a new entry.
pub struct Entry {
    /// The manifest's id, or the folder's name when the manifest is unreadable.
    pub id: String,
    /// Empty when the manifest is unreadable.
    pub version: String,
    /// The plugin's folder.
    pub folder: PathBuf,
    /// Where it stands in the chain; those with an unreadable manifest stand first.
    pub order: Option<i32>,
    /// Whether it is a program, which is not sandboxed.
    pub is_program: bool,
    /// One with an unreadable manifest counts as an event filter.
    pub world: World,
    pub applies_to: AppliesTo,
    pub on_failure: OnFailure,
    pub loaded: Loaded,
    /// Stands for the files that it was made from.
    pub digest: [u8; 32],
    /// Failed calls since it was loaded, in all threads.
    pub failures: AtomicU64,
    pub rest: Rest,
    /// How often it was called since it was loaded, and for how long in all.
    pub times: AtomicU64,
    pub busy_ns: AtomicU64,
    /// Why a newer version that lies in the folder does not run.
    pub update: Mutex<Option<String>>,
    /// Instances made beforehand for the worker threads, so that no event waits for an `init`.
    pub spares: Mutex<Vec<Instance>>,
}

pub enum Loaded {
    Ready(Arc<Plugin>),
    Program(Arc<Program>),
    /// Why it does not run. It keeps its place: what it was to judge must not pass unjudged.
    Broken(String),
    /// The operator switched it off: nobody is asked.
    Disabled,
}

/// What people want to know about a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PluginSummary {
    /// The manifest's id, or the folder's name when the manifest is unreadable.
    pub id: String,
    /// Empty when the manifest is unreadable.
    pub version: String,
    /// Whether it can do nothing but what it was granted; a program can.
    pub sandboxed: bool,
    pub state: PluginState,
    /// Why a newer version that lies in the folder does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<String>,
}

impl fmt::Display for PluginSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            PluginState::Ready { .. } if !self.sandboxed => {
                write!(f, "{} {} (program, not sandboxed)", self.id, self.version)
            }
            PluginState::Ready { .. } => write!(f, "{} {}", self.id, self.version),
            PluginState::Broken { .. } => write!(f, "{} (broken)", self.id),
            PluginState::Quarantined { .. } => write!(f, "{} (quarantined)", self.id),
            PluginState::Disabled {} => write!(f, "{} (disabled)", self.id),
        }
    }
}

/// Whether a plugin runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginState {
    /// It runs; `failures` calls have failed since it was loaded.
    Ready { failures: u64 },
    /// It does not run, for this cause. Events in its scope are refused, or passed if its manifest
    /// says so.
    Broken { cause: String },
    /// The same, because it failed too often in a row; the cause is the newest failure. It is tried
    /// again.
    Quarantined { failures: u64, cause: String, retry_in_s: u64 },
    /// The operator switched it off; events in its scope pass.
    Disabled {},
}

impl PluginState {
    /// Every state's name.
    pub const NAMES: [&str; 4] = ["ready", "broken", "quarantined", "disabled"];

    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::Broken { .. } => "broken",
            Self::Quarantined { .. } => "quarantined",
            Self::Disabled {} => "disabled",
        }
    }
}

impl Entry {
    pub fn summary(&self) -> PluginSummary {
        let failures = self.failures.load(Ordering::Relaxed);
        let state = match &self.loaded {
            Loaded::Ready(_) | Loaded::Program(_) => match self.rest.quarantine(Instant::now()) {
                Some(Quarantine { cause, retry_in }) => {
                    PluginState::Quarantined { failures, cause, retry_in_s: retry_in.as_secs() }
                }
                None => PluginState::Ready { failures },
            },
            Loaded::Broken(cause) => PluginState::Broken { cause: cause.clone() },
            Loaded::Disabled => PluginState::Disabled {},
        };
        let update = self.update.lock().unwrap_or_else(PoisonError::into_inner).clone();
        PluginSummary {
            id: self.id.clone(),
            version: self.version.clone(),
            sandboxed: !self.is_program,
            state,
            update,
        }
    }

    /// The same plugin, which does not run because another has its id.
    pub fn twin(&self) -> Arc<Self> {
        let cause = format!("another plugin has the id \"{}\" already", self.id);
        let twin = Self {
            id: self.id.clone(),
            version: self.version.clone(),
            folder: self.folder.clone(),
            order: self.order,
            is_program: self.is_program,
            world: self.world,
            applies_to: self.applies_to.clone(),
            on_failure: self.on_failure,
            loaded: Loaded::Broken(cause),
            digest: [0; 32],
            failures: 0.into(),
            rest: Rest::new(0),
            times: 0.into(),
            busy_ns: 0.into(),
            update: Mutex::default(),
            spares: Mutex::default(),
        };
        loader::tell_broken(&twin, &self.folder.join(manifest::FILE_NAME));
        Arc::new(twin)
    }

    /// Whether it does not run for no other reason than its id.
    pub fn is_twin(&self) -> bool {
        self.digest == [0; 32] && matches!(self.loaded, Loaded::Broken(_))
    }

    /// Notes a call.
    pub fn took(&self, time: Duration) {
        self.times.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How many calls there were, and how many nanoseconds they took.
    pub fn busy(&self) -> (u64, u64) {
        (self.times.load(Ordering::Relaxed), self.busy_ns.load(Ordering::Relaxed))
    }

    /// Notes whether what lies in the folder now could take this one's place.
    pub fn note_update(&self, why_not: Option<String>) {
        *self.update.lock().unwrap_or_else(PoisonError::into_inner) = why_not;
    }

    /// An instance that was made beforehand, if one is left.
    pub fn spare(&self) -> Option<Instance> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub fn plugin(&self) -> Option<&Arc<Plugin>> {
        match &self.loaded {
            Loaded::Ready(plugin) => Some(plugin),
            _ => None,
        }
    }

    pub fn program(&self) -> Option<&Arc<Program>> {
        match &self.loaded {
            Loaded::Program(program) => Some(program),
            _ => None,
        }
    }

    /// The manifest of what runs.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.loaded {
            Loaded::Ready(plugin) => Some(&plugin.manifest),
            Loaded::Program(program) => Some(&program.manifest),
            Loaded::Broken(_) | Loaded::Disabled => None,
        }
    }

    /// Whether it is asked about anything.
    pub fn is_on(&self) -> bool {
        !matches!(self.loaded, Loaded::Disabled)
    }
}

/// What a manifest says and the operator grants. The configuration is left out: it may hold what is
/// nobody else's business.
pub fn described(manifest: &Manifest, granted: &Granted) -> Value {
    let mut described = json!({
        "world": manifest.world.name(),
        "sandboxed": !manifest.is_program(),
        "order": manifest.order,
        "capabilities": manifest.capabilities,
        "optional_capabilities": manifest.optional_capabilities,
        "not_granted": granted.missing(&manifest.id, &manifest.linked()),
        "applies_to": manifest.applies_to,
        "limits": manifest.limits,
        "on_failure": manifest.on_failure,
        "config_keys": manifest.config.keys().collect::<Vec<_>>(),
    });
    if manifest.is_program() {
        let limits = &manifest.limits;
        described["program"] = json!(manifest.program);
        described["limits"] =
            json!({ "time_ms": limits.time_ms, "output_bytes": limits.output_bytes });
    } else {
        described["file"] = json!(manifest.file);
    }
    described
}
