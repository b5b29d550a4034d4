//! The open websockets, so that those which are no longer welcome can be closed at once.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::pipeline::{SharedViewer, Viewer};

/// The open websockets. Cheap to clone; all clones see the same ones.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<u64, Open>>>);

struct Open {
    address: IpAddr,
    viewer: SharedViewer,
    end: CancellationToken,
}

/// A websocket is listed as long as this lives.
pub(super) struct Listed {
    connections: Connections,
    number: u64,
    /// Cancelled when the connection is to end at once.
    pub end: CancellationToken,
}

impl Connections {
    pub(super) fn list(&self, number: u64, address: IpAddr, viewer: SharedViewer) -> Listed {
        let end = CancellationToken::new();
        self.lock().insert(number, Open { address, viewer, end: end.clone() });
        Listed { connections: self.clone(), number, end }
    }

    /// Ends those for which this holds. Returns how many there were.
    pub(super) fn close_where(&self, unwelcome: impl Fn(IpAddr, &Viewer) -> bool) -> usize {
        let open = self.lock();
        let closed = open.values().filter(|open| unwelcome(open.address, &open.viewer.load()));
        closed.inspect(|open| open.end.cancel()).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.number);
    }
}
