//! What the lists of authors say: whom they follow (kind 3, NIP-02) and where they write (kind 10002,
//! NIP-65). Both are read with bounds: a list may have any length and say anything.

use std::collections::{BTreeMap, HashSet};

use super::address::{Address, AddressRules, Unusable};
use crate::protocol::{Event, PublicKey};

/// The kind of a list of follows (NIP-02).
pub const FOLLOWS: u16 = 3;
/// The kind of a list of relays (NIP-65).
pub const RELAY_LIST: u16 = 10_002;

/// Of one list of follows, so many keys count. The longest lists in use have some thousands.
pub const MAX_FOLLOWS: usize = 10_000;
/// Of one list of relays, so many relays count: NIP-65 asks for two to four.
pub const MAX_WRITE_RELAYS: usize = 8;
/// So many relays of one list are looked at.
const MAX_LOOKED_AT: usize = 64;

/// The keys that a list of follows names, in its order and each once, and how many were left out
/// because they are no keys or one too many.
pub fn follows(event: &Event) -> (Vec<PublicKey>, usize) {
    let (mut keys, mut seen, mut left_out) = (Vec::new(), HashSet::new(), 0);
    for text in event.tag_values("p") {
        match PublicKey::parse(text) {
            Some(key) if seen.contains(&key) => {}
            Some(key) if keys.len() < MAX_FOLLOWS => {
                seen.insert(key);
                keys.push(key);
            }
            _ => left_out += 1,
        }
    }
    (keys, left_out)
}

/// Where an author writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteRelays {
    /// In the author's order, each once, at most [`MAX_WRITE_RELAYS`].
    pub relays: Vec<Address>,
    /// What else the list names to write to, by what is wrong with it.
    pub refused: BTreeMap<Unusable, usize>,
    /// Relays that nothing is wrong with but their number.
    pub too_many: usize,
}

/// The relays to which the author of a relay list writes: those marked `write` and those without a
/// mark (NIP-65).
pub fn write_relays(event: &Event, rules: &AddressRules) -> WriteRelays {
    let mut found = WriteRelays::default();
    let named = event.tags.iter().filter_map(|tag| match tag.as_slice() {
        [name, url] if name == "r" => Some(url),
        [name, url, mark, ..] if name == "r" && (mark == "write" || mark.is_empty()) => Some(url),
        _ => None,
    });
    for (number, url) in named.enumerate() {
        if number >= MAX_LOOKED_AT {
            found.too_many += 1;
            continue;
        }
        match rules.read(url) {
            Ok(address) if found.relays.contains(&address) => {}
            Ok(_) if found.relays.len() >= MAX_WRITE_RELAYS => found.too_many += 1,
            Ok(address) => found.relays.push(address),
            Err(why) => *found.refused.entry(why).or_default() += 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, tags: &serde_json::Value) -> Event {
        let hex = |digits: usize| "a".repeat(digits);
        let json = serde_json::json!({
            "id": hex(64), "pubkey": hex(64), "created_at": 1, "kind": kind, "tags": tags,
            "content": "", "sig": hex(128),
        });
        Event::parse(&json.to_string()).unwrap()
    }

    fn written(relays: &WriteRelays) -> Vec<&str> {
        relays.relays.iter().map(Address::as_str).collect()
    }

    #[test]
    fn follows_are_keys_each_once() {
        let (a, b) = ("1".repeat(64), "2".repeat(64));
        let tags = serde_json::json!([
            ["p", b, "wss://hint.example.org", "name"],
            ["p", a],
            ["p", b],
            ["p"],
            ["p", "npub1x"],
            ["p", "A".repeat(64)],
            ["e", a],
            [],
            ["t", "p"],
        ]);
        let (keys, left_out) = follows(&event(FOLLOWS, &tags));
        assert_eq!(keys, [PublicKey([0x22; 32]), PublicKey([0x11; 32])]);
        assert_eq!(left_out, 2);
    }

    #[test]
    fn a_list_of_follows_without_end_is_cut() {
        let tag = |n: usize| serde_json::json!(["p", format!("{n:064x}")]);
        let tags: Vec<_> = (0..MAX_FOLLOWS + 7).map(tag).collect();
        let (keys, left_out) = follows(&event(FOLLOWS, &tags.into()));
        assert_eq!((keys.len(), left_out), (MAX_FOLLOWS, 7));
    }

    #[test]
    fn marks_say_where_an_author_writes() {
        let tags = serde_json::json!([
            ["r", "wss://both.example.org"],
            ["r", "wss://write.example.org/", "write"],
            ["r", "wss://read.example.org", "read"],
            ["r", "wss://empty.example.org", ""],
            ["r", "wss://odd.example.org", "sometimes"],
            ["r", "wss://BOTH.example.org/"],
            ["r"],
            ["relay", "wss://other.example.org"],
        ]);
        let relays = write_relays(&event(RELAY_LIST, &tags), &AddressRules::default());
        let expected =
            ["wss://both.example.org", "wss://write.example.org", "wss://empty.example.org"];
        assert_eq!(written(&relays), expected);
        assert!(relays.refused.is_empty() && relays.too_many == 0);
    }

    #[test]
    fn rubbish_is_counted_by_its_fault() {
        let tags = serde_json::json!([
            ["r", "ws://127.0.0.1:4869"],
            ["r", "ws://localhost"],
            ["r", "hello"],
            ["r", ""],
            ["r", "http://x.example.org"],
            ["r", "wss://good.example.org", "write", "more"],
        ]);
        let relays = write_relays(&event(RELAY_LIST, &tags), &AddressRules::default());
        assert_eq!(written(&relays), ["wss://good.example.org"]);
        let refused: Vec<_> = relays.refused.into_iter().collect();
        assert_eq!(refused, [(Unusable::Malformed, 3), (Unusable::Private, 2)]);
    }

    #[test]
    fn nobody_makes_us_keep_a_thousand_relays() {
        let tag = |n: usize| serde_json::json!(["r", format!("wss://r{n}.example.org")]);
        let tags: Vec<_> = (0..5_000).map(tag).collect();
        let relays = write_relays(&event(RELAY_LIST, &tags.into()), &AddressRules::default());
        assert_eq!(relays.relays.len(), MAX_WRITE_RELAYS);
        assert_eq!(relays.too_many, 5_000 - MAX_WRITE_RELAYS);
    }
}
