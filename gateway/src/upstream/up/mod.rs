//! Upwards: what is stored goes to one relay of a stream, from a durable position of the log, so that what
//! was written while the relay was away is delivered later.

mod answer;
mod choice;
mod outbox;
mod water;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::Serialize;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::History,
    gate::Gate,
    link::{Ack, Link, LinkError},
};
use crate::{
    clock::unix_now,
    metrics::{Metrics, StreamOutcomeLabels},
    pipeline::{
        DroppedEvent, EventReader, Passing, Seq, Stays, StoreError, StreamRelay, UpCursor,
        UpstreamStore, streams::MAX_DROPPED,
    },
    protocol::{Event, EventId, Prefix, Reason, work},
};
use answer::Refusal;
pub use choice::Choice;
use outbox::{Letter, Next, Outbox, Rest};

/// Log entries read at a time.
const PAGE: usize = 500;
/// How often the position is written down. What was answered since is sent again after a crash, and the
/// relay knows it.
const SAVE: Duration = Duration::from_secs(5);
/// How often something that failed here is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Ephemeral events on their way at once; of more, those that come are dropped.
const MAX_PASSING: usize = 64;
/// What stands around an event in a message.
const FRAME: usize = "[\"EVENT\",]".len();

/// What it takes to send to a relay.
pub struct StartUp {
    pub choice: Choice,
    pub history: History,
    /// The head of the log, and Unix seconds, when the stream began: what is stored later goes, although a
    /// relay's first position may take a moment to be kept.
    pub began: (Seq, u64),
    /// Events a second; 0 is no bound.
    pub per_second: u32,
    /// The connection of now.
    pub links: watch::Receiver<Option<Link>>,
    /// Whether the relay itself has sent this event not long ago.
    pub seen: Box<dyn Fn(&EventId) -> bool + Send + Sync>,
    pub reader: Arc<dyn EventReader>,
    pub store: Arc<dyn UpstreamStore>,
    pub gate: Arc<Gate>,
    pub passing: broadcast::Receiver<Passing>,
    pub metrics: Arc<Metrics>,
}

/// How sending to a relay goes.
#[derive(Debug, Clone, Serialize)]
pub struct UpStatus {
    /// `away` (no connection), `idle` (all is answered), `sending`, `slower` (the relay wants less) or
    /// `paused` (it refuses everything).
    pub state: &'static str,
    pub reason: Option<Arc<str>>,
    /// Events that the relay took, and that it knew.
    pub sent: u64,
    pub known: u64,
    pub refused: BTreeMap<&'static str, u64>,
    /// Steps of the log that are not done.
    pub waiting: u64,
    /// How long the oldest of them has waited, in seconds.
    pub lag_s: u64,
    /// The position of the log up to which all is done.
    pub cursor: Seq,
}

impl Default for UpStatus {
    fn default() -> Self {
        Self {
            state: "away",
            reason: None,
            sent: 0,
            known: 0,
            refused: BTreeMap::new(),
            waiting: 0,
            lag_s: 0,
            cursor: 0,
        }
    }
}

/// Sends to one relay of one stream.
struct Up {
    start: StartUp,
    head: watch::Receiver<Seq>,
    passing_ended: bool,
    outbox: Outbox,
    /// As it is on disk.
    cursor: UpCursor,
    /// What was dropped and is not on disk yet; the last of it.
    dropped: Vec<DroppedEvent>,
    /// When the next event may be sent, if there is a bound.
    pace: Instant,
    told: UpStatus,
}

/// What came of an event that was to go.
enum Done {
    Acked(Ack),
    Failed(LinkError),
    Stays(Stays),
    RuledOut(Refusal, String),
}

type Sending = BoxFuture<'static, (Seq, Done)>;

/// Every outcome in the metrics.
pub fn outcomes() -> Vec<&'static str> {
    ["taken", "known"].into_iter().chain(Refusal::NAMES).collect()
}

/// The status of an [`Up`], for others to read.
pub type SharedUpStatus = Arc<Mutex<UpStatus>>;

impl StartUp {
    /// Sends until the token is cancelled. What was not answered by then is sent again the next time.
    pub async fn run(self, status: SharedUpStatus, token: CancellationToken) {
        let cursor = tokio::select! {
            cursor = self.begin() => cursor,
            () = token.cancelled() => return,
        };
        let outbox = Outbox::new(self.choice.url.clone(), cursor.seq);
        let mut up = Up {
            // This very receiver is waited on later: a commit in between must wake us.
            head: self.reader.head(),
            passing_ended: false,
            outbox,
            cursor,
            dropped: Vec::new(),
            pace: Instant::now(),
            told: UpStatus::default(),
            start: self,
        };
        up.go(&status, &token).await;
        up.save().await;
    }

    fn relay(&self) -> StreamRelay {
        StreamRelay { stream: self.choice.stream.clone(), url: self.choice.url.clone() }
    }

