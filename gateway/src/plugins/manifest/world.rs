//! What kind of plugin it is, and what it may use.

use serde::{Deserialize, Serialize};

/// What kind of plugin it is: the world its component implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum World {
    #[serde(rename = "event-filter")]
    EventFilter,
    #[serde(rename = "topic-policy")]
    TopicPolicy,
    #[serde(rename = "secret-rotation")]
    SecretRotation,
}

impl World {
    /// Whether a plugin of it is asked about events.
    pub const fn judges_events(self) -> bool {
        matches!(self, Self::EventFilter | Self::TopicPolicy)
    }

    /// The name, in manifests and in `wit/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventFilter => "event-filter",
            Self::TopicPolicy => "topic-policy",
            Self::SecretRotation => "secret-rotation",
        }
    }
}

/// An interface of the host, or what else the operator has to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    Log,
    Config,
    Clock,
    Kv,
    Lookup,
    /// To run as a program outside of the sandbox, with all that the gateway itself may do.
    Program,
}

impl Capability {
    /// Every one, in the order in which they are told.
    pub const ALL: &[Self] =
        &[Self::Log, Self::Config, Self::Clock, Self::Kv, Self::Lookup, Self::Program];

    /// The name, in manifests and of the interface in `wit/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Config => "config",
            Self::Clock => "clock",
            Self::Kv => "kv",
            Self::Lookup => "lookup",
            Self::Program => "program",
        }
    }

    /// The capability with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name)
    }
}
