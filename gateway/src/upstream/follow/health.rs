//! How the relays of a plan are doing, remembered also when they are not open: a relay that was closed
//! because nobody reached it is not opened again the next moment. When all are away at once, it is our
//! own network that is gone: then none is blamed.

use std::{collections::BTreeMap, time::Duration};

use super::{address::Address, plan::Health};

/// A relay that was never reached is given up after so long,
const NEVER_REACHED: Duration = Duration::from_secs(10 * 60);
/// and one that was there before after so long.
const LOST: Duration = Duration::from_secs(6 * 3_600);
/// For how long it is given up the first time; each further time twice as long, up to a day.
const GIVEN_UP: Duration = Duration::from_secs(3_600);
const MAX_GIVEN_UP: Duration = Duration::from_secs(24 * 3_600);
/// With so many away and none reached, the network is gone.
const ALL_AWAY: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is open, and serves.
    Reached,
    /// Since when, and whether it was reached before.
    Away {
        since: Duration,
        before: bool,
    },
    Dead {
        until: Duration,
    },
    /// Nothing is held against it.
    Untold,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    state: State,
    /// How often in a row it was given up.
    given_up: u32,
}

/// Times are on a clock that only rises, from any beginning.
#[derive(Debug, Default)]
pub struct Healths {
    records: BTreeMap<Address, Record>,
    /// When the network was last found to be gone.
    dark: Option<Duration>,
}

impl Healths {
    /// A relay that is open was looked at: whether it serves.
    pub fn seen(&mut self, relay: &Address, serves: bool, now: Duration) {
        let record = self.records.entry(relay.clone());
        let record = record.or_insert(Record { state: State::Untold, given_up: 0 });
        record.state = match (serves, record.state) {
            (true, _) => {
                record.given_up = 0;
                State::Reached
            }
            (false, State::Reached) => State::Away { since: now, before: true },
            (false, State::Untold) => State::Away { since: now, before: false },
            (false, state) => state,
        };
    }

    /// A relay is no longer open. One that was away is not known to be back.
    pub fn closed(&mut self, relay: &Address) {
        if let Some(record) = self.records.get_mut(relay)
            && record.state == State::Reached
        {
            record.state = State::Untold;
        }
    }

    /// Whether not one relay of several is reached.
    fn is_dark(&self) -> bool {
        let states = || self.records.values().map(|record| record.state);
        let away = states().filter(|state| matches!(state, State::Away { .. })).count();
        away >= ALL_AWAY && !states().any(|state| state == State::Reached)
    }

    /// Gives up what was away for too long, tries again what was given up for long enough, and forgets
    /// relays that nobody needs to know of.
    pub fn pass(&mut self, now: Duration, is_known: impl Fn(&Address) -> bool) {
        if self.is_dark() {
            self.dark = Some(now);
        }
        // Only time in which it could have been reached counts.
        let light = self.dark.unwrap_or_default();
        self.records.retain(|relay, record| {
            match record.state {
                State::Away { since, before } => {
                    let patience = if before { LOST } else { NEVER_REACHED };
                    if now.saturating_sub(since.max(light)) >= patience {
                        let times = 1_u32 << record.given_up.min(5);
                        let pause = GIVEN_UP.saturating_mul(times).min(MAX_GIVEN_UP);
                        record.given_up += 1;
                        record.state = State::Dead { until: now + pause };
                    }
                }
                State::Dead { until } if until <= now => record.state = State::Untold,
                _ => {}
            }
            is_known(relay)
        });
    }

    /// For the planner: while the network is gone, others would not be reached either.
    pub fn to_plan_by(&self, now: Duration) -> BTreeMap<Address, Health> {
        let mut health = self.now(now);
        if self.is_dark() {
            health.retain(|_, health| *health == Health::Dead);
        }
        health
    }

    /// As it is. Relays of which nothing is known are left out.
    pub fn now(&self, now: Duration) -> BTreeMap<Address, Health> {
        let health = |state| match state {
            State::Reached | State::Untold => Health::Good,
            State::Away { since, .. } => Health::Away(now.saturating_sub(since)),
            State::Dead { .. } => Health::Dead,
        };
        self.records.iter().map(|(relay, record)| (relay.clone(), health(record.state))).collect()
    }

