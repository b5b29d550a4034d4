//! The events on their way to one relay: in which order, how many at once, and what becomes of them by
//! what the relay answers. Knows neither a connection nor a clock.

use std::{
    collections::{BTreeMap, HashSet, VecDeque, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    answer::{Answer, Refusal},
    water::Water,
};
use crate::{
    pipeline::{DroppedEvent, LogEntry, Passing, Seq, origin::is_from_swarm},
    protocol::{Event, EventId, TopicName},
};

/// Events that are read ahead of the relay's answers.
const MAX_WAITING: usize = 2_048;
/// Their bytes of JSON. The parsed events take about as much again.
const MAX_BYTES: usize = 8 << 20;
/// Events that are sent and not answered, at most.
const MAX_UNDER_WAY: usize = 64;
/// How long an event that came by a topic waits: the relay may bring it meanwhile, because another
/// gateway of the topic sends it there.
const MOMENT: Duration = Duration::from_secs(1);
/// The pauses before an event on which the relay failed is sent again.
const AGAIN: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];
/// How long nothing is sent when the relay wants less: at first, and at most.
const SLOWER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// How long a relay that refuses everything is left alone: at first, and at most.
const PAUSE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(3_600)];
/// How many events are sent at once when such a relay is tried again.
const TRIAL: usize = 4;
/// How long a refusal that is about us is not final: others may show that the relay refuses everything.
const SETTLE: Duration = Duration::from_secs(10);
/// Refusals in a row that make a relay one that refuses everything. One that is about us counts twice.
const PATIENCE: u32 = 20;
/// The same for a relay that accepted something not long ago: it does not refuse everything.
const PATIENCE_WITH_FRIENDS: u32 = 200;
const NOT_LONG_AGO: Duration = Duration::from_secs(3_600);

/// An event on its way.
#[derive(Debug)]
pub struct Letter {
    pub seq: Seq,
    pub event: Arc<Event>,
    pub topic: Option<TopicName>,
    /// As the log names it.
    pub origin: Arc<str>,
    tries: usize,
}

impl Letter {
    /// Of an event that has no place in the log.
    pub fn passing(passing: &Passing) -> Self {
        let event = passing.event.shared().clone();
        let (topic, origin) = (passing.topics.first().cloned(), passing.origin.log_name().into());
        Self { seq: 0, event, topic, origin, tries: 0 }
    }
}

/// What is to be done now.
#[derive(Debug)]
pub enum Next {
    Send(Letter),
    /// Nothing before this time, unless something is answered or read.
    At(Instant),
    Nothing,
}

/// Why nothing is sent at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// The relay wants less.
    Slower { until: Instant },
    /// The relay refuses everything.
    Paused { until: Instant, reason: Arc<str> },
}

impl Rest {
    const fn until(&self) -> Instant {
        match self {
            Self::Slower { until } | Self::Paused { until, .. } => *until,
        }
    }
}

/// What came of the events.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    pub taken: u64,
    pub known: u64,
    pub refused: BTreeMap<&'static str, u64>,
}

/// An event that the relay refused.
struct Refused {
    since: Instant,
    letter: Letter,
    refusal: Refusal,
    dropped: DroppedEvent,
}

/// See the module.
pub struct Outbox {
    url: Arc<str>,
    water: Water,
    /// By when they are due.
    waiting: BTreeMap<(Instant, Seq), Letter>,
    bytes: usize,
    under_way: BTreeMap<Seq, Letter>,
    /// Refused because of us, not yet for good.
    unsettled: Vec<Refused>,
    /// Refused for good, and not yet told to anybody.
    dropped: Vec<DroppedEvent>,
    /// How many may be under way.
    window: usize,
    rest: Option<Rest>,
    /// How often in a row the relay wanted less, and how often it was found to refuse everything.
    slowed: u32,
    paused: u32,
    /// Weight of the refusals in a row.
    row: u32,
    accepted_at: Option<Instant>,
    recent: Recent,
    pub sent: Sent,
}

