//! Events, and who writes them to whom.

use nostr_gateway_tests::events;
use nostr_sdk::prelude::*;

/// Who writes to whom, in secret.
pub struct Parties {
    pub me: Keys,
    pub from: Keys,
    pub wrap: Event,
    pub direct: Event,
}

impl Parties {
    pub fn new() -> Self {
        let (me, from) = (Keys::generate(), Keys::generate());
        let wrap = wrap_for(&me, "wrapped");
        let direct = event(&from, 4, "direct?iv=", &[&["p", &me.public_key().to_hex()]], 0);
        Self { me, from, wrap, direct }
    }

    pub fn wrapped(&self) -> Filter {
        Filter::new().kind(Kind::GiftWrap).pubkey(self.me.public_key())
    }
}

pub fn event(keys: &Keys, kind: u16, content: &str, tags: &[&[&str]], age: u64) -> Event {
    events::event(keys, kind, content, tags, events::now() - age)
}

pub fn wrap_for(keys: &Keys, content: &str) -> Event {
    let to = keys.public_key().to_hex();
    event(&Keys::generate(), 1059, content, &[&["p", &to]], 1_000)
}

pub fn by(keys: &Keys) -> Filter {
    Filter::new().kind(Kind::TextNote).author(keys.public_key())
}
