//! Messages between a client and this relay (NIP-01).

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Event, EventId, Filter, FilterError, Reason};

/// The longest subscription id, in characters (NIP-01).
pub const MAX_SUBSCRIPTION_ID: usize = 64;

/// What a client said.
#[derive(Debug)]
pub enum ClientMessage {
    Event(Box<Event>),
    Req { subscription: String, filters: Vec<Filter> },
    Close { subscription: String },
}

/// Why a message was not understood, and what to answer.
#[derive(Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Answer with NOTICE.
    Notice(String),
    /// Answer with OK false for this event.
    Event(EventId, Reason),
    /// Answer with CLOSED for this subscription.
    Closed(String, Reason),
}

impl MessageError {
    /// The message to send back.
    pub fn answer(&self) -> String {
        match self {
            Self::Notice(text) => notice(text),
            Self::Event(id, reason) => ok(id, false, &reason.to_string()),
            Self::Closed(subscription, reason) => closed(subscription, reason),
        }
    }
}

/// Reads a text frame. At most `max_filters` filters are parsed.
pub fn parse(text: &str, max_filters: usize) -> Result<ClientMessage, MessageError> {
    let bad = |what: &str| MessageError::Notice(format!("invalid: {what}"));
    let parts: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|_| bad("a message is a JSON array that begins with its verb"))?;
    let verb = parts
        .first()
        .and_then(|part| serde_json::from_str::<String>(part.get()).ok())
        .ok_or_else(|| bad("a message begins with its verb, a string"))?;
    let rest = &parts[1..];
    match verb.as_str() {
        "EVENT" => match rest {
            [event] => Event::parse(event.get())
                .map(|event| ClientMessage::Event(Box::new(event)))
                .map_err(|error| match id_of(event.get()) {
                    Some(id) => MessageError::Event(id, Reason::invalid(error.to_string())),
                    None => bad(&error.to_string()),
                }),
            _ => Err(bad("EVENT has one event")),
        },
        "REQ" => {
            let [subscription, filters @ ..] = rest else {
                return Err(bad("REQ has a subscription id and filters"));
            };
            let subscription = subscription_id(subscription).map_err(|e| bad(&e))?;
            let refuse = |reason| MessageError::Closed(subscription.clone(), reason);
            if filters.is_empty() {
                return Err(refuse(Reason::invalid("REQ needs at least one filter")));
            }
            if filters.len() > max_filters {
                let text = format!("REQ has more than {max_filters} filters");
                return Err(refuse(Reason::invalid(text)));
            }
            let filters = filters
                .iter()
                .map(|filter| Filter::parse(filter.get()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| {
                    let prefix = match error {
                        FilterError::Invalid(_) => super::Prefix::Invalid,
                        FilterError::Unsupported(_) => super::Prefix::Unsupported,
                    };
                    refuse(Reason::new(prefix, error.to_string()))
                })?;
            Ok(ClientMessage::Req { subscription, filters })
        }
        "CLOSE" => match rest {
            [subscription] => {
                let subscription = subscription_id(subscription).map_err(|e| bad(&e))?;
                Ok(ClientMessage::Close { subscription })
            }
            _ => Err(bad("CLOSE has one subscription id")),
        },
        // NIP-45: a refusal of COUNT is CLOSED.
        "COUNT" => {
            let subscription = rest
                .first()
                .ok_or_else(|| bad("COUNT has a subscription id"))
                .and_then(|part| subscription_id(part).map_err(|e| bad(&e)))?;
            let reason = Reason::new(super::Prefix::Unsupported, "COUNT is not supported");
            Err(MessageError::Closed(subscription, reason))
        }
        other => {
            let short: String = other.chars().take(32).collect();
            Err(MessageError::Notice(format!("unsupported: unknown verb {short:?}")))
        }
    }
}

fn subscription_id(raw: &RawValue) -> Result<String, String> {
    let id: String =
        serde_json::from_str(raw.get()).map_err(|_| "a subscription id is a string".to_owned())?;
    if id.is_empty() || id.chars().count() > MAX_SUBSCRIPTION_ID {
        return Err(format!("a subscription id has 1 to {MAX_SUBSCRIPTION_ID} characters"));
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

/// `["EVENT", subscription, event]`, with the event's canonical JSON as it is.
pub fn event(subscription: &str, json: &str) -> String {
    let mut text = String::with_capacity(json.len() + subscription.len() + 16);
    text.push_str("[\"EVENT\",");
    text.push_str(&quoted(subscription));
    text.push(',');
    text.push_str(json);
    text.push(']');
    text
}

/// `["OK", id, accepted, message]`; always four elements.
pub fn ok(id: &EventId, accepted: bool, message: &str) -> String {
    format!("[\"OK\",\"{id}\",{accepted},{}]", quoted(message))
}

/// `["EOSE", subscription]`.
pub fn eose(subscription: &str) -> String {
    format!("[\"EOSE\",{}]", quoted(subscription))
}

/// `["CLOSED", subscription, reason]`.
pub fn closed(subscription: &str, reason: &Reason) -> String {
    format!("[\"CLOSED\",{},{}]", quoted(subscription), quoted(&reason.to_string()))
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
            (r#"["COUNT","a",{}]"#, r#"["CLOSED","a","unsupported: COUNT is not supported"]"#),
        ] {
            assert_eq!(answer(text), expected, "{text}");
        }
        assert_eq!(
            answer(&format!(r#"["EVENT",{{"id":"{id}"}}]"#)),
            format!(r#"["OK","{id}",false,"invalid: the field \"pubkey\" is missing"]"#)
        );
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
