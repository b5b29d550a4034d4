//! Who may connect: connections are bounded, over all peers and for each. [`Places`] refuses what is
//! too much; [`Guests`], for gossip, closes what is not used any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use iroh::{
    EndpointId,
    endpoint::{Connection, VarInt, WeakConnectionHandle},
    protocol::{AcceptError, ProtocolHandler},
};
use iroh_gossip::net::Gossip;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::swarms::Swarms;

/// What a connection beyond the limits is closed with.
pub const BUSY: VarInt = VarInt::from_u32(1);

/// Gossip connections that others opened. A hundred topics with five neighbors each share them.
const GUESTS: usize = 512;
/// Of one peer: the one to use, and one before it that may not be empty yet.
const GUESTS_PER_PEER: usize = 2;
/// After this time a connection with somebody who is no neighbor is not used any more.
const UNUSED: Duration = Duration::from_secs(60);

/// Places for connections. Cheap to clone.
#[derive(Clone)]
pub struct Places {
    total: Arc<Semaphore>,
    each: usize,
    peers: Arc<Mutex<HashMap<EndpointId, usize>>>,
}

impl Places {
    pub fn new(total: usize, each: usize) -> Self {
        Self { total: Arc::new(Semaphore::new(total)), each, peers: Arc::default() }
    }

    /// A place for one more connection of this peer, if there is any.
    pub fn take(&self, peer: EndpointId) -> Option<Place> {
        let permit = Arc::clone(&self.total).try_acquire_owned().ok()?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Place { peer, peers: Arc::clone(&self.peers), _permit: permit })
    }
}

/// Given back when dropped.
pub struct Place {
    peer: EndpointId,
    peers: Arc<Mutex<HashMap<EndpointId, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// The gossip connections that others opened.
///
/// iroh-gossip 0.101 never closes one: not when it has made another with the same peer, and not when
/// the peer is a neighbor no more. Each would stay, kept alive from both sides, until one of the two
/// ends. So we close those that are not used. Decides only; says what to close.
#[derive(Default)]
pub struct Guests {
    open: BTreeMap<u64, Guest>,
    number: u64,
}

struct Guest {
    peer: EndpointId,
    since: Instant,
}

/// A connection that came in.
pub struct Entered {
    pub number: u64,
    /// Those to close once the new one is in use.
    pub close: Vec<u64>,
}

impl Guests {
    /// A connection comes in. `None` when all are in use.
    pub fn enter(
        &mut self,
        peer: EndpointId,
        now: Instant,
        is_neighbor: impl Fn(&EndpointId) -> bool,
    ) -> Option<Entered> {
        // A peer sends over the last one that it made.
        let of_peer = |guest: &&u64| self.open[*guest].peer == peer;
        let before = self.open.keys().rev().filter(of_peer).skip(GUESTS_PER_PEER - 1);
        let unused = self.open.iter().filter(|(_, guest)| {
            now.saturating_duration_since(guest.since) >= UNUSED && !is_neighbor(&guest.peer)
        });
        let mut close: BTreeSet<u64> =
            before.chain(unused.map(|(number, _)| number)).copied().collect();
        if self.open.len() >= GUESTS + close.len() {
            let others = self.open.iter().filter(|(_, guest)| !is_neighbor(&guest.peer));
            close.insert(others.map(|(number, _)| *number).find(|number| !close.contains(number))?);
        }
        close.iter().for_each(|number| self.leave(*number));
        self.number += 1;
        self.open.insert(self.number, Guest { peer, since: now });
        Some(Entered { number: self.number, close: close.into_iter().collect() })
    }

    /// A connection has ended.
    pub fn leave(&mut self, number: u64) {
        self.open.remove(&number);
    }
}

/// Gossip's own handler behind a limit: it takes every connection that it is given.
pub struct GossipDoor {
    gossip: Gossip,
    swarms: Arc<Swarms>,
    guests: Mutex<(Guests, HashMap<u64, WeakConnectionHandle>)>,
}

impl GossipDoor {
    pub fn new(gossip: Gossip, swarms: Arc<Swarms>) -> Self {
        Self { gossip, swarms, guests: Mutex::default() }
    }

