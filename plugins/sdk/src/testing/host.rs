//! The host's functions, answered by the [`Gateway`](super::Gateway) that is at work on this thread.
//! Without one, each thread has an empty one of its own.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{NOW, memory::Memory, store::Store};

/// All that a host has.
pub struct State {
    pub config: BTreeMap<String, String>,
    pub now: u64,
    pub log: Vec<String>,
    pub memory: Memory,
    pub store: Store,
    /// What the manifest lists; nothing when there is no manifest, and then everything is allowed.
    pub capabilities: Option<BTreeSet<String>>,
}

impl State {
    pub fn new(now: u64) -> Self {
        Self {
            config: BTreeMap::new(),
            now,
            log: Vec::new(),
            memory: Memory::default(),
            store: Store::default(),
            capabilities: None,
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Rc<RefCell<State>>> =
        RefCell::new(Rc::new(RefCell::new(State::new(NOW))));
}

/// Calls something with this host. The one before is back afterwards, also after a panic.
pub fn with<T>(state: &Rc<RefCell<State>>, call: impl FnOnce() -> T) -> T {
    struct Back(Rc<RefCell<State>>);

    impl Drop for Back {
        fn drop(&mut self) {
            CURRENT.with(|current| current.swap(&RefCell::new(self.0.clone())));
        }
    }

    let _back = Back(CURRENT.replace(state.clone()));
    call()
}

fn ask<T>(capability: &str, question: impl FnOnce(&mut State) -> T) -> T {
    let current = CURRENT.with(|current| current.borrow().clone());
    let state = &mut *current.borrow_mut();
    let is_listed = state.capabilities.as_ref().is_none_or(|listed| listed.contains(capability));
    assert!(is_listed, "the manifest does not list the capability {capability:?}");
    question(state)
}

pub mod log {
    use super::ask;
    use crate::bindings::nostr_gateway::plugin::log::Level;

    pub fn write(level: Level, message: &str) {
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let line = format!("{level}: {}", message.replace(['\n', '\r'], " "));
        ask("log", |state| state.log.push(line));
    }
}

pub mod config {
    use super::ask;

    pub fn get(key: &str) -> Option<String> {
        ask("config", |state| state.config.get(key).cloned())
    }
}

pub mod clock {
    use super::ask;

    pub fn now() -> u64 {
        ask("clock", |state| state.now)
    }
}

pub mod kv {
    use super::ask;
    use crate::kv::Error;

    pub fn get(key: &str) -> Option<Vec<u8>> {
        ask("kv", |state| state.memory.get(key, state.now))
    }

    pub fn set(key: &str, value: &[u8], ttl: Option<u64>) -> Result<(), Error> {
        ask("kv", |state| state.memory.set(key, value, ttl, state.now))
    }

    pub fn delete(key: &str) -> bool {
        ask("kv", |state| state.memory.delete(key, state.now))
    }

    pub fn increment(key: &str, by: i64, ttl: Option<u64>) -> Result<i64, Error> {
        ask("kv", |state| state.memory.increment(key, by, ttl, state.now))
    }
}

pub mod lookup {
    use super::ask;
    use crate::lookup::{Author, Error, Query};

    pub fn get_author(pubkey: &str) -> Result<Author, Error> {
        ask("lookup", |state| state.store.author(pubkey))
    }

    pub fn count(query: &Query, most: u32) -> Result<u32, Error> {
        ask("lookup", |state| state.store.count(query, most))
    }

    pub fn follows(pubkey: &str, whom: &str) -> Result<bool, Error> {
        ask("lookup", |state| state.store.follows(pubkey, whom))
    }

    pub fn list_follows(pubkey: &str, most: u32) -> Result<Vec<String>, Error> {
        ask("lookup", |state| state.store.list_follows(pubkey, most))
    }

    pub fn list_tags(pubkey: &str, kind: u16, most: u32) -> Result<Vec<Vec<String>>, Error> {
        ask("lookup", |state| state.store.list_tags(pubkey, kind, most))
    }
}
