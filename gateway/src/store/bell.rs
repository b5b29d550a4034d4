//! How the background threads of the store learn of commits, and of their own end: without the
//! runtime's clock, so that they may outlive it.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Rung after each commit.
#[derive(Default)]
pub(super) struct Bell {
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        // Whoever has just looked at its condition waits before this returns.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_all();
    }

    /// Waits until the condition holds; looks at it whenever the bell rings. Returns whether it held
    /// in time.
    pub fn wait(&self, time: Duration, condition: impl Fn() -> bool) -> bool {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.rung.wait_timeout_while(lock, time, |()| !condition());
        let (_lock, result) = waited.unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }
}

/// Asks a thread to end.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The thread must be woken by who calls this.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps; unparking the thread after [`Self::set`] ends it.
    pub fn sleep(&self, time: Duration) {
        let started = Instant::now();
        while !self.is_set() {
            let Some(left) = time.checked_sub(started.elapsed()) else { return };
            thread::park_timeout(left);
        }
    }
}
