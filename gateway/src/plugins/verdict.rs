//! What a plugin decided, checked: it may say anything.

use super::{bindings::nostr_gateway::plugin::types, printable::one_line};
use crate::protocol::{Prefix, Reason, TopicName};

/// The longest reason a client gets to read, in bytes.
const REASON_BYTES: usize = 256;

/// The most topics a route may name.
const MAX_TOPICS: usize = 64;

/// A verdict without surprises.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Reject(Reason),
    ShadowReject,
    Route(Vec<TopicName>),
}

impl Verdict {
    /// # Errors
    /// When a route names too many topics or one that cannot be a topic's name. That is a failure
    /// of the plugin: to guess what it meant could publish what should stay.
    pub fn check(verdict: types::Verdict) -> Result<Self, String> {
        Ok(match verdict {
            types::Verdict::Accept => Self::Accept,
            types::Verdict::ShadowReject => Self::ShadowReject,
            types::Verdict::Reject(text) => Self::Reject(reason(&text)),
            types::Verdict::Route(names) => Self::Route(topics(&names)?),
        })
    }
}

fn topics(names: &[String]) -> Result<Vec<TopicName>, String> {
    if names.len() > MAX_TOPICS {
        return Err(format!("it routed to {} topics, more than {MAX_TOPICS}", names.len()));
    }
    let mut topics = Vec::with_capacity(names.len());
    for name in names {
        let topic = TopicName::new(name).map_err(|error| format!("it routed wrongly: {error}"))?;
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    Ok(topics)
}

/// The prefix is the text's own if it is one that clients know (NIP-01), otherwise `blocked`.
fn reason(text: &str) -> Reason {
    let (prefix, text) = text
        .split_once(": ")
        .and_then(|(word, rest)| Some((Prefix::parse(word)?, rest)))
        .unwrap_or((Prefix::Blocked, text));
    let text = one_line(text, REASON_BYTES);
    if text.is_empty() {
        return Reason::new(prefix, "this gateway does not take the event");
    }
    Reason::new(prefix, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_a_known_prefix_and_one_short_line() {
        let shown = |text: &str| reason(text).to_string();
        assert_eq!(shown("spam"), "blocked: spam");
        assert_eq!(shown("restricted: members only"), "restricted: members only");
        assert_eq!(shown("pow: 20 bits"), "pow: 20 bits");
        assert_eq!(shown("note: well"), "blocked: note: well");
        assert_eq!(shown("a\n\u{7}b"), "blocked: a b");
        assert_eq!(shown("mute: "), "mute: this gateway does not take the event");
        assert_eq!(shown(&"é".repeat(1000)).len(), "blocked: ".len() + REASON_BYTES);
    }

    #[test]
    fn a_route_is_valid_as_a_whole_or_not_at_all() {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert_eq!(topics(&owned(&["a", "b", "a"])).unwrap().len(), 2);
        assert_eq!(topics(&[]), Ok(Vec::new()));
        assert_eq!(
            topics(&owned(&["a", ""])),
            Err("it routed wrongly: a topic name must not be empty".to_owned())
        );
        let many: Vec<_> = (0..65).map(|n| n.to_string()).collect();
        assert_eq!(topics(&many), Err("it routed to 65 topics, more than 64".to_owned()));
    }
}
