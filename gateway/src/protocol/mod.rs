//! The pure core: what Nostr and the gateways' own protocol say, with no sockets, no SQL and no clock.
//!
//! Nothing in here imports tokio, sqlx, rusqlite or iroh; a test holds that.

pub mod crossing;
pub mod event;
pub mod filter;
pub mod frame;
pub mod hex;
pub mod kinds;
pub mod limits;
pub mod message;
pub mod network;
pub mod private;
pub mod reason;
pub mod relay_url;
pub mod remote;
pub mod search;
#[cfg(test)]
pub mod signing;
pub mod text;
pub mod topic;
pub mod work;

pub use event::{
    Event, EventError, EventId, PublicKey, Tag, VerifiedEvent, VerifyError, compute_id,
};
pub use filter::{Filter, FilterError};
pub use network::{Network, is_global};
pub use reason::{Prefix, Reason};
pub use relay_url::{OwnUrls, normal_url};
pub use search::Search;
pub use topic::{TopicName, TopicNameError};
