//! `[relay]`, `[access]` and `[rates]`: the websocket that Nostr clients connect to, who may use it,
//! and how much.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::protocol::{Network, PublicKey};

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
    /// Reverse proxies whose `X-Forwarded-For` header is believed.
    pub trusted_proxies: Vec<Network>,
    /// Who may change the relay's rules over HTTP (NIP-86). Nobody: the API is off.
    pub admins: Vec<PublicKey>,
    /// NIP-11 `name`.
    pub name: String,
    /// NIP-11 `description`.
    pub description: String,
    /// NIP-11 `contact`; empty to leave out.
    pub contact: String,
    /// NIP-11 `pubkey`, the operator's, in hexadecimal or as npub; empty to leave out.
    pub pubkey: String,
    /// NIP-11 `icon`, a URL; empty to leave out.
    pub icon: String,
    /// Connections at once; fewer where the system allows fewer open files.
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
    /// Seconds for which a client may take nothing of what is sent to it; then it is closed.
    pub reader_patience_s: u64,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4869)),
            url: String::new(),
            trusted_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            admins: Vec::new(),
            name: "nostr-gateway".to_owned(),
            description: "A local relay that is a window onto peer-to-peer topics".to_owned(),
            contact: String::new(),
            pubkey: String::new(),
            icon: String::new(),
            max_connections: 20_000,
            max_subscriptions: 100,
            max_filters: 50,
            max_limit: 5_000,
            default_limit: 500,
            max_negentropy_events: 500_000,
            max_message_bytes: 1_048_576,
            idle_timeout_s: 120,
            reader_patience_s: 30,
        }
    }
}

/// `[access]`: who may read and write.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessConfig {
    /// REQ, COUNT and NEG-OPEN.
    pub read: AccessRule,
    /// EVENT. Requests to vanish (NIP-62) are taken from everybody.
    pub write: AccessRule,
    /// The keys of [`AccessRule::List`], beside those that NIP-86 allows.
    pub pubkeys: Vec<PublicKey>,
}

/// Who may do something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessRule {
    /// Not stated: everybody, and only allowed while nobody but this machine can connect.
    #[default]
    #[serde(rename = "")]
    Unstated,
    /// Everybody.
    Open,
    /// Whoever proves to hold any key (NIP-42).
    Authenticated,
    /// Whoever proves to hold a key of the list (NIP-42).
    List,
}

/// `[rates]`: how much clients of other machines may do. 0 is no bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatesConfig {
    /// Connections of one address. Everywhere here, an IPv6 /64 is one address.
    pub connections_per_ip: u32,
    /// Open subscriptions of one address.
    pub subscriptions_per_ip: u32,
    /// Filters in all open subscriptions of one address.
    pub filters_per_ip: u32,
    /// Messages a second from one connection.
    pub messages_per_s: u32,
    /// Bytes of messages a second from one connection.
    pub bytes_per_s: u32,
    /// Messages a second from one address.
    pub messages_per_s_per_ip: u32,
    /// Bytes of messages a second from one address.
    pub bytes_per_s_per_ip: u32,
    /// Events a minute from one address.
    pub events_per_minute_per_ip: u32,
    /// How many seconds' worth of messages and bytes may come at once.
    pub burst_s: u32,
}

impl Default for RatesConfig {
    fn default() -> Self {
        Self {
            connections_per_ip: 100,
            subscriptions_per_ip: 2_000,
            filters_per_ip: 10_000,
            messages_per_s: 100,
            bytes_per_s: 1_048_576,
            messages_per_s_per_ip: 500,
            bytes_per_s_per_ip: 4_194_304,
            events_per_minute_per_ip: 3_000,
            burst_s: 10,
        }
    }
}
