//! Writing to a client: in order, with a deadline, flushed when there is nothing more to say.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How long a client may refuse to read before its connection is closed. Until then everything else
/// of this connection waits, and nobody else's.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client does not read, or is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Queues a text message; it is sent at the latest by [`flush`].
pub(super) async fn send(socket: &mut Socket, text: String) -> Result<(), Gone> {
    within(socket.feed(Message::text(text))).await
}

/// The same for a message that several connections send. Text that is not UTF-8 is not sent.
pub(super) async fn send_shared(socket: &mut Socket, text: Bytes) -> Result<(), Gone> {
    match Utf8Bytes::try_from(text) {
        Ok(text) => within(socket.feed(Message::Text(text))).await,
        Err(_) => Ok(()),
    }
}

pub(super) async fn flush(socket: &mut Socket) -> Result<(), Gone> {
    within(socket.flush()).await
}

pub(super) async fn ping(socket: &mut Socket) -> Result<(), Gone> {
    within(socket.send(Message::Ping(Default::default()))).await
}

/// Closes with a code and a reason (RFC 6455 §7.4).
pub(super) async fn close(socket: &mut Socket, code: CloseCode, reason: &'static str) {
    let frame = CloseFrame { code, reason: reason.into() };
    // A client that is gone needs no farewell.
    let _ = within(socket.send(Message::Close(Some(frame)))).await;
}

/// Reads and drops what the client is still sending, for a short while: closing with unread data
/// resets the connection, and the client would not see why it was closed.
pub(super) async fn linger(socket: &mut Socket) {
    const LONGEST: Duration = Duration::from_secs(2);
    const MOST: u64 = 8 << 20;
    let mut rest = tokio::io::AsyncReadExt::take(socket.get_mut(), MOST);
    let mut nowhere = tokio::io::sink();
    let dropped = tokio::io::copy(&mut rest, &mut nowhere);
    let _ = tokio::time::timeout(LONGEST, dropped).await;
}

async fn within(write: impl Future<Output = Result<(), Error>>) -> Result<(), Gone> {
    match tokio::time::timeout(PATIENCE, write).await {
        Ok(Ok(())) => Ok(()),
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
