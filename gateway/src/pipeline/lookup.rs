//! What plugins ask the store, at a bounded cost.

use std::time::Instant;

use super::StoreError;
use crate::protocol::PublicKey;

/// What questions may still cost: rows, and time.
#[derive(Debug)]
pub struct Cost {
    most: u64,
    read: u64,
    until: Instant,
}

/// Rows between two looks at the clock.
const READ_PER_LOOK: u64 = 64;

impl Cost {
    /// At most so many rows, and no longer than until then.
    pub fn new(most: u64, until: Instant) -> Self {
        Self { most, read: 0, until }
    }

    /// Pays for so many rows before they are read, or for as much work of another kind.
    ///
    /// # Errors
    /// When the bound is reached.
    pub fn pay(&mut self, rows: u64) -> Result<(), LookupError> {
        let before = self.read;
        self.read = self.read.saturating_add(rows);
        if self.read > self.most {
            self.read = self.most;
            return Err(LookupError::Cost);
        }
        let look = before == 0 || before / READ_PER_LOOK != self.read / READ_PER_LOOK;
        if look && Instant::now() >= self.until {
            return Err(LookupError::Cost);
        }
        Ok(())
    }

    /// What was paid for.
    pub fn read(&self) -> u64 {
        self.read
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("it would cost too much")]
    Cost,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is held of an author.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuthorHeld {
    /// At most as many as were to be counted.
    pub events: u32,
    /// Kind 0 is one of them.
    pub profile: bool,
    /// Kind 3 is one of them.
    pub follows: bool,
}

/// Questions to the store that are answered at once, on the thread that asks: a worker of the
/// pipeline. They never wait for the writer. All that is held counts, whoever may read it.
pub trait Lookup: Send + Sync + 'static {
    /// What is held of an author; counting stops at `most` events.
    ///
    /// # Errors
    /// When it costs more than it may, or the store fails.
    fn author(
        &self,
        author: &PublicKey,
        most: u32,
        cost: &mut Cost,
    ) -> Result<AuthorHeld, LookupError>;

    /// How many events have one of these authors and kinds and are not older; an empty list means
    /// all. Counting stops at `most`.
    ///
    /// # Errors
    /// When it costs more than it may, or the store fails.
    fn how_many(
        &self,
        authors: &[PublicKey],
        kinds: &[u16],
        since: u64,
        most: u32,
        cost: &mut Cost,
    ) -> Result<u32, LookupError>;

    /// Whom the newest list of follows (NIP-02) of an author has, each once, in its order.
    ///
    /// # Errors
    /// When it costs more than it may, or the store fails.
    fn follows(
        &self,
        author: &PublicKey,
        most: usize,
        cost: &mut Cost,
    ) -> Result<Vec<PublicKey>, LookupError>;

    /// Whether that list has this one.
    ///
    /// # Errors
    /// When it costs more than it may, or the store fails.
    fn is_followed(
        &self,
        author: &PublicKey,
        whom: &PublicKey,
        cost: &mut Cost,
    ) -> Result<bool, LookupError>;

    /// The tags of the newest event of an author and a replaceable kind, in their order.
    ///
    /// # Errors
    /// When it costs more than it may, or the store fails.
    fn newest_tags(
        &self,
        author: &PublicKey,
        kind: u16,
        most: usize,
        cost: &mut Cost,
    ) -> Result<Vec<Vec<String>>, LookupError>;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rows_and_time_are_bounded() {
        let later = Instant::now() + Duration::from_secs(60);
        let mut cost = Cost::new(100, later);
        assert!((0..100).all(|_| cost.pay(1).is_ok()));
        assert!(matches!(cost.pay(1), Err(LookupError::Cost)));
        assert!(Cost::new(100, later).pay(101).is_err());
        assert!(Cost::new(100, Instant::now()).pay(1).is_err(), "there is no time left");
    }
}
