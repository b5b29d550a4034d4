//! `kv` in memory, with the host's rules for sizes, times and the quota.

use std::collections::BTreeMap;

use crate::kv::Error;

const MAX_KEY_BYTES: usize = 256;
const MAX_VALUE_BYTES: usize = 64 * 1024;
/// What a key counts for beside itself and its value.
const BYTES_OF_A_KEY: u64 = 64;

pub struct Memory {
    entries: BTreeMap<String, Entry>,
    /// `limits.kv_bytes` and `limits.kv_keys` of the manifest.
    pub max_bytes: u64,
    pub max_keys: u64,
}

struct Entry {
    value: Vec<u8>,
    expires_at: Option<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), max_bytes: 1_048_576, max_keys: 10_000 }
    }
}

impl Memory {
    pub fn get(&mut self, key: &str, now: u64) -> Option<Vec<u8>> {
        self.expire(now);
        self.entries.get(key).map(|entry| entry.value.clone())
    }

    pub fn set(
        &mut self,
        key: &str,
        value: &[u8],
        ttl: Option<u64>,
        now: u64,
    ) -> Result<(), Error> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::Size);
        }
        self.expire(now);
        self.put(key, value.to_vec(), ttl.map(|ttl| now.saturating_add(ttl)))
    }

    pub fn delete(&mut self, key: &str, now: u64) -> bool {
        self.expire(now);
        self.entries.remove(key).is_some()
    }

    pub fn increment(
        &mut self,
        key: &str,
        by: i64,
        ttl: Option<u64>,
        now: u64,
    ) -> Result<i64, Error> {
        self.expire(now);
        let (count, expires_at) = match self.entries.get(key) {
            None => (0, ttl.map(|ttl| now.saturating_add(ttl))),
            Some(entry) => {
                let text = std::str::from_utf8(&entry.value).ok();
                let count: Option<i64> = text.and_then(|text| text.parse().ok());
                (count.ok_or(Error::NotACounter)?, entry.expires_at)
            }
        };
        let sum = count.saturating_add(by);
        self.put(key, sum.to_string().into_bytes(), expires_at)?;
        Ok(sum)
    }

    fn put(&mut self, key: &str, value: Vec<u8>, expires_at: Option<u64>) -> Result<(), Error> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Error::Size);
        }
        let cost = |key: &str, value: &[u8]| (key.len() + value.len()) as u64 + BYTES_OF_A_KEY;
        let before: u64 = self.entries.iter().map(|(key, entry)| cost(key, &entry.value)).sum();
        let old = self.entries.get(key).map(|entry| cost(key, &entry.value));
        let after = before - old.unwrap_or(0) + cost(key, &value);
        let is_new = old.is_none();
        // What there is may shrink, even where a smaller quota has no room for it.
        let grows = is_new || after > before;
        if grows && (after > self.max_bytes || is_new && self.entries.len() as u64 >= self.max_keys)
        {
            return Err(Error::Quota);
        }
        self.entries.insert(key.to_owned(), Entry { value, expires_at });
        Ok(())
    }

    fn expire(&mut self, now: u64) {
        self.entries.retain(|_, entry| entry.expires_at.is_none_or(|at| at > now));
    }
}
