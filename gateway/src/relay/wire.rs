//! What a client sends, counted as it comes from the network.
//!
//! The websocket library puts the fragments of a message together and tells of nothing but whole
//! messages (RFC 6455 §5.4). A message of endlessly many empty fragments would never be one, and cost
//! its sender nothing.
//!
//! The library's own buffer is small, as every connection keeps it. While more waits than fits there,
//! much is read at once, and handed on piece by piece.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes that may have been read ahead of the message that is told of, and frame headers, that are
/// not counted.
const AHEAD: usize = 4 * 1024;
/// The headers of frames that a message may have beside twice its longest text: for fragments of
/// very few bytes.
const HEADERS: usize = 64 * 1024;
/// What is read at once while more is waiting, in bytes.
const READ: usize = 16 * 1024;

/// A connection that counts what is read from it, and yields an error ([`is_endless`]) when that is
/// far more than the longest message.
pub(super) struct Metered<S> {
    inner: S,
    /// What was read and not handed on yet.
    ahead: BytesMut,
    /// The last read filled all the room it had.
    more: bool,
    /// Bytes that were handed on and not accounted for by [`Self::account`].
    open: usize,
    max_open: usize,
}

/// One message takes far more bytes than it may have.
#[derive(Debug)]
struct Endless;

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message without an end")
    }
}

impl std::error::Error for Endless {}

pub(super) fn is_endless(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Endless>())
}

impl<S> Metered<S> {
    /// `max_message` is the longest message in bytes.
    pub fn new(inner: S, max_message: usize) -> Self {
        let max_open = max_message.saturating_mul(2).saturating_add(HEADERS);
        Self { inner, ahead: BytesMut::new(), more: false, open: 0, max_open }
    }

    /// A message with so many bytes has come. Returns how many it took on the way, roughly: more than
    /// that when it was cut into many pieces.
    pub fn account(&mut self, bytes: usize) -> usize {
        self.open = self.open.saturating_sub(bytes);
        let more = self.open.saturating_sub(AHEAD);
        self.open -= more;
        bytes.saturating_add(more)
    }

    /// The connection itself, to read what is not counted.
    pub fn inner(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S: AsyncRead + Unpin> Metered<S> {
    /// Whoever waits holds no buffer.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ahead = BytesMut::with_capacity(READ);
        let read = poll_read_buf(Pin::new(&mut self.inner), cx, &mut ahead);
        self.more = matches!(read, Poll::Ready(Ok(READ)));
        if !ahead.is_empty() {
            self.ahead = ahead;
        }
        read.map_ok(drop)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.open > self.max_open {
            return Poll::Ready(Err(io::Error::other(Endless)));
        }
        let before = buffer.filled().len();
        if self.ahead.is_empty() && self.more {
            ready!(self.read_ahead(cx))?;
        }
        if self.ahead.is_empty() {
            ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
            self.more = buffer.remaining() == 0;
        } else {
            let count = buffer.remaining().min(self.ahead.len());
            buffer.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new();
            }
        }
        self.open = self.open.saturating_add(buffer.filled().len().saturating_sub(before));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Yields so many bytes at a time, and then makes the reader wait once.
    struct Bursts(Vec<usize>, u8);

    impl AsyncRead for Bursts {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(burst) = self.0.first_mut() else { return Poll::Ready(Ok(())) };
            if *burst == 0 {
                self.0.remove(0);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = (*burst).min(buffer.remaining());
            *burst -= count;
            for _ in 0..count {
                self.1 = self.1.wrapping_add(1);
                buffer.put_slice(&[self.1]);
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn nothing_is_lost_or_turned_around_and_who_waits_holds_no_buffer() {
        let bursts = vec![10, 300, READ + 1, 1, 5 * READ, 64];
        let all: usize = bursts.iter().sum();
        let mut wire = Metered::new(Bursts(bursts, 0), 1 << 20);
        let (mut read, mut was_ahead) = (Vec::new(), false);
        let mut chunk = [0; 64];
        loop {
            let count = std::future::poll_fn(|cx| {
                let mut buffer = ReadBuf::new(&mut chunk);
                let polled = Pin::new(&mut wire).poll_read(cx, &mut buffer);
                was_ahead |= wire.ahead.capacity() >= READ - 64;
                assert!(polled.is_ready() || wire.ahead.capacity() == 0, "it waits with a buffer");
                polled.map(|_| buffer.filled().len())
            });
            match count.await {
                0 => break,
                count => read.extend_from_slice(&chunk[..count]),
            }
        }
        assert!(was_ahead);
        let expected: Vec<u8> = (1..=all).map(|n| n as u8).collect();
        assert!(read == expected, "{} of {all} bytes", read.len());
    }

    #[tokio::test]
    async fn what_no_message_accounts_for_is_counted_and_bounded() {
        let endless = tokio::io::repeat(0);
        let mut wire = Metered::new(endless, 10_000);
        let mut chunk = [0; 1_000];
        // Messages with their headers, and a little that was read ahead.
        for _ in 0..100 {
            wire.read_exact(&mut chunk).await.unwrap();
            assert!(wire.account(990) <= 1_000);
        }
        // Half of it was nothing.
        for _ in 0..10 {
            wire.read_exact(&mut chunk).await.unwrap();
        }
        let charged = wire.account(5_000);
        assert!((10_000 - AHEAD..=11_000).contains(&charged), "{charged}");

        let mut read = 0;
        let error = loop {
            match wire.read_exact(&mut chunk).await {
                Ok(count) => read += count,
                Err(error) => break error,
            }
        };
        assert!(is_endless(&error) && !is_endless(&io::Error::other("else")), "{error}");
        let most = 2 * 10_000 + HEADERS;
        assert!((most - AHEAD..=most + 1_000).contains(&read), "{read}");
    }
}
