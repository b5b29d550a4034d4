//! What streams from and to other relays keep on disk.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Seq, Span, StoreError};
use crate::protocol::EventId;

/// The most cursors that are kept each way, over all streams.
pub const MAX_CURSORS: usize = 16_384;
/// The most spans of one [`Part`]; of more, the oldest are forgotten.
pub const MAX_SPANS: usize = 16;
/// How many events that were dropped are remembered of one stream.
pub const MAX_DROPPED: usize = 100;
/// The most characters of a reason that are kept.
pub const MAX_REASON: usize = 200;

/// One relay of one stream. Its URL is in the form of [`crate::protocol::normal_url`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamRelay {
    pub stream: Arc<str>,
    pub url: Arc<str>,
}

/// What a stream asks a relay for, or a part of it: a fingerprint of the filter or of the authors. With
/// another one, catching up begins anew.
pub type Part = u64;

/// How far the log was sent to a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpCursor {
    /// Up to here every event was answered, or was not to go.
    pub seq: Seq,
    /// The head of the log when the stream began with this relay.
    pub began: Seq,
    /// Of what was stored up to `began`, only events made since then go. Unix seconds.
    pub since: u64,
}

/// An event that a relay did not take, or that was not sent because it would not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedEvent {
    pub url: Arc<str>,
    pub id: EventId,
    /// Unix seconds.
    pub at: u64,
    /// As the relay said it, at most [`MAX_REASON`] characters.
    pub reason: String,
}

/// Keeps the state of streams over restarts. Every change is a commit of its own: not for each event.
pub trait UpstreamStore: Send + Sync + 'static {
    /// Spans of `created_at` of which all that the relay had of this part is committed here, oldest first.
    fn down(&self, of: StreamRelay, part: Part) -> BoxFuture<'_, Result<Vec<Span>, StoreError>>;

    fn down_reached(
        &self,
        of: StreamRelay,
        part: Part,
        complete: Vec<Span>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    fn up(&self, of: StreamRelay) -> BoxFuture<'_, Result<Option<UpCursor>, StoreError>>;

    /// Also notes events that were dropped on the way there. When there are too many of the stream, the
    /// oldest are forgotten.
    fn up_reached(
        &self,
        of: StreamRelay,
        cursor: UpCursor,
        dropped: Vec<DroppedEvent>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Newest first.
    fn dropped(&self, stream: Arc<str>) -> BoxFuture<'_, Result<Vec<DroppedEvent>, StoreError>>;

    /// The streams that the operator paused, and since when, in Unix seconds.
    fn paused(&self) -> BoxFuture<'_, Result<Vec<(String, u64)>, StoreError>>;

    /// Pauses a stream since a time, or resumes it.
    fn pause(&self, stream: Arc<str>, since: Option<u64>) -> BoxFuture<'_, Result<(), StoreError>>;
}
