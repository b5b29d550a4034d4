//! Who may read and write here: `[access]`, with what NIP-86 bans and allows.

use std::{collections::BTreeSet, sync::Arc};

use super::config::{AccessConfig, AccessRule};
use crate::{
    pipeline::{Moderation, Viewer},
    protocol::{Event, Prefix, PublicKey, Reason, kinds},
};

/// What a client wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// REQ, COUNT, NEG-OPEN.
    Read,
    /// EVENT.
    Write,
}

/// The access policy.
pub struct Access {
    read: AccessRule,
    write: AccessRule,
    pubkeys: BTreeSet<PublicKey>,
    moderation: Arc<Moderation>,
}

impl Access {
    pub fn new(config: &AccessConfig, moderation: Arc<Moderation>) -> Self {
        let pubkeys = config.pubkeys.iter().copied().collect();
        Self { read: config.read, write: config.write, pubkeys, moderation }
    }

    /// Why this viewer may not do it, or `None`: `auth-required:` while it has shown no key,
    /// `restricted:` when it has and none of them will do (NIP-42).
    pub fn refusal(&self, viewer: &Viewer, action: Action) -> Option<Reason> {
        let rule = self.rule(action);
        if is_open(rule) {
            return None;
        }
        let verb = match action {
            Action::Read => "read",
            Action::Write => "write",
        };
        if viewer.keys().is_empty() {
            let text = format!("whoever wants to {verb} here proves who they are first");
            return Some(Reason::new(Prefix::AuthRequired, text));
        }
        let rules = self.moderation.rules();
        let will_do = |key: &PublicKey| {
            let listed = || self.pubkeys.contains(key) || rules.allowed_pubkeys.contains_key(key);
            !rules.banned_pubkeys.contains_key(key)
                && (rule == AccessRule::Authenticated || listed())
        };
        if viewer.keys().iter().any(will_do) {
            return None;
        }
        Some(Reason::restricted(format!("none of your keys may {verb} here")))
    }

    /// The same for an event to be published. Nobody is kept from asking to be forgotten (NIP-62).
    pub fn refusal_to_publish(&self, viewer: &Viewer, event: &Event) -> Option<Reason> {
        if event.kind == kinds::VANISH { None } else { self.refusal(viewer, Action::Write) }
    }

    /// Whether a client should be asked to authenticate as soon as it connects.
    pub fn demands_auth(&self) -> bool {
        !is_open(self.read) || !is_open(self.write)
    }

    /// NIP-11 `auth_required`: nothing at all goes without a key.
    pub(super) fn nothing_is_open(&self) -> bool {
        !is_open(self.read) && !is_open(self.write)
    }

    /// NIP-11 `restricted_writes`, as far as it depends on who writes.
    pub(super) fn restricts_writes(&self) -> bool {
        !is_open(self.write)
    }

    fn rule(&self, action: Action) -> AccessRule {
        match action {
            Action::Read => self.read,
            Action::Write => self.write,
        }
    }
}

fn is_open(rule: AccessRule) -> bool {
    matches!(rule, AccessRule::Unstated | AccessRule::Open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pipeline::moderation::{Change, List},
        protocol::signing::Author,
    };

    fn viewer(keys: &[PublicKey]) -> Viewer {
        Viewer::new(keys.iter().copied().collect(), true, &Default::default())
    }

    #[tokio::test]
    async fn keys_are_asked_for_listed_allowed_and_banned() {
        let [a, b, c] = [1, 2, 3].map(|n| Author::new(n).pubkey());
        let moderation = Arc::new(Moderation::default());
        let config = AccessConfig {
            read: AccessRule::Authenticated,
            write: AccessRule::List,
            pubkeys: vec![a],
        };
        let access = Access::new(&config, moderation.clone());
        let asked = |keys: &[PublicKey], action| {
            access.refusal(&viewer(keys), action).map(|reason| reason.prefix)
        };
        use Action::{Read, Write};
        assert_eq!(asked(&[], Read), Some(Prefix::AuthRequired));
        assert_eq!(asked(&[], Write), Some(Prefix::AuthRequired));
        assert_eq!(asked(&[b], Read), None);
        assert_eq!(asked(&[b], Write), Some(Prefix::Restricted));
        assert_eq!(asked(&[a], Write), None);
        assert_eq!(asked(&[b, a], Write), None, "one of several keys will do");

        let put = |list, key: PublicKey| Change {
            put: vec![(list, key.to_string(), String::new())],
            ..Change::default()
        };
        moderation.change(put(List::AllowedPubkeys, c)).await.unwrap();
        assert_eq!(asked(&[c], Write), None);
        moderation.change(put(List::BannedPubkeys, a)).await.unwrap();
        assert_eq!(asked(&[a], Write), Some(Prefix::Restricted), "a ban goes before the list");
        assert_eq!(asked(&[a], Read), Some(Prefix::Restricted));
        assert_eq!(asked(&[a, b], Read), None);

        let vanish = Author::new(2).sign(1, kinds::VANISH, &[&["relay", "ALL_RELAYS"]], "");
        assert_eq!(access.refusal_to_publish(&viewer(&[]), &vanish), None);
        let note = Author::new(2).sign(1, 1, &[], "");
        assert!(access.refusal_to_publish(&viewer(&[]), &note).is_some());
        assert!(access.demands_auth() && access.nothing_is_open() && access.restricts_writes());
    }

    #[test]
    fn what_is_not_stated_is_open() {
        let access = Access::new(&AccessConfig::default(), Arc::default());
        assert_eq!(access.refusal(&viewer(&[]), Action::Read), None);
        assert_eq!(access.refusal(&viewer(&[]), Action::Write), None);
        assert!(!access.demands_auth() && !access.nothing_is_open());
    }
}
