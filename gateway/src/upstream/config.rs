//! `[[upstream]]`: other relays.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};

use crate::protocol::{Filter, PublicKey, TopicName};

/// The most streams there may be: each has figures of its own in the metrics.
pub const MAX_STREAMS: usize = 100;
/// The most relays that a stream may name.
pub const MAX_URLS: usize = 100;
/// The most relays in each of `discover` and `fallback`.
pub const MAX_OWN_RELAYS: usize = 10;
/// The most public keys that a stream may follow.
pub const MAX_FOLLOWED: usize = 1_000;

/// One named stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// For logs, metrics and status; unique.
    pub name: String,
    /// `ws://` or `wss://` URLs of the relays. Either these or `follow`.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Whose follows to follow, wherever these write (NIP-65).
    #[serde(default)]
    pub follow: Vec<PublicKey>,
    #[serde(default)]
    pub direction: Direction,
    /// The NIP-01 filter of what to take and to send; empty allows everything.
    #[serde(default)]
    pub filter: Filter,
    /// Down: the topics that the events go to; each must be joined. Up: only events of these topics are
    /// sent; when empty, all that everybody may read here.
    #[serde(default)]
    pub topics: Vec<TopicName>,
    /// How far back; see [`Self::history_down`] and [`Self::history_up`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// Only these plugins judge the events of the stream; when absent, all in whose scope they fall.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins: Option<Vec<String>>,
    /// Whether to authenticate to the relays with the gateway's key (NIP-42).
    #[serde(default)]
    pub auth: bool,
    #[serde(default)]
    pub rates: UpstreamRates,
    /// With `follow`: how many relays may be connected at once.
    #[serde(default = "default_max_relays")]
    pub max_relays: usize,
    /// With `follow`: on how many relays of theirs authors are asked for.
    #[serde(default = "default_relays_per_author")]
    pub relays_per_author: usize,
    /// With `follow`: relays where lists of follows and of relays are looked for, beside our own store.
    #[serde(default)]
    pub discover: Vec<String>,
    /// With `follow`: relays where authors are asked for who have none that can be used.
    #[serde(default)]
    pub fallback: Vec<String>,
    /// With `follow`: relays of private and loopback addresses are used too, when they are on a list.
    #[serde(default)]
    pub allow_private_relays: bool,
    /// With `follow`: hidden services (`.onion`, `.i2p`) are used too, when they are on a list.
    #[serde(default)]
    pub allow_onion_relays: bool,
}

const fn default_max_relays() -> usize {
    30
}

const fn default_relays_per_author() -> usize {
    2
}

impl UpstreamConfig {
    /// How far back catching up goes: to the beginning, when it is not said.
    pub fn history_down(&self) -> History {
        self.history.unwrap_or(History::All)
    }

    /// What a relay that the stream meets for the first time is sent of what is stored already: nothing,
    /// when it is not said.
    pub fn history_up(&self) -> History {
        self.history.unwrap_or(History::None)
    }
}

/// Which way events flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the relay to the gateway.
    #[default]
    Down,
    /// From the gateway to the relay.
    Up,
    Both,
}

impl Direction {
    pub const fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::Both)
    }

    pub const fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Both)
    }
}

/// How much of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    All,
    /// What was made in the last so many seconds.
    Seconds(u64),
    None,
}

impl History {
    /// From when on events count, in Unix seconds.
    pub const fn since(self, now: u64) -> u64 {
        match self {
            Self::All => 0,
            Self::Seconds(seconds) => now.saturating_sub(seconds),
            Self::None => now,
        }
    }
}

/// The units of a span of time, the longest first, and their seconds.
const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// A hundred years: longer is a slip of the pen.
const MAX_SECONDS: u64 = 3_153_600_000;

/// Not how a part of the past is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a part of the past; write \"all\", \"none\", or like \"30d\" (s, m, h, d or w)"
)]
pub struct HistoryError(String);

impl FromStr for History {
    type Err = HistoryError;

    fn from_str(text: &str) -> Result<Self, HistoryError> {
        let wrong = || HistoryError(text.chars().take(40).collect());
        match text {
            "all" => return Ok(Self::All),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let (number, unit) = UNITS
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))
            .ok_or_else(wrong)?;
        // Signs and spaces, which parse() or people might take, are no digits.
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let number: u64 = number.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        let seconds = number.checked_mul(unit).filter(|s| (1..=MAX_SECONDS).contains(s));
        seconds.map(Self::Seconds).ok_or_else(wrong)
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::None => f.write_str("none"),
            Self::Seconds(seconds) => {
                let (unit, each) = UNITS
                    .iter()
                    .find(|(_, each)| seconds.is_multiple_of(*each))
                    .expect("a second divides every number of them");
                write!(f, "{}{unit}", seconds / each)
            }
        }
    }
}

impl Serialize for History {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for History {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// How fast events may flow, for each relay. 0 is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamRates {
    /// Events a second that are read from a relay.
    pub down_events_per_s: u32,
    /// Events a second that are sent to a relay.
    pub up_events_per_s: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_past_is_written_with_its_unit() {
        for (text, seconds) in
            [("30d", 2_592_000), ("1w", 604_800), ("90m", 5_400), ("2h", 7_200), ("59s", 59)]
        {
            assert_eq!(text.parse(), Ok(History::Seconds(seconds)), "{text}");
            assert_eq!(History::Seconds(seconds).to_string(), text);
        }
        assert_eq!("all".parse(), Ok(History::All));
        assert_eq!("none".parse(), Ok(History::None));
        for wrong in ["", "d", "30", "0d", "-1d", "+1d", " 1d", "1 d", "1.5h", "30y", "ALL"] {
            assert!(wrong.parse::<History>().is_err(), "{wrong}");
        }
        for long in ["99999999999999999999d", "18446744073709551615w", "40000d"] {
            assert!(long.parse::<History>().is_err(), "{long}");
        }
    }

    #[test]
    fn history_reaches_back_from_now() {
        assert_eq!(History::All.since(1_000), 0);
        assert_eq!(History::Seconds(400).since(1_000), 600);
        assert_eq!(History::Seconds(4_000).since(1_000), 0);
        assert_eq!(History::None.since(1_000), 1_000);
    }
}
