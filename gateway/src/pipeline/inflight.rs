//! Events on their way: a second copy of one waits for the first to end.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::protocol::{Event, EventId};

/// Which copies wait for one another. The signature belongs to it: a forged copy must not hold up
/// the real event.
type Key = (EventId, [u8; 64]);

type Waiting = HashMap<Key, VecDeque<oneshot::Sender<Turn>>>;

/// The events being processed. Holds as many keys as there are submissions under way.
#[derive(Clone, Default)]
pub struct Inflight(Arc<Mutex<Waiting>>);

/// The right to process one event. When dropped it goes to the copy that waited longest.
pub struct Turn {
    key: Key,
    /// Taken away when the turn is handed on.
    inflight: Option<Inflight>,
}

impl Inflight {
    /// The turn, if no other copy of this event is being processed.
    pub fn try_enter(&self, event: &Event) -> Option<Turn> {
        let key = (event.id, event.sig);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Vacant(free) = waiting.entry(key) else { return None };
        free.insert(VecDeque::new());
        drop(waiting);
        Some(self.turn(key))
    }

    /// Waits until no other copy of this event is being processed.
    pub async fn enter(&self, event: &Event) -> Turn {
        let key = (event.id, event.sig);
        let wait = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.get_mut(&key) {
                None => {
                    waiting.insert(key, VecDeque::new());
                    None
                }
                Some(queue) => {
                    let (turn, wait) = oneshot::channel();
                    queue.push_back(turn);
                    Some(wait)
                }
            }
        };
        match wait {
            Some(wait) => wait.await.unwrap_or_else(|_| self.turn(key)),
            None => self.turn(key),
        }
    }

    fn turn(&self, key: Key) -> Turn {
        Turn { key, inflight: Some(self.clone()) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(inflight) = self.inflight.take() else { return };
        loop {
            let next = {
                let mut waiting = inflight.0.lock().unwrap_or_else(PoisonError::into_inner);
                match waiting.get_mut(&self.key).and_then(VecDeque::pop_front) {
                    Some(next) => next,
                    None => {
                        waiting.remove(&self.key);
                        return;
                    }
                }
            };
            match next.send(inflight.turn(self.key)) {
                Ok(()) => return,
                // That one went away. Its turn must not be handed on by its own end.
                Err(mut turn) => turn.inflight = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::protocol::signing::Author;

    #[tokio::test]
    async fn copies_wait_and_forgeries_do_not() {
        let inflight = Inflight::default();
        let event = Author::new(1).sign(1, 1, &[], "");
        let mut forged = event.clone();
        forged.sig = [1; 64];
        let first = inflight.try_enter(&event).unwrap();
        assert!(inflight.try_enter(&event).is_none());
        assert!(inflight.enter(&forged).now_or_never().is_some());
        let mut second = Box::pin(inflight.enter(&event));
        let mut gone = Box::pin(inflight.enter(&event));
        let mut third = Box::pin(inflight.enter(&event));
        for waiting in [&mut second, &mut gone, &mut third] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(gone);
        drop(first);
        let turn = second.now_or_never().unwrap();
        assert!((&mut third).now_or_never().is_none());
        drop(turn);
        drop(third.now_or_never().unwrap());
        assert!(inflight.0.lock().unwrap().is_empty());
    }
}
