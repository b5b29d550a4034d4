//! SQLite: one writer thread that commits groups, reader threads that never block it.
//!
//! sqlx runs the migrations and the rare queries; the writer and the readers are rusqlite on the same
//! file, because a query through sqlx costs ten times as much.

pub mod backup;
mod bell;
mod breather;
pub mod config;
mod follows;
mod gone;
mod joined;
mod known;
mod kv;
mod lookup;
mod memory;
mod moderation;
mod names;
mod newest;
mod open;
mod peers;
mod presence;
mod privacy;
mod query;
mod rare;
mod readers;
mod remove;
mod requests;
mod search;
mod spare;
mod streams;
mod tag_keys;
mod tail;
mod tombstones;
mod upkeep;
mod versions;
mod writer;
mod writes;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use futures_util::future::BoxFuture;
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

pub use config::{RetentionConfig, StorageConfig};
pub use follows::FollowTable;
pub use joined::JoinedTable;
pub use kv::forget_plugin;
pub use moderation::ModerationTable;
pub use open::OpenError;
pub use peers::PeerTable;
pub use streams::UpstreamTables;

use crate::{
    clock::unix_now,
    metrics::Metrics,
    pipeline::{
        Affected, Count, EventReader, EventWriter, Gone, IdSet, LogEntry, Presence, PrivateTopics,
        Removal, Scan, Scope, Seq, Span, StoreError, TopicIds, Viewer, Write,
    },
    protocol::{Event, EventId, Filter, TopicName, VerifiedEvent, kinds::Part},
    tasks,
};
use breather::Breather;
use memory::Memory;
use readers::{Job, Readers};
use search::{Follow, Following};
use tail::Tail;
use upkeep::{Checkpointing, Door, Keeping, Upkeep};
use writes::{Order, Writes};

/// How many events may wait for the writer.
const WRITE_QUEUE: usize = 4_096;

/// The store. Cheap to share; [`Store::close`] ends it.
pub struct Store {
    readers: Readers,
    tail: Arc<Tail>,
    memory: Arc<Memory>,
    writes: Arc<Writes>,
    /// The last commit failed.
    failing: Arc<AtomicBool>,
    stored_at_start: u64,
    door: Door,
    refusals: gone::Refusals,
    /// Which topics are private; until it is told, none.
    private: OnceLock<PrivateTopics>,
    background: Mutex<Background>,
    data_dir: PathBuf,
    config: StorageConfig,
    metrics: Arc<Metrics>,
}

/// The threads beside the writer and the readers.
#[derive(Default)]
struct Background {
    following: Option<Following>,
    checkpointing: Option<Checkpointing>,
    keeping: Option<Keeping>,
}

impl Background {
    /// Asks all to end.
    fn stop(&mut self) -> Vec<JoinHandle<()>> {
        let following = self.following.as_mut().and_then(Following::stop);
        let checkpointing = self.checkpointing.as_mut().and_then(Checkpointing::stop);
        let keeping = self.keeping.as_mut().and_then(Keeping::stop);
        [following, checkpointing, keeping].into_iter().flatten().collect()
    }
}

