//! Latencies and their percentiles.

use std::time::Duration;

use serde::Serialize;

/// Every single measurement, in nanoseconds: 8 bytes each, and no error from bucketing.
#[derive(Debug, Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        self.0.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `None` without a measurement.
    pub fn summary(mut self) -> Option<Summary> {
        self.0.sort_unstable();
        let max = *self.0.last()?;
        Some(Summary {
            p50_ms: milliseconds(percentile(&self.0, 50)),
            p99_ms: milliseconds(percentile(&self.0, 99)),
            max_ms: milliseconds(max),
        })
    }
}

/// What is reported of a set of latencies, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The smallest measurement that at least `percent` of all do not exceed (nearest rank). The list is
/// sorted and not empty.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// Rounded to microseconds.
fn milliseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(milliseconds: impl IntoIterator<Item = u64>) -> Option<Summary> {
        let mut latencies = Latencies::default();
        for value in milliseconds {
            latencies.record(Duration::from_millis(value));
        }
        latencies.summary()
    }

    #[test]
    fn percentiles_are_measurements_of_the_nearest_rank() {
        assert_eq!(summary([]), None);
        let one = Summary { p50_ms: 7.0, p99_ms: 7.0, max_ms: 7.0 };
        assert_eq!(summary([7]), Some(one));
        let hundred = Summary { p50_ms: 50.0, p99_ms: 99.0, max_ms: 100.0 };
        assert_eq!(summary((1..=100).rev()), Some(hundred));
        let four = Summary { p50_ms: 2.0, p99_ms: 4.0, max_ms: 4.0 };
        assert_eq!(summary([3, 1, 4, 2]), Some(four));
    }
}
