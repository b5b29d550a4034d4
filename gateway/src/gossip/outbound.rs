//! What a topic says: a bounded queue, a rate and a time limit in front of `broadcast`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh_gossip::api::GossipSender;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::state::TopicState;
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics, TopicLabels},
    protocol::{
        Event,
        frame::{self, MAX_ANNOUNCED, MAX_GOSSIP_BYTES},
        kinds,
        private::seal::{MAX_SEALABLE_BYTES, Sealer},
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
}

/// What goes out as one message.
enum Frame {
    Whole(Outgoing),
    Ids(Bytes),
}

/// Gossip took no message in time, or closed the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wedged;

/// The sending side of one topic. Outlives a subscription: what could not be sent goes out by the
/// next one.
pub struct Outbound {
    queue: mpsc::Receiver<Outgoing>,
    frames: VecDeque<Frame>,
    pace: Pace,
    /// In a private topic: that of the epoch to publish in.
    seal: Option<Sealer>,
    state: Arc<TopicState>,
    metrics: Arc<Metrics>,
}

impl Outbound {
    pub fn new(
        queue: mpsc::Receiver<Outgoing>,
        state: Arc<TopicState>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let pace = Pace::new(Instant::now());
        Self { queue, frames: VecDeque::new(), pace, seal: None, state, metrics }
    }

    /// From here on seals what goes out, and sends when there are neighbors in the swarm of this
    /// epoch. What waits goes out there.
    pub fn turn_to(&mut self, state: Arc<TopicState>, seal: Sealer) {
        self.state = state;
        self.seal = Some(seal);
    }

