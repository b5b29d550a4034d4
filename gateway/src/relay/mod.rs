//! The websocket that Nostr clients connect to: listener, HTTP, sessions.

mod access;
pub mod config;
mod connections;
mod forwarded;
mod http;
mod listener;
mod management;
mod nip11;
mod open_files;
mod outbox;
mod rates;
mod session;
mod wire;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
};

pub use access::{Access, Action};
pub use config::{AccessConfig, RatesConfig, RelayConfig};
pub use connections::Connections;
pub use listener::{Listener, bind};
pub use management::Management;
pub use rates::Rates;
pub use session::Syncs;

use crate::{
    metrics::{CauseLabels, Metrics},
    pipeline::{EventReader, Ingest, JoinedTopics, Moderation, PrivateTopics, TopicDoor},
    protocol::{OwnUrls, limits::Limits},
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
    /// Joins topics when clients come to their URLs (`topics.join_on_visit`); `None` when off.
    pub door: Option<Arc<dyn TopicDoor>>,
    pub private: PrivateTopics,
    pub own_urls: OwnUrls,
    pub syncs: Syncs,
    pub access: Access,
    pub rates: Rates,
    pub connections: Connections,
    /// What the operator bans and allows (NIP-86).
    pub moderation: Arc<Moderation>,
    /// The operator's way in; `None` while `relay.admins` is empty.
    pub management: Option<Management>,
    /// A trusted proxy that names nobody was told of in the log.
    pub silent_proxy: AtomicBool,
    /// Whether there is a search index (NIP-50).
    pub search: bool,
    pub metrics: Arc<Metrics>,
    /// What keeps the gateway from its work at the moment, for `/health`.
    pub trouble: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
}

impl Relay {
    /// Counts a client that was refused for how much it does, or for where it is.
    fn count_limited(&self, cause: &'static str) {
        self.metrics.clients_limited.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// The URLs under which clients know this relay: `relay.url`, and the listener's own address.
/// Loopback has three names.
pub fn own_urls(config: &RelayConfig, listening: SocketAddr) -> OwnUrls {
    let mut urls = vec![config.url.clone(), format!("ws://{listening}")];
    if listening.ip().is_loopback() || listening.ip().is_unspecified() {
        let port = listening.port();
        urls.extend(["127.0.0.1", "localhost", "[::1]"].map(|host| format!("ws://{host}:{port}")));
    }
    OwnUrls::new(urls.iter().map(String::as_str))
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
