//! The sending side of the writer's queue, which closing takes away.

use std::{
    sync::{Mutex, PoisonError, RwLock},
    thread::JoinHandle,
};

use tokio::sync::mpsc;

use crate::pipeline::{StoreError, Write};

pub(super) struct Writes {
    queue: RwLock<Option<mpsc::Sender<Write>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writes {
    pub fn new(queue: mpsc::Sender<Write>, thread: JoinHandle<()>) -> Self {
        Self { queue: RwLock::new(Some(queue)), thread: Mutex::new(Some(thread)) }
    }

    pub fn send(&self, write: Write) -> Result<(), StoreError> {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = || StoreError("the store is closed".to_owned());
        queue.ok_or_else(closed)?.blocking_send(write).map_err(|_| closed())
    }

    /// Whether the writer still takes events.
    pub fn is_open(&self) -> bool {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| !queue.is_closed())
    }

    pub fn close(&self) -> Option<JoinHandle<()>> {
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
