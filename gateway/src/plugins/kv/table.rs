//! What one plugin remembers, within its quota, and which of it is not saved yet.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crossbeam_channel::Sender;

use super::Wake;
use crate::pipeline::{KvChange, KvPair};

const MAX_KEY_BYTES: usize = 256;
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// What a key counts for beside itself and its value: about what it takes in memory.
const BYTES_OF_A_KEY: u64 = 64;

/// What is saved in one go, so that events do not wait for it: changes, and bytes.
pub const MAX_CHANGES: usize = 256;
const MAX_BYTES: usize = 256 * 1024;

/// How much one plugin may remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub bytes: u64,
    pub keys: u64,
}

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvError {
    Quota,
    Size,
    NotACounter,
}

/// What one plugin remembers, shared by all its instances. Times are Unix seconds.
pub struct Table {
    plugin: Arc<str>,
    inner: Mutex<Inner>,
    wake: Option<Sender<Wake>>,
}

struct Inner {
    quota: Quota,
    entries: HashMap<Arc<str>, Entry>,
    expiries: BTreeSet<(u64, Arc<str>)>,
    /// As the quota counts.
    bytes: u64,
    /// Keys whose value on disk is not that of now.
    changed: HashSet<Arc<str>>,
    /// Keys that are on disk only. There are never more of `changed` and these than there were
    /// entries since the last save, and none that was never saved: a flood cannot make them grow.
    removed: HashSet<Arc<str>>,
}

struct Entry {
    value: Vec<u8>,
    expires_at: Option<u64>,
    /// Some value of this key is on disk.
    on_disk: bool,
}

impl Table {
    pub(super) fn new(
        plugin: &str,
        quota: Quota,
        pairs: Vec<KvPair>,
        now: u64,
        wake: Option<Sender<Wake>>,
    ) -> Self {
        let mut inner = Inner {
            quota,
            entries: HashMap::new(),
            expiries: BTreeSet::new(),
            bytes: 0,
            changed: HashSet::new(),
            removed: HashSet::new(),
        };
        for KvPair { key, value, expires_at } in pairs {
            inner.insert(key.into(), Entry { value, expires_at, on_disk: true });
        }
        inner.expire(now);
        Self { plugin: plugin.into(), inner: Mutex::new(inner), wake }
    }

    /// One that has room for nothing, for a plugin without the capability.
    pub fn none() -> Self {
        Self::new("", Quota { bytes: 0, keys: 0 }, Vec::new(), 0, None)
    }

    pub fn get(&self, key: &str, now: u64) -> Option<Vec<u8>> {
        self.at(now).entries.get(key).map(|entry| entry.value.clone())
    }

