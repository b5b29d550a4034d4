//! What the host can do for a plugin: one file per capability, and the state they share.

mod clock;
mod config;
mod kv;
mod log;
mod lookup;

use std::{collections::BTreeMap, sync::Arc};

pub use log::PluginLog;
pub use lookup::{Allowance, Lookups};

use super::{deadline::Deadline, kv::Table, memory::Memory};

/// What belongs to one instance on the host's side.
pub struct Host {
    pub limits: Memory,
    /// Of the call being made.
    pub deadline: Deadline,
    /// Shared by all instances of the plugin, so that they share one budget of lines.
    pub log: Arc<PluginLog>,
    /// `[config]` as JSON texts.
    pub config: Arc<BTreeMap<String, String>>,
    /// Shared by all instances too.
    pub kv: Arc<Table>,
    pub lookups: Lookups,
}
