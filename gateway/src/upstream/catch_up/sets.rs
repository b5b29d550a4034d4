//! Sets of ids, and comparing them (negentropy). Sorting and comparing runs off the async workers.

use std::{io, sync::Arc};

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use tokio::sync::Semaphore;

use super::CatchUpError;
use crate::{protocol::EventId, tasks};

/// Sorted ids.
pub(super) struct Set {
    ids: NegentropyStorageVector,
    /// The longest message that we write, in bytes.
    frame: u64,
}

/// What an answer of the other side tells.
pub(super) struct Step {
    /// What to say next; nothing at the end.
    pub next: Option<Vec<u8>>,
    /// What only the other side has, as far as this answer tells.
    pub need: Vec<EventId>,
}

impl Set {
    /// `frame` is at least 4,096.
    pub fn new(ids: &[(u64, EventId)], frame: u64) -> Result<Self, CatchUpError> {
        let mut sorted = NegentropyStorageVector::with_capacity(ids.len());
        for (created_at, id) in ids {
            sorted.insert(*created_at, Id::from_byte_array(id.0)).map_err(|e| broken(&e))?;
        }
        sorted.seal().map_err(|e| broken(&e))?;
        Ok(Self { ids: sorted, frame })
    }

    fn negentropy(&self) -> Result<Negentropy<'_, NegentropyStorageVector>, CatchUpError> {
        Negentropy::borrowed(&self.ids, self.frame).map_err(|e| broken(&e))
    }

    pub fn first(&self) -> Result<Vec<u8>, CatchUpError> {
        self.negentropy()?.initiate().map_err(|e| broken(&e))
    }

    pub fn step(&self, answer: &[u8]) -> Result<Step, CatchUpError> {
        let mut negentropy = self.negentropy()?;
        negentropy.set_initiator();
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let next =
            negentropy.reconcile_with_ids(answer, &mut have, &mut need).map_err(|e| broken(&e))?;
        let need = need.into_iter().map(|id| EventId(id.to_bytes())).collect();
        Ok(Step { next, need })
    }
}

fn broken(error: &negentropy::Error) -> CatchUpError {
    CatchUpError::Compare(error.to_string())
}

/// Runs it off the async workers when its turn comes.
pub(super) async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, CatchUpError> + Send + 'static,
) -> Result<T, CatchUpError> {
    let turn = turns.clone().acquire_owned().await;
    let worked = tasks::blocking(move || {
        let _turn = turn;
        work()
    });
    worked.await.map_err(|error: io::Error| CatchUpError::Compare(error.to_string()))?
}
