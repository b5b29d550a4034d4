//! How long to wait before connecting to a relay once more.

use std::time::Duration;

/// The first pause after a failure; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(300);
/// A connection that worked and held so long makes all that was before forgotten.
const HELD: Duration = Duration::from_secs(60);
/// The longest pause after connections that worked and did not hold: a relay that is being restarted...
const LONGEST_RESTART: Duration = Duration::from_secs(3);
/// ... but one that ends so many in a row waits like one that is away.
const RESTARTS: u32 = 60;
/// After a relay sent what nobody asked for.
const MISBEHAVED: Duration = Duration::from_secs(60);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// No connection, or none that answered anything; the relay may say how long to stay away.
    Failed { retry_after: Option<Duration> },
    /// The relay answered, and then the connection ended after so long.
    Worked(Duration),
    /// It was ended because of what the relay sent.
    Misbehaved,
}

/// Remembers how attempts went.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// Failed attempts since one worked.
    failures: u32,
    /// Connections that worked and did not hold, in a row.
    restarts: u32,
}

impl Pauses {
    /// Failed attempts since one worked.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The pause after an attempt. `jitter` is a random number from 0 to 1: of many relays that went away
    /// together not all are to be asked at once.
    pub fn after(&mut self, ending: Ending, jitter: f64) -> Duration {
        let pause = match ending {
            Ending::Failed { retry_after } => {
                self.failures = self.failures.saturating_add(1);
                doubled(FIRST, self.failures - 1).max(retry_after.unwrap_or_default())
            }
            Ending::Worked(held) => {
                self.failures = 0;
                self.restarts = if held >= HELD { 0 } else { self.restarts.saturating_add(1) };
                match self.restarts.checked_sub(RESTARTS) {
                    None => doubled(FIRST, self.restarts.saturating_sub(1)).min(LONGEST_RESTART),
                    Some(beyond) => doubled(LONGEST_RESTART, beyond),
                }
            }
            Ending::Misbehaved => {
                self.failures = self.failures.saturating_add(1);
                doubled(MISBEHAVED, self.failures - 1)
            }
        };
        pause.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;
    const FAILED: Ending = Ending::Failed { retry_after: None };

    fn seconds(pauses: &mut Pauses, endings: &[Ending]) -> Vec<u64> {
        endings.iter().map(|ending| pauses.after(*ending, MIDDLE).as_secs()).collect()
    }

    #[test]
    fn pauses_grow_to_five_minutes_and_begin_anew_after_what_worked() {
        let mut pauses = Pauses::default();
        let many = seconds(&mut pauses, &[FAILED; 12]);
        assert_eq!(many, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(seconds(&mut pauses, &[Ending::Worked(HELD), FAILED, FAILED]), [1, 1, 2]);
        assert_eq!(seconds(&mut Pauses::default(), &[Ending::Misbehaved; 2]), [60, 120]);
        let mut pauses = Pauses::default();
        assert_eq!(pauses.after(FAILED, 0.0), Duration::from_millis(750));
        assert_eq!(Pauses::default().after(FAILED, 1.0), Duration::from_millis(1_250));
    }

    #[test]
    fn a_relay_that_restarts_often_is_not_left_alone_for_long_and_one_that_does_nothing_else_is() {
        let mut pauses = Pauses::default();
        let short = Ending::Worked(Duration::from_secs(1));
        let of = seconds(&mut pauses, &[short; 50]);
        assert_eq!(of[..4], [1, 2, 3, 3]);
        assert_eq!(of[49], 3);
        let of = seconds(&mut pauses, &[short; 30]);
        assert_eq!(*of.last().unwrap(), 300);
    }

    #[test]
    fn the_relay_may_ask_for_more() {
        let busy = Ending::Failed { retry_after: Some(Duration::from_secs(90)) };
        assert_eq!(seconds(&mut Pauses::default(), &[busy, FAILED]), [90, 2]);
    }
}
