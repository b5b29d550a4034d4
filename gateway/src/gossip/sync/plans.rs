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
/// From one hint to a peer to the next; doubled with each that follows in a row, [`MOST_ROW`] times at
/// most. While events stream in, each comparison finds some that gossip is just delivering, and a hint
/// for each would call for comparisons without end.
const HINTS_APART: Duration = Duration::from_secs(1);
/// The same for comparisons that hints called for and that brought nothing.
const MOST_ROW: u32 = 5;
/// After so long without news a row is over.
const QUIET: Duration = Duration::from_secs(30);
/// After a failure; it doubles up to the interval.
const AGAIN: Duration = Duration::from_secs(2);
/// The most that it doubles to when what comes cannot be taken here.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// A neighbor that does not speak our protocol is tried again after this time.
const DEAF: Duration = Duration::from_secs(600);
/// Of those comparisons that nothing but the time calls for, each so manieth covers the whole topic.
const DEEP: u32 = 10;

/// How often something came in a row.
#[derive(Default)]
struct Row {
    count: u32,
    last: Option<Instant>,
}

impl Row {
    /// It is called for now; a row that ended long ago is over.
    fn touch(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now >= last + QUIET) {
            self.count = 0;
        }
        self.last = Some(now);
    }

    fn grow(&mut self) {
        self.count = (self.count + 1).min(MOST_ROW);
    }

    fn times(&self, pause: Duration) -> Duration {
        pause * (1 << self.count)
    }
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
    /// Hints to it.
    told: Row,
    /// Comparisons that its hints called for and that brought nothing.
    vain: Row,
    /// A hint calls for the next one, or for the one under way.
    heard: bool,
    on_hint: bool,
    /// What it has could not be taken here: nothing but a person calls for another before.
    rests_until: Option<Instant>,
}

impl Plan {
    fn new(due: Instant) -> Self {
        Self {
            due,
            last: None,
            running: false,
            deep: true,
            called: false,
            count: 0,
            failures: 0,
            hint: None,
            hinted: None,
            told: Row::default(),
            vain: Row::default(),
            heard: false,
            on_hint: false,
            rests_until: None,
        }
    }

    /// Compares at this time, or sooner if that was planned, but not twice in a row.
    fn soon(&mut self, at: Instant, apart: Duration) {
        let earliest = self.last.map_or(at, |last| at.max(last + apart));
        let earliest = self.rests_until.map_or(earliest, |until| earliest.max(until));
        self.due = self.due.min(earliest);
    }

    fn tell(&mut self, now: Instant) {
        self.told.touch(now);
        let apart = self.told.times(HINTS_APART);
        let earliest = self.hinted.map_or(now, |hinted| now.max(hinted + apart));
        self.hint.get_or_insert(earliest);
    }
}

