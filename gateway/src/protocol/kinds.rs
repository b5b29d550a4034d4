//! What an event's kind says about storing, sharing and reading it.

use super::Event;

/// How long and how often a relay keeps events of a kind (NIP-01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// All are kept.
    Regular,
    /// The newest per author and kind is kept.
    Replaceable,
    /// Passed on, never kept.
    Ephemeral,
    /// The newest per author, kind and `d` tag is kept.
    Addressable,
}

/// The class of a kind (NIP-01, "Kinds").
pub const fn class(kind: u16) -> Class {
    match kind {
        0 | 3 | 10_000..=19_999 => Class::Replaceable,
        20_000..=29_999 => Class::Ephemeral,
        30_000..=39_999 => Class::Addressable,
        _ => Class::Regular,
    }
}

/// A direct message (NIP-04).
pub const DIRECT_MESSAGE: u16 = 4;
/// A deletion request (NIP-09).
pub const DELETION: u16 = 5;
/// A request to vanish (NIP-62).
pub const VANISH: u16 = 62;
/// A gift wrap (NIP-59).
pub const GIFT_WRAP: u16 = 1_059;
/// Client authentication (NIP-42): for this relay alone.
pub const AUTH: u16 = 22_242;
/// HTTP authentication (NIP-98): for one HTTP request alone.
pub const HTTP_AUTH: u16 = 27_235;

/// A part of a topic: gateways compare one after the other, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Requests to delete and to vanish. First, so that what they name is not sent in vain.
    Requests,
    /// Profiles, contact lists and relay lists: one for each author, kept when others are too old.
    Profiles,
    Rest,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Requests, Self::Profiles, Self::Rest];

    /// The part that events of this kind belong to.
    pub const fn of(kind: u16) -> Self {
        match kind {
            DELETION | VANISH => Self::Requests,
            0 | 3 | 10_002 => Self::Profiles,
            _ => Self::Rest,
        }
    }

    /// As it stands in messages and in the database.
    pub const fn number(self) -> u8 {
        match self {
            Self::Requests => 0,
            Self::Profiles => 1,
            Self::Rest => 2,
        }
    }

    pub fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.number() == number)
    }
}

/// Whether events of this kind prove an identity to one server and must never be stored or passed on.
pub const fn is_authentication(kind: u16) -> bool {
    matches!(kind, AUTH | HTTP_AUTH)
}

/// Kinds that never enter a public topic: direct messages (4), seals (13), gift wraps (1059, 21059),
/// remote signing (24133) and HTTP authentication (27235).
pub const fn is_confidential(kind: u16) -> bool {
    matches!(kind, 4 | 13 | 1059 | 21_059 | 24_133 | HTTP_AUTH)
}

/// Kinds that only an authenticated party of the message may read (NIP-04, NIP-59).
pub const fn is_for_parties_only(kind: u16) -> bool {
    matches!(kind, 4 | 1059 | 21_059)
}

/// Why an event may not enter a public topic, or `None` when it may.
///
/// This is the one place that decides it; every way into and out of a topic asks here. `now` is in
/// Unix seconds.
pub fn barred_from_public_topics(event: &Event, now: u64) -> Option<&'static str> {
    if is_authentication(event.kind) {
        Some("authentication events stay where they are sent")
    } else if is_confidential(event.kind) {
        Some("events of this kind do not enter public topics")
    } else if event.is_protected() {
        Some("protected events do not enter topics (NIP-70)")
    } else if event.is_expired(now) {
        Some("the event has expired (NIP-40)")
    } else if event.kind == VANISH && !event.asks_all_relays_to_vanish() {
        Some("a request to vanish from one relay stays there (NIP-62)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_nip_01() {
        use Class::*;
        for (kind, expected) in [
            (0, Replaceable),
            (1, Regular),
            (2, Regular),
            (3, Replaceable),
            (9_999, Regular),
            (10_000, Replaceable),
            (19_999, Replaceable),
            (20_000, Ephemeral),
            (29_999, Ephemeral),
            (30_000, Addressable),
            (39_999, Addressable),
            (40_000, Regular),
            (65_535, Regular),
        ] {
            assert_eq!(class(kind), expected, "kind {kind}");
        }
    }
}
