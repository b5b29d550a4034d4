//! Who may connect: connections are bounded, over all peers and for each.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use iroh::{
    EndpointId,
    endpoint::{Connection, VarInt},
    protocol::{AcceptError, ProtocolHandler},
};
use iroh_gossip::net::Gossip;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a connection beyond the limits is closed with.
pub const BUSY: VarInt = VarInt::from_u32(1);

/// Gossip connections that others opened. A hundred topics with five neighbors each share them.
const GOSSIP_CONNECTIONS: usize = 512;
/// One to use, one that was dialed from the other side at the same time, and those that a peer left
/// behind when it crashed.
const GOSSIP_CONNECTIONS_PER_PEER: usize = 4;

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

    /// For connections of gossip.
    pub fn for_gossip() -> Self {
        Self::new(GOSSIP_CONNECTIONS, GOSSIP_CONNECTIONS_PER_PEER)
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

/// Gossip's own handler behind a limit: it takes every connection that it is given.
pub struct GossipDoor {
    gossip: Gossip,
    places: Places,
}

impl GossipDoor {
    pub fn new(gossip: Gossip) -> Self {
        Self { gossip, places: Places::for_gossip() }
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
        let Some(_place) = self.places.take(peer) else {
            tracing::debug!(peer = %peer.fmt_short(), "too many gossip connections");
            connection.close(BUSY, b"busy");
            return Ok(());
        };
        // Gossip alone decides how long the connection lives.
        let closed = connection.weak_handle().closed();
        self.gossip.accept(connection).await?;
        closed.await;
        Ok(())
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
}
