//! Reader threads, and one connection for each worker thread that looks ids up.

use std::{
    cell::RefCell,
    io, panic,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::RecvTimeoutError;
use rusqlite::Connection;

use super::{breather::Breather, open};
use crate::{pipeline::StoreError, tasks};

/// How many queries may wait for a reader.
const QUEUE: usize = 4_096;
/// How many long ones may wait for a thread of theirs.
const LONG_QUEUE: usize = 256;
/// The first thread is for queries of clients that may take long, so that these never hold up a REQ; the
/// second for comparing topics with other gateways, which holds up neither.
const LONG: usize = 0;
const COMPARISONS: usize = 1;

pub(super) type Job = Box<dyn FnOnce(&Connection) + Send>;

/// The reading side.
pub(super) struct Readers {
    queues: RwLock<Option<Queues>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    path: PathBuf,
    /// Queries that wait for a reader, without the long ones.
    waiting: Arc<AtomicUsize>,
}

struct Queues {
    quick: crossbeam_channel::Sender<Job>,
    long: crossbeam_channel::Sender<Job>,
    comparisons: crossbeam_channel::Sender<Job>,
}

/// A query that waits for a reader.
struct Turn(Arc<AtomicUsize>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a reader maps of the file. Reading through the mapping saves a system call and a copy for
/// each page, and SQLite's page cache, whose lock all connections share.
const MAPPED: i64 = 1 << 40;
/// A reader that had nothing to do for so long gives its memory back.
const REST_AFTER: Duration = Duration::from_secs(10);

/// A reader thread.
fn answer(
    connection: &Connection,
    jobs: &crossbeam_channel::Receiver<Job>,
    breather: Option<&Breather>,
) {
    loop {
        // It begins at rest.
        let Ok(job) = jobs.recv() else { return };
        map(connection, MAPPED);
        let mut next = Some(job);
        while let Some(job) = next {
            let at_work = breather.map(Breather::begin);
            // A query that panics takes its own answer with it and no other.
            if panic::catch_unwind(panic::AssertUnwindSafe(|| job(connection))).is_err() {
                tracing::error!("a query panicked; this is a defect, please report it");
            }
            drop(at_work);
            next = match jobs.recv_timeout(REST_AFTER) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
        }
        map(connection, 0);
        let shrunk = connection.execute_batch("PRAGMA shrink_memory");
        if let Err(error) = shrunk {
            tracing::debug!(%error, "a reader keeps its memory");
        }
    }
}

fn map(connection: &Connection, bytes: i64) {
    // Where mapping is not possible, it reads as ever.
    if let Err(error) = connection.pragma_update(None, "mmap_size", bytes) {
        tracing::debug!(%error, "a reader does not map the file");
    }
}

impl Readers {
    pub fn start(
        path: &Path,
        connections: Vec<Connection>,
        breather: &Breather,
    ) -> io::Result<Self> {
        let (quick, quick_jobs) = crossbeam_channel::bounded::<Job>(QUEUE);
        let (long, long_jobs) = crossbeam_channel::bounded::<Job>(LONG_QUEUE);
        let (comparisons, comparison_jobs) = crossbeam_channel::bounded::<Job>(LONG_QUEUE);
        let threads = connections
            .into_iter()
            .enumerate()
            .map(|(n, connection)| {
                let (jobs, breather) = match n {
                    LONG => (&long_jobs, Some(breather.clone())),
                    COMPARISONS => (&comparison_jobs, Some(breather.clone())),
                    _ => (&quick_jobs, None),
                };
                let jobs = jobs.clone();
                tasks::thread(format!("store-reader-{n}"), move || {
                    answer(&connection, &jobs, breather.as_ref());
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            queues: RwLock::new(Some(Queues { quick, long, comparisons })),
            threads: Mutex::new(threads),
            path: path.to_owned(),
            waiting: Arc::default(),
        })
    }

    /// Queues a query. It never waits: a full queue is an error.
    pub fn run(&self, job: impl FnOnce(&Connection) + Send + 'static) -> Result<(), StoreError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Counted until it begins, or is dropped without.
        let turn = Turn(self.waiting.clone());
        let job = move |connection: &Connection| {
            drop(turn);
            job(connection);
        };
        self.queue(|queues| &queues.quick, Box::new(job))
    }

    /// Tells at any time whether queries wait for a reader.
    pub fn others_wait(&self) -> impl Fn() -> bool + Send + use<> {
        let waiting = self.waiting.clone();
        move || waiting.load(Ordering::Relaxed) > 0
    }

    /// Queues a query that may take long. It never waits either.
    pub fn run_long(&self, job: Job) -> Result<(), StoreError> {
        self.queue(|queues| &queues.long, job)
    }

    /// Queues the reading of what a topic has. It never waits either.
    pub fn run_comparison(&self, job: Job) -> Result<(), StoreError> {
        self.queue(|queues| &queues.comparisons, job)
    }

    fn queue(
        &self,
        choose: impl FnOnce(&Queues) -> &crossbeam_channel::Sender<Job>,
        job: Job,
    ) -> Result<(), StoreError> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queues) = queues.as_ref() else {
            return Err(StoreError("the store is closed".to_owned()));
        };
        choose(queues)
            .try_send(job)
            .map_err(|_| StoreError("too many queries are waiting".to_owned()))
    }

    /// Runs a query on the calling thread, on a connection of that thread. For the few worker
    /// threads of the pipeline, which ask for every event.
    pub fn with_own_connection<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        thread_local! {
            static OWN: RefCell<Option<(PathBuf, Connection)>> = const { RefCell::new(None) };
        }
        OWN.with_borrow_mut(|own| {
            if own.as_ref().is_none_or(|(path, _)| *path != self.path) {
                let connection = open::reader(&self.path)
                    .map_err(|error| StoreError(format!("cannot read the database: {error}")))?;
                *own = Some((self.path.clone(), connection));
            }
            match own {
                Some((_, connection)) => query(connection),
                None => Err(StoreError("no connection".to_owned())),
            }
        })
    }

    /// Ends the threads once the queue is empty.
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        self.queues.write().unwrap_or_else(PoisonError::into_inner).take();
        std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
