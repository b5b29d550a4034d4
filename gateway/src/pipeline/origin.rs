//! Where an event came from.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::Viewer;
use crate::protocol::{TopicName, hex};

/// An iroh endpoint id: the ed25519 public key of another gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub [u8; 32]);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..5]))
    }
}

/// What log names of a topic's swarm and of a stream's relay begin with.
const SWARM: &str = "topic/";
const UPSTREAM: &str = "upstream/";

/// Where an event came from. A consumer never sends an event back there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A websocket connection of this relay, with the keys it has authenticated.
    Client { connection: u64, address: IpAddr, viewer: Arc<Viewer> },
    /// A gossip message; `peer` is only the last hop.
    Gossip { topic: TopicName, peer: PeerId },
    /// Fetched from a peer over our own ALPN, after it was announced in the topic.
    Fetch { topic: TopicName, peer: PeerId },
    /// Fetched from a peer that had it when the two of us compared what we have.
    Sync { topic: TopicName, peer: PeerId },
    /// A file that the operator imports.
    Import,
    /// Another relay. `stream` is the name in `[[upstream]]`, the URL in its normal form
    /// ([`crate::protocol::normal_url`]).
    Upstream { stream: Arc<str>, url: Arc<str> },
}

impl Origin {
    /// The kind of origin, for logs, metrics, manifests and plugins.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Client { .. } => "client",
            Self::Gossip { .. } => "gossip",
            Self::Fetch { .. } => "fetch",
            Self::Sync { .. } => "sync",
            Self::Import => "import",
            Self::Upstream { .. } => "upstream",
        }
    }

    /// The topic whose swarm has this event already, because it came from there.
    pub fn topic(&self) -> Option<&TopicName> {
        match self {
            Self::Gossip { topic, .. } | Self::Fetch { topic, .. } | Self::Sync { topic, .. } => {
                Some(topic)
            }
            Self::Client { .. } | Self::Import | Self::Upstream { .. } => None,
        }
    }

    /// The name under which the log remembers the origin; see [`super::LogEntry::origin`].
    pub fn log_name(&self) -> String {
        match self {
            Self::Client { .. } | Self::Import => self.kind().to_owned(),
            Self::Gossip { topic, .. } | Self::Fetch { topic, .. } | Self::Sync { topic, .. } => {
                swarm_name(topic)
            }
            Self::Upstream { stream, url } => relay_name(stream, url),
        }
    }

    /// The origin as far as the log remembers it: not which client it was, nor which peer.
    pub fn of_log_name(name: &str) -> Self {
        let topic = name.strip_prefix(SWARM).and_then(|topic| TopicName::new(topic).ok());
        if let Some(topic) = topic {
            return Self::Gossip { topic, peer: PeerId([0; 32]) };
        }
        match name.strip_prefix(UPSTREAM) {
            Some(relay) => {
                let (stream, url) = relay.split_once('/').unwrap_or((relay, ""));
                Self::Upstream { stream: stream.into(), url: url.into() }
            }
            None if name == Self::Import.kind() => Self::Import,
            None => Self::Client {
                connection: 0,
                address: Ipv6Addr::UNSPECIFIED.into(),
                viewer: Arc::default(),
            },
        }
    }
}

/// The log name of what a relay brought to a stream. The names of streams have no slash.
pub fn relay_name(stream: &str, url: &str) -> String {
    format!("{UPSTREAM}{stream}/{url}")
}

/// Whether what the log says of an origin is that the relay with this URL brought the event, by whatever
/// stream. Before the log named relays it named the stream alone: that may have been any of its relays.
pub fn is_from_relay(log_name: &str, stream: &str, url: &str) -> bool {
    let Some(origin) = log_name.strip_prefix(UPSTREAM) else { return false };
    match origin.split_once('/') {
        Some((_, origin)) => origin == url,
        None => origin == stream,
    }
}

/// Whether what the log says of an origin is that some topic's swarm brought the event.
pub fn is_from_swarm(log_name: &str) -> bool {
    log_name.starts_with(SWARM)
}

/// The log name of everything that a topic's swarm brought.
pub fn swarm_name(topic: &TopicName) -> String {
    format!("{SWARM}{topic}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_remembers_the_kind_of_an_origin_and_its_name() {
        let topic = TopicName::new("x").unwrap();
        let peer = PeerId([7; 32]);
        let viewer = Arc::default();
        for origin in [
            Origin::Client { connection: 7, address: [127, 0, 0, 1].into(), viewer },
            Origin::Gossip { topic, peer },
            Origin::Import,
            Origin::Upstream { stream: "s".into(), url: "wss://a/x".into() },
        ] {
            let name = origin.log_name();
            let again = Origin::of_log_name(&name);
            assert_eq!((again.kind(), again.log_name()), (origin.kind(), name));
        }
        assert_eq!(Origin::of_log_name("upstream/s").kind(), "upstream");
    }

    #[test]
    fn the_log_tells_which_relay_an_event_is_from() {
        let origin = Origin::Upstream { stream: "s".into(), url: "wss://a/x".into() };
        let name = origin.log_name();
        assert!(is_from_relay(&name, "s", "wss://a/x"));
        assert!(is_from_relay(&name, "t", "wss://a/x"), "whatever stream brought it");
        assert!(!is_from_relay(&name, "s", "wss://a"));
        assert!(is_from_relay("upstream/s", "s", "wss://a"), "as it was written before");
        assert!(!is_from_relay("upstream/t", "s", "wss://a"));
        assert!(!is_from_relay("client", "s", "wss://a"));
    }
}
