//! Connections for fetches, kept between them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use iroh::{EndpointId, endpoint::Connection};
use tokio::time::{Instant, timeout};

use crate::{gossip::net::Net, protocol::frame::SYNC_ALPN};

/// Open connections that are kept for the next fetch.
const KEPT: usize = 64;
const CONNECT: Duration = Duration::from_secs(5);

/// Shared by all topics.
pub struct Connections {
    net: Arc<Net>,
    kept: Mutex<HashMap<EndpointId, Kept>>,
}

struct Kept {
    /// Locked while connecting: fetches from one peer share one connection.
    connection: Arc<tokio::sync::Mutex<Option<Connection>>>,
    used: Instant,
}

impl Connections {
    pub fn new(net: Arc<Net>) -> Self {
        Self { net, kept: Mutex::default() }
    }

    /// # Errors
    /// When the peer cannot be reached in time; the text is for a debug log.
    pub async fn to(&self, peer: EndpointId) -> Result<Connection, String> {
        let slot = self.slot(peer);
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|known| known.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        match timeout(CONNECT, self.net.endpoint().connect(peer, SYNC_ALPN)).await {
            Ok(Ok(connection)) => Ok(slot.insert(connection).clone()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("timed out".to_owned()),
        }
    }

    fn slot(&self, peer: EndpointId) -> Arc<tokio::sync::Mutex<Option<Connection>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT && !kept.contains_key(&peer) {
            // A connection closes when its last user drops it.
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(peer, _)| *peer);
            oldest.and_then(|peer| kept.remove(&peer));
        }
        let used = Instant::now();
        let kept = kept.entry(peer).or_insert_with(|| Kept { connection: Arc::default(), used });
        kept.used = used;
        kept.connection.clone()
    }
}
