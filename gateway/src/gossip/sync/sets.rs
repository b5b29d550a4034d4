//! Sets of ids, and comparing them (negentropy). Sorting and comparing runs off the async workers.

use std::sync::Arc;

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use tokio::sync::Semaphore;

use super::wire::MAX_MESSAGE;
use crate::{gossip::fetch::wire::WireError, protocol::EventId, tasks};

/// Sorted ids of one range.
pub struct Set(NegentropyStorageVector);

/// What is only on one side.
#[derive(Debug, Default)]
pub struct Difference {
    pub have: Vec<EventId>,
    pub need: Vec<EventId>,
}

/// What the leading side says next; nothing at the end.
pub type Next = Option<Vec<u8>>;

impl Set {
    /// # Errors
    /// Never with the ids of a store; the text is that of the library.
    pub fn new(ids: &[(u64, EventId)]) -> Result<Self, WireError> {
        let mut sorted = NegentropyStorageVector::with_capacity(ids.len());
        for (created_at, id) in ids {
            sorted.insert(*created_at, Id::from_byte_array(id.0)).map_err(broken)?;
        }
        sorted.seal().map_err(broken)?;
        Ok(Self(sorted))
    }

    fn negentropy(&self) -> Result<Negentropy<'_, NegentropyStorageVector>, WireError> {
        Negentropy::borrowed(&self.0, MAX_MESSAGE as u64).map_err(broken)
    }

    /// The first message of the leading side.
    pub fn first(&self) -> Result<Vec<u8>, WireError> {
        self.negentropy()?.initiate().map_err(broken)
    }

    /// The answer of the following side.
    pub fn answer(&self, message: &[u8]) -> Result<Vec<u8>, WireError> {
        self.negentropy()?.reconcile(message).map_err(broken)
    }

    /// The leading side's part: what the answer tells, and what to say next.
    pub fn next(&self, answer: &[u8], found: &mut Difference) -> Result<Next, WireError> {
        let mut negentropy = self.negentropy()?;
        negentropy.set_initiator();
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let next = negentropy.reconcile_with_ids(answer, &mut have, &mut need).map_err(broken)?;
        let ids = |ids: Vec<Id>| ids.into_iter().map(|id| EventId(id.to_bytes()));
        found.have.extend(ids(have));
        found.need.extend(ids(need));
        Ok(next)
    }
}

fn broken(error: negentropy::Error) -> WireError {
    WireError::Compared(error.to_string())
}

/// Runs it off the async workers when its turn comes.
pub async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, WireError> + Send + 'static,
) -> Result<T, WireError> {
    let turn = turns.clone().acquire_owned().await;
    let worked = tasks::blocking(move || {
        let _turn = turn;
        work()
    });
    worked.await?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: impl Iterator<Item = u64>) -> Vec<(u64, EventId)> {
        use sha2::{Digest, Sha256};
        numbers.map(|n| (n / 3, EventId(Sha256::digest(n.to_le_bytes()).into()))).collect()
    }

    /// Everything that both sides say, with the number of messages and of bytes.
    fn compare(here: &Set, there: &Set) -> (Difference, usize, usize) {
        let mut found = Difference::default();
        let (mut rounds, mut bytes) = (0, 0);
        let mut message = here.first().unwrap();
        loop {
            let answer = there.answer(&message).unwrap();
            rounds += 1;
            bytes += message.len() + answer.len();
            assert!(message.len() <= MAX_MESSAGE && answer.len() <= MAX_MESSAGE);
            match here.next(&answer, &mut found).unwrap() {
                Some(next) => message = next,
                None => return (found, rounds, bytes),
            }
        }
    }

    #[test]
    fn differences_are_found_whatever_their_number() {
        for (here, there, rounds, bytes) in [
            (0..50_000, 100..50_000, 8, 60_000),
            (0..50_000, 0..50_000, 1, 1_000),
            (0..0, 0..50_000, 32, 1_700_000),
            (0..25_000, 25_000..50_000, 64, 3_500_000),
        ] {
            let missing = |from: &std::ops::Range<u64>, of: &std::ops::Range<u64>| {
                from.clone().filter(|n| !of.contains(n)).count()
            };
            let expected = (missing(&here, &there), missing(&there, &here));
            let sets = (Set::new(&ids(here)).unwrap(), Set::new(&ids(there)).unwrap());
            let (mut found, took, moved) = compare(&sets.0, &sets.1);
            for ids in [&mut found.have, &mut found.need] {
                ids.sort_unstable();
                ids.dedup();
            }
            assert_eq!((found.have.len(), found.need.len()), expected);
            assert!(took <= rounds && moved <= bytes, "{took} rounds, {moved} bytes");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let set = Set::new(&ids(0..100)).unwrap();
        assert!(set.answer(b"").is_err());
        assert!(set.answer(b"GET / HTTP/1.1").is_err());
        assert!(set.next(&[0x61, 0, 0, 2, 0xff, 0xff, 0x7f], &mut Difference::default()).is_err());
    }
}
