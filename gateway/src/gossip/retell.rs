//! Events that came by request, for the neighbors that know nothing but whole ones.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{outbound::Outgoing, state::TopicState};
use crate::{
    clock::unix_now,
    protocol::{Event, frame::MAX_GOSSIP_BYTES},
};

/// Events that wait; beyond that what brings them waits.
const QUEUE: usize = 64;
/// How long it waits at most for one event.
const WAIT: Duration = Duration::from_secs(5);
/// An event of a comparison is news if it is not older than this, in seconds: what is older is
/// history, which gossip does not carry.
const NEWS_S: u64 = 600;

/// Tells them to the topic's sending side. Cheap to clone.
#[derive(Clone)]
pub struct Retell {
    /// `None` in a private topic, where everybody can fetch.
    queue: Option<mpsc::Sender<Outgoing>>,
    state: Arc<TopicState>,
}

impl Retell {
    pub fn new(state: Arc<TopicState>) -> (Self, mpsc::Receiver<Outgoing>) {
        let (queue, retold) = mpsc::channel(QUEUE);
        (Self { queue: Some(queue), state }, retold)
    }

    /// Tells nobody.
    pub fn off(state: Arc<TopicState>) -> Self {
        Self { queue: None, state }
    }

    /// Whether an event that was announced is to be told, should it be new here: what fits was
    /// announced only because there was much of it.
    pub fn wants(&self, event: &Event) -> bool {
        self.queue.is_some()
            && event.json().len() <= MAX_GOSSIP_BYTES
            && self.state.has_deaf_neighbor()
    }

    /// The same for an event of a comparison, which may have come before its announcement.
    pub fn wants_of_comparison(&self, event: &Event) -> bool {
        self.wants(event) && event.created_at >= unix_now().saturating_sub(NEWS_S)
    }

    /// Tells it. Waiting here slows down what brings the events to what can be told.
    pub async fn tell(&self, event: Arc<Event>) {
        let Some(queue) = &self.queue else { return };
        let told = Outgoing { event, is_ephemeral: false, since: Instant::now() };
        // The topic may have ended, or have nobody to tell it to any more.
        let _ = timeout(WAIT, queue.send(told)).await;
    }
}
