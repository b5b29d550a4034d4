//! What a topic says: a bounded queue, a rate and a time limit in front of `broadcast`.

mod lineup;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use iroh_gossip::api::{ApiError, GossipSender};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use self::lineup::COLLECT;
pub use self::lineup::Lineup;

use super::state::TopicState;
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics, TopicLabels},
    protocol::{
        Event,
        frame::MAX_GOSSIP_BYTES,
        kinds,
        private::seal::{MAX_SEALABLE_BYTES, Sealer},
    },
};

/// The bound of the queue to a topic. When it is full the publisher goes on from the log later.
pub const QUEUE: usize = 512;

/// How long one broadcast may take before gossip counts as wedged.
const BROADCAST: Duration = Duration::from_secs(5);

/// An ephemeral event that could not be sent for this long is of no use any more.
const EPHEMERAL: Duration = Duration::from_secs(5);

/// An event on its way into a topic.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub event: Arc<Event>,
    /// Not stored, so nobody can fetch it: it goes whole or not at all.
    pub is_ephemeral: bool,
    /// When it was handed over.
    pub since: Instant,
}

impl Outgoing {
    /// Why it must not go out, or not any more: it may have waited for hours.
    fn too_late(&self, now: Instant, unix: u64) -> Option<&'static str> {
        if self.is_ephemeral && now.saturating_duration_since(self.since) > EPHEMERAL {
            Some("ephemeral too old")
        } else if kinds::barred_from_public_topics(&self.event, unix).is_some() {
            Some("expired")
        } else {
            None
        }
    }

    fn is_due(&self, now: Instant, unix: u64, dropped: &mut impl FnMut(&'static str)) -> bool {
        let cause = self.too_late(now, unix);
        cause.into_iter().for_each(dropped);
        cause.is_none()
    }
}

/// Why sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Gossip closed the topic.
    Closed,
    /// Gossip took no message in time.
    Wedged,
}

/// Where frames go.
pub trait Mouth {
    /// # Errors
    /// When the topic is closed.
    fn say(&self, frame: Bytes) -> impl Future<Output = Result<(), ApiError>> + Send;
}

impl Mouth for GossipSender {
    fn say(&self, frame: Bytes) -> impl Future<Output = Result<(), ApiError>> + Send {
        self.broadcast(frame)
    }
}

/// The sending side of one topic. Outlives a subscription: what could not be sent goes out by the
/// next one.
pub struct Outbound {
    queue: mpsc::Receiver<Outgoing>,
    /// Events that were announced to us, for neighbors that only know whole ones.
    retold: mpsc::Receiver<Outgoing>,
    lineup: Lineup,
    /// When events were taken off the queues last.
    taken: Instant,
    /// In a private topic: that of the epoch to publish in.
    seal: Option<Sealer>,
    state: Arc<TopicState>,
    metrics: Arc<Metrics>,
}

impl Outbound {
    pub fn new(
        queue: mpsc::Receiver<Outgoing>,
        retold: mpsc::Receiver<Outgoing>,
        state: Arc<TopicState>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let now = Instant::now();
        let (lineup, seal) = (Lineup::new(now), None);
        Self { queue, retold, lineup, taken: now, seal, state, metrics }
    }

    /// From here on seals what goes out, and sends when there are neighbors in the swarm of this
    /// epoch. What waits goes out there.
    pub fn turn_to(&mut self, state: Arc<TopicState>, seal: Sealer) {
        self.state = state;
        self.seal = Some(seal);
    }

