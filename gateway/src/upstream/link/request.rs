//! A subscription, as its reader has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Shared;
use crate::protocol::Event;

/// What a relay sends to a subscription, in its order.
#[derive(Debug)]
pub enum Item {
    /// It matches the filters, and is not verified.
    Event(Event),
    /// All stored events have been sent. `complete`: it said that there are no more (NIP-67).
    Eose { complete: bool },
    /// The relay ended it, with this reason (bounded and printable). Nothing follows.
    Closed(String),
}

/// An item, and the room that it takes until it is read.
pub(super) struct Queued {
    pub item: Item,
    pub _room: Option<OwnedSemaphorePermit>,
}

/// An open subscription. Dropping it closes it.
pub struct Request {
    key: u64,
    items: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
    /// Events that were dropped because they do not match.
    dropped: Arc<AtomicU64>,
    /// One of those that the relay allows.
    _permit: OwnedSemaphorePermit,
}

impl Request {
    pub(super) fn new(
        key: u64,
        items: mpsc::Receiver<Queued>,
        shared: Arc<Shared>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { key, items, shared, dropped: Arc::default(), _permit: permit }
    }

    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }

    /// The next item; `None` when the link has ended. Nothing is lost when this is given up.
    pub async fn next(&mut self) -> Option<Item> {
        self.items.recv().await.map(|queued| queued.item)
    }

    pub(in crate::upstream) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.items.poll_recv(cx).map(|queued| queued.map(|queued| queued.item))
    }

    /// How many events the relay sent that do not match.
    pub fn mismatched(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.shared.drop_key(self.key);
    }
}
