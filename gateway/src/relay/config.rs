//! `[relay]`: the websocket that Nostr clients connect to.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `[relay]`. What the NIP-11 document says of limits is what stands here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayConfig {
    /// Address and port of the listener.
    pub listen: SocketAddr,
    /// The URL under which clients reach this relay, like `wss://relay.example.org`; empty when it
    /// is only reached at the listener's own address. NIP-42 and NIP-62 events must name it.
    pub url: String,
    /// Web pages that may read private topics without authenticating, as in the `Origin` header.
    pub trusted_origins: Vec<String>,
    /// NIP-11 `name`.
    pub name: String,
    /// NIP-11 `description`.
    pub description: String,
    /// NIP-11 `contact`; empty to leave out.
    pub contact: String,
    /// Connections at once.
    pub max_connections: usize,
    /// Open subscriptions of one connection.
    pub max_subscriptions: usize,
    /// Filters in one REQ.
    pub max_filters: usize,
    /// Stored events that one filter may ask for; larger limits are lowered to this.
    pub max_limit: u64,
    /// Stored events for a filter without a limit.
    pub default_limit: u64,
    /// Most events that one reconciliation may cover (NIP-77).
    pub max_negentropy_events: usize,
    /// Longest websocket message from a client, in bytes.
    pub max_message_bytes: usize,
    /// Seconds after which a connection that says nothing is pinged; twice that and it is closed.
    pub idle_timeout_s: u64,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4869)),
            url: String::new(),
            trusted_origins: Vec::new(),
            name: "nostr-gateway".to_owned(),
            description: "A local relay that is a window onto peer-to-peer topics".to_owned(),
            contact: String::new(),
            max_connections: 1_000,
            max_subscriptions: 100,
            max_filters: 50,
            max_limit: 5_000,
            default_limit: 500,
            max_negentropy_events: 500_000,
            max_message_bytes: 1_048_576,
            idle_timeout_s: 120,
        }
    }
}
