//! A plugin read from its folder: manifest, compiled component, and what its instances share.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use wasmtime::{Engine, component::Component};

use super::{
    bindings::{EventFilterPre, rotation::SecretRotationPre, topics::TopicPolicyPre},
    capabilities::{Host, PluginLog},
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
    pipeline::{Lookup, StoreError},
};

/// The largest component, in bytes. Interpreters are the largest ones: Python takes 18 MB.
const MAX_COMPONENT_BYTES: u64 = 64 * 1024 * 1024;

/// How a core module begins, as against a component.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Why a plugin does not run. Texts stand after the name of the component's file.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is larger than {MAX_COMPONENT_BYTES} bytes")]
    TooLarge,
    #[error("it is a core module, not a component: docs/plugins.md tells how to make one")]
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
    #[error("it did not start: {0}")]
    Start(#[from] Failure),
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
    pub component: Guest,
    pub log: Arc<PluginLog>,
    pub config: Arc<BTreeMap<String, String>>,
    pub kv: Arc<Table>,
    pub lookup: Arc<dyn Lookup>,
}

impl Plugin {
    /// Reads and compiles the component that the manifest names, and tries it: an instance is made
    /// and its `init` called. Takes as long as the compiler needs and runs guest code.
    ///
    /// # Errors
    /// When any of these steps fails.
    pub fn load(
        engine: &Engine,
        folder: &Path,
        manifest: Manifest,
        services: &Services,
    ) -> Result<Arc<Self>, PluginError> {
        let file = folder.join(&manifest.file);
        let bytes =
            manifest::read_bounded(&file, MAX_COMPONENT_BYTES)?.ok_or(PluginError::TooLarge)?;
        if bytes.starts_with(CORE_MODULE) {
            return Err(PluginError::CoreModule);
        }
        let component =
            Component::from_binary(engine, &bytes).map_err(|e| PluginError::Compile(brief(&e)))?;
        interface::check(engine, &component)?;
        let linker = grants::linker(engine, &component, &manifest.capabilities)?;
        let component = linker
            .instantiate_pre(&component)
            .and_then(|component| match manifest.world {
                World::EventFilter => EventFilterPre::new(component).map(Guest::Filter),
                World::TopicPolicy => TopicPolicyPre::new(component).map(Guest::Topics),
                World::SecretRotation => SecretRotationPre::new(component).map(Guest::Rotation),
            })
            .map_err(|error| PluginError::World(manifest.world.name(), brief(&error)))?;
        let kv = if manifest.capabilities.contains(&Capability::Kv) {
            let limits = &manifest.limits;
            let quota = Quota { bytes: limits.kv_bytes, keys: limits.kv_keys };
            services.kv.open(&manifest.id, quota, unix_now()).map_err(PluginError::Kv)?
        } else {
            Arc::new(Table::none())
        };
        let plugin = Arc::new(Self {
            kv,
            lookup: Arc::clone(&services.lookup),
            log: Arc::new(PluginLog::new(manifest.id.clone())),
            config: Arc::new(manifest.config_json()),
            component,
            manifest,
        });
        match plugin.component {
            Guest::Filter(_) | Guest::Topics(_) => drop(Instance::new(&plugin)?),
            Guest::Rotation(_) => drop(RotationInstance::new(&plugin)?),
        }
        Ok(plugin)
    }
}

fn brief(error: &wasmtime::Error) -> String {
    one_line(&format!("{error:#}"), 400)
}
