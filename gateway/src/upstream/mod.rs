//! Other relays, streamed into topics.

pub mod config;
mod intake;
mod stream;

pub use config::UpstreamConfig;
pub use stream::{Stream, StreamStatus};
