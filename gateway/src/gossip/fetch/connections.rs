//! Connections for fetches, kept between them.
//!
//! Both sides may ask over a connection, whoever opened it: a peer that came back at another address
//! can reach us at once, while iroh goes on looking for it at the old one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use iroh::{
    EndpointId,
    endpoint::{Connection, WeakConnectionHandle},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{gossip::net::Net, protocol::frame::SYNC_ALPN};

/// Open connections that are kept for the next fetch.
const KEPT: usize = 64;
/// Peers whose connections to us are remembered before those that ended are forgotten; more are not
/// open at once.
const CAME: usize = 512;
/// Connections that wait to be listened to; on others the peer is not answered.
const OPENED: usize = 64;
const CONNECT: Duration = Duration::from_secs(5);

/// Shared by all topics.
pub struct Connections {
    net: Arc<Net>,
    kept: Mutex<HashMap<EndpointId, Kept>>,
    /// The last connection that each peer opened.
    came: Mutex<HashMap<EndpointId, WeakConnectionHandle>>,
    opened: mpsc::Sender<Opened>,
}

/// A connection that we opened. The peer may ask over it too, until the token is cancelled.
pub struct Opened {
    pub connection: Connection,
    pub over: CancellationToken,
}

/// A connection in use, and what ends our listening on it if we opened it.
#[derive(Clone)]
struct Held {
    connection: Connection,
    _over: Option<Arc<DropGuard>>,
}

/// Locked while connecting: fetches from one peer share one connection.
type Line<C> = Arc<tokio::sync::Mutex<Dialled<C>>>;

struct Dialled<C> {
    open: Option<C>,
    /// When it failed the last time, and why.
    failed: Option<(Instant, String)>,
}

impl<C> Default for Dialled<C> {
    fn default() -> Self {
        Self { open: None, failed: None }
    }
}

struct Kept {
    line: Line<Held>,
    used: Instant,
}

impl Connections {
    /// Whoever holds the receiver listens on the connections that are opened.
    pub fn new(net: Arc<Net>) -> (Self, mpsc::Receiver<Opened>) {
        let (opened, queue) = mpsc::channel(OPENED);
        (Self { net, kept: Mutex::default(), came: Mutex::default(), opened }, queue)
    }

    /// A peer opened a connection.
    pub fn came(&self, connection: &Connection) {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        if came.len() >= CAME {
            came.retain(|_, connection| open(connection).is_some());
        }
        came.insert(connection.remote_id(), connection.weak_handle());
    }

    /// # Errors
    /// When the peer cannot be reached in time; the text is for a debug log.
    pub async fn to(&self, peer: EndpointId) -> Result<Connection, String> {
        let line = self.line(peer);
        let dial = async {
            if let Some(connection) = self.of_peer(&peer) {
                return Ok(Held { connection, _over: None });
            }
            match timeout(CONNECT, self.net.endpoint().connect(peer, SYNC_ALPN)).await {
                Ok(Ok(connection)) => Ok(self.listen(connection)),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("timed out".to_owned()),
            }
        };
        let is_open = |held: &Held| held.connection.close_reason().is_none();
        call(&line, is_open, dial).await.map(|held| held.connection)
    }

    /// An open connection that the peer made.
    fn of_peer(&self, peer: &EndpointId) -> Option<Connection> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner).get(peer).and_then(open)
    }

    fn listen(&self, connection: Connection) -> Held {
        let over = CancellationToken::new();
        let opened = Opened { connection: connection.clone(), over: over.clone() };
        let listened = self.opened.try_send(opened).is_ok();
        Held { connection, _over: listened.then(|| Arc::new(over.drop_guard())) }
    }

    fn line(&self, peer: EndpointId) -> Line<Held> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT && !kept.contains_key(&peer) {
            // A connection closes when its last user drops it.
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(peer, _)| *peer);
            oldest.and_then(|peer| kept.remove(&peer));
        }
        let used = Instant::now();
        let kept = kept.entry(peer).or_insert_with(|| Kept { line: Line::default(), used });
        kept.used = used;
        kept.line.clone()
    }
}

fn open(connection: &WeakConnectionHandle) -> Option<Connection> {
    connection.upgrade().filter(|connection| connection.close_reason().is_none())
}

/// The connection that is open, or a new one. All who wait for the same attempt share its failure: they
/// would fail one after the other.
async fn call<C: Clone>(
    line: &Line<C>,
    is_open: impl Fn(&C) -> bool,
    dial: impl Future<Output = Result<C, String>>,
) -> Result<C, String> {
    let began = Instant::now();
    let mut line = line.lock().await;
    if let Some(open) = line.open.as_ref().filter(|open| is_open(open)) {
        return Ok(open.clone());
    }
    if let Some((at, error)) = &line.failed
        && began < *at
    {
        return Err(error.clone());
    }
    match dial.await {
        Ok(open) => Ok(line.open.insert(open).clone()),
        Err(error) => {
            line.failed = Some((Instant::now(), error.clone()));
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_dead_peer_fail_together_and_whoever_comes_later_tries_again() {
        let (line, dialled) = (Line::<u8>::default(), AtomicUsize::new(0));
        let dead = || async {
            dialled.fetch_add(1, Ordering::Relaxed);
            sleep(CONNECT).await;
            Err("timed out".to_owned())
        };
        let late = async {
            sleep(CONNECT / 2).await;
            call(&line, |_| true, dead()).await
        };
        let begin = Instant::now();
        let all = tokio::join!(call(&line, |_| true, dead()), call(&line, |_| true, dead()), late);
        assert!(all.0.is_err() && all.0 == all.1 && all.1 == all.2);
        assert_eq!(dialled.load(Ordering::Relaxed), 1);
        assert!(begin.elapsed() < 2 * CONNECT);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(call(&line, |_| true, async { Ok(7) }).await, Ok(7));
        assert_eq!(call(&line, |_| true, dead()).await, Ok(7));
        assert_eq!(call(&line, |_| false, async { Ok(8) }).await, Ok(8));
    }
}
