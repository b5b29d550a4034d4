//! Signed events of several kinds.

use nostr_sdk::{Event, EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};

/// An event with everything chosen by the caller.
pub fn event(keys: &Keys, kind: u16, content: &str, tags: &[&[&str]], created_at: u64) -> Event {
    let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied()).unwrap());
    EventBuilder::new(Kind::from(kind), content)
        .tags(tags)
        .allow_self_tagging()
        .custom_created_at(Timestamp::from(created_at))
        .sign_with_keys(keys)
        .unwrap()
}

/// A note of now.
pub fn note(keys: &Keys, content: &str) -> Event {
    event(keys, 1, content, &[], now())
}

/// What a client authenticates with (NIP-42).
pub fn auth(keys: &Keys, url: &str, challenge: &str) -> Event {
    event(keys, 22_242, "", &[&["relay", url], &["challenge", challenge]], now())
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    Timestamp::now().as_secs()
}

/// `count` events as a relay holds them: profiles, notes, contact lists, reactions, relay lists and
/// articles by several authors, short and long, in several scripts. No two replace one another.
pub fn assortment(count: usize) -> Vec<Event> {
    let start = now() - 100_000;
    (0..count)
        .map(|n| {
            let keys = Keys::generate();
            let at = start + n as u64 * 60;
            let other = Keys::generate().public_key().to_hex();
            match n % 8 {
                0 => event(&keys, 0, r#"{"name":"Zoë","about":"Grüße \u0007 👋🏽"}"#, &[], at),
                1 => event(
                    &keys,
                    1,
                    &format!("note {n} “quoted” \\ \"line\nbreak\" 日本語"),
                    &[],
                    at,
                ),
                2 => {
                    let contacts: Vec<[String; 2]> = (0..200)
                        .map(|_| ["p".to_owned(), Keys::generate().public_key().to_hex()])
                        .collect();
                    let contacts: Vec<[&str; 2]> =
                        contacts.iter().map(|[p, key]| [p.as_str(), key.as_str()]).collect();
                    let contacts: Vec<&[&str]> = contacts.iter().map(<[_; 2]>::as_slice).collect();
                    event(&keys, 3, "", &contacts, at)
                }
                3 => event(&keys, 7, "+", &[&["p", &other], &["k", "1"]], at),
                4 => event(&keys, 10_002, "", &[&["r", "wss://relay.example.org"]], at),
                5 => {
                    let text = "Ein längerer Absatz, 段落, фрагмент. ".repeat(40 + n);
                    event(&keys, 30_023, &text, &[&["d", &n.to_string()], &["title", "T"]], at)
                }
                // From just under to far over what fits a gossip message.
                6 => event(&keys, 1, &"x".repeat(3_000 + n * 10), &[&["t", "long"]], at),
                _ => event(&keys, 1, &"y".repeat(n * 300 % 60_000), &[&["t", "long"]], at),
            }
        })
        .collect()
}

/// The event's canonical JSON.
pub fn json(event: &Event) -> String {
    event.as_json()
}

/// The event as a JSON value, to be spoilt.
pub fn value(event: &Event) -> serde_json::Value {
    serde_json::from_str(&event.as_json()).unwrap()
}

/// Ids in hexadecimal, sorted.
pub fn ids<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<String> {
    let mut ids: Vec<String> = events.into_iter().map(|event| event.id.to_hex()).collect();
    ids.sort();
    ids
}