    /// Sends until gossip fails. Can be dropped at any point without losing a frame.
    pub async fn run(&mut self, sender: &GossipSender) -> Wedged {
        let labels = TopicLabels { topic: self.state.name().to_string() };
        let mut neighbors = self.state.count();
        loop {
            // With nobody there a broadcast is lost. The log keeps the events for the first to come.
            let _ = neighbors.wait_for(|count| *count > 0).await;
            if self.frames.is_empty() {
                self.take().await;
                // Meanwhile the neighbors may have gone.
                continue;
            }
            let Some(bytes) = self.next_sealed() else { continue };
            tokio::time::sleep_until(self.pace.next(Instant::now())).await;
            match timeout(BROADCAST, sender.broadcast(bytes)).await {
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
    async fn take(&mut self) {
        let Some(first) = self.queue.recv().await else { return std::future::pending().await };
        let mut batch = vec![first];
        while batch.len() < QUEUE
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        let (now, unix) = (Instant::now(), unix_now());
        batch.retain(|event| self.is_due(event, now, unix));
        let longest = if self.seal.is_some() { MAX_SEALABLE_BYTES } else { MAX_GOSSIP_BYTES };
        let (frames, too_long) = plan(batch, longest);
        for _ in 0..too_long {
            self.dropped("ephemeral too long");
        }
        self.frames.extend(frames);
    }

    /// [`Self::next`], sealed where the topic is private.
    fn next_sealed(&mut self) -> Option<Bytes> {
        let bytes = self.next()?;
        let Some(seal) = &self.seal else { return Some(bytes) };
        match seal.seal(&bytes) {
            Ok(sealed) => Some(sealed.into()),
            Err(_) => {
                // It was planned with room for the seal.
                self.dropped("too long to seal");
                self.frames.pop_front();
                None
            }
        }
    }

    /// The first frame that may still go out. It stays in its place until it was sent.
    fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.frames.front()? {
                Frame::Ids(bytes) => return Some(bytes.clone()),
                // Planned frames wait too, for the pace or the next neighbor.
                Frame::Whole(event) if self.is_due(event, Instant::now(), unix_now()) => {
                    return Some(Bytes::copy_from_slice(event.event.json().as_bytes()));
                }
                Frame::Whole(_) => {}
            }
            self.frames.pop_front();
        }
    }

    fn is_due(&self, event: &Outgoing, now: Instant, unix: u64) -> bool {
        let cause = event.too_late(now, unix);
        cause.into_iter().for_each(|cause| self.dropped(cause));
        cause.is_none()
    }

    fn dropped(&self, cause: &'static str) {
        self.metrics.frames_dropped.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// The frames for a batch of events, in their order where they go whole; ids come last. Also how
/// many ephemeral events did not fit.
fn plan(batch: Vec<Outgoing>, longest: usize) -> (Vec<Frame>, usize) {
    let under_load = batch.len() > QUIET;
    let (mut frames, mut ids, mut too_long) = (Vec::new(), Vec::new(), 0);
    for event in batch {
        // An oversize message silently breaks the neighbor that gets it: none may pass here.
        let fits = event.event.json().len() <= longest;
        match (event.is_ephemeral, fits) {
            (true, false) => too_long += 1,
            (true, true) => frames.push(Frame::Whole(event)),
            (false, true) if !under_load => frames.push(Frame::Whole(event)),
            (false, _) => ids.push(event.event.id),
        }
    }
    let announcements = ids.chunks(MAX_ANNOUNCED).map(frame::announce);
    frames.extend(announcements.map(|frame| Frame::Ids(frame.into())));
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

    /// An event whose JSON has this length.
    fn event(n: usize, length: usize, is_ephemeral: bool) -> Outgoing {
        let kind = if is_ephemeral { 20_001 } else { 1 };
        tagged(n, kind, "", length)
    }

    fn tagged(n: usize, kind: u16, tags: &str, length: usize) -> Outgoing {
        let json = |content: usize| {
            format!(
                r#"{{"id":"{n:064x}","pubkey":"{0:064x}","created_at":1,"kind":{kind},"tags":[{tags}],"content":"{1}","sig":"{0:0128x}"}}"#,
                1,
                "x".repeat(content)
            )
        };
        let event = Event::parse(&json(length.saturating_sub(json(0).len()))).unwrap();
        let is_ephemeral = (20_000..30_000).contains(&kind);
        Outgoing { event: event.into(), is_ephemeral, since: Instant::now() }
    }

    fn announced(frame: &Frame) -> usize {
        let Frame::Ids(bytes) = frame else { return 0 };
        assert!(bytes.len() <= MAX_GOSSIP_BYTES);
        match GossipFrame::decode(bytes).unwrap() {
            GossipFrame::Announce(ids) => ids.len() / 32,
            GossipFrame::Event(_) => 0,
        }
    }

    #[tokio::test]
    async fn what_waited_too_long_does_not_go_out() {
        let name = crate::protocol::TopicName::new("t").unwrap();
        let state = Arc::new(TopicState::new(name, Arc::default()));
        let (queue, receiver) = mpsc::channel(8);
        let mut outbound = Outbound::new(receiver, state, Arc::default());
        let mut old = event(1, 500, true);
        let Some(before) = Instant::now().checked_sub(EPHEMERAL + EPHEMERAL) else { return };
        old.since = before;
        let mut stored = event(2, 500, false);
        stored.since = before;
        let expired = tagged(3, 1, r#"["expiration","2"]"#, 500);
        for event in [old, stored.clone(), expired, event(4, 500, true)] {
            queue.try_send(event).unwrap();
        }
        outbound.take().await;
        assert_eq!(outbound.frames.len(), 2);
        assert_eq!(outbound.next().unwrap(), stored.event.json().as_bytes());
        assert_eq!(outbound.next().unwrap(), stored.event.json().as_bytes(), "until it was sent");
        outbound.frames.pop_front();
        // A planned frame grows old as well.
        let Some(Frame::Whole(ephemeral)) = outbound.frames.front_mut() else { panic!("whole") };
        ephemeral.since = before;
        assert_eq!(outbound.next(), None);
    }

    #[test]
    fn events_that_fit_go_whole_and_the_others_as_ids() {
        let batch = vec![event(1, 4_001, false), event(2, 4_000, false), event(3, 9_000, false)];
        let (frames, too_long) = plan(batch, MAX_GOSSIP_BYTES);
        assert_eq!(frames.iter().map(announced).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(too_long, 0);
    }

    #[test]
    fn under_load_everything_is_announced_in_few_frames() {
        let batch = (0..250).map(|n| event(n, 300, false)).collect();
        let (frames, _) = plan(batch, MAX_GOSSIP_BYTES);
        assert_eq!(frames.iter().map(announced).collect::<Vec<_>>(), [100, 100, 50]);
    }

    #[test]
    fn ephemeral_events_are_never_announced() {
        let batch = (0..30).map(|n| event(n, if n == 0 { 5_000 } else { 300 }, true)).collect();
        let (frames, too_long) = plan(batch, MAX_GOSSIP_BYTES);
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