    /// The number of the connection, and those that it replaces.
    fn enter(&self, connection: &Connection) -> Option<(u64, Vec<Connection>)> {
        let neighbors: HashSet<_> =
            self.swarms.entrances().iter().flat_map(|(state, _)| state.neighbors()).collect();
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let (guests, handles) = &mut *guests;
        let is_neighbor = |peer: &EndpointId| neighbors.contains(peer);
        let entered = guests.enter(connection.remote_id(), Instant::now(), is_neighbor)?;
        let close = entered.close.iter().filter_map(|number| handles.remove(number)?.upgrade());
        let close = close.collect();
        handles.insert(entered.number, connection.weak_handle());
        Some((entered.number, close))
    }

    fn leave(&self, number: u64) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.0.leave(number);
        guests.1.remove(&number);
    }
}

impl fmt::Debug for GossipDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipDoor")
    }
}

impl ProtocolHandler for GossipDoor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let peer = connection.remote_id();
        let Some((number, replaced)) = self.enter(&connection) else {
            tracing::debug!(peer = %peer.fmt_short(), "too many gossip connections");
            connection.close(BUSY, b"busy");
            return Ok(());
        };
        // Gossip alone decides how long the connection lives, as long as it is in use.
        let closed = connection.weak_handle().closed();
        let accepted = self.gossip.accept(connection).await;
        // Now that gossip uses the new one, it does not take the end of these for the peer's.
        replaced.iter().for_each(|connection| connection.close(0u32.into(), b"not used"));
        if accepted.is_ok() {
            closed.await;
        }
        self.leave(number);
        accepted
    }

    async fn shutdown(&self) {
        // At an orderly shutdown the topics were left before, and there is no actor to ask.
        if let Err(error) = self.gossip.shutdown().await {
            tracing::debug!(%error, "gossip has ended already");
        }
    }
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    #[test]
    fn places_are_bounded_over_all_and_for_each_and_come_back() {
        let peer = |n: u8| SecretKey::from_bytes(&[n; 32]).public();
        let places = Places::new(3, 2);
        let first = places.take(peer(1)).unwrap();
        let second = places.take(peer(1)).unwrap();
        assert!(places.take(peer(1)).is_none(), "two for each");
        let third = places.take(peer(2)).unwrap();
        assert!(places.take(peer(3)).is_none(), "three in all");
        drop(first);
        let again = places.take(peer(1));
        assert!(again.is_some() && places.take(peer(2)).is_none());
        drop((again, second, third));
        assert!(places.peers.lock().unwrap().is_empty());
    }

    #[test]
    fn guests_that_are_not_used_make_room_and_those_in_use_stay() {
        let peer = |n: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            SecretKey::from_bytes(&key).public()
        };
        let start = Instant::now();
        let (friend, mut guests) = (peer(0), Guests::default());
        let mut enter = |n: u64, at: Duration| {
            guests.enter(peer(n), start + at, |peer| *peer == friend).map(|entered| entered.close)
        };
        assert_eq!(enter(0, Duration::ZERO), Some(vec![]));
        assert_eq!(enter(1, Duration::ZERO), Some(vec![]));
        assert_eq!(enter(0, Duration::ZERO), Some(vec![]));
        assert_eq!(enter(0, Duration::ZERO), Some(vec![1]), "two of one peer");
        assert_eq!(enter(3, UNUSED), Some(vec![2]), "no neighbor for a while");
        // Those of a neighbor and the last one are there now.
        for n in 4..GUESTS as u64 + 1 {
            assert_eq!(enter(n, UNUSED), Some(vec![]), "{n}");
        }
        assert_eq!(
            enter(1_000, UNUSED),
            Some(vec![5]),
            "all are new: the oldest that is no neighbor's"
        );
        let mut full = Guests::default();
        for n in 0..GUESTS as u64 {
            full.enter(peer(n), start, |_| true).unwrap();
        }
        assert!(full.enter(peer(1_000), start, |_| true).is_none(), "all are in use");
        full.leave(7);
        assert!(full.enter(peer(1_000), start, |_| true).is_some());
    }
}
