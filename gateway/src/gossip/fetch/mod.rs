//! Events that were announced by id: asked for and answered on our own ALPN.
//!
//! `docs/protocol.md` describes the same bytes.

mod client;
mod server;
mod wire;

pub use client::{Announcement, Connections, Puller};
pub use server::FetchServer;
