//! Events on their way: a second copy of one waits for the first to end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::protocol::{Event, EventId};

/// Which copies wait for one another. The signature belongs to it: a forged copy must not hold up
/// the real event.
type Key = (EventId, [u8; 64]);

type Waiting = HashMap<Key, Vec<oneshot::Sender<()>>>;

/// The events being processed. Holds as many keys as there are submissions under way.
#[derive(Clone, Default)]
pub struct Inflight(Arc<Mutex<Waiting>>);

/// Ends the turn when dropped.
pub struct Turn {
    key: Key,
    inflight: Inflight,
}

impl Inflight {
    /// Waits until no other copy of this event is being processed.
    pub async fn enter(&self, event: &Event) -> Turn {
        let key = (event.id, event.sig);
        loop {
            let other = {
                let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                match waiting.get_mut(&key) {
                    None => {
                        waiting.insert(key, Vec::new());
                        return Turn { key, inflight: self.clone() };
                    }
                    Some(queue) => {
                        let (done, wait) = oneshot::channel();
                        queue.push(done);
                        wait
                    }
                }
            };
            // The sender is dropped without a message when the other's turn ends.
            let _ = other.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inflight.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