    /// # Errors
    /// When it is too long or there is no room; nothing is changed then.
    pub fn set(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Option<u64>,
        now: u64,
    ) -> Result<(), KvError> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
            return Err(KvError::Size);
        }
        let mut inner = self.at(now);
        inner.put(key, value, ttl.map(|ttl| now.saturating_add(ttl)))?;
        self.tell(&inner);
        Ok(())
    }

    /// Whether there was one.
    pub fn delete(&self, key: &str, now: u64) -> bool {
        let mut inner = self.at(now);
        let was_there = inner.remove(key);
        self.tell(&inner);
        was_there
    }

    /// # Errors
    /// When there is something else, the key is too long, or there is no room for a new one.
    pub fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<u64>,
        now: u64,
    ) -> Result<i64, KvError> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(KvError::Size);
        }
        let mut inner = self.at(now);
        let (count, expires_at) = match inner.entries.get(key) {
            None => (0, ttl.map(|ttl| now.saturating_add(ttl))),
            Some(entry) => {
                let text = std::str::from_utf8(&entry.value).ok();
                let count: Option<i64> = text.and_then(|text| text.parse().ok());
                (count.ok_or(KvError::NotACounter)?, entry.expires_at)
            }
        };
        let sum = count.saturating_add(by);
        inner.put(key, sum.to_string().into_bytes(), expires_at)?;
        self.tell(&inner);
        Ok(sum)
    }

    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    pub fn set_quota(&self, quota: Quota) {
        self.inner().quota = quota;
    }

    /// As the quota counts.
    pub fn bytes(&self) -> u64 {
        self.inner().bytes
    }

    /// How many keys there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.inner().entries.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it stands at this time.
    fn at(&self, now: u64) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner();
        inner.expire(now);
        inner
    }

    fn tell(&self, inner: &Inner) {
        if let Some(wake) = &self.wake
            && !(inner.changed.is_empty() && inner.removed.is_empty())
        {
            // One that is full says so already.
            let _ = wake.try_send(Wake::Changed);
        }
    }

    /// Some of the changes that are not saved yet. They count as saved from here on.
    pub fn take_changes(&self) -> Vec<KvChange> {
        let inner = &mut *self.inner();
        let mut changes = Vec::new();
        let mut bytes = 0;
        while changes.len() < MAX_CHANGES
            && let Some(key) = inner.removed.iter().next().cloned()
        {
            inner.removed.remove(&key);
            let (plugin, key) = (self.plugin.clone(), key.to_string());
            changes.push(KvChange::Removed { plugin, key });
        }
        while changes.len() < MAX_CHANGES
            && bytes < MAX_BYTES
            && let Some(key) = inner.changed.iter().next().cloned()
        {
            inner.changed.remove(&key);
            let Some(entry) = inner.entries.get_mut(&key) else { continue };
            entry.on_disk = true;
            bytes += entry.value.len();
            let (value, expires_at) = (entry.value.clone(), entry.expires_at);
            let pair = KvPair { key: key.to_string(), value, expires_at };
            changes.push(KvChange::Set { plugin: self.plugin.clone(), pair });
        }
        changes
    }

    /// They were not saved after all.
    pub fn take_back(&self, changes: &[KvChange]) {
        let inner = &mut *self.inner();
        for change in changes {
            let (KvChange::Set { pair: KvPair { key, .. }, .. } | KvChange::Removed { key, .. }) =
                change;
            let key: Arc<str> = key.as_str().into();
            match inner.entries.get_mut(&key) {
                Some(entry) => {
                    entry.on_disk = true;
                    inner.changed.insert(key);
                }
                // It may be on disk.
                None => drop(inner.removed.insert(key)),
            }
        }
    }
}

impl Inner {
    fn cost(key: &str, value: &[u8]) -> u64 {
        (key.len() + value.len()) as u64 + BYTES_OF_A_KEY
    }

    fn put(&mut self, key: &str, value: Vec<u8>, expires_at: Option<u64>) -> Result<(), KvError> {
        let old = self.entries.get(key);
        let freed = old.map_or(0, |old| Self::cost(key, &old.value));
        let bytes = self.bytes - freed + Self::cost(key, &value);
        let is_new = old.is_none();
        // What there is may shrink, even where a smaller quota has no room for it.
        let grows = is_new || bytes > self.bytes;
        if grows
            && (bytes > self.quota.bytes || is_new && self.entries.len() as u64 >= self.quota.keys)
        {
            return Err(KvError::Quota);
        }
        let key: Arc<str> = key.into();
        let on_disk = old.is_some_and(|old| old.on_disk) || self.removed.remove(&key);
        self.take(&key);
        self.insert(key.clone(), Entry { value, expires_at, on_disk });
        self.changed.insert(key);
        Ok(())
    }

    fn insert(&mut self, key: Arc<str>, entry: Entry) {
        self.bytes += Self::cost(&key, &entry.value);
        if let Some(at) = entry.expires_at {
            self.expiries.insert((at, key.clone()));
        }
        self.entries.insert(key, entry);
    }

    fn take(&mut self, key: &str) -> Option<Entry> {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.bytes -= Self::cost(&key, &entry.value);
        if let Some(at) = entry.expires_at {
            self.expiries.remove(&(at, key));
        }
        Some(entry)
    }

