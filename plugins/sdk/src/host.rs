//! Where the host's functions come from: in a component they are imports, in native tests
//! [`crate::testing`] plays the host.

#[cfg(target_family = "wasm")]
pub use crate::bindings::nostr_gateway::plugin::{clock, config, kv, log, lookup};

#[cfg(not(target_family = "wasm"))]
pub use crate::testing::host::{clock, config, kv, log, lookup};
