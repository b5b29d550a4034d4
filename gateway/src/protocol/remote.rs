//! What another relay says, and what is said to it as its client (NIP-01, NIP-42, NIP-77).

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Event, EventError, EventId, Filter, hex};

/// A message of a relay. Texts are as it wrote them, of any length that a message may have.
#[derive(Debug)]
pub enum RelayMessage<'m> {
    Event {
        subscription: Cow<'m, str>,
        event: Result<Box<Event>, EventError>,
    },
    Ok {
        id: EventId,
        accepted: bool,
        message: Cow<'m, str>,
    },
    /// `complete`: it says that this was all that it has (NIP-67).
    Eose {
        subscription: Cow<'m, str>,
        complete: bool,
    },
    Closed {
        subscription: Cow<'m, str>,
        reason: Cow<'m, str>,
    },
    Notice(Cow<'m, str>),
    /// A challenge (NIP-42).
    Auth(Cow<'m, str>),
    NegMessage {
        subscription: Cow<'m, str>,
        message: Vec<u8>,
    },
    NegError {
        subscription: Cow<'m, str>,
        reason: Cow<'m, str>,
    },
    /// A verb that nobody asked for, such as COUNT.
    Other,
}

/// Reads a text frame; `None` when it is none of a relay's messages.
pub fn parse(text: &str) -> Option<RelayMessage<'_>> {
    if let Some((subscription, event)) = plain_event(text) {
        let event = Event::parse(event).map(Box::new);
        return Some(RelayMessage::Event { subscription: subscription.into(), event });
    }
    let parts: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    let word = |at: usize| -> Option<Cow<'_, str>> {
        let raw = parts.get(at)?.get();
        // Borrowed unless it has escapes.
        match serde_json::from_str::<&str>(raw) {
            Ok(text) => Some(text.into()),
            Err(_) => serde_json::from_str::<String>(raw).ok().map(Into::into),
        }
    };
    // A reason is often left out.
    let words = |at: usize| word(at).unwrap_or_default();
    Some(match &*word(0)? {
        "EVENT" => {
            let event = Event::parse(parts.get(2)?.get()).map(Box::new);
            RelayMessage::Event { subscription: word(1)?, event }
        }
        "OK" => RelayMessage::Ok {
            id: EventId::parse(&word(1)?)?,
            accepted: serde_json::from_str(parts.get(2)?.get()).ok()?,
            message: words(3),
        },
        "EOSE" => RelayMessage::Eose {
            subscription: word(1)?,
            complete: parts.get(2).is_some_and(|hints| says_finish(hints)),
        },
        "CLOSED" => RelayMessage::Closed { subscription: word(1)?, reason: words(2) },
        "NOTICE" => RelayMessage::Notice(words(1)),
        "AUTH" => RelayMessage::Auth(word(1)?),
        "NEG-MSG" => RelayMessage::NegMessage {
            subscription: word(1)?,
            message: hex::decode_all(&word(2)?)?,
        },
        "NEG-ERR" => RelayMessage::NegError { subscription: word(1)?, reason: words(2) },
        _ => RelayMessage::Other,
    })
}

/// The subscription and the event of the common message, without looking at each of its bytes twice.
fn plain_event(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("[\"EVENT\",\"")?;
    let end = rest.find('"')?;
    let (subscription, rest) = (&rest[..end], rest[end + 1..].strip_prefix(',')?);
    let event = rest.trim_end().strip_suffix(']')?;
    (!subscription.contains('\\') && event.starts_with('{')).then_some((subscription, event))
}

fn says_finish(hints: &RawValue) -> bool {
    let hints: Option<Vec<serde_json::Value>> = serde_json::from_str(hints.get()).ok();
    hints.is_some_and(|hints| hints.iter().any(|hint| hint == "finish"))
}

/// `["REQ", subscription, filter, …]`.
pub fn req(subscription: &str, filters: &[Filter]) -> String {
    let mut text = format!("[\"REQ\",\"{subscription}\"");
    for filter in filters {
        text.push(',');
        text.push_str(&json(filter));
    }
    text.push(']');
    text
}