/// The last ids that were taken.
#[derive(Default)]
struct Recent {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Recent {
    /// Whether it is not among them.
    fn add(&mut self, id: EventId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > MAX_WAITING
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

impl Outbox {
    /// Begins behind a position of the log.
    pub fn new(url: Arc<str>, after: Seq) -> Self {
        Self {
            url,
            water: Water::at(after),
            waiting: BTreeMap::new(),
            bytes: 0,
            under_way: BTreeMap::new(),
            unsettled: Vec::new(),
            dropped: Vec::new(),
            window: MAX_UNDER_WAY,
            rest: None,
            slowed: 0,
            paused: 0,
            row: 0,
            accepted_at: None,
            recent: Recent::default(),
            sent: Sent::default(),
        }
    }

    pub const fn water(&self) -> &Water {
        &self.water
    }

    pub const fn rest(&self) -> Option<&Rest> {
        self.rest.as_ref()
    }

    /// Whether more of the log may be read.
    pub fn has_room(&self) -> bool {
        self.water.len() < MAX_WAITING && self.bytes < MAX_BYTES
    }

    /// Takes an event of the log that is to go.
    pub fn take(&mut self, entry: &LogEntry, now: Instant) {
        let due = if is_from_swarm(&entry.origin) { now + MOMENT } else { now };
        let (event, topic, origin) =
            (entry.event.clone(), entry.topic.clone(), entry.origin.clone());
        // It became part of several topics.
        if !self.recent.add(entry.event.id) {
            return;
        }
        self.water.open(entry.seq, now);
        self.bytes += event.json().len();
        let letter = Letter { seq: entry.seq, event, topic, origin, tries: 0 };
        self.waiting.insert((due, entry.seq), letter);
    }

    /// Everything up to here was read; what is to go was taken.
    pub fn read_to(&mut self, seq: Seq) {
        self.water.read_to(seq);
    }

    /// What to do now. A letter that is sent is under way until something is said of it.
    pub fn next(&mut self, now: Instant) -> Next {
        self.settle(now);
        if let Some(rest) = &self.rest {
            if now < rest.until() {
                return Next::At(rest.until());
            }
            self.rest = None;
        }
        let settling = self.unsettled.first().map(|refused| refused.since + SETTLE);
        let due = self.waiting.first_key_value().map(|((due, _), _)| *due);
        match due {
            Some(due) if due <= now && self.under_way.len() < self.window => {
                let (_, letter) = self.waiting.pop_first().expect("it was just looked at");
                // The copy shares the event.
                let sent = Letter {
                    seq: letter.seq,
                    event: letter.event.clone(),
                    topic: letter.topic.clone(),
                    origin: letter.origin.clone(),
                    tries: letter.tries,
                };
                self.under_way.insert(letter.seq, letter);
                Next::Send(sent)
            }
            Some(due) if due > now => Next::At(settling.map_or(due, |settling| settling.min(due))),
            _ => settling.map_or(Next::Nothing, Next::At),
        }
    }

    /// It need not go: the relay has it, or it is not to leave after all.
    pub fn stays(&mut self, seq: Seq) {
        if let Some(letter) = self.under_way.remove(&seq) {
            self.close(&letter);
        }
    }

    /// It was not sent, because there is no way to; it is the first to go then.
    pub fn not_sent(&mut self, seq: Seq, now: Instant) {
        if let Some(letter) = self.under_way.remove(&seq) {
            self.waiting.insert((now, seq), letter);
        }
    }

    /// It does not go, as is found here, which says nothing of the relay.
    pub fn ruled_out(&mut self, seq: Seq, refusal: Refusal, reason: String, at: (Instant, u64)) {
        let Some(letter) = self.under_way.remove(&seq) else { return };
        let dropped = DroppedEvent { url: self.url.clone(), id: letter.event.id, at: at.1, reason };
        self.give_up(Refused { since: at.0, letter, refusal, dropped });
    }

    /// It may not go at the moment; it is asked again, and in the end dropped for this reason.
    pub fn not_now(&mut self, seq: Seq, reason: &str, at: (Instant, u64)) {
        self.again(seq, Refusal::Error, reason, at);
    }

    /// No answer came in time.
    pub fn unanswered(&mut self, seq: Seq, at: (Instant, u64)) {
        self.again(seq, Refusal::Silent, "no answer", at);
    }

    /// The relay answered. `at` is the time, also in Unix seconds.
    pub fn answered(&mut self, seq: Seq, answer: Answer, message: &str, at: (Instant, u64)) {
        match answer {
            Answer::Taken | Answer::Known => {
                let Some(letter) = self.under_way.remove(&seq) else { return };
                self.close(&letter);
                match answer {
                    Answer::Taken => self.sent.taken += 1,
                    _ => self.sent.known += 1,
                }
                self.accepted(at.0);
            }
            Answer::Slower => self.slower(seq, at.0),
            Answer::Again => self.again(seq, Refusal::Error, message, at),
            Answer::Refused(refusal) => self.refused(seq, refusal, message, at),
        }
    }

    /// The connection has ended: what is under way goes by the next one.
    pub fn disconnected(&mut self, now: Instant) {
        for (seq, letter) in std::mem::take(&mut self.under_way) {
            self.waiting.insert((now, seq), letter);
        }
    }

    /// What was dropped since this was last asked.
    pub fn dropped(&mut self) -> Vec<DroppedEvent> {
        std::mem::take(&mut self.dropped)
    }

    fn close(&mut self, letter: &Letter) {
        self.water.close(letter.seq);
        self.bytes = self.bytes.saturating_sub(letter.event.json().len());
    }

    /// The relay takes events: what it refused, it refused for good.
    fn accepted(&mut self, now: Instant) {
        (self.row, self.paused, self.slowed) = (0, 0, 0);
        self.accepted_at = Some(now);
        self.window = (self.window + 1).min(MAX_UNDER_WAY);
        for refused in std::mem::take(&mut self.unsettled) {
            self.give_up(refused);
        }
    }

    fn slower(&mut self, seq: Seq, now: Instant) {
        // Several answers of one moment say the same.
        if self.rest.is_none() {
            let wait = backoff(SLOWER, self.slowed);
            self.slowed += 1;
            // What is under way is too much, whatever would be allowed.
            self.window = (self.window.min(self.under_way.len()) / 2).max(1);
            self.rest = Some(Rest::Slower { until: now + wait });
        }
        self.not_sent(seq, now);
    }

    fn again(&mut self, seq: Seq, refusal: Refusal, message: &str, at: (Instant, u64)) {
        let Entry::Occupied(mut letter) = self.under_way.entry(seq) else { return };
        let Some(pause) = AGAIN.get(letter.get().tries) else {
            return self.refused(seq, refusal, message, at);
        };
        letter.get_mut().tries += 1;
        self.waiting.insert((at.0 + *pause, seq), letter.remove());
    }

    fn refused(&mut self, seq: Seq, refusal: Refusal, message: &str, at: (Instant, u64)) {
        let Some(letter) = self.under_way.remove(&seq) else { return };
        let (since, unix) = at;
        let reason = if message.is_empty() { refusal.name() } else { message };
        let dropped = DroppedEvent {
            url: self.url.clone(),
            id: letter.event.id,
            at: unix,
            reason: reason.to_owned(),
        };
        let refused = Refused { since, letter, refusal, dropped };
        if let Some(Rest::Paused { until, .. }) = self.rest {
            // It was sent before the relay was found out, and says nothing new.
            if refusal.is_about_us() && self.paused == 1 {
                self.waiting.insert((until, seq), refused.letter);
            } else {
                self.give_up(refused);
            }
            return;
        }
        // A relay that was left alone and still refuses does so for good.
        if refusal.is_about_us() && self.paused == 0 {
            self.unsettled.push(refused);
        } else {
            self.give_up(refused);
        }
        self.row += if refusal.is_about_us() { 2 } else { 1 };
        let is_friend = self.accepted_at.is_some_and(|at| since.duration_since(at) < NOT_LONG_AGO);
        if self.row >= if is_friend { PATIENCE_WITH_FRIENDS } else { PATIENCE } {
            self.pause(since, reason.into());
        }
    }

    /// Leaves the relay alone. What it refused because of us is kept for then.
    fn pause(&mut self, now: Instant, reason: Arc<str>) {
        let until = now + backoff(PAUSE, self.paused);
        self.paused += 1;
        self.row = 0;
        self.window = TRIAL;
        for Refused { letter, .. } in std::mem::take(&mut self.unsettled) {
            self.waiting.insert((until, letter.seq), letter);
        }
        self.rest = Some(Rest::Paused { until, reason });
    }

    fn settle(&mut self, now: Instant) {
        while self.unsettled.first().is_some_and(|refused| refused.since + SETTLE <= now) {
            let refused = self.unsettled.remove(0);
            self.give_up(refused);
        }
    }

    fn give_up(&mut self, refused: Refused) {
        let Refused { letter, refusal, dropped, .. } = refused;
        self.close(&letter);
        *self.sent.refused.entry(refusal.name()).or_default() += 1;
        self.dropped.push(dropped);
    }
}

/// Twice as long each time, from the first to the second.
fn backoff([first, longest]: [Duration; 2], times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pipeline::Audience, protocol::signing::Author};

    fn entry(seq: Seq, origin: &str) -> LogEntry {
        let event = Arc::new(Author::new(1).sign(seq, 1, &[], "note"));
        let audience = Audience::first(false);
        LogEntry { seq, event, topic: None, first: true, audience, origin: origin.into() }
    }

    /// With events at these positions.
    fn outbox(seqs: std::ops::RangeInclusive<Seq>, now: Instant) -> Outbox {
        let mut outbox = Outbox::new("wss://a".into(), 0);
        for seq in seqs.clone() {
            outbox.take(&entry(seq, "client"), now);
        }
        outbox.read_to(*seqs.end());
        outbox
    }

    fn sent(outbox: &mut Outbox, now: Instant) -> Vec<Seq> {
        let mut seqs = Vec::new();
        while let Next::Send(letter) = outbox.next(now) {
            seqs.push(letter.seq);
        }
        seqs
    }

    fn answer(outbox: &mut Outbox, seq: Seq, text: &str, now: Instant) {
        let answer = super::super::answer::read(text.is_empty(), text);
        outbox.answered(seq, answer, text, (now, 1));
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn so_many_are_under_way_and_the_mark_follows_the_answers() {
        let now = Instant::now();
        let mut outbox = outbox(1..=100, now);
        assert_eq!(sent(&mut outbox, now), (1..=64).collect::<Vec<_>>());
        answer(&mut outbox, 2, "", now);
        answer(&mut outbox, 3, "duplicate: have it", now);
        assert_eq!((outbox.water().mark(), sent(&mut outbox, now)), (0, vec![65, 66]));
        answer(&mut outbox, 1, "", now);
        assert_eq!(outbox.water().mark(), 3);
        assert_eq!((outbox.sent.taken, outbox.sent.known), (2, 1));
        outbox.stays(4);
        assert_eq!(outbox.water().mark(), 4);
    }

    #[test]
    fn what_a_topic_brought_waits_a_moment() {
        let now = Instant::now();
        let mut outbox = Outbox::new("wss://a".into(), 0);
        outbox.take(&entry(1, "topic/x"), now);
        outbox.take(&entry(2, "client"), now);
        outbox.read_to(2);
        assert_eq!(sent(&mut outbox, now), [2]);
        assert!(matches!(outbox.next(now), Next::At(at) if at == now + MOMENT));
        assert_eq!(sent(&mut outbox, now + MOMENT), [1]);
    }

    #[test]
    fn what_was_not_answered_goes_by_the_next_connection() {
        let now = Instant::now();
        let mut outbox = outbox(1..=3, now);
        assert_eq!(sent(&mut outbox, now), [1, 2, 3]);
        answer(&mut outbox, 2, "", now);
        outbox.disconnected(now);
        // An answer of before comes too late to count.
        answer(&mut outbox, 1, "invalid: no", now);
        assert_eq!((outbox.water().mark(), outbox.dropped()), (0, vec![]));
        assert_eq!(sent(&mut outbox, now), [1, 3]);
    }

    #[test]
    fn a_relay_that_wants_less_gets_less() {
        let now = Instant::now();
        let mut outbox = outbox(1..=200, now);
        assert_eq!(sent(&mut outbox, now).len(), 64);
        for seq in 1..=64 {
            answer(&mut outbox, seq, "rate-limited: slow down", now);
        }
        assert_eq!(outbox.rest(), Some(&Rest::Slower { until: now + seconds(1) }));
        assert!(sent(&mut outbox, now).is_empty());
        let later = now + seconds(1);
        assert_eq!(
            sent(&mut outbox, later),
            (1..=32).collect::<Vec<_>>(),
            "the same again, half of it"
        );
        answer(&mut outbox, 1, "rate-limited: slow down", later);
        assert_eq!(outbox.rest(), Some(&Rest::Slower { until: later + seconds(2) }));
        answer(&mut outbox, 2, "", later);
        answer(&mut outbox, 3, "rate-limited: slow down", later + seconds(3));
        assert_eq!(outbox.water().mark(), 0, "nothing was dropped");
        assert!(outbox.sent.refused.is_empty());
    }

    #[test]
    fn failures_are_tried_again_and_then_dropped() {
        let mut now = Instant::now();
        let mut outbox = outbox(1..=1, now);
        for pause in AGAIN {
            assert_eq!(sent(&mut outbox, now), [1]);
            answer(&mut outbox, 1, "error: disk full", now);
            assert!(sent(&mut outbox, now).is_empty());
            now += pause;
        }
        assert_eq!(sent(&mut outbox, now), [1]);
        outbox.unanswered(1, (now, 7));
        assert_eq!(outbox.water().mark(), 1);
        let [dropped] = &outbox.dropped()[..] else { panic!("one") };
        assert_eq!((&*dropped.reason, dropped.at), ("no answer", 7));
        assert_eq!(outbox.sent.refused, BTreeMap::from([("silent", 1)]));
    }

    #[test]
    fn refusals_about_the_event_are_final() {
        let now = Instant::now();
        let mut outbox = outbox(1..=2, now);
        sent(&mut outbox, now);
        answer(&mut outbox, 1, "blocked: spam", now);
        answer(&mut outbox, 2, "no", now);
        assert_eq!(outbox.water().mark(), 2);
        let reasons: Vec<_> = outbox.dropped().into_iter().map(|event| event.reason).collect();
        assert_eq!(reasons, ["blocked: spam", "no"]);
    }

    #[test]
    fn a_relay_that_refuses_us_is_left_alone_and_loses_nothing_the_first_time() {
        let mut now = Instant::now();
        let mut outbox = outbox(1..=30, now);
        let text = "restricted: pay first";
        for seq in sent(&mut outbox, now) {
            answer(&mut outbox, seq, text, now);
        }
        let rest = Rest::Paused { until: now + seconds(30), reason: text.into() };
        assert_eq!(outbox.rest(), Some(&rest));
        assert_eq!((outbox.water().mark(), outbox.dropped().len()), (0, 0));
        now += seconds(30);
        // It was paid.
        let mut again = Vec::new();
        loop {
            let few = sent(&mut outbox, now);
            if few.is_empty() {
                break;
            }
            few.iter().for_each(|seq| answer(&mut outbox, *seq, "", now));
            again.extend(few);
        }
        assert_eq!(again, (1..=30).collect::<Vec<_>>());
        assert_eq!((outbox.water().mark(), outbox.sent.taken), (30, 30));
        assert!(outbox.sent.refused.is_empty());
    }

    #[test]
    fn a_relay_that_goes_on_refusing_is_asked_ever_less_and_events_are_dropped() {
        let mut now = Instant::now();
        let mut outbox = outbox(1..=40, now);
        let mut dropped = 0;
        for (pause, lost) in [(30, 0), (60, 13), (120, 13), (240, 13)] {
            loop {
                let sent = sent(&mut outbox, now);
                if sent.is_empty() {
                    break;
                }
                for seq in sent {
                    answer(&mut outbox, seq, "restricted: no", now);
                }
            }
            let until = now + seconds(pause);
            let paused = outbox.rest().map(|rest| rest.until());
            assert_eq!(paused, Some(until), "{pause}");
            let more = outbox.dropped().len();
            assert!(more <= lost, "{more}");
            dropped += more;
            assert_eq!(outbox.water().mark(), dropped as Seq);
            now = until;
        }
        assert!(dropped >= 30, "it goes on in the end: {dropped}");
    }

    #[test]
    fn a_single_refusal_about_us_is_final_after_a_while_or_when_others_are_taken() {
        let now = Instant::now();
        let mut outbox = outbox(1..=3, now);
        sent(&mut outbox, now);
        answer(&mut outbox, 1, "restricted: old events", now);
        assert_eq!(outbox.water().mark(), 0);
        answer(&mut outbox, 2, "", now);
        assert_eq!((outbox.water().mark(), outbox.dropped().len()), (2, 1));
        answer(&mut outbox, 3, "auth-required: who are you", now);
        assert_eq!(outbox.water().mark(), 2);
        assert!(matches!(outbox.next(now), Next::At(at) if at == now + SETTLE));
        assert!(matches!(outbox.next(now + SETTLE), Next::Nothing));
        assert_eq!((outbox.water().mark(), outbox.dropped().len()), (3, 1));
    }

    #[test]
    fn one_kind_of_event_that_is_refused_does_not_stop_the_others() {
        let now = Instant::now();
        let mut outbox = outbox(1..=100, now);
        for seq in sent(&mut outbox, now) {
            let text = if seq == 1 { "" } else { "blocked: this kind" };
            answer(&mut outbox, seq, text, now);
        }
        assert_eq!(outbox.rest(), None, "it accepted one not long ago");
        assert_eq!(sent(&mut outbox, now).len(), 36);
    }

    #[test]
    fn what_is_ruled_out_here_says_nothing_of_the_relay() {
        let now = Instant::now();
        let mut outbox = outbox(1..=30, now);
        for seq in sent(&mut outbox, now) {
            outbox.ruled_out(seq, Refusal::TooLong, "too long".to_owned(), (now, 1));
        }
        assert_eq!((outbox.water().mark(), outbox.dropped().len(), outbox.rest()), (30, 30, None));
        assert_eq!(outbox.sent.refused, BTreeMap::from([("too-long", 30)]));
    }

    #[test]
    fn an_event_of_several_topics_goes_once() {
        let now = Instant::now();
        let mut outbox = outbox(1..=1, now);
        let again = LogEntry { seq: 2, first: false, ..entry(1, "topic/y") };
        outbox.take(&again, now);
        outbox.read_to(2);
        assert_eq!(sent(&mut outbox, now), [1]);
        answer(&mut outbox, 1, "", now);
        assert_eq!(outbox.water().mark(), 2);
    }

    #[test]
    fn the_log_is_read_ahead_within_bounds() {
        let now = Instant::now();
        let mut outbox = outbox(1..=2_047, now);
        assert!(outbox.has_room());
        outbox.take(&entry(2_048, "client"), now);
        assert!(!outbox.has_room());
        sent(&mut outbox, now);
        answer(&mut outbox, 1, "", now);
        assert!(outbox.has_room());
    }
}
