//! Private topics over the network. What is decided is decided in `protocol/private/`, which knows
//! neither clock nor network; here it is carried out.
//!
//! - [`Circle`] is one topic's state: it is saved before anything that follows from a change is done.
//! - `admit.rs` is what the operator does: create, join, invite, rotate, leave.
//! - `talk.rs` is what stands at the beginning of every direct stream of such a topic.
//! - `tend.rs` keeps the topic going: a swarm for each epoch that is read, meetings with members
//!   (`guests.rs` says with whom next).
//! - `policy.rs` asks plugins when a secret is to change.
//! - `lane.rs` is one of those swarms, `voice.rs` what is said in the newest.

mod admit;
mod circle;
mod guests;
mod keep;
mod lane;
mod policy;
mod talk;
mod tend;
mod voice;

pub use circle::{Circle, CircleError, Circles, PrivateStatus};
pub use lane::Parts;
pub use policy::ask_on_and_on;
pub use talk::{TalkError, answer, call};
pub use tend::Tender;
pub use voice::Voice;
