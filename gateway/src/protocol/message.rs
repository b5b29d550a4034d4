//! Messages between a client and this relay (NIP-01, NIP-42, NIP-45, NIP-67, NIP-77).

use std::{borrow::Cow, fmt};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Event, EventId, Filter, FilterError, Prefix, Reason, hex};

/// The longest subscription id, in characters (NIP-01).
pub const MAX_SUBSCRIPTION_ID: usize = 64;

/// What a client said.
#[derive(Debug)]
pub enum ClientMessage {
    Event(Box<Event>),
    Req {
        subscription: String,
        filters: Vec<Filter>,
    },
    Close {
        subscription: String,
    },
    /// Somebody proves to hold a key (NIP-42).
    Auth(Box<Event>),
    /// How many events match (NIP-45).
    Count {
        subscription: String,
        filters: Vec<Filter>,
    },
    /// A reconciliation begins (NIP-77); `message` is negentropy's first.
    NegOpen {
        subscription: String,
        filters: Vec<Filter>,
        message: Vec<u8>,
    },
    NegMessage {
        subscription: String,
        message: Vec<u8>,
    },
    NegClose {
        subscription: String,
    },
}

/// Why a message was not understood, and what to answer.
#[derive(Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Answer with NOTICE.
    Notice(String),
    /// Answer with OK false for this event.
    Event(EventId, Reason),
    /// Answer with CLOSED for this subscription.
    Closed { verb: Verb, subscription: String, reason: Reason },
    /// Answer with NEG-ERR for this reconciliation (NIP-77).
    Negentropy(String, Reason),
}

/// A verb whose refusal is CLOSED. The two have subscription ids of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Req,
    Count,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Req => "REQ",
            Self::Count => "COUNT",
        }
    }
}

impl MessageError {
    /// The message to send back.
    pub fn answer(&self) -> String {
        match self {
            Self::Notice(text) => notice(text),
            Self::Event(id, reason) => ok(id, false, &reason.to_string()),
            Self::Closed { subscription, reason, .. } => closed(subscription, reason),
            Self::Negentropy(subscription, reason) => neg_error(subscription, reason),
        }
    }
}

/// Reads a text frame. At most `max_filters` filters are parsed.
pub fn parse(text: &str, max_filters: usize) -> Result<ClientMessage, MessageError> {
    let parts: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|_| bad("a message is a JSON array that begins with its verb"))?;
    let verb = parts
        .first()
        .and_then(|part| serde_json::from_str::<String>(part.get()).ok())
        .ok_or_else(|| bad("a message begins with its verb, a string"))?;
    let rest = &parts[1..];
    match verb.as_str() {
        "EVENT" => Ok(ClientMessage::Event(sole_event("EVENT", rest)?)),
        "REQ" => {
            let (subscription, filters) = question(Verb::Req, rest, max_filters)?;
            Ok(ClientMessage::Req { subscription, filters })
        }
        "CLOSE" => Ok(ClientMessage::Close { subscription: sole_id("CLOSE", rest)? }),
        "AUTH" => Ok(ClientMessage::Auth(sole_event("AUTH", rest)?)),
        "COUNT" => {
            let (subscription, filters) = question(Verb::Count, rest, max_filters)?;
            Ok(ClientMessage::Count { subscription, filters })
        }
        "NEG-OPEN" => {
            let [subscription, rest @ ..] = rest else {
                return Err(bad("NEG-OPEN has a subscription id, a filter and a message"));
            };
            let subscription = subscription_id(subscription)?;
            let refuse = |reason| MessageError::Negentropy(subscription.clone(), reason);
            let [filter, message] = rest else {
                let text = "NEG-OPEN has a subscription id, a filter and a message";
                return Err(refuse(Reason::invalid(text)));
            };
            let filters = one_or_more(filter, max_filters).map_err(&refuse)?;
            let message = negentropy_bytes(message).map_err(refuse)?;
            Ok(ClientMessage::NegOpen { subscription, filters, message })
        }
        "NEG-MSG" => {
            let [subscription, rest @ ..] = rest else {
                return Err(bad("NEG-MSG has a subscription id and a message"));
            };
            let subscription = subscription_id(subscription)?;
            let refuse = |reason| MessageError::Negentropy(subscription.clone(), reason);
            let [message] = rest else {
                let text = "NEG-MSG has a subscription id and a message";
                return Err(refuse(Reason::invalid(text)));
            };
            let message = negentropy_bytes(message).map_err(refuse)?;
            Ok(ClientMessage::NegMessage { subscription, message })
        }
        "NEG-CLOSE" => Ok(ClientMessage::NegClose { subscription: sole_id("NEG-CLOSE", rest)? }),
        other => {
            let short: String = other.chars().take(32).collect();
            Err(MessageError::Notice(format!("unsupported: unknown verb {short:?}")))
        }
    }
}

