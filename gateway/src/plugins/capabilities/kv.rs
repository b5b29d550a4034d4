//! Capability `kv`: what a plugin remembers.

use super::Host;
use crate::{
    clock::unix_now,
    plugins::{
        bindings::nostr_gateway::plugin::kv::{self, Error},
        kv::KvError,
    },
};

impl From<KvError> for Error {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Quota => Self::Quota,
            KvError::Size => Self::Size,
            KvError::NotACounter => Self::NotACounter,
        }
    }
}

impl kv::Host for Host {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.kv.get(&key, unix_now())
    }

    fn set(&mut self, key: String, value: Vec<u8>, ttl: Option<u64>) -> Result<(), Error> {
        Ok(self.kv.set(&key, value, ttl, unix_now())?)
    }

    fn delete(&mut self, key: String) -> bool {
        self.kv.delete(&key, unix_now())
    }

    fn increment(&mut self, key: String, by: i64, ttl: Option<u64>) -> Result<i64, Error> {
        Ok(self.kv.increment(&key, by, ttl, unix_now())?)
    }
}