/// `["CLOSE", subscription]`.
pub fn close(subscription: &str) -> String {
    format!("[\"CLOSE\",\"{subscription}\"]")
}

/// `["EVENT", event]`.
pub fn publish(event: &Event) -> String {
    ["[\"EVENT\",", event.json(), "]"].concat()
}

/// `["AUTH", event]` (NIP-42).
pub fn auth(event: &str) -> String {
    ["[\"AUTH\",", event, "]"].concat()
}

/// `["NEG-OPEN", subscription, filter, message]` (NIP-77).
pub fn neg_open(subscription: &str, filter: &Filter, message: &[u8]) -> String {
    format!("[\"NEG-OPEN\",\"{subscription}\",{},\"{}\"]", json(filter), hex::encode(message))
}

/// `["NEG-MSG", subscription, message]` (NIP-77).
pub fn neg_message(subscription: &str, message: &[u8]) -> String {
    format!("[\"NEG-MSG\",\"{subscription}\",\"{}\"]", hex::encode(message))
}

/// `["NEG-CLOSE", subscription]` (NIP-77).
pub fn neg_close(subscription: &str) -> String {
    format!("[\"NEG-CLOSE\",\"{subscription}\"]")
}

fn json(filter: &Filter) -> String {
    serde_json::to_string(filter).expect("a filter always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    #[test]
    fn events_are_read_in_whatever_way_they_are_written() {
        let event = Author::new(1).sign(1, 1, &[&["t", "]\"x"]], "a ] b");
        let json = event.json();
        for text in [
            format!("[\"EVENT\",\"a\",{json}]"),
            format!(" [ \"EVENT\" , \"a\" , {json} ] "),
            format!("[\"\\u0045VENT\",\"\\u0061\",{json}]"),
            format!("[\"EVENT\",\"a\",{json}]\n"),
        ] {
            match parse(&text) {
                Some(RelayMessage::Event { subscription, event: Ok(read) }) => {
                    assert_eq!((&*subscription, &*read), ("a", &event), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in [format!("[\"EVENT\",\"a\",{json},1]"), "[\"EVENT\",\"a\",{}]".to_owned()] {
            let read = parse(&text);
            assert!(matches!(read, Some(RelayMessage::Event { event: Err(_), .. })), "{text}");
        }
    }

    #[test]
    fn every_message_is_told_from_the_others() {
        let id = "0".repeat(64);
        let seen = |text: &str| format!("{:?}", parse(text));
        for (text, expected) in [
            (format!(r#"["OK","{id}",true]"#), "accepted: true, message: \"\""),
            (format!(r#"["OK","{id}",false,"pow: \n"]"#), "accepted: false, message: \"pow: \\n\""),
            (r#"["EOSE","s"]"#.to_owned(), "complete: false"),
            (r#"["EOSE","s",["finish"]]"#.to_owned(), "complete: true"),
            (r#"["EOSE","s","finish"]"#.to_owned(), "complete: false"),
            (r#"["CLOSED","s"]"#.to_owned(), "Closed { subscription: \"s\", reason: \"\" }"),
            (r#"["NOTICE","x"]"#.to_owned(), "Notice(\"x\")"),
            (r#"["AUTH","x"]"#.to_owned(), "Auth(\"x\")"),
            (r#"["NEG-MSG","s","61ff"]"#.to_owned(), "message: [97, 255]"),
            (r#"["NEG-ERR","s","blocked"]"#.to_owned(), "reason: \"blocked\""),
            (r#"["COUNT","s",{"count":1}]"#.to_owned(), "Other"),
        ] {
            assert!(seen(&text).contains(expected), "{text}: {}", seen(&text));
        }
        for none in [
            "",
            "{}",
            "[]",
            "[1]",
            "[\"EVENT\"]",
            "[\"EVENT\",1,{}]",
            "[\"OK\",\"a\",true,\"\"]",
            "[\"AUTH\",{}]",
            "[\"NEG-MSG\",\"s\",\"6\"]",
            "[\"NEG-MSG\",\"s\",1]",
            "\u{0}\u{1}",
        ] {
            assert!(parse(none).is_none(), "{none}");
        }
    }
}
