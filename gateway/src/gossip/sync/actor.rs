//! When a topic is compared, and with whom.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::EndpointId;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    desk::{Call, Desk},
    lead::Report,
    library::{Failure, Library},
};
use crate::gossip::state::Work;

/// Comparisons of one topic that we lead at once: a neighbor that is slow does not hold up the others.
const AT_ONCE: usize = 5;
/// Two that meet: the one with the lower endpoint id leads at once, the other after this time, if
/// nothing came of it.
const SECOND: Duration = Duration::from_secs(3);
/// After a hint, at random up to this: others hear it as well.
const AFTER_HINT: Duration = Duration::from_millis(200);
/// From one comparison with a peer to the next, at least.
const APART: Duration = Duration::from_secs(1);
/// From one hint to a peer to the next.
const HINTS_APART: Duration = Duration::from_secs(1);
/// After a failure; it doubles up to the interval.
const AGAIN: Duration = Duration::from_secs(2);
/// A neighbor that does not speak our protocol is tried again after this time.
const DEAF: Duration = Duration::from_secs(600);
/// Of those comparisons that nothing but the time calls for, each so manieth covers the whole topic.
const DEEP: u32 = 10;
/// A neighbor that is busy so often in a row is given up by those who watch.
const BUSY: u32 = 3;

/// The actor of one topic's comparisons.
pub struct TopicSync {
    pub library: Arc<Library>,
    pub desk: Arc<Desk>,
}

/// What is planned with one neighbor.
struct Plan {
    /// When to compare.
    due: Instant,
    /// The last end of a comparison.
    last: Option<Instant>,
    running: bool,
    /// The next one is to cover the whole topic.
    deep: bool,
    /// Something calls for it that one which the other side led may not have seen.
    called: bool,
    count: u32,
    failures: u32,
    /// When to tell it that there is something new.
    hint: Option<Instant>,
    hinted: Option<Instant>,
}

impl Plan {
    fn new(due: Instant) -> Self {
        let (last, hint, hinted) = (None, None, None);
        let (running, deep, called) = (false, true, false);
        Self { due, last, running, deep, called, count: 0, failures: 0, hint, hinted }
    }

    /// Compares at this time, or sooner if that was planned, but not twice in a row.
    fn soon(&mut self, at: Instant) {
        let earliest = self.last.map_or(at, |last| at.max(last + APART));
        self.due = self.due.min(earliest);
        self.deep = true;
    }

    /// The same for what is not settled by a comparison that has begun already.
    fn call(&mut self, at: Instant) {
        self.soon(at);
        self.called = true;
    }

    fn tell(&mut self, now: Instant) {
        let earliest = self.hinted.map_or(now, |hinted| now.max(hinted + HINTS_APART));
        self.hint.get_or_insert(earliest);
    }
}

