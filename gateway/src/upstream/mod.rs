//! Other relays, streamed into topics.

pub mod config;
mod intake;
pub mod link;
mod relays;
mod stream;

pub use config::UpstreamConfig;
pub use relays::RelayState;
pub use stream::{Stream, StreamStatus};