/// How a comparison that we led went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// To its end; it brought something new or not. What was `lost` was promised and did not come, or
    /// could not be taken here.
    Done { gained: bool, lost: bool },
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
        plan.on_hint = std::mem::take(&mut plan.heard);
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
        // The second may follow soon.
        if plan.hinted.is_some() {
            plan.told.grow();
        }
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
        let plan = self.plans.entry(peer).or_insert_with(|| Plan::new(at));
        plan.soon(at, APART);
        plan.deep = true;
    }

    /// Messages of gossip were missed. They were of the last moments, so not the whole topic is compared.
    pub fn lagged(&mut self, now: Instant) {
        for plan in self.plans.values_mut() {
            plan.soon(now, APART);
            plan.called = true;
        }
    }

    /// A neighbor says that it has something new.
    pub fn hinted(&mut self, peer: &EndpointId, now: Instant, random: &mut impl Rng) {
        if let Some(plan) = self.plans.get_mut(peer) {
            plan.vain.touch(now);
            let apart = plan.vain.times(APART);
            plan.soon(now + AFTER_HINT.mul_f64(random.random()), apart);
            plan.deep = true;
            // One that has begun already does not settle it.
            plan.called = true;
            plan.heard = true;
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
            plan.rests_until = None;
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
            Ended::Done { gained, lost } => {
                if gained {
                    plan.vain.count = 0;
                } else if plan.on_hint {
                    plan.vain.grow();
                }
                if lost {
                    // The same would be fetched again and again.
                    let pause = AGAIN.saturating_mul(1 << plan.failures.min(16)).min(LONGEST_REST);
                    plan.failures += 1;
                    plan.deep = true;
                    plan.due = now + pause;
                    plan.rests_until = Some(plan.due);
                } else {
                    plan.failures = 0;
                    plan.rests_until = None;
                    // A call that came meanwhile stands.
                    plan.due = plan.due.max(now + APART);
                }
            }
            Ended::Deaf => plan.due = now + DEAF,
            Ended::Failed => {
                let pause = AGAIN.saturating_mul(1 << plan.failures.min(16));
                plan.failures += 1;
                plan.deep = true;
                // A call that came meanwhile stands.
                plan.due = (now + pause.min(interval)).min(plan.due.max(now + APART));
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

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);
    const QUICK: Duration = Duration::from_millis(100);

    fn plans(random: &mut StdRng) -> (Plans, EndpointId, Instant) {
        let (me, peer) = (key(), key());
        let (mut plans, start) = (Plans::new(me, INTERVAL), Instant::now());
        plans.follow(&HashSet::from([peer]), start);
        let now = start + SECOND;
        assert_eq!(plans.start(now, random), Some((peer, true)));
        plans.ended(&peer, Ended::Done { gained: false, lost: false }, now, random);
        (plans, peer, now)
    }

    fn key() -> EndpointId {
        iroh::SecretKey::generate().public()
    }

    #[test]
    fn a_steady_stream_of_news_is_told_more_and_more_rarely() {
        let random = &mut StdRng::seed_from_u64(1);
        let (mut plans, peer, mut now) = plans(random);
        let from = key();
        let mut told = Vec::new();
        let start = now;
        while now < start + Duration::from_secs(100) {
            plans.pass_on(&from, now, |_| true);
            told.extend(plans.tell(now).map(|_| now - start));
            now += QUICK;
        }
        assert_eq!(told.first(), Some(&Duration::ZERO), "the first goes at once");
        assert!(told.len() <= 8, "{told:?}");
        now += QUIET;
        plans.pass_on(&from, now, |_| true);
        assert_eq!(plans.tell(now), Some(peer), "after a quiet time at once again");
    }

    #[test]
    fn hints_that_bring_nothing_are_followed_more_and_more_rarely() {
        let random = &mut StdRng::seed_from_u64(2);
        let run = |gained, random: &mut StdRng| {
            let (mut plans, peer, start) = plans(random);
            let (mut now, mut count) = (start, 0);
            while now < start + Duration::from_secs(100) {
                plans.hinted(&peer, now, random);
                if plans.start(now, random).is_some() {
                    count += 1;
                    plans.ended(&peer, Ended::Done { gained, lost: false }, now, random);
                }
                now += QUICK;
            }
            count
        };
        let (vain, fruitful) = (run(false, random), run(true, random));
        assert!(vain <= 9 && fruitful > 50, "{vain} {fruitful}");
    }

    #[test]
    fn what_cannot_be_taken_is_not_fetched_every_moment() {
        let random = &mut StdRng::seed_from_u64(3);
        let (mut plans, peer, start) = plans(random);
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(3_600) {
            plans.hinted(&peer, now, random);
            if plans.start(now, random).is_some() {
                count += 1;
                plans.ended(&peer, Ended::Done { gained: false, lost: true }, now, random);
            }
            now += Duration::from_secs(1);
        }
        assert!((8..20).contains(&count), "{count}");
        // A person may want it now.
        plans.all(now);
        assert!(plans.start(now, random).is_some());
    }

    #[test]
    fn a_call_during_a_comparison_that_fails_stands_and_lagging_is_not_deep() {
        let random = &mut StdRng::seed_from_u64(4);
        let (mut plans, peer, mut now) = plans(random);
        for _ in 0..5 {
            now += INTERVAL * 2;
            assert!(plans.start(now, random).is_some());
            plans.ended(&peer, Ended::Failed, now, random);
        }
        now += INTERVAL * 2;
        assert!(plans.start(now, random).is_some());
        plans.arrived(peer, now);
        plans.ended(&peer, Ended::Failed, now, random);
        assert_eq!(plans.start(now + SECOND, random), Some((peer, true)));
        plans.ended(&peer, Ended::Done { gained: false, lost: false }, now + SECOND, random);
        plans.lagged(now + SECOND);
        let again = plans.start(now + SECOND + APART, random);
        assert_eq!(again, Some((peer, false)));
    }
}
