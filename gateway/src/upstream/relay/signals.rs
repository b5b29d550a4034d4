//! What the two halves of a connection tell one another: the one that takes live events, and the one
//! that fetches what was missed.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use tokio::sync::{Notify, watch};

use crate::pipeline::streams::Part;

#[derive(Default)]
pub(super) struct Signals {
    /// The live subscriptions are open, or it is known that they are not to be had.
    ready: watch::Sender<bool>,
    /// All that was missed is here.
    idle: watch::Sender<bool>,
    /// Parts of which events may have been missed since.
    gaps: Mutex<HashSet<Part>>,
    /// Parts without a live subscription, for which the relay allows too few.
    not_live: Mutex<HashSet<Part>>,
    gap: Notify,
}

impl Signals {
    pub fn set_ready(&self) {
        self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
    }

    pub async fn ready(&self) {
        // The sender is here.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    pub fn set_idle(&self, idle: bool) {
        self.idle.send_if_modified(|now| std::mem::replace(now, idle) != idle);
    }

    pub async fn idle(&self) {
        let _ = self.idle.subscribe().wait_for(|idle| *idle).await;
    }

    /// Events of these parts may have been missed.
    pub fn missed(&self, parts: impl IntoIterator<Item = Part>) {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).extend(parts);
        self.gap.notify_one();
    }

    pub fn take_gaps(&self) -> HashSet<Part> {
        std::mem::take(&mut *self.gaps.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for one.
    pub async fn gap(&self) {
        self.gap.notified().await;
    }

    pub fn set_not_live(&self, parts: HashSet<Part>) {
        *self.not_live.lock().unwrap_or_else(PoisonError::into_inner) = parts;
    }

    pub fn not_live(&self) -> HashSet<Part> {
        self.not_live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
