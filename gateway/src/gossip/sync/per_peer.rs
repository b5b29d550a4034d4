//! Limits that hold for each peer by itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use iroh::EndpointId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Peers that are known before those with nothing under way are forgotten.
const KNOWN: usize = 64;

/// So many things at once with each peer.
pub struct PerPeer {
    most: usize,
    peers: Mutex<HashMap<EndpointId, Arc<Semaphore>>>,
}

impl PerPeer {
    pub fn new(most: usize) -> Self {
        Self { most, peers: Mutex::default() }
    }

    /// Waits for a place; it is given back when dropped.
    pub async fn place(&self, peer: EndpointId) -> Option<OwnedSemaphorePermit> {
        self.of(peer).acquire_owned().await.ok()
    }

    /// A place, if one is free.
    pub fn try_place(&self, peer: EndpointId) -> Option<OwnedSemaphorePermit> {
        self.of(peer).try_acquire_owned().ok()
    }

    fn of(&self, peer: EndpointId) -> Arc<Semaphore> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= KNOWN {
            // A place, and whoever waits for one, holds the semaphore.
            peers.retain(|_, places| Arc::strong_count(places) > 1);
        }
        peers.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(self.most))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_places_and_they_come_back() {
        let places = PerPeer::new(2);
        let peers: Vec<_> = (0..100).map(|_| iroh::SecretKey::generate().public()).collect();
        let held = [places.try_place(peers[0]), places.try_place(peers[0])];
        assert!(held.iter().all(Option::is_some));
        // Many others do not make it forget who holds something.
        peers[1..].iter().for_each(|peer| assert!(places.try_place(*peer).is_some()));
        assert!(places.try_place(peers[0]).is_none());
        assert!(places.peers.lock().unwrap().len() <= KNOWN);
        drop(held);
        assert!(places.try_place(peers[0]).is_some());
    }
}
