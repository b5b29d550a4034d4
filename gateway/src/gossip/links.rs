//! The connections to other endpoints, whoever opened them: gossip keeps its own to itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use iroh::{
    EndpointId, TransportAddr,
    endpoint::{AfterHandshakeOutcome, Connection, EndpointHooks, WeakConnectionHandle},
};
use serde::Serialize;

/// Endpoints whose connections are remembered, and connections of each. Beyond that the newest are
/// not shown.
const ENDPOINTS: usize = 1_024;
const CONNECTIONS: usize = 8;

/// How an endpoint is reached at the moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Path {
    /// `"direct"`, or `"relay"` over an iroh relay.
    pub path: &'static str,
    /// An address with a port, or the URL of the iroh relay.
    pub address: String,
    /// Round-trip time in milliseconds.
    pub rtt_ms: f64,
}

/// The open connections, noted as they are made. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Links(Arc<Mutex<HashMap<EndpointId, Vec<WeakConnectionHandle>>>>);

impl Links {
    /// The path of the newest connection that is open; `None` without any.
    pub fn path(&self, peer: &EndpointId) -> Option<Path> {
        let links = self.lock().get(peer)?.clone();
        links.iter().rev().filter_map(open).find_map(|connection| {
            let paths = connection.paths();
            let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next());
            let path = path?;
            let rtt_ms = (path.rtt().as_secs_f64() * 100_000.0).round() / 100.0;
            let (path, address) = match path.remote_addr() {
                TransportAddr::Ip(address) => ("direct", address.to_string()),
                TransportAddr::Relay(url) => ("relay", url.to_string()),
                other => ("other", format!("{other:?}")),
            };
            Some(Path { path, address, rtt_ms })
        })
    }

    /// Where the endpoint is reached at the moment, over all open connections; each once, direct ones
    /// first.
    pub fn addresses(&self, peer: &EndpointId) -> Vec<TransportAddr> {
        let links = self.lock().get(peer).cloned().unwrap_or_default();
        let mut addresses: Vec<_> = links
            .iter()
            .filter_map(open)
            .flat_map(|connection| {
                connection.paths().iter().map(|path| path.remote_addr().clone()).collect::<Vec<_>>()
            })
            .collect();
        addresses.sort_by_key(|address| (!address.is_ip(), format!("{address:?}")));
        addresses.dedup();
        addresses
    }

    fn note(&self, connection: &Connection) {
        let mut links = self.lock();
        if links.len() >= ENDPOINTS {
            links.retain(|_, links| links.iter().any(|link| open(link).is_some()));
        }
        let peer = connection.remote_id();
        if links.len() >= ENDPOINTS && !links.contains_key(&peer) {
            return;
        }
        let links = links.entry(peer).or_default();
        links.retain(|link| open(link).is_some());
        if links.len() < CONNECTIONS {
            links.push(connection.weak_handle());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EndpointId, Vec<WeakConnectionHandle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(link: &WeakConnectionHandle) -> Option<Connection> {
    link.upgrade().filter(|connection| connection.close_reason().is_none())
}

impl EndpointHooks for Links {
    async fn after_handshake<'a>(&'a self, connection: &'a Connection) -> AfterHandshakeOutcome {
        self.note(connection);
        AfterHandshakeOutcome::Accept
    }
}
