//! When a call has run too long.
//!
//! Epochs count wall time, and on a busy machine a thread that did nothing wrong may not run for a
//! while. So the epoch deadline only asks: what ends a call is the time that its thread really ran.

use std::time::{Duration, Instant};

use wasmtime::{StoreContextMut, UpdateDeadline};

use super::{capabilities::Host, engine};

/// However little a thread runs, after this many times its limit a call ends.
pub const PATIENCE: u32 = 40;

/// The time limit of the call that is being made.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    limit: Duration,
    /// Since the first half of the limit passed: the thread's time then, and the time of day.
    late: Option<(Option<Duration>, Instant)>,
}

impl Deadline {
    /// For a call that begins now. Reads no clock: nearly all calls end long before it matters.
    pub fn new(limit_ms: u64) -> Self {
        Self { limit: Duration::from_millis(limit_ms), late: None }
    }

    /// How long the call may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Epochs until the deadline is asked for the first time: half the limit.
    pub fn first_epochs(&self) -> u64 {
        engine::epochs(half(self.limit))
    }

    /// Called by the engine on the thread that makes the call, when the deadline is reached.
    pub fn reached(mut context: StoreContextMut<'_, Host>) -> wasmtime::Result<UpdateDeadline> {
        let deadline = &mut context.data_mut().deadline;
        let half_limit = Duration::from_millis(half(deadline.limit));
        let now = thread_time();
        let Some((then, since)) = deadline.late else {
            deadline.late = Some((now, Instant::now()));
            return Ok(UpdateDeadline::Continue(engine::epochs(half(deadline.limit))));
        };
        let ran = match (now, then) {
            (Some(now), Some(then)) => now.saturating_sub(then),
            _ => since.elapsed(),
        };
        if ran >= half_limit || since.elapsed() >= deadline.limit * PATIENCE {
            return Ok(UpdateDeadline::Interrupt);
        }
        let left = u64::try_from((half_limit - ran).as_millis()).unwrap_or(u64::MAX);
        Ok(UpdateDeadline::Continue(engine::epochs(left)))
    }
}

fn half(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).div_ceil(2)
}

/// How long this thread has been on a processor, where the system tells.
#[cfg(unix)]
pub fn thread_time() -> Option<Duration> {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(not(unix))]
pub fn thread_time() -> Option<Duration> {
    None
}
