//! Copying the write-ahead log into the database file, on a thread and a connection of its own, so
//! that no commit pays for it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};

use crate::{
    metrics::Metrics,
    pipeline::Seq,
    store::{bell::Stop, breather::Breather, config::Durability, tail::Tail},
    tasks,
};

/// What is not copied yet, in bytes, from which on it is copied.
const COPY_FROM: u64 = 8 << 20;
/// Length of the log, in bytes, from which on the writer is made to begin it anew. It is held up for
/// a few milliseconds then.
const RESTART_FROM: u64 = 16 << 20;
/// How often that is tried before it is left alone for a while, and the time between: less than a
/// long query waits for it.
const TRIES_IN_A_ROW: u32 = 10;
const AGAIN: Duration = Duration::from_millis(20);
/// While events come in.
const BUSY: Duration = Duration::from_millis(50);
/// Without commits for so long, what is there is copied and the log is cut off.
const IDLE: Duration = Duration::from_secs(2);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(10);
/// How often the locks of others are tried, [`NAP`] apart: about ten milliseconds in all.
const TRIES: i32 = 50;
const NAP: Duration = Duration::from_micros(200);
/// SQLite's default, which every file of ours has.
const PAGE: u64 = 4_096;

/// The running thread.
pub(in crate::store) struct Checkpointing {
    stop: Stop,
    tail: Arc<Tail>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointing {
    /// Asks the thread to end, after the copy it is at.
    pub fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.stop.set();
        self.tail.bell.ring();
        self.thread.take().inspect(|thread| thread.thread().unpark())
    }
}

impl Drop for Checkpointing {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the thread.
pub(in crate::store) fn start(
    database: &Path,
    durability: Durability,
    tail: Arc<Tail>,
    breather: Breather,
    metrics: Arc<Metrics>,
) -> io::Result<Checkpointing> {
    let stop = Stop::default();
    let checkpoints = Checkpoints {
        database: database.to_owned(),
        durability,
        tail: tail.clone(),
        breather,
        metrics,
        stop: stop.clone(),
    };
    let thread = tasks::thread("store-checkpoint", move || checkpoints.run())?;
    Ok(Checkpointing { stop, tail, thread: Some(thread) })
}

struct Checkpoints {
    database: PathBuf,
    durability: Durability,
    tail: Arc<Tail>,
    /// Of the long queries, which would otherwise always be in the way.
    breather: Breather,
    metrics: Arc<Metrics>,
    stop: Stop,
}

impl Checkpoints {
    fn run(&self) {
        while !self.stop.is_set() {
            let followed = self.follow();
            self.breather.want(false);
            if let Err(error) = followed {
                tracing::error!(%error, "the write-ahead log is not copied; it grows meanwhile");
                self.stop.sleep(PAUSE);
            }
        }
    }

    fn follow(&self) -> rusqlite::Result<()> {
        let connection = connect(&self.database, self.durability)?;
        let (mut refused_at, mut seen) = (0, 0);
        let mut anew = Anew::default();
        let mut last_commit = Instant::now();
        while !self.stop.is_set() {
            let committed = self.committed(seen, if anew.wanted { AGAIN } else { IDLE });
            if committed {
                seen = self.tail.newest();
                last_commit = Instant::now();
            }
            let log = checkpoint(&connection, "NOOP")?;
            let length = i64::try_from(log.length).unwrap_or(i64::MAX);
            self.metrics.wal_bytes.set(length);
            if !committed && last_commit.elapsed() >= IDLE {
                if log.length > 0 {
                    checkpoint(&connection, "PASSIVE")?;
                    if self.begin_anew(&connection, "TRUNCATE", &mut anew)? {
                        self.metrics.wal_bytes.set(0);
                    }
                }
                self.tail.rest();
                continue;
            }
            if log.length.saturating_sub(log.copied) >= COPY_FROM {
                checkpoint(&connection, "PASSIVE")?;
            }
            if log.length >= RESTART_FROM && log.length >= refused_at {
                if self.begin_anew(&connection, "RESTART", &mut anew)? {
                    refused_at = 0;
                } else if !anew.wanted {
                    refused_at = log.length + COPY_FROM / 2;
                }
            } else if anew.wanted && log.length < RESTART_FROM {
                // It was wanted because nothing happened; that is over.
                anew = Anew::default();
                self.breather.want(false);
            }
            if committed {
                self.stop.sleep(if anew.wanted { AGAIN } else { BUSY });
            }
        }
        Ok(())
    }

    /// Tries to have the log begun anew, and asks long queries for a pause meanwhile.
    fn begin_anew(
        &self,
        connection: &Connection,
        mode: &str,
        anew: &mut Anew,
    ) -> rusqlite::Result<bool> {
        anew.wanted = true;
        self.breather.want(true);
        // While a long query holds the old log, it would be in vain.
        if !self.breather.is_quiet() {
            return Ok(false);
        }
        let done = checkpoint(connection, mode)?.done;
        anew.refused += 1;
        // Another reader may need it for a while; the writer is not held up all the time.
        if done || anew.refused >= TRIES_IN_A_ROW {
            *anew = Anew::default();
            self.breather.want(false);
        }
        Ok(done)
    }

    /// Waits for a commit; false when there is none for so long.
    fn committed(&self, seen: Seq, time: Duration) -> bool {
        self.tail.bell.wait(time, || self.stop.is_set() || self.tail.newest() > seen)
    }
}

/// How far the log's being begun anew has come.
#[derive(Default)]
struct Anew {
    wanted: bool,
    /// How often it was refused so far.
    refused: u32,
}

fn connect(path: &Path, durability: Durability) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_handler(Some(|tries| {
        thread::sleep(NAP);
        tries < TRIES
    }))?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "cache_size", -256)?;
    Ok(connection)
}

/// The state of the write-ahead log, in bytes.
#[derive(Debug, Clone, Copy)]
struct Log {
    /// Nobody was in the way.
    done: bool,
    length: u64,
    copied: u64,
}

/// Runs a checkpoint. `NOOP` only asks for the state.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Log> {
    let started = Instant::now();
    let (busy, length, copied) = connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })?;
    let bytes = |frames: i64| frames.max(0).unsigned_abs() * PAGE;
    let log = Log { done: busy == 0, length: bytes(length), copied: bytes(copied) };
    tracing::trace!(mode, ?log, elapsed = ?started.elapsed(), "checkpoint");
    Ok(log)
}
