//! `[limits]`, `[topics]` and `[[route]]`.

use serde::{Deserialize, Serialize};

use crate::protocol::{Filter, PublicKey, TopicName, limits::Limits};

/// `[limits]`: what an event may be, whoever sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Largest event, in bytes of canonical JSON.
    pub max_event_bytes: usize,
    /// Most tags of one event.
    pub max_event_tags: usize,
    /// How far in the future `created_at` may lie, in seconds.
    pub max_future_s: u64,
    /// How far in the past `created_at` may lie, in seconds; 0 is no bound.
    pub max_past_s: u64,
    /// Proof of work that events of clients must show (NIP-13), in bits; 0 is none. What topics and
    /// upstream relays carry is taken as it is: it was published elsewhere, under other rules.
    pub min_pow: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_event_bytes: 524_288,
            max_event_tags: 10_000,
            max_future_s: 900,
            max_past_s: 0,
            min_pow: 0,
        }
    }
}

impl From<&LimitsConfig> for Limits {
    fn from(config: &LimitsConfig) -> Self {
        Self {
            max_event_bytes: config.max_event_bytes,
            max_event_tags: config.max_event_tags,
            max_future_s: config.max_future_s,
            max_past_s: config.max_past_s,
            min_pow: config.min_pow,
        }
    }
}

/// `[topics]`: which swarms to be in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicsConfig {
    /// Public topics joined at start.
    pub join: Vec<TopicName>,
    /// Where an event published on `/` goes when no rule and no tag says otherwise.
    pub default: Vec<TopicName>,
    /// Most topics joined because a client on this machine connects to their URL; 0 for none.
    pub join_on_visit: usize,
    /// Seconds after which such a topic is left when nobody is on its URL.
    pub visit_idle_s: u64,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        let name = |text| TopicName::new(text).expect("the built-in topic names are valid");
        Self {
            join: vec![name("global"), name("announcements")],
            default: vec![name("global")],
            join_on_visit: 0,
            visit_idle_s: 3_600,
        }
    }
}

/// `[[private_topic]]`: a topic that only its readers see. It stays on this gateway, unless
/// `topic create --private` or an invite shares it with others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivateTopicConfig {
    pub name: TopicName,
    /// Who may read and write it after authenticating (NIP-42), beside local connections that are no
    /// foreign web page.
    #[serde(default)]
    pub readers: Vec<PublicKey>,
}

/// `[[route]]`: events published on `/` that match `filter` go to `topics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// A NIP-01 filter.
    pub filter: Filter,
    pub topics: Vec<TopicName>,
}
