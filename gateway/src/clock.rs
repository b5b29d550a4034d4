//! The time of day.

use std::{
    cell::Cell,
    time::{SystemTime, UNIX_EPOCH},
};

thread_local! {
    static STANDS_AT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Seconds since the Unix epoch; 0 for a clock before it.
pub fn unix_now() -> u64 {
    STANDS_AT.get().unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    })
}

/// From now on this thread's clock stands at this time: where plugins are tried with events of the
/// past, so that the outcome is the same each time.
pub fn stand_at(seconds: u64) {
    STANDS_AT.set(Some(seconds));
}
