//! What streams that follow public keys keep on disk.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::BoxFuture;

use super::StoreError;
use crate::protocol::PublicKey;

/// The most groups that are kept, over all streams.
pub const MAX_GROUPS: usize = 16_384;

/// Authors who are asked for at a relay together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedGroup {
    /// In the form of [`crate::protocol::normal_url`].
    pub url: Arc<str>,
    /// For their lists, not for what the stream's filter says.
    pub lists: bool,
    /// Whether the relay is open now.
    pub open: bool,
    pub id: u64,
    pub authors: BTreeSet<PublicKey>,
}

/// Keeps over restarts who is asked for where, so that relays and authors stay together and catching up
/// goes on.
pub trait FollowStore: Send + Sync + 'static {
    /// All groups of a stream.
    fn groups(&self, stream: Arc<str>) -> BoxFuture<'_, Result<Vec<SavedGroup>, StoreError>>;

    /// Of these relays there are only these groups any more; in one durable commit.
    fn regrouped(
        &self,
        stream: Arc<str>,
        relays: Vec<Arc<str>>,
        groups: Vec<SavedGroup>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;
}