    /// When a relay that was given up is tried again.
    pub fn tried_again_in(&self, relay: &Address, now: Duration) -> Option<Duration> {
        match self.records.get(relay)?.state {
            State::Dead { until } => Some(until.saturating_sub(now)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::follow::address::AddressRules;

    const SECOND: Duration = Duration::from_secs(1);

    fn relay() -> Address {
        AddressRules::default().read("wss://relay.example.org").unwrap()
    }

    fn health(healths: &Healths, now: Duration) -> Option<Health> {
        healths.now(now).get(&relay()).copied()
    }

    #[test]
    fn a_relay_that_comes_back_is_as_good_as_before() {
        let mut healths = Healths::default();
        assert_eq!(health(&healths, SECOND), None);
        healths.seen(&relay(), false, SECOND);
        healths.seen(&relay(), false, 4 * SECOND);
        assert_eq!(health(&healths, 5 * SECOND), Some(Health::Away(4 * SECOND)));
        healths.seen(&relay(), true, 6 * SECOND);
        assert_eq!(health(&healths, 7 * SECOND), Some(Health::Good));
    }

    #[test]
    fn one_that_was_never_reached_is_given_up_for_longer_each_time() {
        let mut healths = Healths::default();
        let mut now = SECOND;
        for hours in [1, 2, 4, 8, 16, 24, 24] {
            healths.seen(&relay(), false, now);
            now += NEVER_REACHED - SECOND;
            healths.pass(now, |_| true);
            assert!(matches!(health(&healths, now), Some(Health::Away(_))));
            now += SECOND;
            healths.pass(now, |_| true);
            assert_eq!(health(&healths, now), Some(Health::Dead));
            assert_eq!(healths.tried_again_in(&relay(), now), Some(hours * 3_600 * SECOND));
            now += hours * 3_600 * SECOND - SECOND;
            healths.pass(now, |_| true);
            assert_eq!(health(&healths, now), Some(Health::Dead));
            now += SECOND;
            healths.pass(now, |_| true);
            assert_eq!(health(&healths, now), Some(Health::Good));
        }
        healths.seen(&relay(), true, now);
        healths.seen(&relay(), false, now);
        now += LOST;
        healths.pass(now, |_| true);
        assert_eq!(healths.tried_again_in(&relay(), now), Some(GIVEN_UP), "it begins anew");
    }

    #[test]
    fn one_that_was_there_before_is_waited_for_longer() {
        let mut healths = Healths::default();
        healths.seen(&relay(), true, SECOND);
        healths.seen(&relay(), false, SECOND);
        healths.pass(SECOND + NEVER_REACHED, |_| true);
        assert_eq!(health(&healths, SECOND + NEVER_REACHED), Some(Health::Away(NEVER_REACHED)));
        healths.pass(SECOND + LOST, |_| true);
        assert_eq!(health(&healths, SECOND + LOST), Some(Health::Dead));
    }

    #[test]
    fn when_all_are_away_none_is_blamed() {
        let mut healths = Healths::default();
        let name = |n: usize| format!("wss://relay{n}.example.org");
        let relays: Vec<_> =
            (0..6).map(|n| AddressRules::default().read(&name(n)).unwrap()).collect();
        for relay in &relays {
            healths.seen(relay, true, SECOND);
            healths.seen(relay, false, SECOND);
        }
        let day = 24 * 3_600 * SECOND;
        healths.pass(day, |_| true);
        assert!(healths.to_plan_by(day).is_empty());
        assert!(healths.now(day).values().all(|health| matches!(health, Health::Away(_))));
        // One comes back; the others have all the time that they would have had.
        healths.seen(&relays[0], true, day);
        healths.pass(day + LOST - SECOND, |_| true);
        let health = healths.to_plan_by(day + LOST - SECOND);
        let away = health.values().filter(|health| matches!(health, Health::Away(_)));
        assert_eq!(away.count(), 5);
        healths.pass(day + LOST, |_| true);
        let dead = healths.now(day + LOST).into_values().filter(|h| *h == Health::Dead).count();
        assert_eq!(dead, 5);
        // One that is closed does not say that the network is there.
        healths.closed(&relays[0]);
        for relay in &relays[1..] {
            healths.seen(relay, false, 3 * day);
        }
        healths.pass(3 * day, |_| true);
        for relay in &relays[1..] {
            healths.seen(relay, false, 3 * day);
        }
        assert!(healths.to_plan_by(3 * day).is_empty());
    }

    #[test]
    fn time_goes_on_for_one_that_was_closed_and_ends_for_one_that_nobody_lists() {
        let mut healths = Healths::default();
        healths.seen(&relay(), false, SECOND);
        healths.pass(100 * SECOND, |_| true);
        assert_eq!(health(&healths, 101 * SECOND), Some(Health::Away(100 * SECOND)));
        healths.pass(102 * SECOND, |_| false);
        assert_eq!(health(&healths, 102 * SECOND), None);
    }
}
