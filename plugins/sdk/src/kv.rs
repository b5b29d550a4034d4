//! What a plugin remembers, in all its instances and after a restart. Needs the capability `kv`.

use serde::{Serialize, de::DeserializeOwned};

use crate::host::kv;

#[doc(inline)]
pub use crate::bindings::nostr_gateway::plugin::kv::Error;

/// The value under a key; `None` when there is none, or not any more.
pub fn get(key: &str) -> Option<Vec<u8>> {
    kv::get(key)
}

/// Puts a value under a key. It goes after `ttl` seconds, or stays until it is deleted.
///
/// # Errors
/// When the quota has no room for it, or it is too long.
pub fn set(key: &str, value: &[u8], ttl: Option<u64>) -> Result<(), Error> {
    kv::set(key, value, ttl)
}

/// Removes a key. Says whether there was one.
pub fn delete(key: &str) -> bool {
    kv::delete(key)
}

/// Adds to the number under a key and returns the sum. It begins at 0; its `ttl`, in seconds, counts
/// from then on, so that it counts within a span of time.
///
/// # Errors
/// When something else stands there, or the quota has no room for one more key.
pub fn increment(key: &str, by: i64, ttl: Option<u64>) -> Result<i64, Error> {
    kv::increment(key, by, ttl)
}

/// The value that [`set_json`] stored. `None` also when something else stands there.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Option<T> {
    serde_json::from_slice(&get(key)?).ok()
}

/// Stores a value as JSON.
///
/// # Errors
/// As [`set`]; also when the value has no JSON form, which counts as its size being wrong.
pub fn set_json(key: &str, value: &impl Serialize, ttl: Option<u64>) -> Result<(), Error> {
    let json = serde_json::to_vec(value).map_err(|_| Error::Size)?;
    set(key, &json, ttl)
}