    /// Sends until gossip fails. Can be dropped at any point without losing a frame.
    pub async fn run(&mut self, mouth: &impl Mouth) -> Ended {
        let labels = TopicLabels { topic: self.state.name().to_string() };
        // Made once: a frame that is sent when the topic has just been left must not bring it back.
        let sent = self.metrics.frames_sent.get_or_create_owned(&labels);
        let mut neighbors = self.state.count();
        loop {
            // With nobody there a broadcast is lost. The log keeps the events for the first to come.
            let _ = neighbors.wait_for(|count| *count > 0).await;
            if !self.lineup.has_frames() {
                let idle = self.lineup.is_empty();
                self.take(idle).await;
                if idle {
                    // Meanwhile the neighbors may have gone.
                    continue;
                }
            }
            let Some((bytes, at)) = self.next_sealed() else { continue };
            tokio::time::sleep_until(at).await;
            match timeout(BROADCAST, mouth.say(bytes)).await {
                Ok(Ok(())) => {
                    self.lineup.sent(Instant::now());
                    sent.inc();
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "gossip closed the topic");
                    return Ended::Closed;
                }
                Err(_) => {
                    self.dropped("broadcast timed out");
                    tracing::warn!("gossip took no message for {BROADCAST:?}; joining anew");
                    return Ended::Wedged;
                }
            }
        }
    }

    /// Turns all events that wait into frames; waits for the first if there is nothing else to do.
    async fn take(&mut self, wait: bool) {
        if self.lineup.is_loaded() {
            let enough = self.taken + COLLECT;
            if wait {
                // They stay in the queues meanwhile.
                tokio::time::sleep_until(enough).await;
            } else if Instant::now() < enough {
                return;
            }
        }
        // Whoever is in a private topic has our own protocol.
        let deaf = self.seal.is_none() && self.state.has_deaf_neighbor();
        let most = self.lineup.turn_to(deaf);
        let (mut batch, mut retold) = (Vec::new(), Vec::new());
        if wait {
            tokio::select! {
                Some(event) = self.queue.recv() => batch.push(event),
                Some(event) = self.retold.recv() => retold.push(event),
                else => std::future::pending().await,
            }
        }
        while batch.len() < most
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        while batch.len() + retold.len() < most
            && let Ok(next) = self.retold.try_recv()
        {
            retold.push(next);
        }
        self.taken = Instant::now();
        let metrics = &self.metrics;
        let longest = if self.seal.is_some() { MAX_SEALABLE_BYTES } else { MAX_GOSSIP_BYTES };
        let dropped = |cause| dropped(metrics, cause);
        self.lineup.add(batch, longest, self.taken, unix_now(), dropped);
        self.lineup.retell(retold);
    }

    /// [`Self::next`], sealed where the topic is private.
    fn next_sealed(&mut self) -> Option<(Bytes, Instant)> {
        let (bytes, at) = self.next()?;
        let Some(seal) = &self.seal else { return Some((bytes, at)) };
        match seal.seal(&bytes) {
            Ok(sealed) => Some((sealed.into(), at)),
            Err(_) => {
                // It was planned with room for the seal.
                self.dropped("too long to seal");
                self.lineup.take_out();
                None
            }
        }
    }

    fn next(&mut self) -> Option<(Bytes, Instant)> {
        let metrics = &self.metrics;
        self.lineup.next(Instant::now(), unix_now(), |cause| dropped(metrics, cause))
    }

    fn dropped(&self, cause: &'static str) {
        dropped(&self.metrics, cause);
    }
}

fn dropped(metrics: &Metrics, cause: &'static str) {
    metrics.frames_dropped.get_or_create(&CauseLabels { cause }).inc();
}

#[cfg(test)]
mod tests {
    use super::{
        lineup::{
            Frame, Line, WHOLE_TOO,
            tests::{announced, event, tagged},
            whole,
        },
        *,
    };

    fn state() -> Arc<TopicState> {
        let name = crate::protocol::TopicName::new("t").unwrap();
        Arc::new(TopicState::new(name, Arc::default()))
    }

    fn outbound(queue: mpsc::Receiver<Outgoing>, state: Arc<TopicState>) -> Outbound {
        Outbound::new(queue, mpsc::channel(1).1, state, Arc::default())
    }

    /// Takes everything; the topic is left while it does.
    struct LeftMeanwhile(Arc<TopicState>);

