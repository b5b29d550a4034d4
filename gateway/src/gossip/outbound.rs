//! What a topic says: a bounded queue, a rate and a time limit in front of `broadcast`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh_gossip::api::{ApiError, GossipSender};
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

/// Events that wait to go whole for the neighbors that cannot fetch; beyond that the log waits.
const WHOLE_TOO: usize = 4_096;
/// Fetched events that wait to be told to such neighbors; beyond that fetches wait.
pub const RETOLD: usize = 64;

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

/// What goes out as one message.
enum Frame {
    Whole(Outgoing),
    Ids(Bytes),
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
        Self { queue, retold, lineup: Lineup::new(Instant::now()), seal: None, state, metrics }
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
        let metrics = &self.metrics;
        let longest = if self.seal.is_some() { MAX_SEALABLE_BYTES } else { MAX_GOSSIP_BYTES };
        let dropped = |cause| dropped(metrics, cause);
        self.lineup.add(batch, longest, Instant::now(), unix_now(), dropped);
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

/// The frames that wait, in order, and when the next may go. Decides only; whoever asks has the clock
/// and does the sending. `dropped` hears why something was left out.
pub struct Lineup {
    frames: VecDeque<Frame>,
    /// Events whose ids were told already. They go out whole after all other frames, for the
    /// neighbors that cannot fetch.
    whole_too: VecDeque<Outgoing>,
    /// There is such a neighbor.
    deaf: bool,
    /// Where the frame stands that [`Self::next`] gave last.
    line: Line,
    pace: Pace,
}

impl Lineup {
    pub fn new(now: Instant) -> Self {
        let (frames, whole_too) = (VecDeque::new(), VecDeque::new());
        Self { frames, whole_too, deaf: false, line: Line::Frames, pace: Pace::new(now) }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.whole_too.is_empty()
    }

    /// Whether something waits for everybody.
    pub fn has_frames(&self) -> bool {
        !self.frames.is_empty()
    }

    /// From here on, whether a neighbor can fetch nothing. Returns for how many events there is room.
    pub fn turn_to(&mut self, deaf: bool) -> usize {
        self.deaf = deaf;
        if !deaf {
            self.whole_too.clear();
        }
        let room = WHOLE_TOO.saturating_sub(self.whole_too.len());
        if deaf { room.min(QUEUE) } else { QUEUE }
    }

