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
    line: Line<Connection>,
    used: Instant,
}

impl Connections {
    pub fn new(net: Arc<Net>) -> Self {
        Self { net, kept: Mutex::default() }
    }

    /// # Errors
    /// When the peer cannot be reached in time; the text is for a debug log.
    pub async fn to(&self, peer: EndpointId) -> Result<Connection, String> {
        let line = self.line(peer);
        let dial = async {
            match timeout(CONNECT, self.net.endpoint().connect(peer, SYNC_ALPN)).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("timed out".to_owned()),
            }
        };
        call(&line, |known| known.close_reason().is_none(), dial).await
    }

    fn line(&self, peer: EndpointId) -> Line<Connection> {
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
