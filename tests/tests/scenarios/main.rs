//! End-to-end scenarios against the real binary, with real parts only. Nothing here reaches beyond
//! loopback or namespaces of its own.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code fails loudly")]

mod access;
mod admins;
mod auth;
mod authoring;
mod bad_messages;
mod bad_start;
mod bench;
mod bridge;
mod bridge_both;
mod bridge_catch_up;
mod bridge_chain;
mod bridge_docs;
mod bridge_misbehaviour;
mod bridge_up;
mod circles;
mod control;
mod count;
mod deletion;
mod doctor;
mod follow;
mod harness;
mod hostile;
mod hostile_members;
mod hostile_node;
mod hostile_rotations;
mod ladder;
mod lifecycle;
mod main_job;
mod management;
mod members;
mod namespaces;
mod nat;
mod negentropy;
mod plugin_host;
mod plugin_leftovers;
mod plugin_verdicts;
mod plugins;
mod private;
mod programs;
mod rates;
mod relay;
mod relay_http;
mod retention;
mod robust;
mod search;
mod secrets;
mod shipped;
mod shipped_routes;
mod shipped_web;
mod sync;
mod tools_backup;
mod tools_delete;
mod tools_import;
mod tools_sync;
mod transfer;
mod upstream_crossing;
mod upstream_plugins;
mod upstream_reload;
mod upstream_up;

/// The gateway's binary, built from this tree together with these scenarios.
const GATEWAY: &str = env!("CARGO_BIN_EXE_nostr-gateway-under-test");
const DHT_TESTNET: &str = env!("CARGO_BIN_EXE_dht-testnet-under-test");
const STOCK_NODE: &str = env!("CARGO_BIN_EXE_stock-dtt-node");
const PKARR_RELAY: &str = env!("CARGO_BIN_EXE_pkarr-relay");
const IROH_RELAY: &str = env!("CARGO_BIN_EXE_iroh-relay");
const WS_PIPE: &str = env!("CARGO_BIN_EXE_ws-pipe");

/// Held by scenarios with several processes: two at a time on a small machine would only measure
/// each other.
async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ALONE.lock().await
}
