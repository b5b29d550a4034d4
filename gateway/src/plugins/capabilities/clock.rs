//! Capability `clock`.

use super::Host;
use crate::{clock::unix_now, plugins::bindings::nostr_gateway::plugin::clock};

impl clock::Host for Host {
    fn now(&mut self) -> u64 {
        unix_now()
    }
}
