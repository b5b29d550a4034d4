//! Events that were announced by id: asked for and answered on our own ALPN.
//!
//! `docs/protocol.md` describes the same bytes.

mod client;
mod connections;
pub mod schedule;
mod server;
mod wire;

pub use client::{Announcement, Puller};
pub use connections::Connections;
pub use server::FetchServer;
