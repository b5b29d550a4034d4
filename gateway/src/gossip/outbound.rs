//! What a topic says: a bounded queue, a rate and a time limit in front of `broadcast`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh_gossip::api::GossipSender;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use super::state::TopicState;
use crate::{
    metrics::{CauseLabels, Metrics, TopicLabels},
    protocol::{
        EventId,
        frame::{self, MAX_ANNOUNCED, MAX_GOSSIP_BYTES},
    },
};

/// The bound of the queue to a topic. When it is full the publisher goes on from the log later.
pub const QUEUE: usize = 512;

/// With more events than this waiting, the topic is under load: ids go out instead of events.
const QUIET: usize = 16;

/// Frames per second, and how many may go out at once before that counts. A tenth of what a swarm
/// of ten carried without loss.
const RATE: f64 = 500.0;
const BURST: f64 = 64.0;

/// How long one broadcast may take before gossip counts as wedged.
const BROADCAST: Duration = Duration::from_secs(5);

/// An event on its way into a topic.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub id: EventId,
    /// Canonical JSON.
    pub json: Arc<str>,
    /// Not stored, so nobody can fetch it: it goes whole or not at all.
    pub is_ephemeral: bool,
}

/// Gossip took no message in time, or closed the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wedged;

/// The sending side of one topic. Outlives a subscription: what could not be sent goes out by the
/// next one.
pub struct Outbound {
    queue: mpsc::Receiver<Outgoing>,
    frames: VecDeque<Bytes>,
    pace: Pace,
    state: Arc<TopicState>,
    metrics: Arc<Metrics>,
}

impl Outbound {
    pub fn new(
        queue: mpsc::Receiver<Outgoing>,
        state: Arc<TopicState>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { queue, frames: VecDeque::new(), pace: Pace::new(Instant::now()), state, metrics }
    }

    /// Sends until gossip fails. Can be dropped at any point without losing a frame.
    pub async fn run(&mut self, sender: &GossipSender) -> Wedged {
        let labels = TopicLabels { topic: self.state.name().to_string() };
        let mut neighbors = self.state.count();
        loop {
            if self.frames.is_empty() {
                self.take(&neighbors).await;
            }
            // With nobody there a broadcast is lost. The log keeps the events for the first to come.
            let _ = neighbors.wait_for(|count| *count > 0).await;
            let Some(frame) = self.frames.front() else { continue };
            tokio::time::sleep_until(self.pace.next(Instant::now())).await;
            match timeout(BROADCAST, sender.broadcast(frame.clone())).await {
                Ok(Ok(())) => {
                    self.frames.pop_front();
                    self.pace.took(Instant::now());
                    self.metrics.frames_sent.get_or_create(&labels).inc();
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "gossip closed the topic");
                    return Wedged;
                }
                Err(_) => {
                    self.dropped("broadcast timed out");
                    tracing::warn!("gossip took no message for {BROADCAST:?}; joining anew");
                    return Wedged;
                }
            }
        }
    }

    /// Waits for events and turns all that wait into frames.
    async fn take(&mut self, neighbors: &watch::Receiver<usize>) {
        let Some(first) = self.queue.recv().await else { return std::future::pending().await };
        let mut batch = vec![first];
        while batch.len() < QUEUE
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        if *neighbors.borrow() == 0 {
            batch.retain(|event| !event.is_ephemeral);
        }
        let (frames, too_long) = plan(batch);
        for _ in 0..too_long {
            self.dropped("ephemeral too long");
        }
        self.frames.extend(frames);
    }

    fn dropped(&self, cause: &'static str) {
        self.metrics.frames_dropped.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// The frames for a batch of events, in their order where they go whole; ids come last. Also how
/// many ephemeral events did not fit.
fn plan(batch: Vec<Outgoing>) -> (Vec<Bytes>, usize) {
    let under_load = batch.len() > QUIET;
    let (mut frames, mut ids, mut too_long) = (Vec::new(), Vec::new(), 0);
    for event in batch {
        // An oversize message silently breaks the neighbor that gets it: none may pass here.
        let fits = event.json.len() <= MAX_GOSSIP_BYTES;
        match (event.is_ephemeral, fits) {
            (true, false) => too_long += 1,
            (true, true) => frames.push(Bytes::copy_from_slice(event.json.as_bytes())),
            (false, true) if !under_load => {
                frames.push(Bytes::copy_from_slice(event.json.as_bytes()));
            }
            (false, _) => ids.push(event.id),
        }
    }
    frames.extend(ids.chunks(MAX_ANNOUNCED).map(|ids| Bytes::from(frame::announce(ids))));
    (frames, too_long)
}

/// A leaky bucket: each frame fills it by one, time empties it.
struct Pace {
    level: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    /// When the next frame may go.
    fn next(&mut self, now: Instant) -> Instant {
        self.drain(now);
        let over = (self.level + 1.0 - BURST).max(0.0);
        now + Duration::from_secs_f64(over / RATE)
    }

    fn took(&mut self, now: Instant) {
        self.drain(now);
        self.level += 1.0;
    }

    fn drain(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level - passed * RATE).max(0.0);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::GossipFrame;

    fn event(n: usize, length: usize, is_ephemeral: bool) -> Outgoing {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        let json = format!("{{{}}}", " ".repeat(length - 2)).into();
        Outgoing { id: EventId(id), json, is_ephemeral }
    }

    fn announced(frame: &Bytes) -> usize {
        match GossipFrame::decode(frame).unwrap() {
            GossipFrame::Announce(ids) => ids.len() / 32,
            GossipFrame::Event(_) => 0,
        }
    }

    #[test]
    fn events_that_fit_go_whole_and_the_others_as_ids() {
        let batch = vec![event(1, 4_001, false), event(2, 4_000, false), event(3, 9_000, false)];
        let (frames, too_long) = plan(batch);
        assert_eq!(frames.iter().map(announced).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(too_long, 0);
    }

    #[test]
    fn under_load_everything_is_announced_in_few_frames() {
        let (frames, _) = plan((0..250).map(|n| event(n, 300, false)).collect());
        assert_eq!(frames.iter().map(announced).collect::<Vec<_>>(), [100, 100, 50]);
        assert!(frames.iter().all(|frame| frame.len() <= MAX_GOSSIP_BYTES));
    }

    #[test]
    fn ephemeral_events_are_never_announced() {
        let batch = (0..30).map(|n| event(n, if n == 0 { 5_000 } else { 300 }, true)).collect();
        let (frames, too_long) = plan(batch);
        assert_eq!((frames.len(), too_long), (29, 1));
        assert!(frames.iter().all(|frame| announced(frame) == 0));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..(BURST as usize + 500) {
            now = pace.next(now);
            pace.took(now);
        }
        let took = now - start;
        assert!(
            took > Duration::from_millis(950) && took < Duration::from_millis(1_050),
            "{took:?}"
        );
    }
}
