//! The event of NIP-01, its one canonical form and its verification.

mod parse;

use std::{fmt, sync::Arc};

use secp256k1::{Message, SECP256K1, XOnlyPublicKey, schnorr};
use sha2::{Digest, Sha256};

use super::{hex, kinds};
use parse::Fields;

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Reads 64 lowercase hexadecimal digits.
            pub fn parse(text: &str) -> Option<Self> {
                hex::decode(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

bytes32!(
    /// The SHA-256 of an event's canonical array (NIP-01).
    EventId
);
bytes32!(
    /// An author's x-only secp256k1 public key (BIP-340).
    PublicKey
);

impl PublicKey {
    /// Reads what people write: 64 hexadecimal digits or an `npub1…` (NIP-19).
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(key) = Self::parse(&text.to_ascii_lowercase()) {
            return Some(key);
        }
        let (prefix, bytes) = bech32::decode(text).ok()?;
        if prefix != bech32::Hrp::parse_unchecked("npub") {
            return None;
        }
        bytes.try_into().ok().map(Self)
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(&text)
            .ok_or_else(|| serde::de::Error::custom("neither 64 hexadecimal digits nor an npub"))
    }
}

/// One tag: a name followed by values. An empty tag is allowed on the wire and matches nothing.
pub type Tag = Vec<String>;

/// An event as somebody sent it: well-formed, but neither its id nor its signature is checked yet.
///
/// It carries its canonical JSON (compact, fields in the order id, pubkey, created_at, kind, tags,
/// content, sig). That text is what is stored, sent to clients and put into frames, so one event
/// is the same bytes everywhere. Top-level fields that NIP-01 does not name are gone: nobody signed
/// them.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub pubkey: PublicKey,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    pub kind: u16,
    pub tags: Vec<Tag>,
    pub content: String,
    pub sig: [u8; 64],
    json: Arc<str>,
}

/// Why a text is no event.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EventError(String);

impl Event {
    /// Reads an event from JSON. Duplicate keys, missing fields, upper-case hexadecimal and numbers
    /// out of range are errors; nothing is verified.
    pub fn parse(json: &str) -> Result<Self, EventError> {
        parse::fields(json).map(Self::from_fields).map_err(EventError)
    }

    /// The canonical JSON.
    pub fn json(&self) -> &Arc<str> {
        &self.json
    }

    /// The event's class, which decides what the store keeps of it (NIP-01).
    pub fn class(&self) -> kinds::Class {
        kinds::class(self.kind)
    }

    /// The first value of the first `d` tag, or the empty string (NIP-01, addressable events).
    pub fn identifier(&self) -> &str {
        self.tag_values("d").next().unwrap_or("")
    }

    /// The first values of all tags with this name.
    pub fn tag_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.tags
            .iter()
            .filter(move |tag| tag.first().is_some_and(|first| first == name))
            .filter_map(|tag| tag.get(1).map(String::as_str))
    }

    /// Whether the author forbids others to publish it: a `["-"]` tag (NIP-70).
    pub fn is_protected(&self) -> bool {
        self.tags.iter().any(|tag| tag.first().is_some_and(|t| t == "-"))
    }

    /// Whether it is a repost (kinds 6 and 16, NIP-18) that carries a protected event in its content:
    /// NIP-70 wants those refused like the event itself.
    pub fn embeds_protected(&self) -> bool {
        // As a value, in which the last of two equal keys counts: so do clients read it.
        let protects = |tag: &serde_json::Value| tag[0] == "-";
        matches!(self.kind, 6 | 16)
            && serde_json::from_str::<serde_json::Value>(&self.content)
                .is_ok_and(|event| event["tags"].as_array().is_some_and(|t| t.iter().any(protects)))
    }

    /// Whether it asks all relays to forget its author (NIP-62).
    pub fn asks_all_relays_to_vanish(&self) -> bool {
        self.kind == kinds::VANISH && self.tag_values("relay").any(|url| url == "ALL_RELAYS")
    }

    /// When it expires, in Unix seconds (NIP-40). An unreadable value is no expiry.
    pub fn expires_at(&self) -> Option<u64> {
        self.tag_values("expiration").next()?.parse().ok()
    }

    /// Whether it has expired at `now` (Unix seconds).
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }

    fn from_fields(fields: Fields) -> Self {
        let Fields { id, pubkey, created_at, kind, tags, content, sig } = fields;
        let json = canonical_json(&id, &pubkey, created_at, kind, &tags, &content, &sig).into();
        Self { id, pubkey, created_at, kind, tags, content, sig, json }
    }
}

