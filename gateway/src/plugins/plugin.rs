//! A plugin read from its folder: manifest, compiled component, and what its instances share.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use prometheus_client::metrics::gauge::Gauge;
use wasmtime::component::Component;

use super::{
    bindings::{EventFilterPre, rotation::SecretRotationPre, topics::TopicPolicyPre},
    capabilities::{Host, PluginLog},
    granted::listed,
    grants::{self, GrantError},
    instance::{Failure, Instance},
    interface::{self, WrongVersion},
    kv::{Quota, Table},
    manifest::{self, Capability, Manifest, World},
    printable::one_line,
    rotation::RotationInstance,
    services::Services,
};
use crate::{
    clock::unix_now,
    metrics::PluginIdLabels,
    pipeline::{Lookup, StoreError},
};

/// The largest component, in bytes. Interpreters are the largest ones: Python takes 18 MB.
const MAX_COMPONENT_BYTES: u64 = 64 * 1024 * 1024;

/// How a core module begins, as against a component.
pub const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Why a plugin does not run. Texts stand after the name of the component's file.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is larger than {MAX_COMPONENT_BYTES} bytes")]
    TooLarge,
    #[error("it is a core module, not a component: docs/writing-plugins.md tells how to make one")]
    CoreModule,
    #[error("it is no component that compiles: {0}")]
    Compile(String),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Version(#[from] WrongVersion),
    #[error("what it remembers cannot be read: {0}")]
    Kv(StoreError),
    #[error("it does not fit the world {0}: {1}")]
    World(&'static str, String),
    #[error("{0}")]
    Program(String),
    #[error("it did not start: {0}")]
    Start(#[from] Failure),
    #[error(
        "it asks for {0}, which is not granted; to allow that: nostr-gateway plugin enable {id} \
         --grant {0}",
        listed(missing)
    )]
    NotGranted { id: String, missing: Vec<Capability> },
}

impl PluginError {
    /// The same once more, of a component that cannot be read.
    pub fn repeated(&self) -> Self {
        match self {
            Self::Read(error) => Self::Read(io::Error::new(error.kind(), error.to_string())),
            _ => Self::TooLarge,
        }
    }
}

/// Reads a component.
///
/// # Errors
/// When it cannot be read or is larger than any component may be.
pub fn read(file: &Path) -> Result<Vec<u8>, PluginError> {
    manifest::read_bounded(file, MAX_COMPONENT_BYTES)?.ok_or(PluginError::TooLarge)
}

/// A component that fits its world.
pub enum Guest {
    Filter(EventFilterPre<Host>),
    Topics(TopicPolicyPre<Host>),
    Rotation(SecretRotationPre<Host>),
}

/// A plugin that can be instantiated.
pub struct Plugin {
    pub manifest: Manifest,
    /// Of its optional capabilities those that are not granted.
    pub denied: Vec<Capability>,
    pub component: Guest,
    pub log: Arc<PluginLog>,
    pub config: Arc<BTreeMap<String, String>>,
    pub kv: Arc<Table>,
    /// `None` when it may not ask.
    pub lookup: Option<Arc<dyn Lookup>>,
    /// The bytes that all instances hold.
    pub memory: Gauge,
}

impl Plugin {
    /// Links a component with what its manifest lists, and tries it: an instance is made and its
    /// `init` called. What is denied of its optional capabilities is linked too, to answer that it is
    /// not there. The instance comes back too, for whoever can use it. Runs guest code.
    ///
    /// # Errors
    /// When any of these steps fails.
    pub fn load(
        component: &Component,
        manifest: Manifest,
        denied: Vec<Capability>,
        log: Arc<PluginLog>,
        services: &Services,
    ) -> Result<(Arc<Self>, Option<Instance>), PluginError> {
        interface::check(component.engine(), component)?;
        let linker = grants::linker(component.engine(), component, &manifest.linked())?;
        let component = linker
            .instantiate_pre(component)
            .and_then(|component| match manifest.world {
                World::EventFilter => EventFilterPre::new(component).map(Guest::Filter),
                World::TopicPolicy => TopicPolicyPre::new(component).map(Guest::Topics),
                World::SecretRotation => SecretRotationPre::new(component).map(Guest::Rotation),
            })
            .map_err(|error| PluginError::World(manifest.world.name(), brief(&error)))?;
        let kv = if manifest.linked().contains(&Capability::Kv) && !denied.contains(&Capability::Kv)
        {
            let limits = &manifest.limits;
            let quota = Quota { bytes: limits.kv_bytes, keys: limits.kv_keys };
            services.kv.open(&manifest.id, quota, unix_now()).map_err(PluginError::Kv)?
        } else {
            Arc::new(Table::none())
        };
        let labels = PluginIdLabels { plugin: manifest.id.clone() };
        let memory = services.metrics.plugin_memory.get_or_create_owned(&labels);
        let may_ask = !denied.contains(&Capability::Lookup);
        let plugin = Arc::new(Self {
            log,
            kv,
            lookup: may_ask.then(|| Arc::clone(&services.lookup)),
            denied,
            config: Arc::new(manifest.config_json()),
            component,
            manifest,
            memory,
        });
        let instance = match plugin.component {
            Guest::Filter(_) | Guest::Topics(_) => Some(Instance::new(&plugin)?),
            Guest::Rotation(_) => {
                RotationInstance::new(&plugin)?;
                None
            }
        };
        Ok((plugin, instance))
    }
}

pub fn brief(error: &wasmtime::Error) -> String {
    one_line(&format!("{error:#}"), 400)
}
