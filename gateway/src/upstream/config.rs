//! `[[upstream]]`: other relays.

use serde::{Deserialize, Serialize};

use crate::protocol::{Filter, TopicName};

/// One named stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// For logs, metrics and status; unique.
    pub name: String,
    /// `ws://` or `wss://` URLs of the relays.
    pub urls: Vec<String>,
    #[serde(default)]
    pub direction: Direction,
    /// The NIP-01 filter of what to take; empty takes everything.
    #[serde(default)]
    pub filter: Filter,
    /// The topics that the events go to; each must be joined.
    #[serde(default)]
    pub topics: Vec<TopicName>,
}

/// Which way events flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the relay to the gateway.
    #[default]
    Down,
}
