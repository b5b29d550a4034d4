//! What a plugin is asked, one question a line, as JSON.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    pipeline::{
        Direction, Origin, PeerId, PrivateTopics, RotationMember, RotationQuestion, Viewer,
    },
    plugins::manifest::{OriginKind, Way, World},
    protocol::{Event, PublicKey, TopicName, VerifiedEvent, compute_id},
};

/// When an event was made that does not say it.
const CREATED_AT: u64 = 1_700_000_000;

/// Who made an event that does not say it.
const AUTHOR: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// What is wrong with a line. The first is 1.
#[derive(Debug, thiserror::Error)]
#[error("{line}: {why}")]
pub struct LineError {
    pub line: usize,
    pub why: String,
}

/// One line.
pub struct Asked {
    pub line: usize,
    /// What it is about, in a word: the beginning of an event's id, or a topic.
    pub name: String,
    /// What time it is then; Unix seconds.
    pub now: u64,
    pub question: Question,
}

pub enum Question {
    Event {
        event: VerifiedEvent,
        arrival: Box<Arrival>,
    },
    /// To a topic policy: whether somebody may visit this topic.
    Visit(TopicName),
    /// To a rotation policy.
    Rotation(RotationQuestion),
}

/// How an event arrives.
pub struct Arrival {
    way: Way,
    /// To which relay it is about to go.
    stream: String,
    pub origin: Origin,
    pub topics: Vec<TopicName>,
    pub received_at: u64,
}

impl Arrival {
    pub fn direction(&self) -> Direction<'_> {
        match self.way {
            Way::In => Direction::In,
            Way::ToTopics => Direction::ToTopics,
            Way::ToUpstream => Direction::ToUpstream(&self.stream),
        }
    }
}

/// Reads the questions to a plugin of this world; empty lines are passed over.
///
/// # Errors
/// Names the first line that cannot be understood.
pub fn parse(text: &str, world: World) -> Result<Vec<Asked>, LineError> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, text)| !text.is_empty());
    lines
        .map(|(line, text)| {
            let asked = one(text, world).map_err(|why| LineError { line, why })?;
            Ok(Asked { line, ..asked })
        })
        .collect()
}

fn one(text: &str, world: World) -> Result<Asked, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    if world == World::SecretRotation {
        return rotation(value);
    }
    if world == World::TopicPolicy && value.get("visit").is_some() {
        let Visit { visit } = read(value)?;
        let name = format!("visit:{visit}");
        return Ok(Asked { line: 0, name, now: CREATED_AT, question: Question::Visit(visit) });
    }
    let line = match value.get("event") {
        Some(_) => read::<Line>(value)?,
        None => Line { event: value, ..Line::default() },
    };
    line.asked()
}

fn read<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Visit {
    visit: TopicName,
}

/// An event with more about its arrival.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    event: Value,
    direction: Option<Way>,
    origin: Option<OriginKind>,
    /// The topic that brought it, or the name of the stream.
    #[serde(default)]
    from: String,
    #[serde(default)]
    topics: Vec<TopicName>,
    #[serde(default)]
    authenticated: Vec<PublicKey>,
    address: Option<IpAddr>,
    /// When it arrives; Unix seconds.
    at: Option<u64>,
}

impl Line {
    fn asked(self) -> Result<Asked, String> {
        let event = event(self.event)?;
        let received_at = self.at.unwrap_or(event.created_at);
        let topic = || TopicName::new(&self.from).map_err(|error| format!("from: {error}"));
        let peer = PeerId([7; 32]);
        let origin = match self.origin.unwrap_or(OriginKind::Client) {
            OriginKind::Client => {
                let keys = self.authenticated.into_iter().collect();
                let viewer = Arc::new(Viewer::new(keys, false, &PrivateTopics::default()));
                let address = self.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
                Origin::Client { connection: 1, address, viewer }
            }
            OriginKind::Gossip => Origin::Gossip { topic: topic()?, peer },
            OriginKind::Fetch => Origin::Fetch { topic: topic()?, peer },
            OriginKind::Upstream => {
                Origin::Upstream { stream: self.from.as_str().into(), url: "wss://invalid".into() }
            }
        };
        let way = self.direction.unwrap_or(Way::In);
        let arrival = Arrival { way, stream: self.from, origin, topics: self.topics, received_at };
        Ok(Asked {
            line: 0,
            name: event.id.to_string()[..8].to_owned(),
            now: received_at,
            question: Question::Event { event, arrival: Box::new(arrival) },
        })
    }
}

