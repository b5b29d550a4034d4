//! The steps of the discovery ladder, what came of each, and what is said of the neighbors they find.

use serde::Serialize;

/// How we came to know a neighbor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// `discovery.peers`.
    Configured,
    /// It was a neighbor before.
    Remembered,
    Mdns,
    Dht,
    /// The invite by which we joined the private topic names it.
    Invite,
    /// It is a member of the private topic.
    Member,
    /// It came to us, or another neighbor introduced it.
    Incoming,
}

impl FoundBy {
    /// As it is written in `status`, in metrics and in the table of remembered peers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Remembered => "remembered",
            Self::Mdns => "mdns",
            Self::Dht => "dht",
            Self::Invite => "invite",
            Self::Member => "member",
            Self::Incoming => "incoming",
        }
    }
}

/// A step of the discovery ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    DhtLookup,
    DhtPublish,
    Mdns,
    Remembered,
    Configured,
    /// The peers that the invite to a private topic names.
    Invite,
    /// The members of a private topic.
    Members,
}

impl Step {
    /// As it is written in `status` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DhtLookup => "dht_lookup",
            Self::DhtPublish => "dht_publish",
            Self::Mdns => "mdns",
            Self::Remembered => "remembered",
            Self::Configured => "configured",
            Self::Invite => "invite",
            Self::Members => "members",
        }
    }

    /// What is said of the neighbors that it finds.
    pub const fn finds(self) -> Option<FoundBy> {
        match self {
            Self::DhtLookup => Some(FoundBy::Dht),
            Self::DhtPublish => None,
            Self::Mdns => Some(FoundBy::Mdns),
            Self::Remembered => Some(FoundBy::Remembered),
            Self::Configured => Some(FoundBy::Configured),
            Self::Invite => Some(FoundBy::Invite),
            Self::Members => Some(FoundBy::Member),
        }
    }
}

/// How a step goes: the last time, and since the topic was joined. A step that asks endpoints to become
/// neighbors ends when one of them is, or when its time is over (`asking.rs`).
#[derive(Debug, Clone, Serialize)]
pub struct StepResult {
    /// When it ended the last time, in Unix seconds.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    pub ok: bool,
    /// What came of it, in a few words.
    pub result: String,
    /// How often it ended, and how often without success.
    pub attempts: u64,
    pub failures: u64,
    /// Neighbors that this step found before any other did.
    pub neighbors: u64,
    /// Why it failed the last time that it did, however long ago.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_and_steps_are_written_as_they_are_named() {
        use FoundBy::{Configured, Dht, Incoming, Invite, Mdns, Member, Remembered};
        for way in [Configured, Remembered, Mdns, Dht, Invite, Member, Incoming] {
            assert_eq!(serde_json::to_string(&way).unwrap(), format!("{:?}", way.name()));
        }
        for step in [
            Step::DhtLookup,
            Step::DhtPublish,
            Step::Mdns,
            Step::Remembered,
            Step::Configured,
            Step::Invite,
            Step::Members,
        ] {
            assert_eq!(serde_json::to_string(&step).unwrap(), format!("{:?}", step.name()));
        }
    }
}
