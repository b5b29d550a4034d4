//! When a topic is compared with which neighbor, and who is told that there is something new. Decides
//! only: clock, chance and network belong to whoever asks.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use iroh::EndpointId;
use rand::Rng;
use tokio::time::Instant;

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

/// How a comparison that we led went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// To its end; something that was promised did not come.
    Done { lost: bool },
    /// The peer does not speak our protocol.
    Deaf,
    /// Broken off, or not begun: a peer that says "not now" leads itself, or has much to do.
    Failed,
}

/// What is planned in one topic.
pub struct Plans {
    me: EndpointId,
    interval: Duration,
    plans: BTreeMap<EndpointId, Plan>,
}

impl Plans {
    /// `interval` is the time between two comparisons with one neighbor that nothing else calls for.
    pub const fn new(me: EndpointId, interval: Duration) -> Self {
        Self { me, interval, plans: BTreeMap::new() }
    }

    /// These are the neighbors now.
    pub fn follow(&mut self, neighbors: &HashSet<EndpointId>, now: Instant) {
        self.plans.retain(|peer, plan| plan.running || neighbors.contains(peer));
        for peer in neighbors {
            self.plans.entry(*peer).or_insert_with(|| Plan::new(now + SECOND));
        }
    }

    pub fn has(&self, peer: &EndpointId) -> bool {
        self.plans.contains_key(peer)
    }

    /// Comparisons with a peer that failed, one after the other.
    pub fn failures(&self, peer: &EndpointId) -> u32 {
        self.plans.get(peer).map_or(0, |plan| plan.failures)
    }

    /// The next comparison to lead, and whether it covers the whole topic.
    pub fn start(&mut self, now: Instant, random: &mut impl Rng) -> Option<(EndpointId, bool)> {
        if !self.has_room() {
            return None;
        }
        let interval = self.interval(random);
        let mut due = self.plans.iter_mut().filter(|(_, plan)| !plan.running && plan.due <= now);
        let (peer, plan) = due.next()?;
        plan.running = true;
        plan.called = false;
        // What calls for another from here on is not lost.
        plan.due = now + interval;
        plan.count += 1;
        let deep = std::mem::take(&mut plan.deep) || plan.count % DEEP == 0;
        Some((*peer, deep))
    }

    /// The next peer that is to be told.
    pub fn tell(&mut self, now: Instant) -> Option<EndpointId> {
        let mut due =
            self.plans.iter_mut().filter(|(_, plan)| plan.hint.is_some_and(|at| at <= now));
        let (peer, plan) = due.next()?;
        plan.hint = None;
        plan.hinted = Some(now);
        Some(*peer)
    }

    /// When something is due that waits for nothing but the time.
    pub fn wake(&self) -> Option<Instant> {
        let has_room = self.has_room();
        let waiting = self.plans.values().filter(|plan| has_room && !plan.running);
        let compare = waiting.map(|plan| plan.due);
        compare.chain(self.plans.values().filter_map(|plan| plan.hint)).min()
    }

    pub fn arrived(&mut self, peer: EndpointId, now: Instant) {
        let at = if self.me < peer { now } else { now + SECOND };
        self.plans.entry(peer).or_insert_with(|| Plan::new(at)).soon(at);
    }

    /// Messages of gossip were missed.
    pub fn lagged(&mut self, now: Instant) {
        self.plans.values_mut().for_each(|plan| plan.call(now));
    }

    /// A neighbor says that it has something new.
    pub fn hinted(&mut self, peer: &EndpointId, now: Instant, random: &mut impl Rng) {
        if let Some(plan) = self.plans.get_mut(peer) {
            plan.call(now + AFTER_HINT.mul_f64(random.random()));
        }
    }

    /// A neighbor led a comparison with us.
    pub fn followed(&mut self, peer: &EndpointId, now: Instant, random: &mut impl Rng) {
        let interval = self.interval(random);
        if let Some(plan) = self.plans.get_mut(peer) {
            plan.last = Some(now);
            plan.failures = 0;
            if !plan.called {
                plan.due = now + interval;
            }
        }
    }

    /// With everybody, now, and all there is.
    pub fn all(&mut self, now: Instant) {
        self.plans.values_mut().for_each(|plan| {
            plan.due = plan.due.min(now);
            plan.deep = true;
        });
    }

    /// A comparison that we led is over.
    pub fn ended(&mut self, peer: &EndpointId, ended: Ended, now: Instant, random: &mut impl Rng) {
        let interval = self.interval(random);
        let Some(plan) = self.plans.get_mut(peer) else { return };
        plan.running = false;
        plan.last = Some(now);
        match ended {
            Ended::Done { lost } => {
                plan.failures = 0;
                // A call that came meanwhile stands.
                plan.due = plan.due.max(now + APART);
                if lost {
                    plan.due = plan.due.min(now + AGAIN);
                }
            }
            Ended::Deaf => plan.due = now + DEAF,
            Ended::Failed => {
                let pause = AGAIN.saturating_mul(1 << plan.failures.min(16));
                plan.failures += 1;
                plan.deep = true;
                plan.due = now + pause.min(interval);
            }
        }
    }

    /// What came from one neighbor is news to those behind us, as far as they speak our protocol.
    pub fn pass_on(
        &mut self,
        from: &EndpointId,
        now: Instant,
        speaks: impl Fn(&EndpointId) -> bool,
    ) {
        for (_, plan) in self.plans.iter_mut().filter(|(peer, _)| *peer != from && speaks(peer)) {
            plan.tell(now);
        }
    }

    fn has_room(&self) -> bool {
        self.plans.values().filter(|plan| plan.running).count() < AT_ONCE
    }

    /// With a fifth more or less, so that gateways do not march in step.
    fn interval(&self, random: &mut impl Rng) -> Duration {
        self.interval.mul_f64(0.8 + 0.4 * random.random::<f64>())
    }
}
