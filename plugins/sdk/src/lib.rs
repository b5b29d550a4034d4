//! Write plugins for nostr-gateway in Rust.
//!
//! Implement [`EventFilter`], name the type in [`export_event_filter!`], build the crate as a
//! `cdylib` for `wasm32-unknown-unknown` and make a component of it: `nostr-gateway plugin new` and
//! `plugin build` do that. `docs/writing-plugins.md` walks through it, and [`testing`] runs plugins in
//! ordinary tests.
//!
//! ```
//! use nostr_gateway_plugin::{Context, Event, EventFilter, Verdict, export_event_filter};
//!
//! struct NoShouting;
//!
//! impl EventFilter for NoShouting {
//!     fn init() -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!
//!     fn evaluate(&mut self, event: Event, _context: Context) -> Verdict {
//!         if event.content.ends_with("!!!") {
//!             return Verdict::Reject("please do not shout".to_owned());
//!         }
//!         Verdict::Accept
//!     }
//! }
//!
//! export_event_filter!(NoShouting);
//! ```

pub mod config;
#[macro_use]
mod export;
mod host;
pub mod kv;
pub mod log;
pub mod lookup;
#[macro_use]
pub mod rotation;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
#[macro_use]
pub mod topics;

#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "event-filter",
        additional_derives: [Clone, PartialEq],
        pub_export_macro: true,
        default_bindings_module: "nostr_gateway_plugin::bindings",
    });
}

#[doc(hidden)]
pub use export::__private;

#[doc(inline)]
pub use bindings::nostr_gateway::plugin::types::{
    Context, Direction, Event, Origin, OriginKind, Verdict,
};

/// An event filter: one instance of it lives in each worker thread of the gateway.
pub trait EventFilter: Sized + 'static {
    /// Reads the configuration and gets ready.
    ///
    /// # Errors
    /// The text tells the operator what is wrong. The plugin then does not run, and events in its
    /// scope are refused or passed as its manifest says.
    fn init() -> Result<Self, String>;

    /// Decides about one event, within the time and memory of the manifest. Memory kept between
    /// calls is a cache: other threads have instances of their own, and one that panicked is
    /// replaced by a new one.
    fn evaluate(&mut self, event: Event, context: Context) -> Verdict;
}

/// The gateway's clock, in seconds since the Unix epoch. Needs the capability `clock`.
pub fn now() -> u64 {
    host::clock::now()
}
