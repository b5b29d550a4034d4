//! Following public keys instead of relays: whom they follow (NIP-02), where these write (NIP-65), and
//! which relays to open for that.
//!
//! Lists come from our own store, whoever brought them there; relays are asked for those that are missing.
//! A pure planner chooses the relays; an actor keeps them in step with it.

mod actor;
pub mod address;
mod ask;
mod book;
mod groups;
mod health;
mod lists;
mod pace;
mod plan;
mod source;
mod status;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use address::AddressRules;
pub use status::FollowStatus;

use super::{config::UpstreamConfig, demand::Demand, relay::Relay};
use crate::{
    pipeline::{EventReader, FollowStore, PrivateTopics},
    tasks::Tasks,
};
use actor::Actor;

/// Who says that a relay is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Operator,
    /// A list. The relay's name must not lead to a private address.
    Stranger,
}

/// Makes a relay of the stream; the URL is in its normal form. It is run by whoever asks.
pub type OpenRelay =
    Box<dyn Fn(&Arc<str>, watch::Receiver<Demand>, Trust) -> Arc<Relay> + Send + Sync>;

/// What relays brought that are closed now.
#[derive(Debug, Clone, Default)]
pub struct Past {
    pub received: u64,
    pub new: u64,
    pub known: u64,
    pub refused: BTreeMap<String, u64>,
}

impl Past {
    fn add(&mut self, relay: &Relay) {
        let status = relay.status();
        self.received += status.received;
        self.new += status.new;
        self.known += status.known;
        for (reason, times) in status.refused {
            *self.refused.entry(reason.to_owned()).or_default() += times;
        }
    }
}

/// What following is made of.
pub struct StartFollow {
    pub config: Arc<UpstreamConfig>,
    /// What the relays of lists must be like.
    pub rules: AddressRules,
    pub reader: Arc<dyn EventReader>,
    pub private: PrivateTopics,
    pub kept: Arc<dyn FollowStore>,
    pub open: OpenRelay,
    /// The relays run in here.
    pub tasks: Tasks,
}

/// A stream that follows public keys, as seen from outside.
#[derive(Default)]
pub struct Follow(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    relays: Vec<Arc<Relay>>,
    past: Past,
    status: FollowStatus,
}

impl Follow {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The relays that are open now, and what those brought that were open before.
    pub fn relays(&self) -> (Vec<Arc<Relay>>, Past) {
        let shown = self.shown();
        (shown.relays.clone(), shown.past.clone())
    }

    pub fn status(&self) -> FollowStatus {
        self.shown().status.clone()
    }

    /// These relays are open from now on.
    fn show_relays(&self, relays: Vec<Arc<Relay>>) {
        let mut shown = self.shown();
        let before = std::mem::replace(&mut shown.relays, relays);
        for relay in before {
            if !shown.relays.iter().any(|now| Arc::ptr_eq(now, &relay)) {
                shown.past.add(&relay);
            }
        }
    }

    fn show_status(&self, status: FollowStatus) {
        self.shown().status = status;
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows until the token is cancelled. The relays' own tasks end a moment later.
    pub async fn run(self: Arc<Self>, start: StartFollow, token: CancellationToken) {
        Actor::new(self, start).run(token).await;
    }
}
