//! The websocket that Nostr clients connect to: listener, HTTP, sessions.

pub mod config;
mod http;
mod listener;
mod nip11;
mod outbox;
mod session;

use std::{net::SocketAddr, sync::Arc};

pub use config::RelayConfig;
pub use listener::{Listener, bind};

use crate::{
    metrics::Metrics,
    pipeline::{EventReader, Ingest, JoinedTopics},
    protocol::limits::Limits,
    subscriptions::Subscriptions,
};

/// What all connections share.
pub struct Relay {
    pub config: RelayConfig,
    pub limits: Limits,
    pub ingest: Ingest,
    pub reader: Arc<dyn EventReader>,
    pub subscriptions: Arc<Subscriptions>,
    pub topics: JoinedTopics,
    pub metrics: Arc<Metrics>,
    /// What keeps the gateway from its work at the moment, for `/health`.
    pub trouble: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({setting}): {error}{hint}")]
pub struct ListenError {
    pub setting: &'static str,
    pub address: SocketAddr,
    pub error: std::io::Error,
    pub hint: &'static str,
}
