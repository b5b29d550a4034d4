//! Comparing with other gateways what each has in a topic, and fetching what is lacking.
//!
//! One side leads: it says which ids it has, by fingerprints (negentropy), until both know what the
//! other lacks; then both fetch at once, by requests of their own. `docs/protocol.md` describes the
//! bytes. What comes goes through the pipeline like everything else.

mod actor;
mod desk;
mod follow;
mod keep_alive;
mod lead;
mod library;
mod per_peer;
pub(super) mod plans;
mod pull;
pub(super) mod sets;
pub(super) mod turns;
pub(super) mod wire;

pub use actor::TopicSync;
pub use desk::SyncProgress;
#[cfg(test)]
pub use library::Failure;
pub use library::{CannotSync, Library, StartLibrary};
#[cfg(test)]
pub use pull::Pulled;
