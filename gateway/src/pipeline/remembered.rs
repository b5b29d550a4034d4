//! Other gateways that were reached before, so that a topic can begin with them.

use futures_util::future::BoxFuture;

use super::{PeerId, StoreError};
use crate::protocol::TopicName;

/// The most remembered of one topic, and in all. Those not reached for the longest time are forgotten.
pub const MAX_OF_TOPIC: usize = 64;
pub const MAX_REMEMBERED: usize = 4_096;

/// Another gateway that was a neighbor in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedPeer {
    pub topic: TopicName,
    pub peer: PeerId,
    /// Where it was reached the last time: `IP:PORT`, or the URL of an iroh relay. It may have moved
    /// since.
    pub addresses: Vec<String>,
    /// The step of discovery that had found it, as `status` names it.
    pub found_by: String,
    /// It was reached over an iroh relay and not directly.
    pub over_relay: bool,
    /// Unix seconds.
    pub reached_at: u64,
    /// How often it was looked for in vain since then.
    pub failures: u32,
}

/// Where they outlive the process.
pub trait PeerStore: Send + Sync + 'static {
    /// Those of a topic, the one reached last first.
    fn load(&self, topic: TopicName) -> BoxFuture<'_, Result<Vec<RememberedPeer>, StoreError>>;

    /// Commits one that was reached, in place of its earlier entry.
    fn reached(&self, peer: RememberedPeer) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Counts a failure for each of these. One that was forgotten is passed over.
    fn missed(&self, topic: TopicName, peers: Vec<PeerId>)
    -> BoxFuture<'_, Result<(), StoreError>>;
}
