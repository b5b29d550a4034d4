//! Events on their way from one relay through the pipeline.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use super::seen::Seen;
use crate::{
    metrics::Metrics,
    pipeline::{Candidate, Ingest, Origin, Outcome, Target},
    protocol::{Event, Prefix, TopicName},
};

/// Events of one flow under way at once.
const UNDER_WAY: usize = 512;
/// Text of events of all streams under way at once, in KiB. Parsed they take about twice as much.
const KIB_UNDER_WAY: usize = 16 * 1_024;

/// Relays with whom what is held is compared at once, over all streams. Their ids are in memory then.
const COMPARING: usize = 4;

/// The way from all streams into the pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    ingest: Ingest,
    /// In KiB.
    room: Arc<Semaphore>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) comparing: Arc<Semaphore>,
    /// Half of the cores may sort and compare ids.
    pub(super) turns: Arc<Semaphore>,
}

impl Intake {
    pub fn new(ingest: Ingest, metrics: Arc<Metrics>) -> Self {
        let turns = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Self {
            ingest,
            room: Arc::new(Semaphore::new(KIB_UNDER_WAY)),
            metrics,
            comparing: Arc::new(Semaphore::new(COMPARING)),
            turns: Arc::new(Semaphore::new(turns)),
        }
    }
}

/// What became of the events of one relay.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub received: AtomicU64,
    pub new: AtomicU64,
    pub known: AtomicU64,
    /// By the reason's prefix.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    /// Forged, malformed, or beyond the limits of an event, since the last that was not.
    invalid_in_a_row: AtomicU64,
}

impl Taken {
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing but invalid events come.
    pub fn is_junk(&self) -> bool {
        self.invalid_in_a_row.load(Ordering::Relaxed) > MOST_INVALID
    }

    /// With another connection it begins anew.
    pub fn forgive(&self) {
        self.invalid_in_a_row.store(0, Ordering::Relaxed);
    }

    fn count(&self, outcome: &Outcome) {
        let reason = match outcome {
            Outcome::Stored(_) | Outcome::Passed => {
                self.new.fetch_add(1, Ordering::Relaxed);
                None
            }
            Outcome::Joined(_) | Outcome::Duplicate => {
                self.known.fetch_add(1, Ordering::Relaxed);
                None
            }
            Outcome::Shadowed => Some("shadowed"),
            Outcome::Refused(reason) => Some(reason.prefix.as_str()),
        };
        if let Some(reason) = reason {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused.entry(reason).or_default() += 1;
        }
        match reason == Some(Prefix::Invalid.as_str()) {
            true => drop(self.invalid_in_a_row.fetch_add(1, Ordering::Relaxed)),
            false => self.forgive(),
        }
    }
}

/// A relay that sends so many invalid events in a row, and nothing else, is left alone.
const MOST_INVALID: u64 = 1_000;

/// Where the events of a relay come from and go to.
pub(super) struct Source {
    pub intake: Intake,
    pub stream: Arc<str>,
    pub url: Arc<str>,
    pub topics: Vec<TopicName>,
    pub seen: Seen,
    pub taken: Taken,
}

/// How an event ended, for whoever keeps a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// Committed, or refused for good.
    Done,
    /// Neither: a plugin is broken, the store fails. It has to come again.
    Failed,
}

/// Events of one request under way, each with a mark of whoever sent it in.
pub(super) struct Flow<'s> {
    source: &'s Source,
    under_way: FuturesUnordered<BoxFuture<'s, (u64, Settled)>>,
    /// What has ended and was not asked for yet.
    settled: Vec<(u64, Settled)>,
    pace: Pace,
}

impl<'s> Flow<'s> {
    pub fn new(source: &'s Source, pace: Pace) -> Self {
        Self { source, under_way: FuturesUnordered::new(), settled: Vec::new(), pace }
    }

    pub fn set_pace(&mut self, events_per_s: u32) {
        self.pace.set(events_per_s);
    }

    /// Sends an event in; waits while too many are under way.
    pub async fn send(&mut self, event: Event, mark: u64) {
        let source = self.source;
        source.taken.received.fetch_add(1, Ordering::Relaxed);
        source.intake.metrics.upstream_events.inc();
        source.seen.insert(&event.id);
        let due = self.pace.next();
        if let Some(due) = due {
            self.meanwhile(sleep_until(due)).await;
        }
        while self.under_way.len() >= UNDER_WAY {
            self.settle_one().await;
        }
        let kib = (event.json().len() / 1_024 + 1).min(KIB_UNDER_WAY);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let room = source.intake.room.clone();
        let permit = match room.clone().try_acquire_many_owned(kib) {
            Ok(permit) => Some(permit),
            Err(_) => self.meanwhile(room.acquire_many_owned(kib)).await.ok(),
        };
        self.under_way.push(Box::pin(async move {
            let _permit = permit;
            (mark, source.submit(event).await)
        }));
        // It begins when it is polled first.
        if let Some(Some(settled)) = self.under_way.next().now_or_never() {
            self.settled.push(settled);
        }
    }

    /// Waits for something, while events go on.
    pub async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                biased;
                value = &mut other => return value,
                Some(settled) = self.under_way.next() => self.settled.push(settled),
            }
        }
    }

    async fn settle_one(&mut self) {
        if let Some(settled) = self.under_way.next().await {
            self.settled.push(settled);
        }
    }

    /// Waits until nothing is under way.
    pub async fn drain(&mut self) {
        while !self.under_way.is_empty() {
            self.settle_one().await;
        }
    }

    /// What has ended since this was last asked.
    pub fn take_settled(&mut self) -> Vec<(u64, Settled)> {
        std::mem::take(&mut self.settled)
    }
}

impl Source {
    async fn submit(&self, event: Event) -> Settled {
        let origin = Origin::Upstream { stream: self.stream.clone(), url: self.url.clone() };
        let target = Target::Topics(self.topics.clone());
        let outcome = self.intake.ingest.submit(Candidate { event, origin, target }).await;
        self.taken.count(&outcome);
        match outcome {
            Outcome::Refused(reason) => {
                tracing::debug!(stream = &*self.stream, url = &*self.url, %reason, "refused");
                match reason.prefix {
                    Prefix::Error => Settled::Failed,
                    _ => Settled::Done,
                }
            }
            _ => Settled::Done,
        }
    }
}

/// At most so many events a second, with a second's worth at once.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    events_per_s: u32,
    /// When the next event is due if all came at the pace.
    next: Instant,
}

impl Pace {
    /// 0 is no bound.
    pub fn new(events_per_s: u32) -> Self {
        Self { events_per_s, next: Instant::now() }
    }

    fn set(&mut self, events_per_s: u32) {
        self.events_per_s = events_per_s;
    }

    /// When the event may go; `None`: at once.
    fn next(&mut self) -> Option<Instant> {
        if self.events_per_s == 0 {
            return None;
        }
        let now = Instant::now();
        let burst = Duration::from_secs(1);
        let earliest = now.checked_sub(burst).unwrap_or(now);
        self.next = self.next.max(earliest) + burst / self.events_per_s;
        (self.next > now).then_some(self.next)
    }
}