impl Store {
    /// Opens `gateway.db` in the data directory, creating or migrating it.
    ///
    /// # Errors
    /// When the directory or the file cannot be read or written, the file is no database of this
    /// program, or it is of a newer version.
    pub async fn open(
        data_dir: &Path,
        config: &StorageConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let path = data_dir.join("gateway.db");
        let stored_at_start = open::migrate(&path).await?;
        let durability = config.durability;
        let connections = {
            let path = path.clone();
            tasks::blocking(move || open::connections(&path, durability))
        };
        let (write, read) = connections.await.map_err(|e| OpenError::thread(&path, &e))??;
        let instance = if config.search {
            Some(search::switch_on(&write))
        } else {
            search::switch_off(&write, data_dir).err().map(Err)
        };
        let instance = instance.transpose().map_err(|e| OpenError::sqlite(&path, &e))?;
        let head = open::head(&read[0]).map_err(|e| OpenError::sqlite(&path, &e))?;
        let tail = Arc::new(Tail::new(head));
        let memory = Arc::new(Memory::new(stored_at_start));
        let failing = Arc::new(AtomicBool::new(false));
        let (queue, waiting) = crossbeam_channel::bounded(WRITE_QUEUE);
        let thread = {
            let shared = writer::Shared {
                tail: tail.clone(),
                memory: memory.clone(),
                failing: failing.clone(),
                metrics: metrics.clone(),
            };
            tasks::thread("store-writer", move || writer::run(write, &waiting, &shared))
        };
        let thread = thread.map_err(|e| OpenError::thread(&path, &e))?;
        let breather = Breather::default();
        let readers = Readers::start(&path, read, &breather);
        let readers = readers.map_err(|e| OpenError::thread(&path, &e))?;
        let writes = Arc::new(Writes::new(queue, thread));
        let load = {
            let memory = memory.clone();
            readers.run(move |connection| {
                if let Err(error) = memory.load(connection) {
                    tracing::error!(%error, "cannot read the database into memory; it will be slow");
                }
            })
        };
        load.map_err(|error| OpenError::thread(&path, &io::Error::other(error)))?;
        let mut background = Background::default();
        let checkpointing =
            upkeep::start_checkpoints(&path, durability, tail.clone(), breather, metrics.clone());
        background.checkpointing = Some(checkpointing.map_err(|e| OpenError::thread(&path, &e))?);
        if let Some(instance) = instance {
            let follow = Follow {
                database: path.clone(),
                data_dir: data_dir.to_owned(),
                instance,
                tail: tail.clone(),
                writes: writes.clone(),
                metrics: metrics.clone(),
            };
            let following = follow.start().map_err(|e| OpenError::thread(&path, &e))?;
            let _ = memory.search.set(following.search.clone());
            background.following = Some(following);
        }
        Ok(Self {
            readers,
            tail,
            memory,
            writes,
            failing,
            stored_at_start,
            door: Door::default(),
            refusals: gone::Refusals::default(),
            private: OnceLock::new(),
            background: Mutex::new(background),
            data_dir: data_dir.to_owned(),
            config: config.clone(),
            metrics,
        })
    }

    /// Says which topics are private. What a topic had when it was private is not shown in it later.
    pub fn private_are(&self, private: PrivateTopics) {
        let _ = self.private.set(private);
    }

    fn is_private(&self, topic: &TopicName) -> bool {
        self.private.get().is_some_and(|private| private.contains(topic))
    }

    /// Starts what removes events: those that expired, and those that are past what is kept.
    ///
    /// # Errors
    /// When the database cannot be opened once more, or there is no thread left.
    pub fn start_upkeep(&self, retention: &[RetentionConfig]) -> Result<(), OpenError> {
        let path = self.data_dir.join("gateway.db");
        let (writes, metrics) = (self.writes.clone(), self.metrics.clone());
        let upkeep =
            Upkeep::new(&self.data_dir, &self.config, retention, writes, metrics, &self.door);
        let (upkeep, stop) = upkeep.map_err(|e| OpenError::sqlite(&path, &e))?;
        let keeping = upkeep.start(stop).map_err(|e| OpenError::thread(&path, &e))?;
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        background.keeping = Some(keeping);
        Ok(())
    }

    /// Says which limits, plugins and retention are in force, as one number. When they are not those
    /// of the last start, what they refused then is no longer remembered.
    ///
    /// # Errors
    /// When the database cannot be written. Not from an async worker.
    pub fn rules_are(&self, rules: i64) -> Result<(), StoreError> {
        let forgotten = gone::rules_are(&self.writes, rules)?;
        if forgotten > 0 {
            tracing::info!(
                events = forgotten,
                "the rules changed; what was refused may come again"
            );
        }
        Ok(())
    }

    /// The operator's rules, on disk.
    pub fn moderation(&self) -> ModerationTable {
        ModerationTable::new(&self.data_dir, self.memory.clone())
    }

    /// How many events were stored when it was opened.
    pub fn stored_at_start(&self) -> u64 {
        self.stored_at_start
    }

