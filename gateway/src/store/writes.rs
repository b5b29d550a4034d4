//! The sending side of the writer's queue, which closing takes away.

use std::{
    sync::{Mutex, PoisonError, RwLock},
    thread::JoinHandle,
};

use crossbeam_channel::Sender;
use rusqlite::Connection;

use super::versions::Changed;
use crate::pipeline::{Removal, StoreError, Write};

/// What the writer does. Everything that changes the file goes through its queue.
pub(super) enum Order {
    Write(Write),
    Remove(Removal, Answer),
    /// Events that retention or expiry picked; those that are gone by then are passed over.
    Evict(Vec<i64>, Answer),
    /// A small change to what stands beside the events, as part of the next commit.
    Run(Change, Answer),
}

/// Returns how many rows it removed, and says of which topics it changed what is gone.
pub(super) type Change = Box<dyn Fn(&Connection, &Changed) -> rusqlite::Result<u64> + Send>;

/// Told once, after the commit or with the failure, how many events were removed.
pub(super) type Answer = Box<dyn FnOnce(Result<u64, StoreError>) + Send>;

pub(super) struct Writes {
    queue: RwLock<Option<Sender<Order>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writes {
    pub fn new(queue: Sender<Order>, thread: JoinHandle<()>) -> Self {
        Self { queue: RwLock::new(Some(queue)), thread: Mutex::new(Some(thread)) }
    }

    /// Queues an order; waits while the queue is full.
    pub fn send(&self, order: Order) -> Result<(), StoreError> {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = || StoreError("the store is closed".to_owned());
        queue.ok_or_else(closed)?.send(order).map_err(|_| closed())
    }

    /// Queues an order unless the queue is full.
    pub fn try_send(&self, order: Order) -> bool {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| queue.try_send(order).is_ok())
    }

    /// Queues an order with an answer and waits for it. Not from an async worker.
    pub fn ask(&self, order: impl FnOnce(Answer) -> Order) -> Result<u64, StoreError> {
        let (answer, result) = crossbeam_channel::bounded(1);
        self.send(order(Box::new(move |told| drop(answer.send(told)))))?;
        result.recv().map_err(|_| StoreError("the store is closed".to_owned()))?
    }

    /// Whether the writer still takes events.
    pub fn is_open(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub fn close(&self) -> Option<JoinHandle<()>> {
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