    /// The position to go on from. With a relay that the stream has not met, the one that its history
    /// says, which is kept at once: what is stored from now on is to go whatever happens.
    async fn begin(&self) -> UpCursor {
        loop {
            match self.try_begin().await {
                Ok(cursor) => return cursor,
                Err(error) => {
                    let stream = &*self.choice.stream;
                    tracing::warn!(stream, %error, "cannot read how far the relay was sent to");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn try_begin(&self) -> Result<UpCursor, StoreError> {
        if let Some(cursor) = self.store.up(self.relay()).await? {
            return Ok(cursor);
        }
        let (began, at) = self.began;
        let since = self.history.since(at);
        let seq = if self.history == History::None { began } else { 0 };
        let cursor = UpCursor { seq, began, since };
        self.store.up_reached(self.relay(), cursor, Vec::new()).await?;
        Ok(cursor)
    }
}

impl Up {
    async fn go(&mut self, status: &Mutex<UpStatus>, token: &CancellationToken) {
        let mut sending: FuturesUnordered<Sending> = FuturesUnordered::new();
        let mut passing: FuturesUnordered<Sending> = FuturesUnordered::new();
        let mut link: Option<Link> = None;
        let mut links = self.start.links.clone();
        links.mark_changed();
        let mut save_at = Instant::now() + SAVE;
        loop {
            let failed = self.read().await.is_err();
            let wake = match self.send(link.as_ref()) {
                Step::Until(at) => at,
                Step::More(letter) => {
                    let link = link.clone().expect("without one there is no letter");
                    sending.push(self.deliver(link, letter));
                    continue;
                }
            };
            self.tell(link.is_some(), status);
            let is_dirty = self.outbox.water().mark() != self.cursor.seq;
            let read_on = !failed && self.outbox.has_room();
            tokio::select! {
                () = token.cancelled() => return,
                changed = self.head.changed(), if read_on => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = links.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    link = links.borrow_and_update().clone();
                    sending.clear();
                    passing.clear();
                    self.outbox.disconnected(Instant::now());
                }
                Some((seq, done)) = sending.next() => self.done(seq, done),
                Some(_) = passing.next() => {}
                event = self.start.passing.recv(), if !self.passing_ended => match event {
                    Ok(event) => {
                        if let Some(link) = link.as_ref().filter(|_| passing.len() < MAX_PASSING)
                            && let Some(letter) = self.wanted(&event)
                        {
                            passing.push(self.deliver(link.clone(), letter));
                        }
                    }
                    // Best effort: those that were missed are gone.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => self.passing_ended = true,
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                () = sleep(AGAIN), if failed => {}
                () = sleep_until(save_at), if is_dirty => {
                    save_at = Instant::now() + SAVE;
                    self.save().await;
                }
            }
        }
    }

    /// Reads the log on while there is room.
    async fn read(&mut self) -> Result<(), StoreError> {
        loop {
            let head = *self.head.borrow_and_update();
            let after = self.outbox.water().read();
            if after >= head || !self.outbox.has_room() {
                return Ok(());
            }
            let entries = self.start.reader.log_after(after, PAGE).await.inspect_err(|error| {
                tracing::warn!(%error, "cannot read the log");
            })?;
            let (now, unix) = (Instant::now(), unix_now());
            for entry in &entries {
                if self.start.choice.wants(entry, &self.cursor, unix) {
                    self.outbox.take(entry, now);
                }
            }
            // An empty answer means that all events up to the head are gone again.
            self.outbox.read_to(entries.last().map_or(head, |entry| entry.seq));
        }
    }

    /// The next event to send, or until when to wait.
    fn send(&mut self, link: Option<&Link>) -> Step {
        let now = Instant::now();
        if link.is_none() {
            return Step::Until(None);
        }
        loop {
            if now < self.pace {
                return Step::Until((self.outbox.water().len() > 0).then_some(self.pace));
            }
            match self.outbox.next(now) {
                Next::Send(letter) if (self.start.seen)(&letter.event.id) => {
                    self.outbox.stays(letter.seq);
                }
                Next::Send(letter) => {
                    let per_second = self.start.per_second;
                    if per_second > 0 {
                        // A second's worth may be made up for.
                        let earliest = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
                        self.pace = self.pace.max(earliest) + Duration::from_secs(1) / per_second;
                    }
                    return Step::More(letter);
                }
                Next::At(at) => return Step::Until(Some(at)),
                Next::Nothing => return Step::Until(None),
            }
        }
    }

    /// Asks whoever is to be asked here, and then the relay.
    fn deliver(&self, link: Link, letter: Letter) -> Sending {
        let (gate, stream) = (self.start.gate.clone(), self.start.choice.stream.clone());
        Box::pin(async move {
            let Letter { seq, event, topic, origin, .. } = letter;
            if let Some((refusal, reason)) = ruled_out(&link, &event) {
                return (seq, Done::RuledOut(refusal, reason));
            }
            let topics = topic.into_iter().collect();
            if let Err(stays) = gate.ask(&event, &stream, topics, &origin).await {
                return (seq, Done::Stays(stays));
            }
            let done = match link.publish(&event).await {
                Ok(ack) => Done::Acked(ack),
                Err(error) => Done::Failed(error),
            };
            (seq, done)
        })
    }

    /// An ephemeral event that is to go now or never. It has no place in the log.
    fn wanted(&self, passing: &Passing) -> Option<Letter> {
        let is_resting = self.outbox.rest().is_some();
        let wanted = !is_resting
            && self.start.choice.wants_passing(passing, unix_now())
            && !(self.start.seen)(&passing.event.id);
        wanted.then(|| Letter::passing(passing))
    }

    fn done(&mut self, seq: Seq, done: Done) {
        let at = (Instant::now(), unix_now());
        match done {
            Done::Acked(ack) => {
                let answer = answer::read(ack.accepted, &ack.message);
                let was_paused = matches!(self.outbox.rest(), Some(Rest::Paused { .. }));
                self.outbox.answered(seq, answer, &ack.message, at);
                if let Some(Rest::Paused { until, reason }) = self.outbox.rest()
                    && !was_paused
                {
                    let (stream, url) = (&*self.start.choice.stream, &*self.start.choice.url);
                    let pause_s = until.duration_since(at.0).as_secs();
                    tracing::warn!(
                        stream, url, %reason, pause_s,
                        "the relay refuses everything; sending it nothing for a while"
                    );
                }
            }
            Done::RuledOut(refusal, reason) => self.outbox.ruled_out(seq, refusal, reason, at),
            Done::Stays(Stays::Silently) => self.outbox.stays(seq),
            // A plugin that failed or is not there may be back soon.
            Done::Stays(Stays::Because(reason)) if reason.prefix == Prefix::Error => {
                self.outbox.not_now(seq, &reason.to_string(), at);
            }
            Done::Stays(Stays::Because(reason)) => {
                self.outbox.ruled_out(seq, Refusal::Plugin, reason.to_string(), at);
            }
            Done::Failed(LinkError::Slow { .. }) => self.outbox.unanswered(seq, at),
            // The connection has ended: there is another one soon, and the event is the first to go then.
            Done::Failed(_) => self.outbox.not_sent(seq, at.0 + AGAIN),
        }
    }

    /// Writes down how far it has come, and what was dropped.
    async fn save(&mut self) {
        let cursor = UpCursor { seq: self.outbox.water().mark(), ..self.cursor };
        self.dropped.extend(self.outbox.dropped());
        let too_many = self.dropped.len().saturating_sub(MAX_DROPPED);
        self.dropped.drain(..too_many);
        if cursor == self.cursor && self.dropped.is_empty() {
            return;
        }
        let dropped = self.dropped.clone();
        match self.start.store.up_reached(self.start.relay(), cursor, dropped).await {
            Ok(()) => {
                self.cursor = cursor;
                self.dropped.clear();
            }
            Err(error) => {
                let url = &*self.start.choice.url;
                tracing::warn!(url, %error, "cannot keep how far the relay was sent to");
            }
        }
    }

    /// Brings the status and the metrics up to date.
    fn tell(&mut self, is_connected: bool, status: &Mutex<UpStatus>) {
        let (water, sent) = (self.outbox.water(), &self.outbox.sent);
        let unread = self.head.borrow().saturating_sub(water.read());
        let (state, reason) = match self.outbox.rest() {
            _ if !is_connected => ("away", None),
            Some(Rest::Slower { .. }) => ("slower", None),
            Some(Rest::Paused { reason, .. }) => ("paused", Some(reason.clone())),
            None if water.len() == 0 && unread == 0 => ("idle", None),
            None => ("sending", None),
        };
        let now = UpStatus {
            state,
            reason,
            sent: sent.taken,
            known: sent.known,
            refused: sent.refused.clone(),
            waiting: water.len() as u64 + unread,
            lag_s: water.oldest().map_or(0, |since| since.elapsed().as_secs()),
            cursor: water.mark(),
        };
        let before = std::mem::replace(&mut self.told, now.clone());
        let count = |outcome, new: u64, old: u64| {
            if new > old {
                let stream = self.start.choice.stream.to_string();
                let labels = StreamOutcomeLabels { stream, outcome };
                self.start.metrics.upstream_sent.get_or_create(&labels).inc_by(new - old);
            }
        };
        count("taken", now.sent, before.sent);
        count("known", now.known, before.known);
        for (reason, times) in &now.refused {
            count(reason, *times, before.refused.get(reason).copied().unwrap_or_default());
        }
        *status.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// What to do next.
enum Step {
    More(Letter),
    /// Nothing before this time, or before something happens.
    Until(Option<Instant>),
}

/// Why the relay would not take it, by what it says of itself.
fn ruled_out(link: &Link, event: &Event) -> Option<(Refusal, String)> {
    let limits = link.limits();
    if let Some(reason) = work::refusal(event, limits.min_pow) {
        return Some((Refusal::Pow, reason.to_string()));
    }
    let bytes = event.json().len() + FRAME;
    let max = limits.max_message_length.filter(|max| bytes > *max)?;
    let text = format!("{bytes} bytes, and the relay takes messages of {max}");
    Some((Refusal::TooLong, Reason::invalid(text).to_string()))
}
