//! The Rust side of `wit/`, generated.

#![allow(unsafe_code, reason = "generated: lifting and lowering")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "event-filter",
    // Events are handed over without being copied first.
    ownership: Borrowing { duplicate_if_necessary: true },
});

/// The world `secret-rotation`, with the same capabilities.
pub mod rotation {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "secret-rotation",
        with: {
            "nostr-gateway:plugin/log": super::nostr_gateway::plugin::log,
            "nostr-gateway:plugin/config": super::nostr_gateway::plugin::config,
            "nostr-gateway:plugin/clock": super::nostr_gateway::plugin::clock,
        },
    });
}

/// The WIT package, as it stands in the names of imports.
pub const PACKAGE: &str = "nostr-gateway:plugin";

/// The package's version. Until 1.0 a plugin must be made for the same minor version.
pub const VERSION: semver::Version = semver::Version::new(0, 1, 0);
