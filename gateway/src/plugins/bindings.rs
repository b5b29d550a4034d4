//! The Rust side of `wit/`, generated.

#![allow(unsafe_code, reason = "generated: lifting and lowering")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "event-filter",
    // Events are handed over without being copied first.
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: {
        // A question that takes longer than its call may ends the call.
        "nostr-gateway:plugin/lookup": trappable,
    },
});

/// The world `topic-policy`, with the same types and capabilities.
pub mod topics {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "topic-policy",
        ownership: Borrowing { duplicate_if_necessary: true },
        with: {
            "nostr-gateway:plugin/types": super::nostr_gateway::plugin::types,
            "nostr-gateway:plugin/log": super::nostr_gateway::plugin::log,
            "nostr-gateway:plugin/config": super::nostr_gateway::plugin::config,
            "nostr-gateway:plugin/clock": super::nostr_gateway::plugin::clock,
            "nostr-gateway:plugin/kv": super::nostr_gateway::plugin::kv,
            "nostr-gateway:plugin/lookup": super::nostr_gateway::plugin::lookup,
        },
    });
}

/// The world `secret-rotation`, with the same capabilities.
pub mod rotation {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "secret-rotation",
        with: {
            "nostr-gateway:plugin/log": super::nostr_gateway::plugin::log,
            "nostr-gateway:plugin/config": super::nostr_gateway::plugin::config,
        },
    });
}

/// The WIT package, as it stands in the names of imports.
pub const PACKAGE: &str = "nostr-gateway:plugin";

/// The package's version. Until 1.0 a plugin must be made for the same minor version.
pub const VERSION: semver::Version = semver::Version::new(0, 1, 0);
