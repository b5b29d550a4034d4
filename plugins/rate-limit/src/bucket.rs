//! A bucket of tokens, as one number: the moment at which it is full again (GCRA). Every event moves
//! it on by the time in which one token comes back; one that would move it further than the whole
//! bucket takes is refused, and moves nothing.

use serde::Deserialize;

/// How many events, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Events a minute, above 0.
    pub per_minute: f64,
    /// Events at once, after a while without any; at least 1.
    pub burst: u32,
}

/// How much is in a bucket once an event was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filling {
    /// When it is full again, in milliseconds since the Unix epoch.
    pub full_at: u64,
    /// The same in seconds from now: until then it must be remembered.
    pub ttl: u64,
}

impl Limit {
    /// Milliseconds in which one token comes back.
    fn interval(&self) -> u64 {
        // At least one: a rate above 1000 a second is none. The type saturates.
        ((60_000.0 / self.per_minute) as u64).max(1)
    }

    /// # Errors
    /// When it limits nothing or lets nothing through.
    pub fn check(&self) -> Result<(), String> {
        if !(self.per_minute.is_finite() && self.per_minute > 0.0) {
            return Err("per_minute: want a number above 0".to_owned());
        }
        // A day for each event, all of a burst within ten years: the sums below stay far from their
        // ends.
        if self.burst == 0 || self.burst > 1_000_000 {
            return Err("burst: want a whole number from 1 to 1000000".to_owned());
        }
        if self.interval() > 86_400_000 {
            return Err("per_minute: want at least one a day, which is 0.0007".to_owned());
        }
        Ok(())
    }

    /// Takes a token at `now`, in seconds since the Unix epoch. `full_at` is what was remembered.
    ///
    /// # Errors
    /// In how many seconds there is one, when there is none.
    pub fn take(&self, full_at: Option<u64>, now: u64) -> Result<Filling, u64> {
        let now = now.saturating_mul(1_000);
        let (interval, burst) = (self.interval(), u64::from(self.burst));
        // The clock shows seconds: what comes back within one is there at once.
        let whole = (interval * burst).max(1_000);
        // Never further off than an empty bucket is: the clock may have been set back, or the limit
        // been another.
        let full_at = full_at.unwrap_or(0).clamp(now, now + whole);
        let next = full_at + interval;
        match next.checked_sub(now + whole) {
            Some(wait) if wait > 0 => Err(wait.div_ceil(1_000)),
            _ => Ok(Filling { full_at: next, ttl: (next - now).div_ceil(1_000) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { per_minute: 30.0, burst: 5 };
    const NOW: u64 = 1_700_000_000;

    /// How many of so many events pass within a second.
    fn passed(limit: Limit, full_at: &mut Option<u64>, now: u64, events: usize) -> usize {
        let one = |_: &usize| match limit.take(*full_at, now) {
            Ok(filling) => {
                *full_at = Some(filling.full_at);
                true
            }
            Err(_) => false,
        };
        (0..events).filter(one).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut full_at = None;
        assert_eq!(passed(LIMIT, &mut full_at, NOW, 100), 5);
        assert_eq!(LIMIT.take(full_at, NOW), Err(2));
        assert_eq!(passed(LIMIT, &mut full_at, NOW + 1, 100), 0);
        assert_eq!(passed(LIMIT, &mut full_at, NOW + 2, 100), 1);
        // One every two seconds, and no more for asking more often.
        let minute: usize =
            (3..=62).map(|second| passed(LIMIT, &mut full_at, NOW + second, 100)).sum();
        assert_eq!(minute, 30);
        // After a pause it is full, and no fuller.
        assert_eq!(passed(LIMIT, &mut full_at, NOW + 10_000, 100), 5);
    }

    #[test]
    fn it_is_remembered_until_it_is_full() {
        let first = LIMIT.take(None, NOW).unwrap();
        assert_eq!(first, Filling { full_at: NOW * 1_000 + 2_000, ttl: 2 });
        let second = LIMIT.take(Some(first.full_at), NOW).unwrap();
        assert_eq!(second.ttl, 4);
        // Forgotten then, it is as full as it was.
        assert_eq!(LIMIT.take(Some(first.full_at), NOW + 2), LIMIT.take(None, NOW + 2));
    }

    #[test]
    fn a_clock_that_goes_back_locks_nobody_out_for_long() {
        let mut full_at = Some((NOW + 1_000_000) * 1_000);
        assert_eq!(LIMIT.take(full_at, NOW), Err(2));
        assert_eq!(passed(LIMIT, &mut full_at, NOW, 100), 0);
        assert_eq!(LIMIT.take(Some(u64::MAX), NOW), Err(2));
    }

    #[test]
    fn slow_and_fast_limits_hold() {
        let daily = Limit { per_minute: 1.0 / 1_440.0, burst: 1 };
        daily.check().unwrap();
        let mut full_at = None;
        assert_eq!(passed(daily, &mut full_at, NOW, 10), 1);
        assert_eq!(passed(daily, &mut full_at, NOW + 86_399, 10), 0);
        assert_eq!(passed(daily, &mut full_at, NOW + 86_400, 10), 1);
        let fast = Limit { per_minute: 60_000.0, burst: 1_000 };
        assert_eq!(passed(fast, &mut None, NOW, 5_000), 1_000);
        let steady = Limit { per_minute: 6_000.0, burst: 1 };
        let mut full_at = None;
        let seconds = (0..10).map(|second| passed(steady, &mut full_at, NOW + second, 500));
        assert_eq!(seconds.sum::<usize>(), 1_000, "a hundred in each second");
    }

    #[test]
    fn nonsense_is_refused() {
        for (per_minute, burst) in
            [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (1.0, 0), (0.0001, 1)]
        {
            assert!(Limit { per_minute, burst }.check().is_err(), "{per_minute} {burst}");
        }
    }
}
