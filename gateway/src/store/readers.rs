//! Reader threads, and one connection for each worker thread that looks ids up.

use std::{
    cell::RefCell,
    io, panic,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    thread::JoinHandle,
};

use rusqlite::Connection;

use super::open;
use crate::{pipeline::StoreError, tasks};

/// How many queries may wait for a reader.
const QUEUE: usize = 4_096;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// The reading side.
pub(super) struct Readers {
    queue: RwLock<Option<crossbeam_channel::Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    path: PathBuf,
}

impl Readers {
    pub fn start(path: &Path, connections: Vec<Connection>) -> io::Result<Self> {
        let (queue, jobs) = crossbeam_channel::bounded::<Job>(QUEUE);
        let threads = connections
            .into_iter()
            .enumerate()
            .map(|(n, connection)| {
                let jobs = jobs.clone();
                tasks::thread(format!("store-reader-{n}"), move || {
                    for job in jobs {
                        // A query that panics takes its own answer with it and no other.
                        let run = panic::AssertUnwindSafe(|| job(&connection));
                        if panic::catch_unwind(run).is_err() {
                            tracing::error!("a query panicked; this is a defect, please report it");
                        }
                    }
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            queue: RwLock::new(Some(queue)),
            threads: Mutex::new(threads),
            path: path.to_owned(),
        })
    }

    /// Queues a query. It never waits: a full queue is an error.
    pub fn run(&self, job: impl FnOnce(&Connection) + Send + 'static) -> Result<(), StoreError> {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = queue.as_ref() else {
            return Err(StoreError("the store is closed".to_owned()));
        };
        queue
            .try_send(Box::new(job))
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
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
