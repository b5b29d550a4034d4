//! What plugins remember: a table for each plugin, in memory, and the thread that saves what changed.

mod table;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};

pub use table::{KvError, Quota, Table};

use crate::{
    metrics::{Metrics, PluginIdLabels},
    pipeline::{KvChange, KvPair, KvStore, StoreError},
    tasks,
};

/// How long changes may be only in memory.
const SAVE_AFTER: Duration = Duration::from_secs(1);

/// What the plugins of this gateway remember.
pub struct Kv {
    store: Arc<dyn KvStore>,
    tables: Mutex<BTreeMap<String, Arc<Table>>>,
    wake: Sender<Wake>,
    saver: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
    /// Held by who writes to the store: what is forgotten is not to be saved after that.
    writing: Mutex<()>,
}

/// What the saving thread hears.
enum Wake {
    Changed,
    Stop,
}

impl Kv {
    /// Starts the thread that saves.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn start(store: Arc<dyn KvStore>, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        // One wake-up is as good as many.
        let (wake, woken) = crossbeam_channel::bounded(1);
        let saver = Mutex::default();
        let kv = Arc::new(Self {
            store,
            tables: Mutex::default(),
            wake,
            saver,
            metrics,
            writing: Mutex::default(),
        });
        let saved = Arc::downgrade(&kv);
        let thread = tasks::thread("plugin-kv", move || {
            while wait(&woken) {
                let Some(kv) = saved.upgrade() else { return };
                if !kv.save() {
                    // Until it can be saved again.
                    let _ = kv.wake.try_send(Wake::Changed);
                }
            }
        })?;
        *kv.saver.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(kv)
    }

    /// The table of a plugin: read from the store the first time, later the same one, with the quota
    /// of now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(&self, plugin: &str, quota: Quota, now: u64) -> Result<Arc<Table>, StoreError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(plugin) {
            table.set_quota(quota);
            return Ok(Arc::clone(table));
        }
        let pairs = self.store.load(plugin)?;
        let table = Arc::new(Table::new(plugin, quota, pairs, now, Some(self.wake.clone())));
        tables.insert(plugin.to_owned(), Arc::clone(&table));
        Ok(table)
    }

    /// Forgets all that a plugin remembers. One that still runs goes on with what it has, but that is
    /// not saved any more. Blocks.
    ///
    /// # Errors
    /// When the store cannot be changed. In memory it is forgotten all the same.
    pub fn forget(&self, plugin: &str) -> Result<(), StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).remove(plugin);
        self.metrics.plugin_kv_bytes.remove(&PluginIdLabels { plugin: plugin.to_owned() });
        let name: Arc<str> = plugin.into();
        let pairs = self.store.load(plugin)?;
        for pairs in pairs.chunks(table::MAX_CHANGES) {
            let removed =
                |pair: &KvPair| KvChange::Removed { plugin: name.clone(), key: pair.key.clone() };
            self.store.save(pairs.iter().map(removed).collect())?;
        }
        Ok(())
    }

    /// Saves all changes; false when some could not be saved, and are kept.
    fn save(&self) -> bool {
        let tables: Vec<_> = {
            let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            tables.values().cloned().collect()
        };
        let mut saved = true;
        for table in tables {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            // It may have been forgotten meanwhile.
            if !self.is_open(&table) {
                continue;
            }
            let labels = PluginIdLabels { plugin: table.plugin().to_owned() };
            let bytes = i64::try_from(table.bytes()).unwrap_or(i64::MAX);
            self.metrics.plugin_kv_bytes.get_or_create_owned(&labels).set(bytes);
            loop {
                let changes = table.take_changes();
                if changes.is_empty() {
                    break;
                }
                if let Err(error) = self.store.save(changes.clone()) {
                    tracing::warn!(plugin = %table.plugin(), %error, "cannot save what a plugin remembers");
                    table.take_back(&changes);
                    saved = false;
                    break;
                }
            }
        }
        saved
    }

    fn is_open(&self, table: &Arc<Table>) -> bool {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.get(table.plugin()).is_some_and(|open| Arc::ptr_eq(open, table))
    }

    /// Saves what is not saved yet, and ends the thread. Not from an async worker.
    pub fn stop(&self) {
        let saver = self.saver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(saver) = saver {
            let _ = self.wake.send(Wake::Stop);
            let _ = saver.join();
        }
        self.save();
    }
}

