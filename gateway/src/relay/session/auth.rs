//! NIP-42: who the client is. A connection may hold several keys.

use futures_util::FutureExt;

use super::{Done, End, Session};
use crate::{
    clock::unix_now,
    pipeline::{Origin, Scope},
    protocol::{
        Event, EventId, Filter, OwnUrls, Prefix, PublicKey, Reason, VerifiedEvent, hex, kinds,
        message,
    },
    relay::Action,
    tasks,
};

/// Keys of one connection.
const MAX_KEYS: usize = 20;
/// Signatures that are checked for one connection.
const MAX_ATTEMPTS: usize = 100;
/// How far `created_at` may be from now (NIP-42: about ten minutes), in seconds.
const MAX_AGE_S: u64 = 600;

/// What a connection that was asked to authenticate holds.
pub(super) struct Auth {
    /// Valid as long as the connection; it is sent once.
    challenge: String,
    attempts: usize,
}

/// How a check of an AUTH event ended.
pub(super) struct Authenticated {
    id: EventId,
    key: Result<PublicKey, Reason>,
}

impl Session {
    /// Sends the challenge, unless the client has it.
    pub(super) async fn challenge(&mut self) -> Result<(), End> {
        if self.auth.is_some() {
            return Ok(());
        }
        let challenge = hex::encode(&rand::random::<[u8; 16]>());
        let text = message::auth(&challenge);
        self.auth = Some(Box::new(Auth { challenge, attempts: 0 }));
        self.send(text).await
    }

    pub(super) async fn authenticate(&mut self, event: Event) -> Result<(), End> {
        let id = event.id;
        // On a listener for all addresses, this is the one that the client knows.
        let own = match self.here {
            Some(here) => self.relay.own_urls.clone().and(&format!("ws://{here}")),
            None => self.relay.own_urls.clone(),
        };
        let checked = match &mut self.auth {
            Some(auth) => {
                check(&event, &auth.challenge, &own, unix_now()).and_then(|()| auth.count_attempt())
            }
            None => Err(wrong_challenge()),
        };
        if let Err(reason) = checked {
            // Whoever has no challenge yet gets one to try again with.
            self.challenge().await?;
            return self.send(message::ok(&id, false, &reason.to_string())).await;
        }
        let verified = tasks::blocking(move || VerifiedEvent::verify(event).map(|e| e.pubkey));
        self.under_way.push(
            async move {
                let key = match verified.await {
                    Ok(Ok(key)) => Ok(key),
                    Ok(Err(error)) => Err(Reason::invalid(error.to_string())),
                    Err(_) => Err(Reason::error("the signature could not be checked")),
                };
                Done::Authenticated(Authenticated { id, key })
            }
            .boxed(),
        );
        Ok(())
    }

    pub(super) async fn authenticated(&mut self, result: Authenticated) -> Result<(), End> {
        let Authenticated { id, key } = result;
        let added = key.and_then(|key| self.add_key(key));
        let text = added.as_ref().err().map(Reason::to_string).unwrap_or_default();
        self.send(message::ok(&id, added.is_ok(), &text)).await
    }

    /// From now on the connection sees what this key may see, its open subscriptions too; what is
    /// stored already takes a new REQ.
    fn add_key(&mut self, key: PublicKey) -> Result<(), Reason> {
        let viewer = self.viewer.load();
        let keys = viewer.keys();
        if !keys.contains(&key) && keys.len() >= MAX_KEYS {
            let text = format!("a connection authenticates with at most {MAX_KEYS} keys");
            return Err(Reason::new(Prefix::RateLimited, text));
        }
        self.viewer.add_key(key);
        if let Origin::Client { viewer, .. } = &mut self.origin {
            *viewer = self.viewer.load_full();
        }
        Ok(())
    }

    /// Whether nothing goes without authenticating, so that the challenge is sent at once.
    pub(super) fn demands_auth(&self) -> bool {
        self.relay.access.demands_auth()
    }

    /// Why this connection may not publish this here.
    pub(super) fn refusal_to_write(&self, event: &Event) -> Option<Reason> {
        let refusal = self.relay.access.refusal_to_publish(&self.viewer.load(), event);
        refusal.or_else(|| self.refusal_of_topic())
    }

