//! Accepting connections, for the relay and for the admin listener.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{ListenError, Relay, http, open_files};
use crate::tasks::Tasks;

/// Connections that the operating system takes before we do: all clients of a relay come back at
/// once after a restart, and one that is not taken tries again after seconds only.
const BACKLOG: u32 = 4_096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Elsewhere it would let two programs have the same port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a listener.
///
/// # Errors
/// One that names the setting, the address and, for a port in use, what to do.
pub fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    listen(address).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "; another program, perhaps another gateway, has this port: stop it or choose \
                 another one"
            }
            io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges",
            io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
            _ => "",
        };
        ListenError { setting, address, error, hint }
    })
}

/// The relay's listener.
pub struct Listener {
    pub socket: TcpListener,
    pub relay: Arc<Relay>,
}

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

impl Listener {
    /// Accepts until the token of `tasks` is cancelled. A full relay does not accept: a connection
    /// waits in the operating system's queue until another one ends.
    pub async fn run(self, tasks: Tasks) {
        let room = open_files::make_room(self.relay.config.max_connections);
        let permits = Arc::new(Semaphore::new(room));
        let mut next_connection = 0;
        loop {
            let accepted = tokio::select! {
                () = tasks.token().cancelled() => return,
                accepted = accept(&self.socket, &permits) => accepted,
            };
            let Some((stream, remote, permit)) = accepted else { continue };
            next_connection += 1;
            let connection = next_connection;
            let (relay, session_tasks) = (self.relay.clone(), tasks.clone());
            tasks.spawn("connection", async move {
                serve(stream, remote, connection, relay, Arc::new(permit), session_tasks).await;
            });
        }
    }
}

async fn accept(
    socket: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    if permits.available_permits() == 0 {
        tracing::warn!(
            "all connections are taken (relay.max_connections); new ones wait until one ends"
        );
    }
    let permit = permits.clone().acquire_owned().await.ok()?;
    match socket.accept().await {
        Ok((stream, remote)) => Some((stream, remote, permit)),
        Err(error) => {
            // Out of file descriptors, most often: do not spin.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    connection: u64,
    relay: Arc<Relay>,
    permit: Arc<OwnedSemaphorePermit>,
    tasks: Tasks,
) {
    // Nagle's algorithm against delayed acknowledgements costs 40 ms an answer.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    // Nobody may take all connections by saying nothing on them. A proxy speaks for many.
    let peer = remote.ip().to_canonical();
    let accepted = http::Accepted { connection, peer, here: stream.local_addr().ok() };
    let speaks_for_many =
        peer.is_loopback() || relay.config.trusted_proxies.iter().any(|p| p.contains(peer));
    let socket = (!speaks_for_many).then(|| relay.rates.socket(peer));
    if matches!(socket, Some(None)) {
        relay.count_limited("connections");
        tracing::debug!(%peer, "far too many connections of one address; closed");
        return;
    }
    let service = hyper::service::service_fn(|request| {
        let (relay, permit, tasks) = (relay.clone(), permit.clone(), tasks.clone());
        async move {
            let answer = http::answer(request, accepted, relay, permit, &tasks).await;
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).max_buf_size(16 * 1024);
    let served = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        () = tasks.token().cancelled() => {}
        result = served => {
            if let Err(error) = result {
                tracing::debug!(connection, %error, "a request failed");
            }
        }
    }
}
