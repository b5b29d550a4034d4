//! `[storage]`: the database, and `[[retention]]`: how long what is kept.

use serde::{Deserialize, Serialize};

use crate::protocol::TopicName;

/// `[storage]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    pub durability: Durability,
    /// Keep an index of words (NIP-50).
    pub search: bool,
    /// What the database may take up, search included, in bytes; 0 is no bound.
    pub max_bytes: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { durability: Durability::default(), search: true, max_bytes: 0 }
    }
}

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power failure: each group commit is synced to the disk.
    #[default]
    Full,
    /// A crash of the gateway; a power failure may lose the last commits.
    Normal,
}

/// `[[retention]]`: events that the rule covers are removed when they are too old or too many, the
/// oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// The kinds it covers; all but [`EXEMPT`] when empty.
    pub kinds: Vec<u16>,
    /// Only events of this topic; empty for all events.
    pub topic: String,
    /// Seconds since `created_at`; 0 is no bound.
    pub max_age_s: u64,
    /// Events; 0 is no bound.
    pub max_events: u64,
    /// Bytes of JSON; 0 is no bound.
    pub max_bytes: u64,
}

/// Profiles, contact lists and relay lists: there is one for each author, and clients are lost
/// without it. Requests to delete and to vanish: what they ask for lasts. Only a rule that names them
/// covers them.
pub const EXEMPT: [u16; 5] = [0, 3, 5, 62, 10_002];

impl RetentionConfig {
    pub fn covers(&self, kind: u16) -> bool {
        if self.kinds.is_empty() { !EXEMPT.contains(&kind) } else { self.kinds.contains(&kind) }
    }

    /// Whether an event in these topics is meant.
    pub fn concerns(&self, topics: &[TopicName]) -> bool {
        self.topic.is_empty() || topics.iter().any(|topic| topic.as_str() == self.topic)
    }
}