/// An event as it is, its id and signature checked; or one without a signature, in which what else is
/// left out is filled in.
fn event(mut value: Value) -> Result<VerifiedEvent, String> {
    let fields = value.as_object_mut().ok_or("an event is a JSON object")?;
    if fields.contains_key("sig") {
        let event = Event::parse(&value.to_string()).map_err(|error| error.to_string())?;
        return VerifiedEvent::verify(event).map_err(|error| error.to_string());
    }
    for (name, usual) in [
        ("pubkey", json!(AUTHOR)),
        ("created_at", json!(CREATED_AT)),
        ("kind", json!(1)),
        ("tags", json!([])),
        ("content", json!("")),
        ("sig", json!("00".repeat(64))),
    ] {
        fields.entry(name).or_insert(usual);
    }
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        return Err(format!("an event has no field {unknown:?}"));
    }
    // Whatever id stands there is not that of what was filled in.
    value["id"] = json!("00".repeat(32));
    let draft = Event::parse(&value.to_string()).map_err(|error| error.to_string())?;
    value["id"] = json!(compute_id(&draft).to_string());
    VerifiedEvent::from_store(&value.to_string()).map_err(|error| error.to_string())
}

const FIELDS: [&str; 7] = ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"];

/// A private topic, for a rotation policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Private {
    topic: TopicName,
    #[serde(default = "first")]
    epoch: u64,
    since: u64,
    now: u64,
    #[serde(default)]
    members: Vec<Member>,
}

fn first() -> u64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    id: String,
    #[serde(default)]
    is_self: bool,
    since: Option<u64>,
    last_seen: Option<u64>,
}

fn rotation(value: Value) -> Result<Asked, String> {
    let Private { topic: name, epoch, since, now, members } = read(value)?;
    let members = members.into_iter().map(|Member { id, is_self, since, last_seen }| {
        RotationMember { id, is_self, since, last_seen }
    });
    let members = members.collect();
    Ok(Asked {
        line: 0,
        name: name.to_string(),
        now,
        question: Question::Rotation(RotationQuestion { name, epoch, since, now, members }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, world: World) -> String {
        parse(text, world).err().unwrap().to_string()
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let text = "{\"content\":\"a\"}\n\n{\"event\":{\"kind\":7,\"created_at\":5},\"at\":9,\
                    \"origin\":\"gossip\",\"from\":\"cats\",\"topics\":[\"cats\"]}";
        let asked = parse(text, World::EventFilter).unwrap();
        assert_eq!(asked.iter().map(|asked| asked.line).collect::<Vec<_>>(), [1, 3]);
        let Question::Event { event, arrival } = &asked[1].question else { panic!() };
        assert_eq!((event.kind, event.created_at, arrival.received_at), (7, 5, 9));
        assert_eq!(arrival.origin.kind(), "gossip");
        assert_eq!(asked[1].now, 9);
        assert_eq!(compute_id(event), event.id);
        assert_ne!(asked[0].name, asked[1].name);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let filter = World::EventFilter;
        assert!(error("{}\n{", filter).starts_with("2: no JSON: "));
        assert_eq!(error("\n[]", filter), "2: an event is a JSON object");
        assert_eq!(error("{\"note\":1}", filter), "1: an event has no field \"note\"");
        assert!(error("{\"event\":{},\"way\":1}", filter).contains("unknown field `way`"));
        assert!(error("{\"event\":{},\"origin\":\"me\"}", filter).contains("unknown variant `me`"));
        assert!(error("{\"event\":{},\"origin\":\"gossip\"}", filter).starts_with("1: from: "));
        assert!(error("{\"topic\":\"t\"}", World::SecretRotation).contains("missing field"));
        // A signature that is there has to be right.
        let author = crate::protocol::signing::Author::new(1);
        let signed = author.sign(5, 1, &[], "right");
        assert!(parse(signed.json(), filter).is_ok());
        let forged = signed.json().replace("right", "wrong");
        assert_eq!(error(&forged, filter), "1: the event id does not match");
    }
}
