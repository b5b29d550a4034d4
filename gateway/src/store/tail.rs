//! The newest part of the log, in memory: what live subscriptions and topics read.

use std::{
    collections::VecDeque,
    sync::{PoisonError, RwLock},
};

use tokio::sync::watch;

use super::bell::Bell;
use crate::pipeline::{LogEntry, Seq};

/// Entries kept at most.
const MAX_ENTRIES: usize = 8_192;
/// Bytes of JSON kept at most. The parsed event takes about as much again.
const MAX_BYTES: usize = 16 << 20;

/// The end of the log. Reading copies cheap handles; whoever is behind reads SQLite instead.
pub(super) struct Tail {
    entries: RwLock<Entries>,
    head: watch::Sender<Seq>,
    /// For the store's own threads.
    pub bell: Bell,
}

/// Entries kept while nothing is committed.
const AT_REST: usize = 256;

struct Entries {
    list: VecDeque<LogEntry>,
    bytes: usize,
    /// Every entry after this position is in the list.
    complete_after: Seq,
}

impl Entries {
    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.list.pop_front() else { return false };
        self.bytes -= oldest.event.json().len();
        self.complete_after = oldest.seq;
        true
    }
}

impl Tail {
    pub fn new(head: Seq) -> Self {
        let entries = Entries { list: VecDeque::new(), bytes: 0, complete_after: head };
        Self {
            entries: RwLock::new(entries),
            head: watch::Sender::new(head),
            bell: Bell::default(),
        }
    }

    pub fn head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }

    /// The newest position.
    pub fn newest(&self) -> Seq {
        *self.head.borrow()
    }

    /// Appends what was just committed and wakes the consumers.
    pub fn append(&self, committed: Vec<LogEntry>) {
        let Some(newest) = committed.last().map(|entry| entry.seq) else { return };
        {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            for entry in committed {
                entries.bytes += entry.event.json().len();
                entries.list.push_back(entry);
            }
            while entries.list.len() > MAX_ENTRIES || entries.bytes > MAX_BYTES {
                if !entries.drop_oldest() {
                    break;
                }
            }
        }
        self.head.send_replace(newest);
        self.bell.ring();
    }

    /// Nothing was committed for a while: keeps a few, and gives the memory of the others back.
    pub fn rest(&self) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        while entries.list.len() > AT_REST {
            entries.drop_oldest();
        }
        entries.list.shrink_to(AT_REST);
    }

    /// The entries after `seq`, or `None` when some of them are no longer here.
    pub fn after(&self, seq: Seq) -> Option<Vec<LogEntry>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        if seq < entries.complete_after {
            return None;
        }
        let start = entries.list.partition_point(|entry| entry.seq <= seq);
        Some(entries.list.range(start..).cloned().collect())
    }
}
