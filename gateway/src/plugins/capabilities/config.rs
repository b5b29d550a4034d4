//! Capability `config`: the manifest's own table, read-only.

use super::Host;
use crate::plugins::bindings::nostr_gateway::plugin::config;

impl config::Host for Host {
    fn get(&mut self, key: String) -> Option<String> {
        self.config.get(&key).cloned()
    }
}
