//! `[endpoint]` and `[discovery]`: how other gateways are found and reached.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// `[endpoint]`: the iroh endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// UDP address and port; port 0 takes any. Fix the port to forward it on a router.
    pub bind: SocketAddr,
    /// Addresses to tell others beside those found: forwarded ports.
    pub external_addresses: Vec<SocketAddr>,
    /// `"default"`, `"disabled"`, or one URL of an iroh relay.
    pub iroh_relays: IrohRelays,
    /// Base URL of a pkarr relay that turns endpoint ids into addresses; empty for none.
    pub pkarr_relay: String,
    /// A PEM file with certificates of authorities that iroh relays and pkarr relays of one's own are
    /// trusted by, beside those that browsers trust; empty for none.
    pub ca_file: PathBuf,
}

/// `endpoint.iroh_relays`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "IrohRelaysForm", into = "IrohRelaysForm")]
pub enum IrohRelays {
    Default,
    Disabled,
    Urls(Vec<String>),
}

/// How it is written: a word, a URL, or a list of URLs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum IrohRelaysForm {
    Word(String),
    List(Vec<String>),
}

impl From<IrohRelaysForm> for IrohRelays {
    fn from(form: IrohRelaysForm) -> Self {
        match form {
            IrohRelaysForm::Word(word) if word == "default" => Self::Default,
            IrohRelaysForm::Word(word) if word == "disabled" => Self::Disabled,
            IrohRelaysForm::Word(url) => Self::Urls(vec![url]),
            IrohRelaysForm::List(urls) => Self::Urls(urls),
        }
    }
}

impl From<IrohRelays> for IrohRelaysForm {
    fn from(relays: IrohRelays) -> Self {
        match relays {
            IrohRelays::Default => Self::Word("default".to_owned()),
            IrohRelays::Disabled => Self::Word("disabled".to_owned()),
            IrohRelays::Urls(urls) => Self::List(urls),
        }
    }
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            external_addresses: Vec::new(),
            iroh_relays: IrohRelays::Default,
            pkarr_relay: String::new(),
            ca_file: PathBuf::new(),
        }
    }
}

/// `[sync]`: comparing with other gateways what each has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncConfig {
    /// Seconds from one comparison with a neighbor to the next, when nothing calls for an earlier one.
    pub interval_s: u64,
    /// Bytes of events that one gateway may take from us in a minute, and we from it.
    pub max_bytes_per_minute: u64,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self { interval_s: 60, max_bytes_per_minute: 268_435_456 }
    }
}

/// `[discovery]`: how members of a topic find one another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// Use the Mainline DHT, for topics and for addresses.
    pub dht: bool,
    /// `host:port` of the DHT nodes to start from; empty for the public ones.
    pub dht_bootstrap: Vec<String>,
    /// Put addresses of private ranges into the DHT. Only for a DHT of your own.
    pub dht_private_addresses: bool,
    /// Look for gateways on the local network.
    pub mdns: bool,
    /// The name under which gateways look for one another on the local network.
    pub mdns_service: String,
    /// Known gateways to start from: an endpoint id, or `ID@IP:PORT`.
    pub peers: Vec<String>,
    /// The most peers taken from the DHT records of one minute.
    pub records_per_minute: usize,
    /// How often a failed DHT operation is tried again.
    pub retries: u32,
    /// Random delay before a retry, up to this many milliseconds.
    pub jitter_ms: u64,
    /// Milliseconds that one DHT operation may take.
    pub timeout_ms: u64,
    /// Seconds between two records while there are enough neighbors; with few it is every minute.
    pub republish_s: u64,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            dht: true,
            dht_bootstrap: Vec::new(),
            dht_private_addresses: false,
            mdns: true,
            mdns_service: "nostr-gateway".to_owned(),
            peers: Vec::new(),
            records_per_minute: 10,
            retries: 3,
            jitter_ms: 500,
            timeout_ms: 5_000,
            republish_s: 300,
        }
    }
}
