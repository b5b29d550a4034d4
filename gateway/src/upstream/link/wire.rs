//! A connection that counts its bytes, and what no message accounts for.
//!
//! The websocket library puts fragments together and tells of whole messages alone (RFC 6455 §5.4): a
//! message of endlessly many small fragments would never be one.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Headers of frames, and what was read ahead, beside twice the longest message.
const ALLOWANCE: u64 = 64 * 1024;

/// Bytes of one connection, on the wire but for TLS.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub read: AtomicU64,
    pub written: AtomicU64,
    /// `read` when the last whole message came.
    whole_at: AtomicU64,
}

impl Traffic {
    /// A whole message came.
    pub fn is_whole(&self) {
        self.whole_at.store(self.read.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

pub(super) struct Counted<S> {
    inner: S,
    traffic: Arc<Traffic>,
    max_open: u64,
}

impl<S> Counted<S> {
    /// `max_message` is the longest message in bytes; far more without a whole one is an error.
    pub fn new(inner: S, traffic: Arc<Traffic>, max_message: usize) -> Self {
        let max_message = u64::try_from(max_message).unwrap_or(u64::MAX);
        Self { inner, traffic, max_open: max_message.saturating_mul(2).saturating_add(ALLOWANCE) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let count = u64::try_from(buffer.filled().len().saturating_sub(before)).unwrap_or(0);
        let read = self.traffic.read.fetch_add(count, Ordering::Relaxed) + count;
        if read - self.traffic.whole_at.load(Ordering::Relaxed) > self.max_open {
            return Poll::Ready(Err(io::Error::other("a message without an end")));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.traffic.written.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