    /// How many events are stored. Reads an index from end to end.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count_events(&self) -> Result<u64, StoreError> {
        let count = |connection: &Connection| {
            let sql = "SELECT count(*) FROM events";
            let count = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            count.map(i64::unsigned_abs).map_err(|error| StoreError(error.to_string()))
        };
        self.ask(count).await
    }

    /// Whether anything was ever in this topic.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_topic(&self, topic: TopicName) -> Result<bool, StoreError> {
        let ask = move |connection: &Connection| Ok(query::topic_number(connection, &topic)?);
        Ok(self.ask(ask).await?.is_some())
    }

    /// The size of all files of the database, in bytes.
    pub fn bytes(&self) -> u64 {
        let files = ["gateway.db", "gateway.db-wal", "search.db", "search.db-wal"];
        let sizes = files.iter().filter_map(|file| self.data_dir.join(file).metadata().ok());
        sizes.map(|found| found.len()).sum()
    }

    /// Why events cannot be stored at the moment.
    pub fn trouble(&self) -> Option<&'static str> {
        if !self.writes.is_open() {
            Some("the store is closed: events cannot be stored\n")
        } else if self.failing.load(Ordering::Relaxed) {
            Some("the last commit failed: events cannot be stored; see the log\n")
        } else {
            None
        }
    }

    /// Commits what is queued and ends the threads.
    pub async fn close(&self) {
        let background = self.background.lock().unwrap_or_else(PoisonError::into_inner).stop();
        // They may wait for the writer, which may wait for their locks: they end first.
        let _ = tasks::blocking(move || background.into_iter().for_each(|t| drop(t.join()))).await;
        let writer = self.writes.close();
        let readers = self.readers.close();
        let _ = tasks::blocking(move || {
            writer.into_iter().chain(readers).for_each(|thread| drop(thread.join()));
        })
        .await;
    }
}

impl EventWriter for Store {
    fn presence(&self, event: &Event, topics: &[TopicName]) -> Result<Presence, StoreError> {
        if self.door.refuses(event, topics, unix_now) {
            return Ok(Presence::PastRetention);
        }
        if presence::is_surely_new(&self.memory, event) {
            return Ok(Presence::Unknown);
        }
        self.readers.with_own_connection(|connection| {
            presence::presence(connection, &self.memory, event, topics)
        })
    }

    fn affected(&self, event: &Event) -> Result<Affected, StoreError> {
        if !presence::acts_on_others(event) {
            return Ok(Affected::default());
        }
        self.readers
            .with_own_connection(|connection| presence::affected(connection, &self.memory, event))
    }

    fn write(&self, write: Write) -> Result<(), StoreError> {
        self.writes.send(Order::Write(write))
    }

    fn remove(&self, removal: Removal) -> Result<u64, StoreError> {
        let (answer, removed) = crossbeam_channel::bounded(1);
        let answer = Box::new(move |result| drop(answer.send(result)));
        self.writes.send(Order::Remove(removal, answer))?;
        removed.recv().map_err(|_| StoreError("the store is closed".to_owned()))?
    }

    fn refused(&self, event: &VerifiedEvent, topics: &[TopicName], why: Gone) {
        let topics = topics.iter().map(|topic| (topic.clone(), self.is_private(topic)));
        self.refusals.add(&self.writes, event, topics, why);
    }
}

impl EventReader for Store {
    fn head(&self) -> watch::Receiver<Seq> {
        self.tail.head()
    }

    fn log_after(&self, seq: Seq, max: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, StoreError>> {
        self.ask(move |connection| query::log_after(connection, seq, max))
    }

    fn recent_log_after(&self, seq: Seq) -> Option<Vec<LogEntry>> {
        self.tail.after(seq)
    }

    fn scan(&self, filters: Vec<Filter>, scope: Scope, viewer: Arc<Viewer>) -> Scan {
        let (mut out, scan) = Scan::new();
        out.yield_to(self.readers.others_wait());
        let memory = self.memory.clone();
        let queued = self.readers.run(move |connection| {
            out.begin();
            query::scan(connection, &memory, &filters, &scope, &viewer, &out);
        });
        if let Err(error) = queued {
            // The sender went with the job: the receiver sees the end of the channel.
            tracing::warn!(%error, "a query was refused");
        }
        scan
    }

    fn can_search(&self) -> bool {
        self.memory.search.get().is_some()
    }

    fn count(
        &self,
        filters: Vec<Filter>,
        scope: Scope,
        viewer: Arc<Viewer>,
    ) -> BoxFuture<'_, Result<Count, StoreError>> {
        let memory = self.memory.clone();
        self.ask_long(move |connection, gone| {
            query::count(connection, &memory, &filters, &scope, &viewer, gone)
        })
    }