impl fmt::Debug for Event {
    /// Id and kind only: events end up in logs, their content must not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({}, kind {})", self.id, self.kind)
    }
}

/// An event whose id and signature are right. Only [`VerifiedEvent::verify`] and the store, which
/// holds nothing else, make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedEvent(Arc<Event>);

/// Why an event is not what its author signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the event id does not match")]
    Id,
    #[error("the pubkey is not on the curve")]
    PublicKey,
    #[error("the signature is wrong")]
    Signature,
}

impl VerifiedEvent {
    /// Recomputes the id and checks the Schnorr signature (NIP-01, BIP-340). About 27 µs on one
    /// core: never call it on an async worker.
    pub fn verify(event: Event) -> Result<Self, VerifyError> {
        if compute_id(&event) != event.id {
            return Err(VerifyError::Id);
        }
        let key =
            XOnlyPublicKey::from_slice(&event.pubkey.0).map_err(|_| VerifyError::PublicKey)?;
        let sig = schnorr::Signature::from_slice(&event.sig).map_err(|_| VerifyError::Signature)?;
        SECP256K1
            .verify_schnorr(&sig, &Message::from_digest(event.id.0), &key)
            .map_err(|_| VerifyError::Signature)?;
        Ok(Self(Arc::new(event)))
    }

    /// Reads back an event that was verified before it was stored.
    pub fn from_store(json: &str) -> Result<Self, EventError> {
        Event::parse(json).map(|event| Self(Arc::new(event)))
    }

    /// The event, shared.
    pub fn shared(&self) -> &Arc<Event> {
        &self.0
    }
}

impl std::ops::Deref for VerifiedEvent {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.0
    }
}

/// SHA-256 over the canonical array `[0, pubkey, created_at, kind, tags, content]` (NIP-01).
pub fn compute_id(event: &Event) -> EventId {
    let mut text = String::with_capacity(event.json.len());
    text.push_str("[0,\"");
    hex::append(&event.pubkey.0, &mut text);
    text.push_str("\",");
    text.push_str(&event.created_at.to_string());
    text.push(',');
    text.push_str(&event.kind.to_string());
    text.push(',');
    append_json(&event.tags, &mut text);
    text.push(',');
    append_json(&event.content, &mut text);
    text.push(']');
    EventId(Sha256::digest(text.as_bytes()).into())
}

fn canonical_json(
    id: &EventId,
    pubkey: &PublicKey,
    created_at: u64,
    kind: u16,
    tags: &[Tag],
    content: &str,
    sig: &[u8; 64],
) -> String {
    let mut text = String::with_capacity(400 + content.len() + 80 * tags.len());
    text.push_str("{\"id\":\"");
    hex::append(&id.0, &mut text);
    text.push_str("\",\"pubkey\":\"");
    hex::append(&pubkey.0, &mut text);
    text.push_str("\",\"created_at\":");
    text.push_str(&created_at.to_string());
    text.push_str(",\"kind\":");
    text.push_str(&kind.to_string());
    text.push_str(",\"tags\":");
    append_json(&tags, &mut text);
    text.push_str(",\"content\":");
    append_json(&content, &mut text);
    text.push_str(",\"sig\":\"");
    hex::append(sig, &mut text);
    text.push_str("\"}");
    text
}

