//! Plugins: WebAssembly components that decide what passes and where it goes.
//!
//! [`PluginChain::open`] reads a directory of plugins, and [`PluginChain::watch`] follows its changes;
//! the chain is the pipeline's [`Policy`](crate::pipeline::Policy). Everything that comes out of a plugin is hostile: its time,
//! its memory and what it hands over are bounded, it reaches only what its manifest lists, and its
//! failure ends one call and nothing else.

mod bindings;
mod budget;
mod calls;
mod capabilities;
pub mod chain;
mod compiled;
pub mod config;
mod deadline;
mod engine;
mod entry;
mod fingerprint;
mod folders;
pub mod granted;
mod grants;
pub mod install;
mod instance;
mod interface;
mod kv;
mod loader;
mod lower;
pub mod manifest;
mod memory;
mod once;
mod plugin;
mod printable;
pub mod program;
mod progress;
mod quarantine;
mod quiet;
mod rotation;
mod schema;
mod section;
mod services;
mod target;
pub mod trial;
mod verdict;
mod visits;
mod watch;
mod worker;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use chain::{PluginChain, PluginsError, Setup};
pub use entry::{PluginState, PluginSummary};
pub use fingerprint::fingerprint;
pub use kv::Kv;
pub use services::Services;

/// The directory with the plugins, and whether the configuration names it: then it must exist, while
/// the default one is only looked for.
pub fn dir(config: &config::PluginsConfig, data_dir: &Path) -> (PathBuf, bool) {
    let is_named = !config.dir.as_os_str().is_empty();
    (if is_named { config.dir.clone() } else { data_dir.join("plugins") }, is_named)
}
