//! The live subscriptions of all connections, and how an event gets to them.

use std::{collections::HashMap, sync::Arc};

use super::{
    Interest,
    feed::{Delivery, Inbox, Lagged},
    index::{Index, Slot},
};
use crate::{
    pipeline::{LogEntry, Passing, Seq},
    protocol::Event,
};

pub(super) struct Registry {
    /// Everything up to here has been delivered.
    pub position: Seq,
    connections: HashMap<u64, Connection>,
    /// By slot; free ones are empty.
    live: Vec<Option<Live>>,
    free: Vec<Slot>,
    index: Index,
    /// Used again for each event.
    candidates: Vec<Slot>,
    /// Counts events, to visit each subscription once for each.
    stamp: u64,
    touched: Vec<Arc<Inbox>>,
}

struct Connection {
    inbox: Arc<Inbox>,
    /// Its live subscriptions.
    live: HashMap<Arc<str>, Slot>,
}

struct Live {
    connection: u64,
    subscription: Arc<str>,
    inbox: Arc<Inbox>,
    interest: Arc<Interest>,
    generation: u64,
    /// Nothing up to here is delivered: the stored events had it.
    after: Seq,
    /// The last event it was looked at for.
    seen: u64,
}

impl Registry {
    pub fn new(position: Seq) -> Self {
        Self {
            position,
            connections: HashMap::new(),
            live: Vec::new(),
            free: Vec::new(),
            index: Index::default(),
            candidates: Vec::new(),
            stamp: 0,
            touched: Vec::new(),
        }
    }

    pub fn connect(&mut self, connection: u64) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::default());
        let entry = Connection { inbox: inbox.clone(), live: HashMap::new() };
        self.connections.insert(connection, entry);
        inbox
    }

    pub fn insert(
        &mut self,
        connection: u64,
        subscription: &Arc<str>,
        generation: u64,
        interest: &Arc<Interest>,
        after: Seq,
    ) {
        self.remove(connection, subscription);
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        let live = Live {
            connection,
            subscription: subscription.clone(),
            inbox: entry.inbox.clone(),
            interest: interest.clone(),
            generation,
            after,
            seen: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.live.push(None);
                Slot::try_from(self.live.len() - 1).expect("fewer than 2³² subscriptions are open")
            }
        };
        entry.live.insert(subscription.clone(), slot);
        self.index.insert(slot, &interest.filters);
        self.live[slot as usize] = Some(live);
    }

    pub fn remove(&mut self, connection: u64, subscription: &Arc<str>) {
        let entry = self.connections.get_mut(&connection);
        if let Some(slot) = entry.and_then(|entry| entry.live.remove(subscription)) {
            self.vacate(slot);
        }
    }

    pub fn disconnect(&mut self, connection: u64) {
        let Some(Connection { live, .. }) = self.connections.remove(&connection) else { return };
        for slot in live.into_values() {
            self.vacate(slot);
        }
    }

    fn vacate(&mut self, slot: Slot) {
        if let Some(live) = self.live.get_mut(slot as usize).and_then(Option::take) {
            self.index.remove(slot, &live.interest.filters);
            self.free.push(slot);
        }
    }

    /// Delivers log entries. `now` is in Unix seconds.
    pub fn deliver(&mut self, entries: &[LogEntry], now: u64) {
        for entry in entries {
            if entry.event.is_expired(now) {
                continue;
            }
            let wants =
                |live: &Live| entry.seq > live.after && live.interest.wants_unexpired(entry);
            self.offer(&entry.event, Some(entry.seq), wants);
        }
        self.wake();
    }

    /// Delivers an ephemeral event.
    pub fn pass(&mut self, passed: &Passing, now: u64) {
        if !passed.event.is_expired(now) {
            let wants = |live: &Live| live.interest.wants_passing(passed);
            self.offer(passed.event.shared(), None, wants);
        }
        self.wake();
    }

    /// Puts the event into the inbox of everybody who wants it. When one is full, a stored event
    /// (`seq`) takes the subscription out of the index; an ephemeral one is lost.
    fn offer(&mut self, event: &Arc<Event>, seq: Option<Seq>, wants: impl Fn(&Live) -> bool) {
        self.stamp += 1;
        let mut candidates = std::mem::take(&mut self.candidates);
        self.index.candidates(event, &mut candidates);
        for slot in candidates.drain(..) {
            let Some(Some(live)) = self.live.get_mut(slot as usize) else { continue };
            if std::mem::replace(&mut live.seen, self.stamp) == self.stamp || !wants(live) {
                continue;
            }
            let delivery = Delivery {
                subscription: live.subscription.clone(),
                generation: live.generation,
                event: event.clone(),
            };
            if live.inbox.push(delivery, event.json().len()) {
                if live.inbox.mark() {
                    self.touched.push(live.inbox.clone());
                }
            } else if let Some(seq) = seq {
                let lagged = Lagged {
                    subscription: live.subscription.clone(),
                    generation: live.generation,
                    after: seq - 1,
                };
                live.inbox.push_lagged(lagged);
                if live.inbox.mark() {
                    self.touched.push(live.inbox.clone());
                }
                let (connection, subscription) = (live.connection, live.subscription.clone());
                self.remove(connection, &subscription);
            }
        }
        self.candidates = candidates;
    }

    fn wake(&mut self) {
        for inbox in self.touched.drain(..) {
            inbox.wake();
        }
    }
}