fn bad(what: &str) -> MessageError {
    MessageError::Notice(format!("invalid: {what}"))
}

/// The event that is all there is after the verb.
fn sole_event(verb: &str, rest: &[&RawValue]) -> Result<Box<Event>, MessageError> {
    let [event] = rest else { return Err(bad(&format!("{verb} has one event"))) };
    Event::parse(event.get()).map(Box::new).map_err(|error| match id_of(event.get()) {
        Some(id) => MessageError::Event(id, Reason::invalid(error.to_string())),
        None => bad(&error.to_string()),
    })
}

/// The subscription id that is all there is after the verb.
fn sole_id(verb: &str, rest: &[&RawValue]) -> Result<String, MessageError> {
    match rest {
        [subscription] => subscription_id(subscription),
        _ => Err(bad(&format!("{verb} has one subscription id"))),
    }
}

/// The subscription id and the filters of a REQ or a COUNT.
fn question(
    verb: Verb,
    rest: &[&RawValue],
    max_filters: usize,
) -> Result<(String, Vec<Filter>), MessageError> {
    let name = verb.as_str();
    let [subscription, filters @ ..] = rest else {
        return Err(bad(&format!("{name} has a subscription id and filters")));
    };
    let subscription = subscription_id(subscription)?;
    let refuse = |reason| MessageError::Closed { verb, subscription: subscription.clone(), reason };
    if filters.is_empty() {
        return Err(refuse(Reason::invalid(format!("{name} needs at least one filter"))));
    }
    if filters.len() > max_filters {
        let text = format!("{name} has more than {max_filters} filters");
        return Err(refuse(Reason::invalid(text)));
    }
    let filters = filters.iter().map(|filter| Filter::parse(filter.get()));
    let filters = filters.collect::<Result<_, _>>().map_err(|error| refuse(bad_filter(&error)))?;
    Ok((subscription, filters))
}

fn bad_filter(error: &FilterError) -> Reason {
    let prefix = match error {
        FilterError::Invalid(_) => Prefix::Invalid,
        FilterError::Unsupported(_) => Prefix::Unsupported,
    };
    Reason::new(prefix, error.to_string())
}

/// What a reconciliation is about. NIP-77 has one filter there; NDK sends a list.
fn one_or_more(raw: &RawValue, max_filters: usize) -> Result<Vec<Filter>, Reason> {
    let filters = match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        Ok(list) if list.is_empty() => {
            return Err(Reason::invalid("NEG-OPEN needs at least one filter"));
        }
        Ok(list) if list.len() > max_filters => {
            let text = format!("NEG-OPEN has more than {max_filters} filters");
            return Err(Reason::invalid(text));
        }
        Ok(list) => list,
        Err(_) => vec![raw],
    };
    let filters = filters.iter().map(|filter| Filter::parse(filter.get()));
    filters.collect::<Result<_, _>>().map_err(|error| bad_filter(&error))
}

