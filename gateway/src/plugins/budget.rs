//! How long all plugins together may take for one event.

use std::time::{Duration, Instant};

use super::deadline::{PATIENCE, thread_time};

/// The time of the chain for one event. As with [`super::deadline::Deadline`] what counts is how long
/// the thread ran, once half of the time of day has passed: on a busy machine it may hardly run.
#[derive(Debug)]
pub struct Budget {
    whole: Duration,
    began: Instant,
    /// When half of it had passed: the thread's time, and the time of day.
    late: Option<(Option<Duration>, Instant)>,
}

impl Budget {
    pub fn new(whole: Duration) -> Self {
        Self { whole, began: Instant::now(), late: None }
    }

    /// What is left of it; `None` when nothing is.
    pub fn left(&mut self) -> Option<Duration> {
        let passed = self.began.elapsed();
        let half = self.whole / 2;
        if passed < half {
            return Some(self.whole - passed);
        }
        if passed >= self.whole * PATIENCE {
            return None;
        }
        let (then, since) = *self.late.get_or_insert_with(|| (thread_time(), Instant::now()));
        let ran = match (then, thread_time()) {
            (Some(then), Some(now)) => now.saturating_sub(then),
            _ => since.elapsed(),
        };
        half.checked_sub(ran).filter(|left| !left.is_zero())
    }

    /// In milliseconds.
    pub fn whole_ms(&self) -> u64 {
        u64::try_from(self.whole.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn it_ends_when_the_thread_has_run_for_long_enough() {
        let mut budget = Budget::new(Duration::from_millis(40));
        assert!(budget.left().unwrap() > Duration::from_millis(20));
        let began = Instant::now();
        while budget.left().is_some() {
            black_box(());
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert!(began.elapsed() >= Duration::from_millis(39), "{:?}", began.elapsed());
        assert_eq!(budget.whole_ms(), 40);
    }
}
