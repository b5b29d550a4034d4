//! A connection before its first message: HTTP, and the upgrade.

use std::{sync::Arc, time::Duration};

use futures_util::future::pending;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{Document, Door, Shared, session::Session};

/// Longer than what any gateway sends.
const MAX_MESSAGE: usize = 64 << 20;

/// Lets a connection in as the script says, and serves it to its end.
pub(super) async fn open(mut stream: TcpStream, shared: Arc<Shared>) {
    let script = shared.script();
    // Who hangs up at once does not know yet what was wanted.
    if matches!(script.door, Door::HangUp) {
        shared.counted.add(|counts| counts.connections += 1);
        return;
    }
    let Some(head) = head(&stream).await else { return };
    if !head.to_lowercase().contains("upgrade: websocket") {
        shared.counted.add(|counts| counts.documents += 1);
        return document(stream, script.document).await;
    }
    shared.counted.add(|counts| counts.connections += 1);
    let lifetime = match script.door {
        Door::Open | Door::HangUp => None,
        Door::CloseAfter(lifetime) => Some(lifetime),
        Door::Silent => return pending().await,
        Door::Refuse(status) => {
            let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
    };
    let _ = stream.set_nodelay(true);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let upgraded = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await;
    let Ok(socket) = upgraded else { return };
    let _open = Open::new(&shared);
    let session = Session::new(socket, shared.clone()).run();
    match lifetime {
        Some(lifetime) => drop(tokio::time::timeout(lifetime, session).await),
        None => session.await,
    }
}

/// Counts a connection while it lasts.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.counted.add(|counts| counts.open += 1);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.counted.add(|counts| counts.open -= 1);
    }
}

/// The head of the HTTP request, left in the socket for the upgrade.
async fn head(stream: &TcpStream) -> Option<String> {
    let mut bytes = vec![0; 16_384];
    for _ in 0..1_000 {
        let length = stream.peek(&mut bytes).await.ok()?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            return Some(head.to_owned());
        }
        if length == 0 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    None
}

async fn document(mut stream: TcpStream, document: Document) {
    let answer = |status: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/nostr+json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let text = match document {
        Document::None => answer("404 Not Found", ""),
        Document::Json(json) => answer("200 OK", &json.to_string()),
        Document::Text(text) => answer("200 OK", &text),
        Document::Endless => return endless(stream).await,
        Document::Silent => return pending().await,
    };
    // Whoever asked may be gone.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
    // A close with unread bytes would be a reset, which may overtake the answer.
    let _ = stream.read(&mut [0; 16_384]).await;
}

async fn endless(mut stream: TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/nostr+json\r\n\
                Connection: close\r\n\r\n{\"name\":\"";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    while stream.write_all(&[b'x'; 4_096]).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
