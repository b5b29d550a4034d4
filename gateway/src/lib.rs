//! nostr-gateway: a Nostr relay on localhost that is a window onto peer-to-peer gossip topics.
//!
//! `ARCHITECTURE.md` is the map. The parts meet in [`pipeline`]; what they say is in [`protocol`].

/// Events are many small allocations on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod admin;
pub mod app;
#[cfg(test)]
mod architecture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod gossip;
pub mod metrics;
pub mod pipeline;
pub mod plugins;
pub mod protocol;
pub mod relay;
pub mod secrets;
pub mod store;
pub mod subscriptions;
pub mod tasks;
pub mod upstream;
