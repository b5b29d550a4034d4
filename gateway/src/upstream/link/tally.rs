//! What a relay sent, by what it was worth.

use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::Traffic;

/// Messages that are worth nothing, beside as many as are worth something, before the link ends.
const PATIENCE: u64 = 500;
/// Messages of subscriptions that were closed weigh so much less: some are always on their way then.
const LATE: u64 = 64;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub good: AtomicU64,
    pub mismatched: AtomicU64,
    pub unasked: AtomicU64,
    pub malformed: AtomicU64,
    pub notices: AtomicU64,
    pub late: AtomicU64,
}

/// Figures of one connection, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFigures {
    /// Messages that were worth something.
    pub good: u64,
    /// On the wire, but for TLS.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Events that do not match what they were sent for.
    pub mismatched: u64,
    /// Messages with ids that nobody gave.
    pub unasked: u64,
    /// What is no message of a relay's, or no event.
    pub malformed: u64,
    pub notices: u64,
}

impl std::ops::Add for LinkFigures {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            good: self.good + other.good,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
            mismatched: self.mismatched + other.mismatched,
            unasked: self.unasked + other.unasked,
            malformed: self.malformed + other.malformed,
            notices: self.notices + other.notices,
        }
    }
}

impl Tally {
    pub fn figures(&self, traffic: &Traffic) -> LinkFigures {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkFigures {
            good: of(&self.good),
            bytes_in: of(&traffic.read),
            bytes_out: of(&traffic.written),
            mismatched: of(&self.mismatched),
            unasked: of(&self.unasked),
            malformed: of(&self.malformed),
            notices: of(&self.notices),
        }
    }

    /// Counts one, and says what is wrong with this relay if it is too much by now.
    pub fn count(&self, counter: &AtomicU64) -> Option<String> {
        counter.fetch_add(1, Ordering::Relaxed);
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [mismatched, unasked, malformed, notices] =
            [&self.mismatched, &self.unasked, &self.malformed, &self.notices].map(of);
        let junk = mismatched + unasked + malformed + notices + of(&self.late) / LATE;
        (junk > PATIENCE + of(&self.good)).then(|| {
            format!(
                "it sends what nobody asked for: {mismatched} events that do not match, {unasked} \
                 messages with unknown ids, {malformed} that are malformed, {notices} notices"
            )
        })
    }
}