/// A message of the negentropy protocol. The frame's limit bounds it.
fn negentropy_bytes(raw: &RawValue) -> Result<Vec<u8>, Reason> {
    let text: &str = serde_json::from_str(raw.get())
        .map_err(|_| Reason::invalid("a negentropy message is hexadecimal text"))?;
    match hex::decode_all(text) {
        Some(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(Reason::invalid("a negentropy message is hexadecimal text")),
    }
}

fn subscription_id(raw: &RawValue) -> Result<String, MessageError> {
    let id: String =
        serde_json::from_str(raw.get()).map_err(|_| bad("a subscription id is a string"))?;
    if id.is_empty() || id.chars().count() > MAX_SUBSCRIPTION_ID {
        let text = format!("a subscription id has 1 to {MAX_SUBSCRIPTION_ID} characters");
        return Err(bad(&text));
    }
    Ok(id)
}

/// The id of something that is no event, to be able to say so in an OK.
fn id_of(json: &str) -> Option<EventId> {
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    let Id { id } = serde_json::from_str(json).ok()?;
    EventId::parse(&id)
}

/// The parts of `["EVENT", subscription, event]`, with the event's canonical JSON as it is. Clients
/// look for the words at their places, so there is no white space.
pub fn event<'m>(subscription: &'m str, json: &'m str) -> [Cow<'m, str>; 5] {
    let plain = subscription.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
    let [before, id, after] = if plain {
        ["[\"EVENT\",\"".into(), subscription.into(), "\",".into()]
    } else {
        ["[\"EVENT\",".into(), quoted(subscription).into(), ",".into()]
    };
    [before, id, after, json.into(), "]".into()]
}

/// `["OK", id, accepted, message]`; always four elements.
pub fn ok(id: &EventId, accepted: bool, message: &str) -> String {
    format!("[\"OK\",\"{id}\",{accepted},{}]", quoted(message))
}

/// `["EOSE", subscription]`, and `["finish"]` behind it when every stored event that matches was sent
/// (NIP-67).
pub fn eose(subscription: &str, complete: bool) -> String {
    let hint = if complete { ",[\"finish\"]" } else { "" };
    format!("[\"EOSE\",{}{hint}]", quoted(subscription))
}

/// `["CLOSED", subscription, reason]`.
pub fn closed(subscription: &str, reason: &Reason) -> String {
    format!("[\"CLOSED\",{},{}]", quoted(subscription), quoted(&reason.to_string()))
}

/// `["AUTH", challenge]` (NIP-42).
pub fn auth(challenge: &str) -> String {
    format!("[\"AUTH\",{}]", quoted(challenge))
}

/// `["COUNT", subscription, {"count": n}]` (NIP-45).
pub fn count(subscription: &str, count: u64, approximate: bool) -> String {
    let approximate = if approximate { ",\"approximate\":true" } else { "" };
    format!("[\"COUNT\",{},{{\"count\":{count}{approximate}}}]", quoted(subscription))
}

/// `["NEG-MSG", subscription, message]` (NIP-77).
pub fn neg_message(subscription: &str, message: &[u8]) -> String {
    let mut text = String::with_capacity(2 * message.len() + subscription.len() + 20);
    text.push_str("[\"NEG-MSG\",");
    text.push_str(&quoted(subscription));
    text.push_str(",\"");
    hex::append(message, &mut text);
    text.push_str("\"]");
    text
}

/// `["NEG-ERR", subscription, reason]` (NIP-77). The reconciliation is over.
pub fn neg_error(subscription: &str, reason: &impl fmt::Display) -> String {
    format!("[\"NEG-ERR\",{},{}]", quoted(subscription), quoted(&reason.to_string()))
}