    fn remove(&mut self, key: &str) -> bool {
        let Some(entry) = self.take(key) else { return false };
        self.changed.remove(key);
        if entry.on_disk {
            self.removed.insert(key.into());
        }
        true
    }

    /// Removes what is past its time.
    fn expire(&mut self, now: u64) {
        while let Some((at, key)) = self.expiries.first()
            && *at <= now
        {
            let key = key.clone();
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(bytes: u64, keys: u64) -> Table {
        Table::new("p", Quota { bytes, keys }, Vec::new(), 0, None)
    }

    #[test]
    fn values_go_when_their_time_has_come() {
        let table = table(10_000, 10);
        table.set("a", b"1".into(), Some(10), 100).unwrap();
        table.set("b", b"2".into(), None, 100).unwrap();
        assert_eq!(table.get("a", 109), Some(b"1".into()));
        assert_eq!(table.get("a", 110), None);
        // A new value has a new time.
        table.set("a", b"3".into(), Some(10), 110).unwrap();
        table.set("a", b"4".into(), Some(50), 115).unwrap();
        assert_eq!(table.get("a", 164), Some(b"4".into()));
        table.set("a", b"5".into(), None, 164).unwrap();
        assert_eq!(table.get("a", u64::MAX), Some(b"5".into()));
        assert!(table.delete("b", 200) && !table.delete("b", 200));
    }

    #[test]
    fn a_counter_counts_within_its_span() {
        let table = table(10_000, 10);
        assert_eq!(table.increment("n", 2, Some(60), 100), Ok(2));
        assert_eq!(table.increment("n", 3, Some(60), 159), Ok(5));
        assert_eq!(table.increment("n", 1, Some(60), 160), Ok(1));
        assert_eq!(table.get("n", 160), Some(b"1".into()));
        assert_eq!(table.increment("n", i64::MAX, None, 160), Ok(i64::MAX));
        table.set("text", b"x".into(), None, 160).unwrap();
        assert_eq!(table.increment("text", 1, None, 160), Err(KvError::NotACounter));
    }

    #[test]
    fn the_quota_holds_and_lets_what_is_there_shrink() {
        let table = table(1_000, 3);
        for key in ["a", "b", "c"] {
            table.set(key, vec![0; 100], None, 0).unwrap();
        }
        assert_eq!(table.set("d", vec![], None, 0), Err(KvError::Quota), "three keys");
        assert_eq!(table.set("a", vec![0; 700], None, 0), Err(KvError::Quota), "1000 bytes");
        assert_eq!(table.get("a", 0), Some(vec![0; 100]), "it stayed as it was");
        table.delete("b", 0);
        table.set("a", vec![0; 600], Some(1), 0).unwrap();
        assert_eq!(table.set("d", vec![0; 200], None, 0), Err(KvError::Quota));
        // What expired makes room.
        table.set("d", vec![0; 200], None, 1).unwrap();
        table.inner().quota.bytes = 10;
        assert_eq!(table.set("d", vec![0; 199], None, 1), Ok(()));
        assert_eq!(table.set("d", vec![0; 200], None, 1), Err(KvError::Quota));
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        assert_eq!(table.set(&long, vec![], None, 1), Err(KvError::Size));
        assert_eq!(table.set("", vec![], None, 1), Err(KvError::Size));
        assert_eq!(table.set("e", vec![0; MAX_VALUE_BYTES + 1], None, 1), Err(KvError::Size));
    }

    #[test]
    fn a_flood_of_keys_that_come_and_go_leaves_nothing() {
        let table = table(10_000, 10);
        for n in 0..10_000 {
            let key = n.to_string();
            table.set(&key, vec![1; 10], Some(5), n / 1_000).unwrap();
            table.delete(&key, n / 1_000);
        }
        let inner = table.inner();
        assert_eq!((inner.entries.len(), inner.expiries.len(), inner.bytes), (0, 0, 0));
        assert_eq!((inner.changed.len(), inner.removed.len()), (0, 0));
    }
}
