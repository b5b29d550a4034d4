//! Streams from and to other relays.

mod catch_up;
pub mod config;
mod demand;
mod flow;
pub mod follow;
mod gate;
mod key;
pub mod link;
pub mod once;
mod relay;
mod seen;
mod stream;
mod streams;
mod up;

pub use config::UpstreamConfig;
pub use flow::Intake;
pub use gate::Gate;
pub use link::LinkOptions;
pub use stream::{StreamSetup, StreamStatus};
pub use streams::{Applied, StartStreams, StreamError, Streams};