impl TopicSync {
    /// Compares until shutdown or the topic ends.
    pub async fn run(self, mut calls: mpsc::Receiver<Call>, token: CancellationToken) {
        let me = self.library.start.me;
        let this = &self;
        let mut plans: BTreeMap<EndpointId, Plan> = BTreeMap::new();
        let mut running = FuturesUnordered::new();
        let mut hints = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            self.follow_neighbors(&mut plans, now);
            while running.len() < AT_ONCE
                && let Some((peer, plan)) =
                    plans.iter_mut().find(|(_, plan)| !plan.running && plan.due <= now)
            {
                plan.running = true;
                plan.called = false;
                // What calls for another from here on is not lost.
                plan.due = now + self.interval();
                plan.count += 1;
                let deep = std::mem::take(&mut plan.deep) || plan.count % DEEP == 0;
                let peer = *peer;
                running.push(async move { (peer, this.lead(peer, deep).await) });
            }
            for (peer, plan) in &mut plans {
                if plan.hint.is_some_and(|at| at <= now) {
                    plan.hint = None;
                    plan.hinted = Some(now);
                    hints.push(this.library.hint(*peer, this.desk.topic()));
                }
            }
            let wake = next(&plans, running.len() < AT_ONCE);
            tokio::select! {
                () = token.cancelled() => break,
                Some((peer, led)) = running.next(), if !running.is_empty() => {
                    self.ended(&mut plans, peer, led);
                }
                Some(()) = hints.next(), if !hints.is_empty() => {}
                (arrived, lagged) = self.desk.state.stirred() => {
                    let now = Instant::now();
                    for peer in arrived {
                        let at = if me < peer { now } else { now + SECOND };
                        plans.entry(peer).or_insert_with(|| Plan::new(at)).soon(at);
                    }
                    if lagged {
                        plans.values_mut().for_each(|plan| plan.call(now));
                    }
                }
                call = calls.recv() => {
                    let Some(call) = call else { break };
                    self.call(&mut plans, call);
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
        self.library.close(&self.desk);
    }

    fn follow_neighbors(&self, plans: &mut BTreeMap<EndpointId, Plan>, now: Instant) {
        let neighbors: HashSet<_> = self.desk.state.neighbors().into_iter().collect();
        plans.retain(|peer, plan| plan.running || neighbors.contains(peer));
        for peer in neighbors {
            plans.entry(peer).or_insert_with(|| Plan::new(now + SECOND));
        }
        for peer in self.desk.watched() {
            if !plans.contains_key(&peer) {
                self.desk.over(peer, true);
            }
        }
    }

    async fn lead(&self, peer: EndpointId, deep: bool) -> Result<Report, Failure> {
        let _busy = self.desk.state.busy(Work::Sync);
        self.library.lead(&self.desk, peer, deep).await
    }

    fn ended(
        &self,
        plans: &mut BTreeMap<EndpointId, Plan>,
        peer: EndpointId,
        led: Result<Report, Failure>,
    ) {
        let now = Instant::now();
        let busy = matches!(led, Err(Failure::NotNow))
            && plans.get(&peer).is_some_and(|plan| plan.failures < BUSY);
        if !busy {
            self.desk.over(peer, led.is_err());
        }
        let interval = self.interval();
        let mut gained = 0;
        if let Some(plan) = plans.get_mut(&peer) {
            plan.running = false;
            plan.last = Some(now);
            match &led {
                Ok(report) => {
                    plan.failures = 0;
                    gained = report.pulled.gained;
                    // A call that came meanwhile stands.
                    plan.due = plan.due.max(now + APART);
                    if report.pulled.lost > 0 {
                        plan.due = plan.due.min(now + AGAIN);
                    }
                }
                Err(Failure::DoesNotSpeak) => plan.due = now + DEAF,
                // One that says "not now" leads itself, or has much to do.
                Err(_) => {
                    let pause = AGAIN.saturating_mul(1 << plan.failures.min(16));
                    plan.failures += 1;
                    plan.deep = true;
                    plan.due = now + pause.min(interval);
                }
            }
        }
        let speaks = match &led {
            Ok(_) => Some(true),
            Err(Failure::DoesNotSpeak) => Some(false),
            Err(_) => None,
        };
        speaks.into_iter().for_each(|yes| self.desk.state.speaks(peer, yes));
        match led {
            Ok(report) if report.pulled.gained > 0 || report.offered > 0 => tracing::info!(
                peer = %peer.fmt_short(),
                gained = report.pulled.gained,
                offered = report.offered,
                gone_there = report.pulled.gone,
                "compared with another gateway"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(peer = %peer.fmt_short(), %error, "a comparison was broken off");
            }
        }
        self.pass_on(plans, peer, gained);
    }

    /// What came is news to the neighbors behind us.
    fn pass_on(&self, plans: &mut BTreeMap<EndpointId, Plan>, from: EndpointId, gained: usize) {
        if gained == 0 {
            return;
        }
        let now = Instant::now();
        for (peer, plan) in plans.iter_mut().filter(|(peer, _)| **peer != from) {
            if self.desk.state.speaks_sync(peer) != Some(false) {
                plan.tell(now);
            }
        }
    }

    fn call(&self, plans: &mut BTreeMap<EndpointId, Plan>, call: Call) {
        let now = Instant::now();
        match call {
            Call::Hint(peer) => {
                if let Some(plan) = plans.get_mut(&peer) {
                    plan.call(now + AFTER_HINT.mul_f64(rand::random()));
                }
            }
            Call::Followed(peer, gained) => {
                if let Some(plan) = plans.get_mut(&peer) {
                    plan.last = Some(now);
                    plan.failures = 0;
                    if !plan.called {
                        plan.due = now + self.interval();
                    }
                }
                self.pass_on(plans, peer, gained);
            }
            Call::All => plans.values_mut().for_each(|plan| {
                plan.due = plan.due.min(now);
                plan.deep = true;
            }),
        }
    }

    /// With a fifth more or less, so that gateways do not march in step.
    fn interval(&self) -> Duration {
        self.library.start.interval.mul_f64(0.8 + 0.4 * rand::random::<f64>())
    }
}

/// When something is due that waits for nothing but the time.
fn next(plans: &BTreeMap<EndpointId, Plan>, has_room: bool) -> Option<Instant> {
    let compare = plans.values().filter(|plan| has_room && !plan.running).map(|plan| plan.due);
    compare.chain(plans.values().filter_map(|plan| plan.hint)).min()
}
