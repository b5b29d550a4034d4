//! Runs plugins in ordinary tests: natively, without a gateway and without WebAssembly.
//!
//! A [`Gateway`] plays the host: it has a configuration, a clock that stands still, a memory for
//! `kv`, and a store for `lookup`. What limits a call in the real gateway — its time, its memory, the
//! cost of questions — does not exist here; `nostr-gateway plugin test` runs the component with all of
//! that.
//!
//! ```
//! use nostr_gateway_plugin::{Context, Event, EventFilter, Verdict, config, testing};
//!
//! struct MaxTags(usize);
//!
//! impl EventFilter for MaxTags {
//!     fn init() -> Result<Self, String> {
//!         Ok(Self(config::required("max_tags")?))
//!     }
//!
//!     fn evaluate(&mut self, event: Event, _context: Context) -> Verdict {
//!         match event.tags.len() > self.0 {
//!             true => Verdict::Reject("too many tags".to_owned()),
//!             false => Verdict::Accept,
//!         }
//!     }
//! }
//!
//! let gateway = testing::Gateway::new().with_config("max_tags", 1);
//! let mut filter = gateway.start::<MaxTags>().unwrap();
//! let mut event = testing::note("hello");
//! assert_eq!(filter.evaluate(&event), Verdict::Accept);
//! event.tags = vec![vec!["t".to_owned(), "a".to_owned()], vec!["t".to_owned(), "b".to_owned()]];
//! assert_eq!(filter.evaluate(&event), Verdict::Reject("too many tags".to_owned()));
//! ```

mod events;
pub(crate) mod host;
mod manifest;
mod memory;
mod running;
mod store;

use std::{cell::RefCell, path::Path, rc::Rc};

use serde::Serialize;

pub use events::{Line, author, event, lines, note};
pub use running::Running;

use crate::{Event, EventFilter, rotation::SecretRotation, topics::TopicPolicy};
use host::State;

/// Where the clock stands at first.
const NOW: u64 = 1_700_000_000;

/// A host for plugins. Cheap to clone; clones are the same one.
#[derive(Clone)]
pub struct Gateway(Rc<RefCell<State>>);

impl Default for Gateway {
    fn default() -> Self {
        Self::new()
    }
}

impl Gateway {
    /// One with an empty configuration, an empty store and all capabilities.
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(State::new(NOW))))
    }

    /// One with the `[config]` of a manifest, the capabilities that it lists, optional ones too, and its limits for `kv`.
    /// The path is relative to the crate's folder, as Cargo runs tests there. To use a capability that
    /// is not listed panics.
    ///
    /// # Panics
    /// When the file cannot be read or understood.
    pub fn of(manifest: impl AsRef<Path>) -> Self {
        let gateway = Self::new();
        let path = manifest.as_ref();
        let read =
            manifest::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        read.apply(&mut gateway.0.borrow_mut());
        gateway
    }

    /// Sets a key of the configuration.
    ///
    /// # Panics
    /// When the value has no JSON form.
    #[must_use]
    pub fn with_config(self, key: &str, value: impl Serialize) -> Self {
        let json = serde_json::to_string(&value).expect("a value with a JSON form");
        self.0.borrow_mut().config.insert(key.to_owned(), json);
        self
    }

    /// Takes a key out of the configuration.
    #[must_use]
    pub fn without_config(self, key: &str) -> Self {
        self.0.borrow_mut().config.remove(key);
        self
    }

    /// Puts events into the store, for `lookup`.
    #[must_use]
    pub fn with_events<'a>(self, events: impl IntoIterator<Item = &'a Event>) -> Self {
        events.into_iter().for_each(|event| self.hold(event));
        self
    }

    /// Puts an event into the store, for `lookup`. Of kinds 0, 3 and 10000 to 19999 the newest of an
    /// author stays.
    pub fn hold(&self, event: &Event) {
        self.0.borrow_mut().store.hold(event);
    }

    /// Sets the clock, in seconds since the Unix epoch. It stands at 1700000000 at first.
    pub fn set_now(&self, now: u64) {
        self.0.borrow_mut().now = now;
    }

    /// Moves the clock on.
    pub fn pass(&self, seconds: u64) {
        self.0.borrow_mut().now += seconds;
    }

    /// Where the clock stands.
    pub fn now(&self) -> u64 {
        self.0.borrow().now
    }

    /// What the plugin wrote to the log so far, each line after its level: `info: ready`.
    pub fn log(&self) -> Vec<String> {
        self.0.borrow().log.clone()
    }

    /// What stands under a key of `kv`.
    pub fn remembered(&self, key: &str) -> Option<Vec<u8>> {
        let state = &mut *self.0.borrow_mut();
        state.memory.get(key, state.now)
    }

    /// Makes an instance of an event filter.
    ///
    /// # Errors
    /// What its `init` says.
    pub fn start<F: EventFilter>(&self) -> Result<Running<F>, String> {
        Running::start(self, F::init)
    }

    /// Makes an instance of a topic policy.
    ///
    /// # Errors
    /// What its `init` says.
    pub fn start_topic_policy<P: TopicPolicy>(&self) -> Result<Running<P>, String> {
        Running::start(self, P::init)
    }

    /// Makes an instance of a rotation policy.
    ///
    /// # Errors
    /// What its `init` says.
    pub fn start_secret_rotation<P: SecretRotation>(&self) -> Result<Running<P>, String> {
        Running::start(self, P::init)
    }

    /// Calls something that asks the host, with this one as host.
    pub fn run<T>(&self, call: impl FnOnce() -> T) -> T {
        host::with(&self.0, call)
    }
}

#[cfg(test)]
mod tests;
