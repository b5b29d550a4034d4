//! Events that came by request, for the neighbors that know nothing but whole ones.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, timeout},
};

use super::{outbound::Outgoing, state::TopicState};
use crate::{
    clock::unix_now,
    protocol::{Event, frame::MAX_GOSSIP_BYTES},
};

/// Events that wait.
const QUEUE: usize = 2_048;
/// How long a fetch waits at most for room for one event.
const WAIT: Duration = Duration::from_secs(1);
/// An event of a comparison is news if it is not older than this, in seconds: what is older is
/// history, which gossip does not carry.
const NEWS_S: u64 = 600;

/// Why an event is not told.
const FULL: &str = "retold, queue full";

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
        // The topic may have ended, or have nobody to tell it to any more.
        if timeout(WAIT, queue.send(told(event))).await.is_err() {
            self.state.frame_dropped(FULL);
        }
    }

    /// Tells it if there is room: the other side of a comparison gives up whoever does not read.
    pub fn try_tell(&self, event: Arc<Event>) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(told(event)) {
            self.state.frame_dropped(FULL);
        }
    }
}

fn told(event: Arc<Event>) -> Outgoing {
    Outgoing { event, is_ephemeral: false, since: Instant::now() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::{CauseLabels, Metrics},
        protocol::{TopicName, signing::Author},
    };

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_told_holds_nobody_up_for_long_and_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let state = Arc::new(TopicState::new(TopicName::new("x").unwrap(), metrics.clone()));
        let (retell, mut retold) = Retell::new(state);
        let event = Arc::new(Author::new(1).sign(1, 1, &[], ""));
        let dropped = || metrics.frames_dropped.get_or_create(&CauseLabels { cause: FULL }).get();
        (0..QUEUE).for_each(|_| retell.try_tell(event.clone()));
        assert_eq!(dropped(), 0);
        retell.try_tell(event.clone());
        assert_eq!(dropped(), 1);
        let begin = Instant::now();
        retell.tell(event.clone()).await;
        assert_eq!((dropped(), begin.elapsed().as_millis() / 100), (2, 10));
        retold.recv().await.unwrap();
        retell.tell(event.clone()).await;
        drop(retold);
        retell.try_tell(event.clone());
        retell.tell(event).await;
        assert_eq!(dropped(), 2, "a topic that ended tells nobody");
    }
}
