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

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use address::{Address, AddressRules};
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
    Box<dyn Fn(&Address, watch::Receiver<Demand>, Trust) -> Option<Arc<Relay>> + Send + Sync>;

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

/// A stream that follows public keys, as seen from outside. Its actor is [`run`].
#[derive(Default)]
pub struct Follow(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    relays: Vec<Arc<Relay>>,
    status: FollowStatus,
}

impl Follow {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The relays that are open now.
    pub fn relays(&self) -> Vec<Arc<Relay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).relays.clone()
    }

    pub fn status(&self) -> FollowStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }

    fn show(&self, relays: Vec<Arc<Relay>>, status: FollowStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Shown { relays, status };
    }

    /// Follows until the token is cancelled. The relays' own tasks end a moment later.
    pub async fn run(self: Arc<Self>, start: StartFollow, token: CancellationToken) {
        Actor::new(self, start).run(token).await;
    }
}