/// NIP-01 wants exactly the escapes that serde_json writes: `\b \t \n \f \r \" \\`, and `\u00XX`
/// for the other control characters; all else verbatim.
fn append_json<T: serde::Serialize + ?Sized>(value: &T, out: &mut String) {
    let text = serde_json::to_string(value).expect("strings and lists of strings always serialise");
    out.push_str(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    /// A real event, as public relays carried it.
    const REAL: &str = r#"{"id":"1dd49619b558cc202b00c982922526d4bbb6dab09d5debbc2be3d3fd49b1db3b","pubkey":"753d025936c8c3238b1b2b2f748be6df92743c2201e5198946e9d6a29156793f","created_at":1711469125,"kind":7,"tags":[["e","b3539700db7df3882e43312c43566abe0f780414c64d5e113e2cd5b8fadac58a"],["p","50c59a1cb233d08d5a1fb493f520c6b5d7f77a2ba42e4666801a3e366b0a027e"]],"content":"🤙","sig":"41f4bfda01d9ec9e9c9a4db44618afa0c91aac4881c2c159099468ced2514264a0948a77800de3e5eaca9f8ad60821c1333aed10a68b293797e58ea40ff5969d"}"#;

    #[test]
    fn a_real_event_is_its_own_canonical_form_and_verifies() {
        let event = Event::parse(REAL).unwrap();
        assert_eq!(&**event.json(), REAL);
        assert!(VerifiedEvent::verify(event).is_ok());
    }

    #[test]
    fn order_white_space_and_unknown_fields_do_not_matter() {
        let mut value: serde_json::Value = serde_json::from_str(REAL).unwrap();
        value["seen_on"] = serde_json::json!(["wss://example.com", {"a": 1}]);
        let event = Event::parse(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
        assert_eq!(&**event.json(), REAL);
    }

    #[test]
    fn all_of_unicode_survives() {
        let content = "\0\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}\"\\/\u{2028}\u{fffe}\u{10ffff}é😀";
        let event = Author::new(1).sign(1, 1, &[&["t", content], &[]], content);
        assert_eq!(event.content, content);
        assert!(VerifiedEvent::verify(event).is_ok());
    }

    #[test]
    fn forgeries_are_told_apart() {
        let forge = |key: &str, value: serde_json::Value| {
            let mut forged: serde_json::Value = serde_json::from_str(REAL).unwrap();
            forged[key] = value;
            VerifiedEvent::verify(Event::parse(&forged.to_string()).unwrap()).unwrap_err()
        };
        assert_eq!(forge("content", "other".into()), VerifyError::Id);
        assert_eq!(forge("id", "0".repeat(64).into()), VerifyError::Id);
        assert_eq!(forge("sig", "0".repeat(128).into()), VerifyError::Signature);
        assert_eq!(forge("sig", "f".repeat(128).into()), VerifyError::Signature);
    }

    #[test]
    fn malformed_events_say_what_is_wrong() {
        let with = |key: &str, value: serde_json::Value| {
            let mut wrong: serde_json::Value = serde_json::from_str(REAL).unwrap();
            wrong[key] = value;
            Event::parse(&wrong.to_string()).unwrap_err().to_string()
        };
        assert_eq!(with("id", "XYZ".into()), "id: want 64 lowercase hex digits");
        assert_eq!(with("sig", 1.into()), "sig: invalid type: integer `1`, expected a string");
        assert_eq!(
            with("kind", 65_536.into()),
            "kind: invalid value: integer `65536`, expected u16"
        );
        assert_eq!(
            with("created_at", 9_007_199_254_740_992_u64.into()),
            "created_at: out of range"
        );
        assert!(with("tags", serde_json::json!([[1]])).starts_with("tags: invalid type"));
        let twice = REAL.replacen("\"kind\":7", "\"kind\":7,\"kind\":7", 1);
        assert_eq!(Event::parse(&twice).unwrap_err().to_string(), "the key \"kind\" occurs twice");
        let unknown = REAL.replacen("\"kind\":7", "\"kind\":7,\"x\":1,\"x\":2", 1);
        assert_eq!(Event::parse(&unknown).unwrap_err().to_string(), "a key occurs twice");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Event::parse(&deep).is_err());
    }
}