/// `["NOTICE", text]`.
pub fn notice(text: &str) -> String {
    format!("[\"NOTICE\",{}]", quoted(text))
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> String {
        parse(text, 10).unwrap_err().answer()
    }

    #[test]
    fn every_malformed_message_gets_the_right_answer() {
        let id = "0".repeat(64);
        for (text, expected) in [
            ("", r#"["NOTICE","invalid: a message is a JSON array that begins with its verb"]"#),
            ("{}", r#"["NOTICE","invalid: a message is a JSON array that begins with its verb"]"#),
            ("[]", r#"["NOTICE","invalid: a message begins with its verb, a string"]"#),
            ("[1]", r#"["NOTICE","invalid: a message begins with its verb, a string"]"#),
            (r#"["HELLO"]"#, r#"["NOTICE","unsupported: unknown verb \"HELLO\""]"#),
            (r#"["EVENT"]"#, r#"["NOTICE","invalid: EVENT has one event"]"#),
            (r#"["REQ"]"#, r#"["NOTICE","invalid: REQ has a subscription id and filters"]"#),
            (r#"["REQ",""]"#, r#"["NOTICE","invalid: a subscription id has 1 to 64 characters"]"#),
            (r#"["REQ","a"]"#, r#"["CLOSED","a","invalid: REQ needs at least one filter"]"#),
            (
                r#"["REQ","a",{"kinds":1}]"#,
                r#"["CLOSED","a","invalid: kinds: invalid type: integer `1`, expected a sequence"]"#,
            ),
            (
                r#"["REQ","a",{"x":1}]"#,
                r#"["CLOSED","a","unsupported: filter contains unknown element \"x\""]"#,
            ),
            // NIP-45: a refusal of COUNT is CLOSED.
            (r#"["COUNT"]"#, r#"["NOTICE","invalid: COUNT has a subscription id and filters"]"#),
            (r#"["COUNT","a"]"#, r#"["CLOSED","a","invalid: COUNT needs at least one filter"]"#),
            (
                r#"["AUTH","abc"]"#,
                r#"["NOTICE","invalid: invalid type: string \"abc\", expected an event object"]"#,
            ),
            // NIP-77: clients take a NOTICE for "no negentropy here".
            (
                r#"["NEG-OPEN"]"#,
                r#"["NOTICE","invalid: NEG-OPEN has a subscription id, a filter and a message"]"#,
            ),
            (
                r#"["NEG-OPEN","a",{}]"#,
                r#"["NEG-ERR","a","invalid: NEG-OPEN has a subscription id, a filter and a message"]"#,
            ),
            (
                r#"["NEG-OPEN","a",[],"61"]"#,
                r#"["NEG-ERR","a","invalid: NEG-OPEN needs at least one filter"]"#,
            ),
            (
                r#"["NEG-OPEN","a",[{},{},{},{},{},{},{},{},{},{},{}],"61"]"#,
                r#"["NEG-ERR","a","invalid: NEG-OPEN has more than 10 filters"]"#,
            ),
            (
                r#"["NEG-OPEN","a",[{"x":1}],"61"]"#,
                r#"["NEG-ERR","a","unsupported: filter contains unknown element \"x\""]"#,
            ),
            (
                r#"["NEG-OPEN","a",{"x":1},"61"]"#,
                r#"["NEG-ERR","a","unsupported: filter contains unknown element \"x\""]"#,
            ),
            (
                r#"["NEG-OPEN","a",{},"6"]"#,
                r#"["NEG-ERR","a","invalid: a negentropy message is hexadecimal text"]"#,
            ),
            (
                r#"["NEG-MSG","a",""]"#,
                r#"["NEG-ERR","a","invalid: a negentropy message is hexadecimal text"]"#,
            ),
            (r#"["NEG-CLOSE"]"#, r#"["NOTICE","invalid: NEG-CLOSE has one subscription id"]"#),
        ] {
            assert_eq!(answer(text), expected, "{text}");
        }
        assert_eq!(
            answer(&format!(r#"["EVENT",{{"id":"{id}"}}]"#)),
            format!(r#"["OK","{id}",false,"invalid: the field \"pubkey\" is missing"]"#)
        );
    }

    #[test]
    fn an_event_message_is_json_whatever_the_subscription_is_called() {
        for id in ["a", "with space", "\"", "\\", "\n\u{1}", "é\u{7f}\u{2028}"] {
            let text = event(id, r#"{"id":1}"#).concat();
            assert_eq!(text, format!(r#"["EVENT",{},{{"id":1}}]"#, quoted(id)));
        }
    }

    #[test]
    fn a_reconciliation_has_a_filter_or_a_list_of_them() {
        let first = r#"{"kinds":[7]}"#;
        for (filters, count) in
            [(first.to_owned(), 1), (format!("[{first}]"), 1), (format!("[{first},{{}}]"), 2)]
        {
            let text = format!(r#"["NEG-OPEN","a",{filters},"61"]"#);
            match parse(&text, 10) {
                Ok(ClientMessage::NegOpen { filters, .. }) => {
                    assert_eq!(filters.len(), count, "{text}");
                    assert_eq!(filters[0].kinds.as_deref(), Some(&[7][..]), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let id = "0".repeat(64);
        let text = format!(r#"["EVENT",{{"kind":1,"kind":2,"id":"{id}"}}]"#);
        assert_eq!(
            answer(&text),
            format!(r#"["OK","{id}",false,"invalid: the key \"kind\" occurs twice"]"#)
        );
    }
}
