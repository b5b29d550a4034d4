//! Events that were announced by id: asked for and answered on our own ALPN, which serves the
//! comparisons of `sync` as well.
//!
//! `docs/protocol.md` describes the same bytes.

pub mod answers;
mod client;
mod connections;
pub mod schedule;
mod server;
pub mod trust;
pub mod wire;

pub use client::{Announcement, Puller};
pub use connections::{Connections, Opened};
pub use server::SyncServer;
