//! The lines that a program reads and writes: strfry's protocol for write policies.

use serde::{Deserialize, Serialize};

use crate::{
    pipeline::{Context, Origin},
    plugins::{
        bindings::nostr_gateway::plugin::types, instance::Failure, printable::one_line,
        verdict::Verdict,
    },
    protocol::{Event, EventId},
};

/// How much of a wrong answer the log shows, in bytes.
const SHOWN_BYTES: usize = 200;

/// What stands around the event in a request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct About<'a> {
    received_at: u64,
    source_type: &'static str,
    source_info: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authed: Option<&'a str>,
}

/// The request about an event, a line.
pub fn request(event: &Event, context: &Context<'_>) -> Vec<u8> {
    let (source_type, source_info, authed) = source(event, context.origin);
    let authed = authed.as_deref();
    let about = About { received_at: context.received_at, source_type, source_info, authed };
    // Texts and numbers always have a JSON form.
    let about = serde_json::to_string(&about).unwrap_or_default();
    let about = about.trim_start_matches('{');
    // Canonical JSON has no line breaks.
    format!("{{\"type\":\"new\",\"event\":{},{about}\n", event.json()).into_bytes()
}

/// Where it came from in strfry's words, and the key with which its sender has authenticated: the
/// author's if that is one of several.
fn source(event: &Event, origin: &Origin) -> (&'static str, String, Option<String>) {
    match origin {
        Origin::Client { address, viewer, .. } => {
            let address = address.to_canonical();
            let kind = if address.is_ipv4() { "IP4" } else { "IP6" };
            let keys = viewer.keys();
            let key = keys.iter().find(|key| **key == event.pubkey).or_else(|| keys.iter().next());
            (kind, address.to_string(), key.map(ToString::to_string))
        }
        Origin::Gossip { topic, .. } => ("Stream", topic.to_string(), None),
        Origin::Fetch { topic, .. } | Origin::Sync { topic, .. } => {
            ("Sync", topic.to_string(), None)
        }
        Origin::Import => ("Import", String::new(), None),
        Origin::Upstream { url, .. } => ("Stream", url.to_string(), None),
    }
}

#[derive(Deserialize)]
struct Answer {
    id: String,
    action: String,
    #[serde(default)]
    msg: Option<String>,
}

/// The verdict in a program's answer to the request about this event.
///
/// # Errors
/// When it is no answer to that.
pub fn verdict(line: &[u8], id: &EventId) -> Result<Verdict, Failure> {
    let wrong = |what: &str| {
        let shown = one_line(&String::from_utf8_lossy(line), SHOWN_BYTES);
        Failure::Program(format!("{what}: {shown}"))
    };
    let answer: Answer =
        serde_json::from_slice(line).map_err(|_| wrong("it wrote a line that is no answer"))?;
    if answer.id != id.to_string() {
        return Err(wrong("it answered about another event"));
    }
    let verdict = match answer.action.as_str() {
        "accept" => types::Verdict::Accept,
        "reject" => types::Verdict::Reject(answer.msg.unwrap_or_default()),
        "shadowReject" => types::Verdict::ShadowReject,
        _ => return Err(wrong("it answered with an action that there is not")),
    };
    Verdict::check(verdict).map_err(Failure::Verdict)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        pipeline::{Direction, PeerId, Viewer},
        protocol::{TopicName, signing::Author},
    };

    fn asked(origin: &Origin) -> Value {
        let event =
            Author::new(1).sign(1_700_000_000, 1, &[&["t", "a\nb"]], "line\u{2028} \"one\"\ntwo");
        let context =
            Context { direction: Direction::In, origin, topics: &[], received_at: 1_700_000_001 };
        let line = request(&event, &context);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(line.last(), Some(&b'\n'));
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&value["type"], &value["receivedAt"]), (&json!("new"), &json!(1_700_000_001)));
        assert_eq!(value["event"]["content"], "line\u{2028} \"one\"\ntwo");
        assert_eq!(value["event"]["id"], event.id.to_string());
        value
    }

    #[test]
    fn a_request_says_where_the_event_came_from() {
        let client = |address: &str| Origin::Client {
            connection: 1,
            address: address.parse().unwrap(),
            viewer: Arc::<Viewer>::default(),
        };
        let (topic, peer) = (TopicName::new("town").unwrap(), PeerId([7; 32]));
        for (origin, kind, info) in [
            (client("192.0.2.1"), "IP4", "192.0.2.1"),
            (client("::ffff:192.0.2.1"), "IP4", "192.0.2.1"),
            (client("2001:db8::1"), "IP6", "2001:db8::1"),
            (Origin::Gossip { topic: topic.clone(), peer }, "Stream", "town"),
            (Origin::Fetch { topic: topic.clone(), peer }, "Sync", "town"),
            (Origin::Sync { topic, peer }, "Sync", "town"),
            (Origin::Import, "Import", ""),
            (
                Origin::Upstream { stream: "s".into(), url: "wss://example.com".into() },
                "Stream",
                "wss://example.com",
            ),
        ] {
            let value = asked(&origin);
            assert_eq!((&value["sourceType"], &value["sourceInfo"]), (&json!(kind), &json!(info)));
            assert!(value.get("authed").is_none());
        }
    }

    #[test]
    fn an_answer_is_about_the_event_and_one_of_three() {
        let id = EventId([0x11; 32]);
        let said = |value: Value| verdict(value.to_string().as_bytes(), &id);
        let hex = id.to_string();
        assert_eq!(said(json!({"id": hex, "action": "accept"})), Ok(Verdict::Accept));
        assert_eq!(
            said(json!({"id": hex, "action": "shadowReject", "msg": "x", "more": [1]})),
            Ok(Verdict::ShadowReject)
        );
        let rejected = |msg: Value| match said(json!({"id": hex, "action": "reject", "msg": msg})) {
            Ok(Verdict::Reject(reason)) => reason.to_string(),
            other => panic!("not rejected: {other:?}"),
        };
        assert_eq!(rejected(json!("blocked: no")), "blocked: no");
        assert_eq!(rejected(json!("no\r\nmore")), "blocked: no more");
        assert_eq!(rejected(Value::Null), "blocked: this gateway does not take the event");
        for (value, why) in [
            (json!({"id": "22".repeat(32), "action": "accept"}), "about another event"),
            (json!({"id": hex, "action": "allow"}), "an action that there is not"),
            (json!({"id": hex}), "no answer"),
            (json!(["accept"]), "no answer"),
        ] {
            let error = said(value).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(
            verdict(b"Traceback \x1b[31m\xff", &id)
                .unwrap_err()
                .to_string()
                .contains("Traceback [31m")
        );
    }
}
