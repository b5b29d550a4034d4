//! A front before a relay: counts the bytes of its connections and gives it a document (NIP-11), where
//! the relay itself has none.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
    time::Instant,
};

/// A running front on loopback.
pub struct Front {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// `IP:PORT` of the relay.
    relay: Mutex<String>,
    document: Option<Value>,
    /// From the relay.
    down: AtomicU64,
    /// To the relay.
    up: AtomicU64,
    connected: OnceLock<Instant>,
}

impl Front {
    /// Before the relay at this `ws://` URL. Without a document, requests for one go to the relay too.
    pub async fn start(relay: &str, document: Option<Value>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            relay: Mutex::new(address(relay)),
            document,
            down: AtomicU64::new(0),
            up: AtomicU64::new(0),
            connected: OnceLock::new(),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// New connections go to another relay.
    pub fn lead_to(&self, relay: &str) {
        *self.shared.relay.lock().unwrap() = address(relay);
    }

    /// When the first connection came, that for a document not counted.
    pub fn connected(&self) -> Option<Instant> {
        self.shared.connected.get().copied()
    }

    /// Bytes from and to the relay so far, those of HTTP and websocket included, without TCP and IP.
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.down.load(Ordering::Relaxed), self.shared.up.load(Ordering::Relaxed))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn address(url: &str) -> String {
    url.trim_start_matches("ws://").split('/').next().unwrap_or_default().to_owned()
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            // A relay that is away closes the connection, here as well.
            let _ = serve(stream, shared).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    let _ = client.set_nodelay(true);
    let (mut from_client, mut to_client) = client.into_split();
    let mut head = vec![0; 16_384];
    let mut length = 0;
    while !head[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        match from_client.read(&mut head[length..]).await? {
            0 => return Ok(()),
            read => length += read,
        }
    }
    let text = String::from_utf8_lossy(&head[..length]).to_lowercase();
    let is_websocket = text.contains("upgrade: websocket");
    if is_websocket {
        shared.connected.get_or_init(Instant::now);
    } else if let Some(document) = &shared.document {
        let body = document.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/nostr+json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        return to_client.write_all(answer.as_bytes()).await;
    }
    let relay = shared.relay.lock().unwrap().clone();
    let relay = TcpStream::connect(relay).await?;
    let _ = relay.set_nodelay(true);
    let (from_relay, mut to_relay) = relay.into_split();
    to_relay.write_all(&head[..length]).await?;
    shared.up.fetch_add(length as u64, Ordering::Relaxed);
    tokio::join!(
        copy(from_client, to_relay, &shared.up),
        copy(from_relay, to_client, &shared.down)
    );
    Ok(())
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64) {
    let mut bytes = vec![0; 65_536];
    while let Ok(read) = from.read(&mut bytes).await {
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            break;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
    // The other half ends with it.
    let _ = to.shutdown().await;
}
