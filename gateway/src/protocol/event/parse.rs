//! Reading an event: every field once, of the right type, and nothing that nobody signed.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::{EventId, PublicKey, Tag};
use crate::protocol::hex;

/// The largest timestamp that SQLite's signed integers and JavaScript's numbers both hold.
const MAX_TIMESTAMP: u64 = (1 << 53) - 1;

/// The seven fields of NIP-01.
pub(super) struct Fields {
    pub id: EventId,
    pub pubkey: PublicKey,
    pub created_at: u64,
    pub kind: u16,
    pub tags: Vec<Tag>,
    pub content: String,
    pub sig: [u8; 64],
}

/// Reads the fields from JSON, or says what is wrong.
pub(super) fn fields(json: &str) -> Result<Fields, String> {
    serde_json::from_str(json).map_err(|error| describe(&error))
}

/// Unknown top-level keys are remembered to refuse their duplicates too; nobody needs more.
const MAX_UNKNOWN_KEYS: usize = 16;

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let (mut id, mut pubkey, mut created_at, mut kind) = (None, None, None, None);
                let (mut tags, mut content, mut sig) = (None, None, None);
                let mut unknown: Vec<String> = Vec::new();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match key.as_ref() {
                        "id" => set(&mut id, "id", read_hex(&mut map, "id")?)?,
                        "pubkey" => set(&mut pubkey, "pubkey", read_hex(&mut map, "pubkey")?)?,
                        "created_at" => {
                            let at: u64 = map.next_value().map_err(|e| named("created_at", e))?;
                            if at > MAX_TIMESTAMP {
                                return Err(A::Error::custom("created_at: out of range"));
                            }
                            set(&mut created_at, "created_at", at)?;
                        }
                        "kind" => {
                            let value = map.next_value::<u16>().map_err(|e| named("kind", e))?;
                            set(&mut kind, "kind", value)?;
                        }
                        "tags" => {
                            let value =
                                map.next_value::<Vec<Tag>>().map_err(|e| named("tags", e))?;
                            set(&mut tags, "tags", value)?;
                        }
                        "content" => {
                            let value =
                                map.next_value::<String>().map_err(|e| named("content", e))?;
                            set(&mut content, "content", value)?;
                        }
                        "sig" => set(&mut sig, "sig", read_hex(&mut map, "sig")?)?,
                        other => {
                            if unknown.iter().any(|seen| seen == other) {
                                return Err(A::Error::custom("a key occurs twice"));
                            }
                            if unknown.len() == MAX_UNKNOWN_KEYS {
                                return Err(A::Error::custom("too many unknown keys"));
                            }
                            unknown.push(other.to_owned());
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Fields {
                    id: EventId(need(id, "id")?),
                    pubkey: PublicKey(need(pubkey, "pubkey")?),
                    created_at: need(created_at, "created_at")?,
                    kind: need(kind, "kind")?,
                    tags: need(tags, "tags")?,
                    content: need(content, "content")?,
                    sig: need(sig, "sig")?,
                })
            }
        }

        fn named<E: serde::de::Error>(name: &str, error: E) -> E {
            E::custom(format_args!("{name}: {error}"))
        }

        fn set<T, E: serde::de::Error>(
            slot: &mut Option<T>,
            name: &str,
            value: T,
        ) -> Result<(), E> {
            match slot.replace(value) {
                None => Ok(()),
                Some(_) => Err(E::custom(format_args!("the key \"{name}\" occurs twice"))),
            }
        }

        fn need<T, E: serde::de::Error>(slot: Option<T>, name: &str) -> Result<T, E> {
            slot.ok_or_else(|| E::custom(format_args!("the field \"{name}\" is missing")))
        }

        fn read_hex<'de, const N: usize, A: MapAccess<'de>>(
            map: &mut A,
            name: &str,
        ) -> Result<[u8; N], A::Error> {
            let text: Cow<'de, str> = map.next_value().map_err(|e| named(name, e))?;
            hex::decode(&text).ok_or_else(|| {
                A::Error::custom(format_args!("{name}: want {} lowercase hex digits", 2 * N))
            })
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// serde_json's message without its position: positions inside a nested value mislead.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.find(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
