//! What is decided about an event. A rejection is a value, not an error.

use std::borrow::Cow;

use super::Seq;
use crate::protocol::{Prefix, Reason, TopicName};

/// What the policy says of one verified event. It cannot change the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Accept,
    Reject(Reason),
    /// The sender is told that it was accepted; nothing is stored or passed on.
    ShadowReject,
    /// Accept, and use these topics instead of those that routing would choose.
    Route(Vec<TopicName>),
}

/// How an event's way through the pipeline ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// New, and committed under this sequence number.
    Stored(Seq),
    /// Known before, now also part of further topics.
    Joined(Seq),
    /// Known before, nothing changed.
    Duplicate,
    /// Ephemeral: passed on, not stored.
    Passed,
    /// Shadow-rejected.
    Shadowed,
    Refused(Reason),
}

impl Outcome {
    /// The last two elements of an OK message (NIP-01).
    pub fn ok(&self) -> (bool, Cow<'static, str>) {
        match self {
            Self::Stored(_) | Self::Passed | Self::Shadowed => (true, "".into()),
            Self::Joined(_) | Self::Duplicate => {
                (true, Reason::new(Prefix::Duplicate, "already have this event").to_string().into())
            }
            Self::Refused(reason) => (false, reason.to_string().into()),
        }
    }

    /// The refusal's prefix, or nothing: a label for metrics.
    pub fn reason_label(&self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.prefix.as_str(),
            _ => "",
        }
    }

    /// A label for metrics and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Joined(_) => "joined",
            Self::Duplicate => "duplicate",
            Self::Passed => "passed",
            Self::Shadowed => "shadowed",
            Self::Refused(_) => "refused",
        }
    }
}