    fn ids(
        &self,
        filter: Filter,
        scope: Scope,
        viewer: Arc<Viewer>,
        max: usize,
    ) -> BoxFuture<'_, Result<IdSet, StoreError>> {
        let memory = self.memory.clone();
        self.ask_long(move |connection, gone| {
            query::ids(connection, &memory, &filter, &scope, &viewer, max, gone)
        })
    }

    fn fetch(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        let private = self.is_private(&topic);
        self.ask(move |connection| query::fetch(connection, &topic, private, &ids))
    }

    fn missing(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        // Nearly all of them, mostly: those need no look into the file.
        let (held, mut missing): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| self.memory.ids.may_contain(known::prefix(&id.0)));
        if held.is_empty() {
            return Box::pin(async { Ok(missing) });
        }
        self.ask(move |connection| {
            missing.extend(query::missing(connection, &topic, held)?);
            Ok(missing)
        })
    }

    fn removed(&self, mut ids: Vec<EventId>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        ids.retain(|id| self.memory.ids.may_contain(known::prefix(&id.0)));
        if ids.is_empty() {
            return Box::pin(async { Ok(ids) });
        }
        self.ask(move |connection| {
            let mut removed = Vec::new();
            for id in ids {
                if gone::is_removed(connection, &id)? {
                    removed.push(id);
                }
            }
            Ok(removed)
        })
    }

    fn topic_ids(
        &self,
        topic: TopicName,
        part: Part,
        span: Span,
        max: usize,
    ) -> BoxFuture<'_, Result<TopicIds, StoreError>> {
        let private = self.is_private(&topic);
        self.ask_on(Readers::run_comparison, move |connection, _| {
            query::topic_ids(connection, &topic, private, part, span, max)
        })
    }

    fn gone(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<(u64, EventId)>, StoreError>> {
        let private = self.is_private(&topic);
        self.ask(move |connection| match query::topic_number(connection, &topic)? {
            Some(topic) => Ok(gone::find(connection, topic, private, &ids)?),
            None => Ok(Vec::new()),
        })
    }

    fn kept_since(&self, topic: &TopicName) -> u64 {
        self.door.open_since(topic, unix_now())
    }

    fn version(&self, topic: &TopicName) -> u64 {
        self.memory.versions.of(topic)
    }
}

impl Store {
    /// Runs a query on a reader thread and waits for its answer.
    fn ask<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let (answer, result) = oneshot::channel();
        let queued = self.readers.run(move |connection| {
            if !answer.is_closed() {
                let _ = answer.send(query(connection));
            }
        });
        answered(queued, result)
    }

    /// The same for a query that may take long: on the threads for those. It learns whether whoever
    /// asked is gone.
    fn ask_long<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection, &dyn Fn() -> bool) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        self.ask_on(Readers::run_long, query)
    }

    fn ask_on<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Readers, Job) -> Result<(), StoreError>,
        query: impl FnOnce(&Connection, &dyn Fn() -> bool) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let (answer, result) = oneshot::channel();
        let job = move |connection: &Connection| {
            if !answer.is_closed() {
                let found = query(connection, &|| answer.is_closed());
                let _ = answer.send(found);
            }
        };
        answered(run(&self.readers, Box::new(job)), result)
    }
}

fn answered<'a, T: Send + 'static>(
    queued: Result<(), StoreError>,
    result: oneshot::Receiver<Result<T, StoreError>>,
) -> BoxFuture<'a, Result<T, StoreError>> {
    Box::pin(async move {
        queued?;
        result.await.unwrap_or_else(|_| Err(StoreError("the store is closed".to_owned())))
    })
}
