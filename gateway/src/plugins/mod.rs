//! Plugins: WebAssembly components that decide what passes and where it goes.
//!
//! [`PluginChain::load`] reads a directory of plugins; the chain is the pipeline's
//! [`Policy`](crate::pipeline::Policy). Everything that comes out of a plugin is hostile: its time,
//! its memory and what it hands over are bounded, it reaches only what its manifest lists, and its
//! failure ends one call and nothing else.

mod bindings;
mod budget;
mod capabilities;
pub mod chain;
pub mod config;
mod deadline;
mod engine;
mod fingerprint;
mod grants;
mod instance;
mod interface;
mod kv;
mod lower;
pub mod manifest;
mod plugin;
mod printable;
mod rotation;
mod services;
mod verdict;
mod visits;
mod worker;

#[cfg(test)]
mod tests;

pub use chain::{PluginChain, PluginState, PluginSummary, PluginsError};
pub use fingerprint::fingerprint;
pub use kv::Kv;
pub use services::Services;
