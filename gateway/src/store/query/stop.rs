//! When a query ends before its time: nobody waits for it any more, it took too long, or it failed.

use std::{cell::Cell, time::Instant};

use crate::pipeline::{ScanSender, StoreError, scan::ScanStopped};

/// Why a query did not reach its end.
#[derive(Debug)]
pub(super) enum QueryEnd {
    /// Whoever asked is gone or was told.
    Stopped,
    /// A bound was reached: what was found by then counts.
    OutOfBounds,
    Failed(StoreError),
}

impl From<rusqlite::Error> for QueryEnd {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<StoreError> for QueryEnd {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<ScanStopped> for QueryEnd {
    fn from(_: ScanStopped) -> Self {
        Self::Stopped
    }
}

/// Asked for each row that is looked at, whether it matches or not.
pub(super) trait Stop {
    /// # Errors
    /// When the query is to end.
    fn check(&self) -> Result<(), QueryEnd>;

    /// Asked for each entry of an index that is read, which does not count as a row.
    ///
    /// # Errors
    /// When the query is to end.
    fn check_time(&self) -> Result<(), QueryEnd>;
}

impl Stop for ScanSender {
    fn check(&self) -> Result<(), QueryEnd> {
        Ok(Self::check(self)?)
    }

    fn check_time(&self) -> Result<(), QueryEnd> {
        Ok(Self::check(self)?)
    }
}

/// The bounds of another, and so many rows at most.
pub(super) struct Few<'s, S> {
    stop: &'s S,
    left: Cell<u64>,
}

impl<'s, S> Few<'s, S> {
    pub fn new(stop: &'s S, rows: u64) -> Self {
        Self { stop, left: Cell::new(rows) }
    }
}

impl<S: Stop> Stop for Few<'_, S> {
    fn check(&self) -> Result<(), QueryEnd> {
        let left = self.left.get().checked_sub(1).ok_or(QueryEnd::OutOfBounds)?;
        self.left.set(left);
        self.stop.check()
    }

    fn check_time(&self) -> Result<(), QueryEnd> {
        self.stop.check_time()
    }
}

/// Rows and entries between two looks at the clock.
const READ_PER_LOOK: u64 = 64;

/// The bounds of a query that is answered at once, after its end.
pub(super) struct Bounds<G> {
    /// Whether whoever asked is gone.
    gone: G,
    until: Option<Instant>,
    max_rows: u64,
    rows: Cell<u64>,
    /// Rows and entries.
    read: Cell<u64>,
}

impl<G: Fn() -> bool> Bounds<G> {
    pub fn new(gone: G, until: Option<Instant>, max_rows: u64) -> Self {
        Self { gone, until, max_rows, rows: Cell::new(0), read: Cell::new(0) }
    }
}

impl<G: Fn() -> bool> Stop for Bounds<G> {
    fn check(&self) -> Result<(), QueryEnd> {
        let rows = self.rows.get();
        self.rows.set(rows + 1);
        self.check_time()?;
        if rows >= self.max_rows { Err(QueryEnd::OutOfBounds) } else { Ok(()) }
    }

    fn check_time(&self) -> Result<(), QueryEnd> {
        let read = self.read.get();
        self.read.set(read + 1);
        if read.is_multiple_of(READ_PER_LOOK) {
            if (self.gone)() {
                return Err(QueryEnd::Stopped);
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Err(QueryEnd::OutOfBounds);
            }
        }
        Ok(())
    }
}
