//! Other relays, streamed into topics.

mod catch_up;
pub mod config;
mod demand;
mod flow;
pub mod link;
mod relay;
mod seen;
mod stream;

pub use config::UpstreamConfig;
pub use demand::{Demand, Wanted};
pub use flow::Intake;
pub use relay::{CatchUpStatus, Relay, RelayState, RelayStatus, StartRelay};
pub use seen::Seen;
pub use stream::{Stream, StreamStatus};
