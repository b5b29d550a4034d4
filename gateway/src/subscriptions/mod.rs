//! Who wants what: from an event to the open subscriptions that it concerns.
//!
//! One task follows the log. A subscription carries the log position that its stored events were read
//! at; whatever the log has after it is delivered, and nothing twice. A connection that does not keep
//! up loses no event: its subscriptions leave the index at a known position and come back by reading
//! the log.

mod feed;
pub mod index;
mod registry;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::unix_now,
    pipeline::{EventReader, LogEntry, Passing, Scope, SharedViewer, StoreError},
    protocol::{Event, Filter},
};
pub use feed::{Delivery, Feed, Lagged, News};
use registry::Registry;

/// Log entries read at once when the tail in memory is too short.
const PAGE: usize = 1_000;
/// Before the log is read again after a failure.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// What one subscription wants.
pub struct Interest {
    pub filters: Vec<Filter>,
    pub scope: Scope,
    /// What its connection may see at all.
    pub viewer: SharedViewer,
}

impl Interest {
    /// Whether a log entry is news for this subscription. `now` is in Unix seconds.
    pub fn wants(&self, entry: &LogEntry, now: u64) -> bool {
        !entry.event.is_expired(now) && self.wants_unexpired(entry)
    }

    fn wants_unexpired(&self, entry: &LogEntry) -> bool {
        self.scope.sees(entry)
            && self.matches(&entry.event)
            && self.scope.may_show(entry, &self.viewer.load())
    }

    fn matches(&self, event: &Event) -> bool {
        // A search is answered from what is stored (NIP-50).
        self.filters.iter().any(|filter| filter.words().is_none() && filter.matches(event))
    }

    /// Whether an event that only passes is for this subscription.
    fn wants_passing(&self, passed: &Passing) -> bool {
        let in_scope = match &self.scope {
            Scope::All => passed.audience.includes(&self.viewer.load(), &passed.topics),
            Scope::Topic(name) => passed.topics.contains(name),
        };
        let event = passed.event.shared();
        in_scope && self.matches(event) && self.viewer.load().may_read(event)
    }
}

/// The registry of live subscriptions.
pub struct Subscriptions {
    reader: Arc<dyn EventReader>,
    registry: Mutex<Registry>,
}

impl Subscriptions {
    pub fn new(reader: Arc<dyn EventReader>) -> Arc<Self> {
        let position = *reader.head().borrow();
        Arc::new(Self { reader, registry: Mutex::new(Registry::new(position)) })
    }

    /// Delivers what is committed and what passes, until the token is cancelled.
    pub async fn run(
        self: Arc<Self>,
        mut passing: broadcast::Receiver<Passing>,
        token: CancellationToken,
    ) {
        let mut head = self.reader.head();
        // What was committed since the position was taken is news too.
        head.mark_changed();
        let mut ephemeral_open = true;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                changed = head.changed() => {
                    if changed.is_err() { return }
                    let newest = *head.borrow_and_update();
                    if let Err(error) = self.catch_up(newest).await {
                        tracing::error!(%error, "live delivery cannot read the log; trying again");
                        tokio::time::sleep(AGAIN).await;
                        head.mark_changed();
                    }
                }
                passed = passing.recv(), if ephemeral_open => match passed {
                    Ok(passed) => self.lock().pass(&passed, unix_now()),
                    Err(broadcast::error::RecvError::Lagged(lost)) => {
                        tracing::warn!(lost, "ephemeral events were lost: too many at once");
                    }
                    Err(broadcast::error::RecvError::Closed) => ephemeral_open = false,
                },
            }
        }
    }

    async fn catch_up(&self, head: crate::pipeline::Seq) -> Result<(), StoreError> {
        loop {
            let position = self.lock().position;
            if position >= head {
                return Ok(());
            }
            let entries = match self.reader.recent_log_after(position) {
                Some(entries) => entries,
                None => self.reader.log_after(position, PAGE).await?,
            };
            let mut registry = self.lock();
            match entries.last() {
                Some(last) => {
                    let last = last.seq;
                    registry.deliver(&entries, unix_now());
                    registry.position = last;
                }
                // What was there is gone again: nothing to deliver.
                None => registry.position = head,
            }
        }
    }

    /// Opens a feed for a connection.
    pub fn connect(self: &Arc<Self>, connection: u64) -> Feed {
        let inbox = self.lock().connect(connection);
        Feed { connection, subscriptions: self.clone(), inbox }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
