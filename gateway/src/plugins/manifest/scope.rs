//! Which events a plugin is asked about, and what becomes of those on which it fails.

use serde::{Deserialize, Serialize};

use crate::{
    pipeline::{Direction, Origin},
    protocol::TopicName,
};

/// What happens to an event on which the plugin failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is refused.
    #[default]
    Stop,
    /// It goes on to the next plugin.
    Pass,
}

/// `[applies_to]`: the events the plugin is asked about. An empty list is no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AppliesTo {
    /// Never empty.
    pub directions: Vec<Way>,
    pub origins: Vec<OriginKind>,
    pub kinds: Vec<u16>,
    /// One of the event's topics must be listed.
    pub topics: Vec<TopicName>,
}

impl Default for AppliesTo {
    fn default() -> Self {
        let (origins, kinds, topics) = (Vec::new(), Vec::new(), Vec::new());
        Self { directions: vec![Way::In], origins, kinds, topics }
    }
}

/// A kind of [`Direction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    In,
    ToTopics,
    ToUpstream,
}

impl From<Direction<'_>> for Way {
    fn from(direction: Direction<'_>) -> Self {
        match direction {
            Direction::In => Self::In,
            Direction::ToTopics => Self::ToTopics,
            Direction::ToUpstream(_) => Self::ToUpstream,
        }
    }
}

/// A kind of [`Origin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OriginKind {
    Client,
    Gossip,
    Fetch,
    Import,
    Upstream,
}

impl From<&Origin> for OriginKind {
    fn from(origin: &Origin) -> Self {
        match origin {
            Origin::Client { .. } => Self::Client,
            Origin::Gossip { .. } => Self::Gossip,
            Origin::Fetch { .. } | Origin::Sync { .. } => Self::Fetch,
            Origin::Import => Self::Import,
            Origin::Upstream { .. } => Self::Upstream,
        }
    }
}

impl AppliesTo {
    /// Whether the plugin is to be asked about such an event.
    pub fn covers(
        &self,
        direction: Direction<'_>,
        kind: u16,
        origin: &Origin,
        topics: &[TopicName],
    ) -> bool {
        self.directions.contains(&direction.into())
            && (self.origins.is_empty() || self.origins.contains(&origin.into()))
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && (self.topics.is_empty() || topics.iter().any(|topic| self.topics.contains(topic)))
    }
}