    impl Mouth for LeftMeanwhile {
        async fn say(&self, _: Bytes) -> Result<(), ApiError> {
            self.0.over();
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_goes_out_while_the_topic_is_left_is_in_no_figure() {
        let metrics = Arc::new(Metrics::default());
        let name = crate::protocol::TopicName::new("left").unwrap();
        let state = Arc::new(TopicState::new(name, metrics.clone()));
        state.up(iroh::SecretKey::from_bytes(&[1; 32]).public());
        let (queue, receiver) = mpsc::channel(8);
        let mut outbound =
            Outbound::new(receiver, mpsc::channel(1).1, state.clone(), metrics.clone());
        queue.try_send(event(1, 500, false)).unwrap();
        let saying = LeftMeanwhile(state);
        let _ = timeout(BROADCAST / 2, outbound.run(&saying)).await;
        assert!(outbound.lineup.is_empty(), "it went out");
        assert!(!metrics.render().contains("left"), "{}", metrics.render());
    }

    #[tokio::test]
    async fn what_waited_too_long_does_not_go_out() {
        let state = state();
        let (queue, receiver) = mpsc::channel(8);
        let mut outbound = outbound(receiver, state);
        let mut old = event(1, 500, true);
        let Some(before) = Instant::now().checked_sub(EPHEMERAL + EPHEMERAL) else { return };
        old.since = before;
        let mut stored = event(2, 500, false);
        stored.since = before;
        let expired = tagged(3, 1, r#"["expiration","2"]"#, 500);
        for event in [old, stored.clone(), expired, event(4, 500, true)] {
            queue.try_send(event).unwrap();
        }
        outbound.take(true).await;
        assert_eq!(outbound.lineup.frames.len(), 2);
        assert_eq!(outbound.next().unwrap().0, whole(&stored));
        assert_eq!(outbound.next().unwrap().0, whole(&stored), "until it was sent");
        outbound.lineup.take_out();
        // A planned frame grows old as well.
        let Some(Frame::Whole(ephemeral)) = outbound.lineup.frames.front_mut() else {
            panic!("whole")
        };
        ephemeral.since = before;
        assert!(outbound.next().is_none());
    }

    /// Takes nothing, as a gossip that waits for somebody frozen.
    struct Stuck;

    impl Mouth for Stuck {
        async fn say(&self, _: Bytes) -> Result<(), ApiError> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_not_taken_ends_the_subscription_and_is_not_lost() {
        let state = state();
        state.up(iroh::SecretKey::from_bytes(&[1; 32]).public());
        let (queue, receiver) = mpsc::channel(8);
        let mut outbound = outbound(receiver, state);
        queue.try_send(event(1, 500, false)).unwrap();
        let began = Instant::now();
        assert_eq!(outbound.run(&Stuck).await, Ended::Wedged);
        assert_eq!(began.elapsed().as_secs(), BROADCAST.as_secs());
        assert_eq!(outbound.lineup.frames.len(), 1, "it goes out by the next subscription");
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_fetch_gets_whole_events_after_the_ids() {
        let state = state();
        let peer = |n: u8| iroh::SecretKey::from_bytes(&[n; 32]).public();
        let (queue, receiver) = mpsc::channel(QUEUE);
        let (retell, retold) = mpsc::channel(2);
        let mut outbound = Outbound::new(receiver, retold, state.clone(), Arc::default());
        let load = |of: usize| {
            (0..20)
                .map(|n| event(of + n, if n == 0 { 5_000 } else { 300 }, false))
                .for_each(|event| queue.try_send(event).unwrap());
        };
        // One that was not tried may be one that cannot.
        state.up(peer(1));
        load(100);
        retell.try_send(event(1, 300, false)).unwrap();
        outbound.take(true).await;
        assert_eq!(outbound.lineup.frames.iter().map(announced).collect::<Vec<_>>(), [20]);
        assert_eq!(outbound.lineup.whole_too.len(), 20, "all that fit, and the one of others");
        let line = |outbound: &mut Outbound| {
            outbound.next().unwrap();
            outbound.lineup.line
        };
        assert_eq!(line(&mut outbound), Line::Frames);
        outbound.lineup.take_out();
        assert_eq!(line(&mut outbound), Line::WholeToo);
        // Further ids do not wait for whole events.
        load(200);
        tokio::time::advance(COLLECT).await;
        outbound.take(false).await;
        assert_eq!(line(&mut outbound), Line::Frames);
        assert_eq!(outbound.lineup.whole_too.len(), 39);
        outbound.lineup.frames.clear();
        // Once all can fetch, nothing more goes out twice.
        state.speaks(peer(1), true);
        load(300);
        retell.try_send(event(2, 300, false)).unwrap();
        tokio::time::advance(COLLECT).await;
        outbound.take(false).await;
        assert_eq!((outbound.lineup.frames.len(), outbound.lineup.whole_too.len()), (1, 0));
        // What there is no room for stays in the queue.
        state.speaks(peer(1), false);
        outbound.lineup.frames.clear();
        outbound.lineup.whole_too.extend((0..WHOLE_TOO).map(|n| event(n, 300, false)));
        load(400);
        tokio::time::advance(COLLECT).await;
        outbound.take(false).await;
        assert_eq!((outbound.lineup.frames.len(), outbound.lineup.whole_too.len()), (0, WHOLE_TOO));
    }
}
