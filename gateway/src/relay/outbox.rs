//! Writing to a client: in order, with a deadline, flushed when there is nothing more to say.
//!
//! How long a client may refuse to read is the operator's (`relay.reader_patience_s`). Until then
//! everything else of this connection waits, and nobody else's.
//!
//! Text frames are put together here, straight from an event's bytes, rather than by the websocket
//! library, which copies a message three times. The library still answers pings and closes: what it
//! has to say goes out before ours, and ours goes out whole.

use std::time::Duration;

use futures_util::SinkExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::wire::Metered;
use crate::protocol::message;

/// What is written at once while there is more to say, in bytes.
const WRITE: usize = 64 * 1024;
/// What a silent connection may keep of its buffer, in bytes.
const KEEP: usize = 512;

/// The client does not read, or is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// A websocket and what is to be written to it.
pub(super) struct Outbox<S = TokioIo<Upgraded>> {
    /// For reading. Writing is done here alone.
    pub socket: WebSocketStream<Metered<S>>,
    /// Whole frames.
    frames: Vec<u8>,
    /// How long the client may refuse to read.
    patience: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outbox<S> {
    pub fn new(socket: WebSocketStream<Metered<S>>, patience: Duration) -> Self {
        Self { socket, frames: Vec::new(), patience }
    }

    /// Queues a text message; it is sent at the latest by [`Self::flush`].
    pub async fn text(&mut self, text: &str) -> Result<(), Gone> {
        append_text(&mut self.frames, [text]);
        self.write_if_full().await
    }

    /// Queues an event for a subscription; see [`message::event`].
    pub async fn event(&mut self, subscription: &str, json: &str) -> Result<(), Gone> {
        append_text(&mut self.frames, message::event(subscription, json));
        self.write_if_full().await
    }

    /// Whether nothing of ours waits to be written.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub async fn flush(&mut self) -> Result<(), Gone> {
        self.write().await?;
        if self.frames.capacity() > KEEP {
            self.frames = Vec::new();
        }
        Ok(())
    }

    pub async fn ping(&mut self) -> Result<(), Gone> {
        self.write().await?;
        within(self.patience, self.socket.send(Message::Ping(Default::default()))).await
    }

    /// Closes with a code and a reason (RFC 6455 §7.4).
    pub async fn close(&mut self, code: CloseCode, reason: &'static str) {
        // A client that is gone needs no farewell.
        if self.write().await.is_ok() {
            let frame = CloseFrame { code, reason: reason.into() };
            let _ = within(self.patience, self.socket.send(Message::Close(Some(frame)))).await;
        }
    }

    /// Reads and drops what the client is still sending, for a short while: closing with unread data
    /// resets the connection, and the client would not see why it was closed.
    pub async fn linger(&mut self) {
        const LONGEST: Duration = Duration::from_secs(2);
        const MOST: u64 = 8 << 20;
        let mut rest = tokio::io::AsyncReadExt::take(self.socket.get_mut().inner(), MOST);
        let mut nowhere = tokio::io::sink();
        let dropped = tokio::io::copy(&mut rest, &mut nowhere);
        let _ = tokio::time::timeout(LONGEST, dropped).await;
    }

    async fn write_if_full(&mut self) -> Result<(), Gone> {
        // In a box: whatever sends would carry the room for it otherwise.
        if self.frames.len() < WRITE { Ok(()) } else { Box::pin(self.write()).await }
    }

    /// Writes everything. A connection of which this was given up in the middle, or that failed, is of
    /// no more use: half a frame may have gone out.
    async fn write(&mut self) -> Result<(), Gone> {
        let Self { socket, frames, patience } = self;
        // Half a pong may still wait there.
        within(*patience, socket.flush()).await?;
        // However slowly it reads, it is served as long as it reads at all.
        let mut rest = frames.as_slice();
        while !rest.is_empty() {
            let write = async { Ok(socket.get_mut().write(rest).await?) };
            let written = within(*patience, write).await?;
            if written == 0 {
                return Err(Gone);
            }
            rest = rest.get(written..).unwrap_or_default();
        }
        frames.clear();
        Ok(())
    }
}

/// Appends a text frame with these parts: final, not masked (RFC 6455 §5.2).
fn append_text<const N: usize>(frames: &mut Vec<u8>, parts: [impl AsRef<str>; N]) {
    let length: usize = parts.iter().map(|part| part.as_ref().len()).sum();
    frames.reserve(length + 10);
    frames.push(0x81);
    match length {
        0..=125 => frames.push(length as u8),
        126..=0xffff => {
            frames.push(126);
            frames.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            frames.push(127);
            frames.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    for part in &parts {
        frames.extend_from_slice(part.as_ref().as_bytes());
    }
}

async fn within<T>(
    patience: Duration,
    write: impl Future<Output = Result<T, Error>>,
) -> Result<T, Gone> {
    match tokio::time::timeout(patience, write).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the client is gone");
            Err(Gone)
        }
        Err(_) => {
            tracing::debug!("the client does not read; closing");
            Err(Gone)
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::{io::DuplexStream, time::Instant};
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// The gateway's end, and the client's, with room for so many bytes between them.
    async fn connected(room: usize) -> (Outbox<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (here, there) = tokio::io::duplex(room);
        let here =
            WebSocketStream::from_raw_socket(Metered::new(here, 1_000), Role::Server, None).await;
        let there = WebSocketStream::from_raw_socket(there, Role::Client, None).await;
        (Outbox::new(here, PATIENCE), there)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_has_so_long() {
        let (mut out, _client) = connected(WRITE).await;
        let begun = Instant::now();
        out.text(&"x".repeat(WRITE / 2)).await.unwrap();
        out.flush().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "it fits the buffers");
        assert!(out.text(&"x".repeat(WRITE)).await.is_err());
        assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_little_now_and_then_is_served() {
        let (mut out, mut client) = connected(4_096).await;
        let texts: Vec<String> = (0..40).map(|n| format!("{n} {}", "x".repeat(4_000))).collect();
        let begun = Instant::now();
        let reading = async {
            for text in &texts {
                tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
                assert_eq!(client.next().await.unwrap().unwrap(), Message::text(text));
            }
        };
        let writing = async {
            for text in &texts {
                out.text(text).await.unwrap();
            }
            out.flush().await.unwrap();
        };
        tokio::join!(reading, writing);
        assert!(begun.elapsed() > PATIENCE * 10, "{:?}", begun.elapsed());
    }

    /// The library reads what is written here.
    #[test]
    fn frames_of_every_length_are_read_back() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
            let text = "é".repeat(length / 2) + &"x".repeat(length % 2);
            let mut frames = Vec::new();
            append_text(&mut frames, [text.as_str(), ""]);
            append_text(&mut frames, ["a", "b", "c"]);
            let stream = std::io::Cursor::new(frames);
            let mut client = WebSocket::from_raw_socket(stream, Role::Client, None);
            assert_eq!(client.read().unwrap(), Message::text(text), "{length}");
            assert_eq!(client.read().unwrap(), Message::text("abc"));
        }
    }
}