    /// Plans the frames for all events that wait; none is longer than `longest` bytes.
    pub fn add(
        &mut self,
        mut batch: Vec<Outgoing>,
        longest: usize,
        now: Instant,
        unix: u64,
        mut dropped: impl FnMut(&'static str),
    ) {
        batch.retain(|event| event.is_due(now, unix, &mut dropped));
        let plan = plan(batch, longest, self.deaf);
        (0..plan.too_long).for_each(|_| dropped("ephemeral too long"));
        self.frames.extend(plan.frames);
        self.whole_too.extend(plan.whole_too);
    }

    /// Adds events that others announced, for the neighbors that cannot fetch.
    fn retell(&mut self, events: Vec<Outgoing>) {
        if self.deaf {
            self.whole_too.extend(events);
        }
    }

    /// The first frame that may still go out, and when. It stays in its place until [`Self::sent`].
    pub fn next(
        &mut self,
        now: Instant,
        unix: u64,
        mut dropped: impl FnMut(&'static str),
    ) -> Option<(Bytes, Instant)> {
        while let Some(frame) = self.frames.front() {
            self.line = Line::Frames;
            match frame {
                Frame::Ids(bytes) => return Some((bytes.clone(), self.pace.next(now))),
                // Planned frames wait too, for the pace or the next neighbor.
                Frame::Whole(event) if event.is_due(now, unix, &mut dropped) => {
                    return Some((whole(event), self.pace.next(now)));
                }
                Frame::Whole(_) => {}
            }
            self.frames.pop_front();
        }
        while let Some(event) = self.whole_too.front() {
            self.line = Line::WholeToo;
            if event.is_due(now, unix, &mut dropped) {
                return Some((whole(event), self.pace.next(now)));
            }
            self.whole_too.pop_front();
        }
        None
    }

    /// The frame that [`Self::next`] gave went out.
    pub fn sent(&mut self, now: Instant) {
        self.take_out();
        self.pace.took(now);
    }

    /// Takes it out of its line.
    fn take_out(&mut self) {
        match self.line {
            Line::Frames => drop(self.frames.pop_front()),
            Line::WholeToo => drop(self.whole_too.pop_front()),
        }
    }
}

/// In which queue a frame waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Frames,
    WholeToo,
}

fn whole(event: &Outgoing) -> Bytes {
    Bytes::copy_from_slice(event.event.json().as_bytes())
}

/// What becomes of a batch of events.
#[derive(Default)]
struct Plan {
    /// In the order of the events where they go whole; ids come last.
    frames: Vec<Frame>,
    /// Announced events that go whole as well.
    whole_too: Vec<Outgoing>,
    /// How many ephemeral events did not fit.
    too_long: usize,
}

/// Plans the frames for a batch. `longest`: what fits, in bytes. `deaf`: there is a neighbor that can fetch nothing.
fn plan(batch: Vec<Outgoing>, longest: usize, deaf: bool) -> Plan {
    let under_load = batch.len() > QUIET;
    let (mut plan, mut ids) = (Plan::default(), Vec::new());
    for event in batch {
        // An oversize message silently breaks the neighbor that gets it: none may pass here.
        let fits = event.event.json().len() <= longest;
        match (event.is_ephemeral, fits) {
            (true, false) => plan.too_long += 1,
            (true, true) => plan.frames.push(Frame::Whole(event)),
            (false, true) if !under_load => plan.frames.push(Frame::Whole(event)),
            (false, _) => {
                ids.push(event.event.id);
                if deaf && fits {
                    plan.whole_too.push(event);
                }
            }
        }
    }
    let announcements = ids.chunks(MAX_ANNOUNCED).map(frame::announce);
    plan.frames.extend(announcements.map(|frame| Frame::Ids(frame.into())));
    plan
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

    fn state() -> Arc<TopicState> {
        let name = crate::protocol::TopicName::new("t").unwrap();
        Arc::new(TopicState::new(name, Arc::default()))
    }

    fn outbound(queue: mpsc::Receiver<Outgoing>, state: Arc<TopicState>) -> Outbound {
        Outbound::new(queue, mpsc::channel(1).1, state, Arc::default())
    }

    fn announced(frame: &Frame) -> usize {
        let Frame::Ids(bytes) = frame else { return 0 };
        assert!(bytes.len() <= MAX_GOSSIP_BYTES);
        match GossipFrame::decode(bytes).unwrap() {
            GossipFrame::Announce(ids) => ids.len() / 32,
            GossipFrame::Event(_) => 0,
        }
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

    #[test]
    fn events_that_fit_go_whole_and_the_others_as_ids() {
        let batch = vec![event(1, 4_001, false), event(2, 4_000, false), event(3, 9_000, false)];
        let plan = plan(batch, MAX_GOSSIP_BYTES, true);
        assert_eq!(plan.frames.iter().map(announced).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((plan.too_long, plan.whole_too.len()), (0, 0));
    }

    #[test]
    fn under_load_everything_is_announced_in_few_frames() {
        let batch = (0..250).map(|n| event(n, 300, false)).collect();
        let plan = plan(batch, MAX_GOSSIP_BYTES, false);
        assert_eq!(plan.frames.iter().map(announced).collect::<Vec<_>>(), [100, 100, 50]);
        assert!(plan.whole_too.is_empty());
    }

    #[tokio::test]
    async fn who_cannot_fetch_gets_whole_events_after_the_ids() {
        let state = state();
        let peer = |n: u8| iroh::SecretKey::from_bytes(&[n; 32]).public();
        let (queue, receiver) = mpsc::channel(QUEUE);
        let (retell, retold) = mpsc::channel(RETOLD);
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
        outbound.take(false).await;
        assert_eq!(line(&mut outbound), Line::Frames);
        assert_eq!(outbound.lineup.whole_too.len(), 39);
        outbound.lineup.frames.clear();
        // Once all can fetch, nothing more goes out twice.
        state.speaks(peer(1), true);
        load(300);
        retell.try_send(event(2, 300, false)).unwrap();
        outbound.take(false).await;
        assert_eq!((outbound.lineup.frames.len(), outbound.lineup.whole_too.len()), (1, 0));
        // What there is no room for stays in the queue.
        state.speaks(peer(1), false);
        outbound.lineup.frames.clear();
        outbound.lineup.whole_too.extend((0..WHOLE_TOO).map(|n| event(n, 300, false)));
        load(400);
        outbound.take(false).await;
        assert_eq!((outbound.lineup.frames.len(), outbound.lineup.whole_too.len()), (0, WHOLE_TOO));
    }

    #[test]
    fn ephemeral_events_are_never_announced() {
        let batch = (0..30).map(|n| event(n, if n == 0 { 5_000 } else { 300 }, true)).collect();
        let plan = plan(batch, MAX_GOSSIP_BYTES, true);
        assert_eq!((plan.frames.len(), plan.too_long, plan.whole_too.len()), (29, 1, 0));
        assert!(plan.frames.iter().all(|frame| announced(frame) == 0));
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
