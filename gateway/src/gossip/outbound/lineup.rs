//! What waits to be said: which events go whole and which as ids, in what order, and how fast.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Outgoing, QUEUE};
use crate::protocol::frame::{self, MAX_ANNOUNCED};

/// With more events than this waiting, the topic is under load: ids go out instead of events.
const QUIET: usize = 16;

/// With more events a second than this for a while it is under load as well, although few wait at a
/// time: an event that goes whole costs every gateway twice the time of one that is announced with others.
const CALM: f64 = 250.0;
/// So many more than that in a row, and it is; until there was a second's worth less.
const LOADED: f64 = 32.0;
/// How long events are collected for an announcement then.
pub(super) const COLLECT: Duration = Duration::from_millis(100);

/// Frames per second, and how many may go out at once before that counts. A tenth of what a swarm
/// of ten carried without loss.
const RATE: f64 = 500.0;
const BURST: f64 = 64.0;

/// Events that wait to go whole for the neighbors that cannot fetch; beyond that the log waits.
pub(super) const WHOLE_TOO: usize = 4_096;

/// What goes out as one message.
pub(super) enum Frame {
    Whole(Outgoing),
    Ids(Bytes),
}

/// The frames that wait, in order, and when the next may go. Decides only; whoever asks has the clock
/// and does the sending. `dropped` hears why something was left out.
pub struct Lineup {
    pub(super) frames: VecDeque<Frame>,
    /// Events whose ids were told already. They go out whole after all other frames, for the
    /// neighbors that cannot fetch.
    pub(super) whole_too: VecDeque<Outgoing>,
    /// There is such a neighbor.
    deaf: bool,
    /// Where the frame stands that [`Self::next`] gave last.
    pub(super) line: Line,
    pace: Pace,
    load: Load,
}

impl Lineup {
    pub fn new(now: Instant) -> Self {
        let (frames, whole_too) = (VecDeque::new(), VecDeque::new());
        let (pace, load) = (Pace::new(now), Load::new(now));
        Self { frames, whole_too, deaf: false, line: Line::Frames, pace, load }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.whole_too.is_empty()
    }

    /// Whether so much comes in that it is worth while to wait for more.
    pub(super) fn is_loaded(&self) -> bool {
        self.load.is_high
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
        self.load.add(batch.len(), now);
        let under_load = batch.len() > QUIET || self.load.is_high;
        let plan = plan(batch, longest, self.deaf, under_load);
        (0..plan.too_long).for_each(|_| dropped("ephemeral too long"));
        self.frames.extend(plan.frames);
        self.whole_too.extend(plan.whole_too);
    }

    /// Adds events that others announced, for the neighbors that cannot fetch.
    pub(super) fn retell(&mut self, events: Vec<Outgoing>) {
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
    pub(super) fn take_out(&mut self) {
        match self.line {
            Line::Frames => drop(self.frames.pop_front()),
            Line::WholeToo => drop(self.whole_too.pop_front()),
        }
    }
}

/// In which queue a frame waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Frames,
    WholeToo,
}

pub(super) fn whole(event: &Outgoing) -> Bytes {
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

/// Plans the frames for a batch. `longest`: what fits, in bytes. `deaf`: there is a neighbor that can
/// fetch nothing.
fn plan(batch: Vec<Outgoing>, longest: usize, deaf: bool, under_load: bool) -> Plan {
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

/// How many events come, as a leaky bucket.
struct Load {
    level: f64,
    at: Instant,
    /// The bucket was as full as [`LOADED`], and has not been empty since.
    is_high: bool,
}

impl Load {
    fn new(now: Instant) -> Self {
        Self { level: 0.0, at: now, is_high: false }
    }

    fn add(&mut self, events: usize, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        let left = self.level - passed * CALM;
        // What passed above the brim is not waited for.
        self.level = (left.max(0.0) + events as f64).min(CALM);
        self.is_high = self.level >= LOADED || (self.is_high && left > 0.0);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::protocol::{
        Event,
        frame::{GossipFrame, MAX_GOSSIP_BYTES},
    };

    /// An event whose JSON has this length.
    pub fn event(n: usize, length: usize, is_ephemeral: bool) -> Outgoing {
        let kind = if is_ephemeral { 20_001 } else { 1 };
        tagged(n, kind, "", length)
    }

    pub fn tagged(n: usize, kind: u16, tags: &str, length: usize) -> Outgoing {
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

    pub fn announced(frame: &Frame) -> usize {
        let Frame::Ids(bytes) = frame else { return 0 };
        assert!(bytes.len() <= MAX_GOSSIP_BYTES);
        match GossipFrame::decode(bytes).unwrap() {
            GossipFrame::Announce(ids) => ids.len() / 32,
            GossipFrame::Event(_) => 0,
        }
    }

    #[test]
    fn events_that_fit_go_whole_and_the_others_as_ids() {
        let batch = vec![event(1, 4_001, false), event(2, 4_000, false), event(3, 9_000, false)];
        let plan = plan(batch, MAX_GOSSIP_BYTES, true, false);
        assert_eq!(plan.frames.iter().map(announced).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((plan.too_long, plan.whole_too.len()), (0, 0));
    }

    #[test]
    fn under_load_everything_is_announced_in_few_frames() {
        let batch = (0..250).map(|n| event(n, 300, false)).collect();
        let plan = plan(batch, MAX_GOSSIP_BYTES, false, true);
        assert_eq!(plan.frames.iter().map(announced).collect::<Vec<_>>(), [100, 100, 50]);
        assert!(plan.whole_too.is_empty());
    }

    #[test]
    fn ephemeral_events_are_never_announced() {
        let batch = (0..30).map(|n| event(n, if n == 0 { 5_000 } else { 300 }, true)).collect();
        let plan = plan(batch, MAX_GOSSIP_BYTES, true, true);
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

    #[test]
    fn many_events_one_by_one_are_a_load_until_they_become_few() {
        let mut lineup = Lineup::new(Instant::now());
        let mut now = Instant::now();
        let mut say = |lineup: &mut Lineup, per_second: f64, seconds: f64| {
            (0..(per_second * seconds) as usize)
                .filter(|n| {
                    now += Duration::from_secs_f64(1.0 / per_second);
                    lineup.frames.clear();
                    lineup.add(vec![event(*n, 300, false)], MAX_GOSSIP_BYTES, now, 0, |_| ());
                    matches!(lineup.frames[0], Frame::Ids(_))
                })
                .count()
        };
        assert_eq!(say(&mut lineup, 200.0, 10.0), 0);
        let announced = say(&mut lineup, 400.0, 10.0);
        assert!(announced > 3_800, "{announced}");
        assert!(lineup.is_loaded());
        let announced = say(&mut lineup, 200.0, 10.0);
        assert!(announced < 1_100 && !lineup.is_loaded(), "{announced}");
    }
}