/// Waits for a change, and then for more to come; false at the end.
fn wait(woken: &Receiver<Wake>) -> bool {
    let Ok(Wake::Changed) = woken.recv() else { return false };
    let until = Instant::now() + SAVE_AFTER;
    loop {
        match woken.recv_deadline(until) {
            Ok(Wake::Changed) => {}
            Ok(Wake::Stop) => return false,
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{table::MAX_CHANGES, *};

    /// Keeps what is saved; fails as often as told.
    #[derive(Default)]
    struct Disk {
        rows: Mutex<BTreeMap<String, KvPair>>,
        failures: Mutex<u32>,
    }

    impl KvStore for Disk {
        fn load(&self, plugin: &str) -> Result<Vec<KvPair>, StoreError> {
            assert_eq!(plugin, "p");
            Ok(self.rows.lock().unwrap().values().cloned().collect())
        }

        fn save(&self, changes: Vec<KvChange>) -> Result<(), StoreError> {
            assert!(changes.len() <= MAX_CHANGES);
            let mut failures = self.failures.lock().unwrap();
            if let Some(left) = failures.checked_sub(1) {
                *failures = left;
                return Err(StoreError("told to fail".to_owned()));
            }
            let mut rows = self.rows.lock().unwrap();
            for change in changes {
                match change {
                    KvChange::Set { pair, .. } => drop(rows.insert(pair.key.clone(), pair)),
                    KvChange::Removed { key, .. } => {
                        rows.remove(&key).expect("only what is on disk is removed from it");
                    }
                }
            }
            Ok(())
        }
    }

    fn open(disk: &Arc<Disk>, now: u64) -> (Arc<Kv>, Arc<Table>) {
        let kv = Kv::start(disk.clone(), Arc::default()).unwrap();
        let table = kv.open("p", Quota { bytes: 100_000, keys: 1_000 }, now).unwrap();
        (kv, table)
    }

    #[test]
    fn what_changed_is_saved_and_comes_back() {
        let disk = Arc::new(Disk::default());
        let (kv, table) = open(&disk, 0);
        for n in 0..600 {
            table.set(&n.to_string(), vec![2], (n < 300).then_some(50), 0).unwrap();
        }
        assert!(Arc::ptr_eq(
            &table,
            &kv.open("p", Quota { bytes: 100_000, keys: 1_000 }, 0).unwrap()
        ));
        let began = Instant::now();
        while disk.rows.lock().unwrap().len() < 600 {
            assert!(began.elapsed() < Duration::from_secs(20), "it is saved by itself");
            std::thread::sleep(Duration::from_millis(20));
        }
        table.delete("599", 1);
        table.set("598", vec![3], None, 1).unwrap();
        kv.stop();
        assert_eq!(disk.rows.lock().unwrap().len(), 599);

        // A later start: half of it has expired.
        let (kv, table) = open(&disk, 60);
        assert_eq!((table.get("1", 60), table.get("599", 60)), (None, None));
        assert_eq!(table.get("598", 60), Some(vec![3]));
        assert_eq!(table.len(), 299);
        kv.stop();
        assert_eq!(disk.rows.lock().unwrap().len(), 299);
    }

    #[test]
    fn what_is_forgotten_stays_forgotten() {
        let disk = Arc::new(Disk::default());
        let (kv, table) = open(&disk, 0);
        for n in 0..600 {
            table.set(&n.to_string(), vec![2], None, 0).unwrap();
        }
        assert!(kv.save());
        table.set("late", vec![2], None, 0).unwrap();
        kv.forget("p").unwrap();
        assert!(disk.rows.lock().unwrap().is_empty());
        // An instance that still runs.
        table.set("later", vec![2], None, 0).unwrap();
        assert!(kv.save() && disk.rows.lock().unwrap().is_empty());
        let again = kv.open("p", Quota { bytes: 100_000, keys: 1_000 }, 0).unwrap();
        assert_eq!(again.get("later", 0), None);
    }

    #[test]
    fn what_could_not_be_saved_is_saved_later() {
        let disk = Arc::new(Disk::default());
        let (kv, table) = open(&disk, 0);
        table.set("a", vec![1], None, 0).unwrap();
        table.set("b", vec![1], None, 0).unwrap();
        assert!(kv.save());
        *disk.failures.lock().unwrap() = 1;
        table.set("a", vec![2], None, 0).unwrap();
        table.delete("b", 0);
        assert!(!kv.save());
        assert_eq!(disk.rows.lock().unwrap().len(), 2);
        assert!(kv.save());
        let rows = disk.rows.lock().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows["a"].value, [2]);
    }
}
