//! Authenticating to a relay (NIP-42), when it refuses something without.

use std::sync::Arc;

use nostr_sdk::{EventBuilder, JsonUtil, Keys, RelayUrl};
use tokio::time::Instant;
use url::Url;

use super::shown::shown;
use crate::protocol::EventId;

/// A longer challenge is not answered.
const MAX_CHALLENGE: usize = 1_024;

/// What is to be sent once more when we are authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Subscription(u64),
    Event(EventId),
}

/// What waits for that, with what the relay said and until when.
#[derive(Debug)]
pub(super) struct Waiting {
    pub again: Again,
    pub refusal: String,
    until: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Not with the challenge of now.
    Open,
    /// The relay is to answer to this event.
    Sent(EventId),
    Done,
    Refused(String),
}

/// How far authenticating has come on one connection.
pub(super) struct Auth {
    keys: Option<Arc<Keys>>,
    url: Option<RelayUrl>,
    challenge: Option<String>,
    state: State,
    waiting: Vec<Waiting>,
}

/// What the relay's answer to the authentication means for what waited.
pub(super) enum Answered {
    /// Send it once more.
    Granted(Vec<Waiting>),
    /// It stays refused, for this reason.
    Denied(Vec<Waiting>, String),
}

impl Auth {
    pub fn new(keys: Option<Arc<Keys>>, url: &Url) -> Self {
        let url = RelayUrl::parse(url.as_str()).ok();
        Self { keys, url, challenge: None, state: State::Open, waiting: Vec::new() }
    }

    /// The relay wants authentication for something that was sent once. Returns it back when nothing can
    /// be done about that.
    pub fn demanded(
        &mut self,
        again: Again,
        refusal: String,
        until: Instant,
    ) -> Result<(), String> {
        let why = match &self.state {
            _ if self.keys.is_none() => {
                return Err(format!("{refusal} (this stream does not authenticate: `auth`)"));
            }
            State::Open | State::Sent(_) => {
                self.waiting.push(Waiting { again, refusal, until });
                return Ok(());
            }
            State::Done => "although the gateway has authenticated".to_owned(),
            State::Refused(why) => format!("authentication was refused: {why}"),
        };
        Err(format!("{refusal} ({why})"))
    }

    /// A challenge came. A new one makes the earlier authentication void.
    pub fn challenged(&mut self, challenge: &str) {
        if challenge.len() <= MAX_CHALLENGE && self.challenge.as_deref() != Some(challenge) {
            self.challenge = Some(challenge.to_owned());
            self.state = State::Open;
        }
    }

    /// The event to send, when something waits for it and there is a challenge to answer.
    pub fn to_send(&mut self) -> Option<String> {
        if self.state != State::Open || self.waiting.is_empty() {
            return None;
        }
        let (keys, url) = (self.keys.as_ref()?, self.url.clone()?);
        let challenge = self.challenge.as_deref()?;
        match EventBuilder::auth(challenge, url).sign_with_keys(keys) {
            Ok(event) => {
                self.state = State::Sent(EventId(event.id.to_bytes()));
                Some(event.as_json())
            }
            Err(error) => {
                tracing::warn!(%error, "cannot sign an authentication");
                self.state = State::Refused("it could not be signed".to_owned());
                None
            }
        }
    }

    /// An OK came; `None` when it is not about the authentication.
    pub fn answered(&mut self, id: EventId, accepted: bool, message: &str) -> Option<Answered> {
        if self.state != State::Sent(id) {
            return None;
        }
        let waiting = std::mem::take(&mut self.waiting);
        if accepted {
            self.state = State::Done;
            return Some(Answered::Granted(waiting));
        }
        let why = shown(message);
        self.state = State::Refused(why.clone());
        Some(Answered::Denied(waiting, why))
    }

    /// What has waited too long for a challenge, or for the answer to ours.
    pub fn overdue(&mut self, now: Instant) -> Vec<Waiting> {
        self.waiting.extract_if(.., |waiting| waiting.until <= now).collect()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    /// Whether an earlier demand for this still waits.
    pub fn forget(&mut self, again: Again) {
        self.waiting.retain(|waiting| waiting.again != again);
    }
}
