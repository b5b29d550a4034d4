//! How long a failing plugin rests: a moment after failures in a row, and in quarantine after many.
//!
//! One for all threads. When a pause is over one thread tries, and the others wait for what comes of
//! it: a plugin that hangs must not take every thread at once.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The pause after the second failure in a row; it doubles with each further one. A single failure
/// costs no pause: making an instance takes microseconds, and the event that broke it is gone.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The same in quarantine.
const FIRST_QUARANTINE: Duration = Duration::from_secs(10);
const LONGEST_QUARANTINE: Duration = Duration::from_secs(600);

/// How long the others wait for the thread that tries. It tells earlier; if it does not, it is gone.
const TRIAL: Duration = Duration::from_secs(10);

/// What one plugin's failures have come to.
pub struct Rest {
    began: Instant,
    /// Failures in a row that lead into quarantine; 0 for never.
    limit: u32,
    /// Without a success in between.
    in_row: AtomicU32,
    /// In milliseconds since `began`: not called before; 0 when it may be.
    until: AtomicU64,
    /// The newest failure.
    cause: Mutex<String>,
}

/// What a failure led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, or a short pause.
    Paused,
    /// It is in quarantine now, and was not before.
    Quarantined(Duration),
    /// It was tried again and stays there.
    Stays(Duration),
}

/// A plugin in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    pub cause: String,
    pub retry_in: Duration,
}

impl Rest {
    /// `limit` failures in a row lead into quarantine; 0 is never.
    pub fn new(limit: u32) -> Self {
        Self {
            began: Instant::now(),
            limit,
            in_row: AtomicU32::new(0),
            until: AtomicU64::new(0),
            cause: Mutex::default(),
        }
    }

    /// Whether the plugin may be called. After a pause that is true for one caller, until
    /// [`Self::succeeded`] or [`Self::failed`].
    pub fn may_run(&self, now: Instant) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = self.at(now);
        let trial = now.saturating_add(ms(TRIAL));
        let order = Ordering::Relaxed;
        now >= until && self.until.compare_exchange(until, trial, order, order).is_ok()
    }

    /// Whether it would be of no use to ask whether it may be called.
    pub fn is_resting(&self, now: Instant) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until != 0 && self.at(now) < until
    }

    /// Takes note of a call that ended with a verdict. Returns whether that ended a quarantine.
    pub fn succeeded(&self) -> bool {
        // Nearly always nothing is to be written, and a cache line stays shared.
        if self.in_row.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.lift()
    }

    /// Takes note of a call that failed.
    pub fn failed(&self, cause: &str, now: Instant) -> Step {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause.to_owned();
        let before = self.in_row.fetch_add(1, Ordering::Relaxed);
        let in_row = before.saturating_add(1);
        let over = (self.limit > 0).then(|| in_row.checked_sub(self.limit)).flatten();
        let (pause, step) = match over {
            Some(over) => {
                let pause = doubled(FIRST_QUARANTINE, over, LONGEST_QUARANTINE);
                (pause, if over == 0 { Step::Quarantined(pause) } else { Step::Stays(pause) })
            }
            None => match in_row.checked_sub(2) {
                Some(doublings) => (doubled(FIRST_PAUSE, doublings, LONGEST_PAUSE), Step::Paused),
                None => return Step::Paused,
            },
        };
        self.until.store(self.at(now).saturating_add(ms(pause)).max(1), Ordering::Relaxed);
        step
    }

    /// Takes note that it could not be asked after all: if this was a trial, the next caller tries.
    pub fn was_not_asked(&self) {
        let ended = |until: u64| (until != 0).then_some(1);
        let _ = self.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ended);
    }

    /// Lets it run again at once. Returns whether it was in quarantine.
    pub fn lift(&self) -> bool {
        let in_row = self.in_row.swap(0, Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
        self.is_quarantine(in_row)
    }

    /// The quarantine that it is in, if it is.
    pub fn quarantine(&self, now: Instant) -> Option<Quarantine> {
        if !self.is_quarantine(self.in_row.load(Ordering::Relaxed)) {
            return None;
        }
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let left = self.until.load(Ordering::Relaxed).saturating_sub(self.at(now));
        Some(Quarantine { cause, retry_in: Duration::from_millis(left) })
    }

    fn is_quarantine(&self, in_row: u32) -> bool {
        self.limit > 0 && in_row >= self.limit
    }

    fn at(&self, time: Instant) -> u64 {
        ms(time.saturating_duration_since(self.began))
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_cost_a_pause() {
        let (rest, now) = (Rest::new(0), Instant::now());
        rest.failed("x", now);
        assert!(rest.may_run(now));
        rest.failed("x", now);
        assert!(!rest.may_run(now) && rest.may_run(now + FIRST_PAUSE));
        rest.failed("x", now);
        assert!(!rest.may_run(now + FIRST_PAUSE) && rest.may_run(now + 2 * FIRST_PAUSE));
        for _ in 0..1_000 {
            assert_eq!(rest.failed("x", now), Step::Paused);
        }
        assert!(rest.may_run(now + LONGEST_PAUSE));
        assert!(!rest.succeeded());
        assert!(rest.may_run(now) && rest.quarantine(now).is_none());
    }

    #[test]
    fn one_caller_tries_after_a_pause() {
        let (rest, now) = (Rest::new(0), Instant::now());
        rest.failed("x", now);
        rest.failed("x", now);
        let later = now + 2 * FIRST_PAUSE;
        assert!(rest.may_run(later));
        assert!(!rest.may_run(later));
        // One that never tells holds nobody up for ever.
        assert!(rest.may_run(later + TRIAL));
        rest.was_not_asked();
        assert!(rest.may_run(later) && !rest.may_run(later));
        rest.succeeded();
        rest.was_not_asked();
        assert!(rest.may_run(later) && rest.may_run(later));
    }

    #[test]
    fn quarantine_begins_after_so_many_grows_and_ends() {
        let (rest, now) = (Rest::new(3), Instant::now());
        assert_eq!(rest.failed("a", now), Step::Paused);
        assert_eq!(rest.failed("b", now), Step::Paused);
        assert!(rest.quarantine(now).is_none());
        assert_eq!(rest.failed("c", now), Step::Quarantined(FIRST_QUARANTINE));
        let quarantine = rest.quarantine(now).unwrap();
        assert_eq!(quarantine.cause, "c");
        assert!(quarantine.retry_in > FIRST_QUARANTINE / 2, "{quarantine:?}");
        assert!(!rest.may_run(now + FIRST_QUARANTINE / 2));
        assert!(rest.may_run(now + 2 * FIRST_QUARANTINE));
        assert_eq!(rest.failed("d", now), Step::Stays(2 * FIRST_QUARANTINE));
        for _ in 0..100 {
            rest.failed("d", now);
        }
        assert!(rest.may_run(now + 2 * LONGEST_QUARANTINE));
        assert!(rest.succeeded(), "that ends it");
        assert!(rest.may_run(now) && rest.quarantine(now).is_none());
        assert!(!rest.succeeded());

        for _ in 0..3 {
            rest.failed("e", now);
        }
        assert!(rest.lift() && !rest.lift());
        assert!(rest.may_run(now));
    }
}
