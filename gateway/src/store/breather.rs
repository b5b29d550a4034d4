//! Pauses between long queries. Each holds a snapshot, and while any is held SQLite cannot begin its
//! write-ahead log anew: long queries one after the other would make it grow for ever.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The longest pause before a query: time to copy what piled up behind the last one. It ends as soon
/// as it is no longer wanted.
const LONGEST: Duration = Duration::from_millis(500);
const NAP: Duration = Duration::from_millis(1);

/// Shared by the threads for long queries and the one that wants the pause.
#[derive(Clone, Default)]
pub(super) struct Breather(Arc<State>);

#[derive(Default)]
struct State {
    wanted: AtomicBool,
    at_work: AtomicUsize,
}

/// A long query that is being answered.
pub(super) struct AtWork(Arc<State>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Breather {
    /// Before a long query: waits a moment when that is wanted.
    pub fn begin(&self) -> AtWork {
        let since = Instant::now();
        while self.0.wanted.load(Ordering::Acquire) && since.elapsed() < LONGEST {
            thread::sleep(NAP);
        }
        self.0.at_work.fetch_add(1, Ordering::AcqRel);
        AtWork(self.0.clone())
    }

    /// Says whether pauses are wanted.
    pub fn want(&self, wanted: bool) {
        self.0.wanted.store(wanted, Ordering::Release);
    }

    /// Whether no long query is being answered.
    pub fn is_quiet(&self) -> bool {
        self.0.at_work.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_waits_a_moment_when_that_is_wanted() {
        let breather = Breather::default();
        let began = Instant::now();
        let at_work = breather.begin();
        assert!(began.elapsed() < LONGEST && !breather.is_quiet());
        drop(at_work);
        assert!(breather.is_quiet());
        breather.want(true);
        let began = Instant::now();
        drop(breather.begin());
        assert!(began.elapsed() >= LONGEST, "{:?}", began.elapsed());
        breather.want(false);
    }
}