    /// Why this connection may not ask this here: the way is barred, or there is nothing but
    /// messages of others (NIP-04, NIP-59) and it has not said who it is.
    pub(super) fn refusal_to_read(&self, filters: &[Filter]) -> Option<Reason> {
        let refusal = self.relay.access.refusal(&self.viewer.load(), Action::Read);
        if let Some(reason) = refusal.or_else(|| self.refusal_of_topic()) {
            return Some(reason);
        }
        if !self.relay.reader.can_search() && filters.iter().any(|filter| filter.words().is_some())
        {
            return Some(Reason::new(Prefix::Unsupported, "search is off (storage.search)"));
        }
        let only_guarded = |filter: &Filter| {
            filter.kinds.as_ref().is_some_and(|asked| {
                !asked.is_empty() && asked.iter().all(|kind| kinds::is_for_parties_only(*kind))
            })
        };
        (self.is_unknown() && filters.iter().all(only_guarded)).then(|| {
            let text = "these kinds are shown to the parties of a message alone";
            Reason::new(Prefix::AuthRequired, text)
        })
    }

    /// Whether the answer may lack messages that the client would see if it authenticated, and it
    /// asked for their kinds.
    pub(super) fn withholds(&self, filters: &[Filter]) -> bool {
        let asks_for_guarded = |filter: &Filter| {
            let asked = filter.kinds.as_deref().unwrap_or_default();
            asked.iter().any(|kind| kinds::is_for_parties_only(*kind))
        };
        self.is_unknown() && filters.iter().any(asks_for_guarded)
    }

    fn is_unknown(&self) -> bool {
        self.viewer.load().keys().is_empty()
    }

    /// Why this connection may neither read nor write the topic that its URL names.
    fn refusal_of_topic(&self) -> Option<Reason> {
        let Scope::Topic(name) = &self.scope else { return None };
        if !self.relay.private.contains(name) || self.viewer.load().may_read_topic(name) {
            return None;
        }
        let prefix = if self.is_unknown() { Prefix::AuthRequired } else { Prefix::Restricted };
        Some(Reason::new(prefix, "this topic is for its readers alone"))
    }
}

impl Auth {
    fn count_attempt(&mut self) -> Result<(), Reason> {
        self.attempts += 1;
        if self.attempts > MAX_ATTEMPTS {
            let text = format!("more than {MAX_ATTEMPTS} AUTH messages on one connection");
            return Err(Reason::new(Prefix::RateLimited, text));
        }
        Ok(())
    }
}

/// What NIP-42 asks of the event beside its signature. `now` is in Unix seconds.
fn check(event: &Event, challenge: &str, own: &OwnUrls, now: u64) -> Result<(), Reason> {
    if event.kind != kinds::AUTH {
        let text = format!("an AUTH event has the kind {}", kinds::AUTH);
        return Err(Reason::invalid(text));
    }
    if event.created_at.abs_diff(now) > MAX_AGE_S {
        let text = format!("created_at is more than {MAX_AGE_S} seconds from now");
        return Err(Reason::invalid(text));
    }
    if !event.tag_values("challenge").any(|value| value == challenge) {
        return Err(wrong_challenge());
    }
    if !event.tag_values("relay").any(|url| own.contains(url)) {
        return Err(Reason::invalid("the relay tag does not name this relay (relay.url)"));
    }
    Ok(())
}

fn wrong_challenge() -> Reason {
    Reason::invalid("the challenge tag is not the challenge of this connection")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    #[test]
    fn each_tag_and_the_time_are_checked() {
        const NOW: u64 = 1_700_000_000;
        let own = OwnUrls::new(["wss://relay.example.org"]);
        let result = |kind, at, tags: &[&[&str]]| {
            let event = Author::new(1).sign(at, kind, tags, "");
            check(&event, "abc", &own, NOW).map_err(|reason| reason.to_string())
        };
        let (relay, challenge) =
            (&["relay", "wss://relay.example.org/"][..], &["challenge", "abc"][..]);
        for at in [NOW, NOW - 600, NOW + 600] {
            assert_eq!(result(22_242, at, &[relay, challenge]), Ok(()));
        }
        let time = "invalid: created_at is more than 600 seconds from now";
        let no_challenge = "invalid: the challenge tag is not the challenge of this connection";
        let no_relay = "invalid: the relay tag does not name this relay (relay.url)";
        for (kind, at, tags, why) in [
            (1, NOW, &[relay, challenge][..], "invalid: an AUTH event has the kind 22242"),
            (22_242, NOW - 601, &[relay, challenge], time),
            (22_242, NOW + 601, &[relay, challenge], time),
            (22_242, 0, &[relay, challenge], time),
            (22_242, NOW, &[relay], no_challenge),
            (22_242, NOW, &[relay, &["challenge", "abcd"]], no_challenge),
            (22_242, NOW, &[relay, &["challenge"]], no_challenge),
            (22_242, NOW, &[challenge], no_relay),
            (22_242, NOW, &[&["relay", "wss://relay.example.org.evil.net"], challenge], no_relay),
            (22_242, NOW, &[&["relay", "ws://relay.example.org"], challenge], no_relay),
        ] {
            assert_eq!(result(kind, at, tags), Err(why.to_owned()), "{kind} {at} {tags:?}");
        }
    }
}
