//! When to plan anew: not for each list of hundreds that come in, but soon.

use std::time::Duration;

/// After a change nothing more must come for so long,
const QUIET: Duration = Duration::from_secs(1);
/// or so long must have passed since the first.
const LONGEST: Duration = Duration::from_secs(10);
/// On the whole there is a plan in so long,
const EACH: Duration = Duration::from_secs(60);
/// and so many sooner than that: an author whose list changes all the time does not keep us connecting.
const BURST: u32 = 12;
/// With relays where lists are looked for, the first plan waits so long for lists that are missing.
const FIRST: Duration = Duration::from_secs(5);

/// Times are since the beginning.
#[derive(Debug)]
pub(super) struct Pace {
    /// The first and the last change that no plan knows of.
    changes: Option<(Duration, Duration)>,
    /// Nothing was planned yet, though lists may be on their way.
    waits_for_lists: bool,
    /// When all plans so far are paid for.
    paid: Duration,
}

impl Pace {
    /// The beginning is a change.
    pub fn new(looks_for_lists: bool) -> Self {
        let changes = Some((Duration::ZERO, Duration::ZERO));
        Self { changes, waits_for_lists: looks_for_lists, paid: Duration::ZERO }
    }

    pub fn changed(&mut self, now: Duration) {
        let first = self.changes.map_or(now, |(first, _)| first);
        self.changes = Some((first, now));
    }

    pub fn is_due(&self, now: Duration, lists_are_missing: bool) -> bool {
        let Some((first, last)) = self.changes else { return false };
        if self.waits_for_lists && lists_are_missing && now < FIRST {
            return false;
        }
        if now + EACH * (BURST - 1) < self.paid {
            return false;
        }
        now.saturating_sub(last) >= QUIET || now.saturating_sub(first) >= LONGEST
    }

    pub fn planned(&mut self, now: Duration) {
        self.paid = self.paid.max(now) + EACH;
        self.changes = None;
        self.waits_for_lists = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_plan_waits_for_the_last_of_many_changes_but_not_for_ever() {
        let mut pace = Pace::new(false);
        assert!(!pace.is_due(at(900), true));
        assert!(pace.is_due(at(1_000), true));
        pace.planned(at(1_000));
        assert!(!pace.is_due(at(60_000), true));
        for change in (60_000..69_900).step_by(300) {
            pace.changed(at(change));
            assert!(!pace.is_due(at(change + 299), true), "{change}");
        }
        assert!(pace.is_due(at(70_000), true));
    }

    #[test]
    fn a_list_that_changes_all_the_time_makes_a_plan_a_minute() {
        let mut pace = Pace::new(false);
        let mut plans = Vec::new();
        for second in 0..3_600 {
            let now = Duration::from_secs(second);
            // Twice a minute there is a moment of quiet.
            if second % 30 > 1 {
                pace.changed(now);
            }
            if pace.is_due(now, false) {
                pace.planned(now);
                plans.push(second);
            }
        }
        let last = plans.iter().filter(|second| **second >= 1_800).count();
        assert!((28..=32).contains(&last), "{plans:?}");
        assert!(plans.iter().filter(|second| **second < 120).count() >= 10, "{plans:?}");
    }

    #[test]
    fn the_first_plan_waits_for_lists_that_are_looked_for() {
        let mut pace = Pace::new(true);
        assert!(!pace.is_due(at(4_999), true));
        assert!(pace.is_due(at(1_500), false), "all are there");
        assert!(pace.is_due(at(5_000), true));
        pace.planned(at(5_000));
        pace.changed(at(6_000));
        assert!(pace.is_due(at(7_000), true));
    }
}
