//! What the scenarios are made of: gateways, relays, DHTs and clients as real parts, each with a
//! deadline for everything that is waited for, and each gone when it is dropped.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code fails loudly")]

mod child;
pub mod client;
pub mod compare;
mod dht;
pub mod events;
pub mod figures;
mod gateway;
pub mod http;
mod keyring;
mod lan;
pub mod load;
mod netns;
mod ordinary;
pub mod proc;
mod relay;
pub mod restarts;
pub mod scripted;
mod wire;

pub use child::Child;
pub use client::{Difference, PATIENCE, RawClient, publish_until_the_end, sdk_client};
pub use dht::Testnet;
pub use gateway::{Finished, Gateway, GatewayBuilder};
pub use keyring::{Keyring, SessionBus};
pub use lan::Lan;
pub use netns::{Namespace, Network};
pub use ordinary::ordinary;
pub use relay::{IndependentRelay, free_port};
pub use scripted::ScriptedRelay;
pub use wire::Front;

/// Prints a line that is seen without `--nocapture`: figures, and scenarios that did not run.
pub fn report(line: &str) {
    use std::io::Write;
    // Only print! and its kin are captured.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Polls until `check` returns something, at most until the deadline.
pub async fn eventually<T>(
    what: &str,
    deadline: std::time::Duration,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < end, "did not happen within {deadline:?}: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
