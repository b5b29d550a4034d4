//! Where a topic is on its way, for `status` and metrics.

use serde::Serialize;

/// Where a topic is on its way. When several hold, the last one here that does is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicPhase {
    /// The gossip topic is not subscribed yet.
    Starting,
    /// Subscribed; no step of discovery has ended yet.
    Discovering,
    /// Nobody else was found so far. Looking on.
    Alone,
    /// The last neighbor went a short while ago. Looking on.
    Disconnected,
    /// There is at least one neighbor.
    Joined,
    /// Joined, and reconciling with at least one neighbor.
    Syncing,
    /// The members are getting a new secret (private topics).
    Rotating,
    /// It cannot be subscribed; tried again and again.
    Failed,
}

impl TopicPhase {
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Discovering,
        Self::Alone,
        Self::Disconnected,
        Self::Joined,
        Self::Syncing,
        Self::Rotating,
        Self::Failed,
    ];

    /// As it is written in `status` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Discovering => "discovering",
            Self::Alone => "alone",
            Self::Disconnected => "disconnected",
            Self::Joined => "joined",
            Self::Syncing => "syncing",
            Self::Rotating => "rotating",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_written_as_they_are_named() {
        for phase in TopicPhase::ALL {
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("{:?}", phase.name()));
        }
    }
}
