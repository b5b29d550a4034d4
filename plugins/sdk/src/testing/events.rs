//! Events for tests: made here, or read from the files that `nostr-gateway plugin test` reads.

use std::{fs, path::Path};

use serde::Deserialize;

use super::NOW;
use crate::{Context, Direction, Event, Origin, OriginKind};

/// Where clients are unless something else is said.
const ADDRESS: &str = "127.0.0.1";

/// An event and what is known of its arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its number in the file; the first is 1.
    pub number: usize,
    pub event: Event,
    pub context: Context,
}

/// A made-up public key, another one for each number.
pub fn author(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

/// A note, kind 1, by [`author`] 1, made at 1700000000. Nobody signed it: its id and signature are
/// made up. Change what the test needs otherwise.
pub fn note(content: &str) -> Event {
    Event {
        id: "00".repeat(32),
        pubkey: author(1),
        created_at: NOW,
        kind: 1,
        tags: Vec::new(),
        content: content.to_owned(),
        sig: "00".repeat(64),
    }
}

/// An event from JSON. What is left out is as in [`note`]. Neither id nor signature is checked.
///
/// # Errors
/// When the text is no event.
pub fn event(json: &str) -> Result<Event, String> {
    let fields: Fields = serde_json::from_str(json).map_err(|error| error.to_string())?;
    Ok(fields.event(1))
}

/// What a client's event comes with that is in no topic.
pub(super) fn context() -> Context {
    Context {
        direction: Direction::In,
        origin: Origin { kind: OriginKind::Client, detail: String::new() },
        topics: Vec::new(),
        authenticated: Vec::new(),
        address: Some(ADDRESS.to_owned()),
        received_at: NOW,
    }
}

/// Reads a file with an event in each line, as JSON. A line can also be an object with the event under
/// `event` and more about its arrival: `direction`, `origin`, `from` (the topic that brought it, or the
/// name of the stream), `topics`, `authenticated`, `address`, `at`.
///
/// # Panics
/// When the file cannot be read or a line not understood; the text names both.
pub fn lines(path: impl AsRef<Path>) -> Vec<Line> {
    let path = path.as_ref();
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    let parse = |(number, line): (usize, &str)| {
        let parsed = parse(number, line);
        parsed.unwrap_or_else(|error| panic!("{}:{number}: {error}", path.display()))
    };
    numbered.filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

fn parse(number: usize, line: &str) -> Result<Line, String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let arrival = if value.get("event").is_some() {
        serde_json::from_value::<Arrival>(value).map_err(|error| error.to_string())?
    } else {
        let event = serde_json::from_value(value).map_err(|error| error.to_string())?;
        Arrival { event, ..Arrival::default() }
    };
    let context = arrival.context()?;
    Ok(Line { number, event: arrival.event.event(number), context })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    id: Option<String>,
    pubkey: Option<String>,
    created_at: Option<u64>,
    kind: Option<u16>,
    tags: Vec<Vec<String>>,
    content: String,
    sig: Option<String>,
}

impl Fields {
    /// Without an id of its own it gets one from its number, so that ids differ.
    fn event(self, number: usize) -> Event {
        let usual = note("");
        Event {
            id: self.id.unwrap_or_else(|| format!("{number:064x}")),
            pubkey: self.pubkey.unwrap_or(usual.pubkey),
            created_at: self.created_at.unwrap_or(usual.created_at),
            kind: self.kind.unwrap_or(usual.kind),
            tags: self.tags,
            content: self.content,
            sig: self.sig.unwrap_or(usual.sig),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Arrival {
    event: Fields,
    direction: Option<String>,
    origin: Option<String>,
    from: String,
    topics: Vec<String>,
    authenticated: Vec<String>,
    address: Option<String>,
    at: Option<u64>,
}

impl Arrival {
    fn context(&self) -> Result<Context, String> {
        let direction = match self.direction.as_deref() {
            None | Some("in") => Direction::In,
            Some("to-topics") => Direction::ToTopics,
            Some("to-upstream") => Direction::ToUpstream(self.from.clone()),
            Some(other) => return Err(format!("there is no direction {other:?}")),
        };
        let kind = match self.origin.as_deref() {
            None | Some("client") => OriginKind::Client,
            Some("gossip") => OriginKind::Gossip,
            Some("fetch") => OriginKind::Fetch,
            Some("upstream") => OriginKind::Upstream,
            Some(other) => return Err(format!("there is no origin {other:?}")),
        };
        let is_client = kind == OriginKind::Client;
        let detail = if is_client { String::new() } else { self.from.clone() };
        let address = self.address.clone().or_else(|| Some(ADDRESS.to_owned()));
        Ok(Context {
            direction,
            origin: Origin { kind, detail },
            topics: self.topics.clone(),
            authenticated: self.authenticated.clone(),
            address: address.filter(|_| is_client),
            received_at: self.at.or(self.event.created_at).unwrap_or(NOW),
        })
    }
}
