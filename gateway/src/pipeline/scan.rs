//! The stream from a query to whoever asked: bounded in count, bytes and time, so that a client that
//! does not read cannot hold a reader thread.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Seq, StoreError};

/// What a scan yields, in this order: events newest first (filter by filter, each event once), then
/// one [`ScanItem::End`].
#[derive(Debug)]
pub enum ScanItem {
    /// Canonical JSON.
    Event(Arc<str>),
    End {
        /// The log position of the snapshot that was read.
        at: Seq,
        /// Every stored event that matches was sent (NIP-67): no limit cut the answer.
        complete: bool,
    },
    Failed(StoreError),
}

/// Items that may wait for the client.
const MAX_WAITING: usize = 8_192;
/// Bytes that may wait for the client.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// How long a reader thread waits for the client, over the whole scan, before it gives it up.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a scan may take without that.
const LONGEST: Duration = Duration::from_secs(10);

/// The receiving end of a scan; dropping it ends the scan.
#[derive(Debug)]
pub struct Scan {
    items: mpsc::Receiver<ScanItem>,
    waiting: Arc<AtomicUsize>,
}

/// The sending end, on a reader thread.
pub struct ScanSender {
    items: mpsc::Sender<ScanItem>,
    waiting: Arc<AtomicUsize>,
    started: Instant,
    /// Spent on waiting for the client so far.
    waited: Cell<Duration>,
}

/// The scan is over: nobody listens any more, or not fast enough.
#[derive(Debug)]
pub struct ScanStopped;

impl Scan {
    #[allow(clippy::new_ret_no_self, reason = "both ends are made together, like a channel")]
    pub fn new() -> (ScanSender, Self) {
        let (sender, items) = mpsc::channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let sender = ScanSender {
            items: sender,
            waiting: waiting.clone(),
            started: Instant::now(),
            waited: Cell::default(),
        };
        (sender, Self { items, waiting })
    }

    /// The next item; `None` after the last one.
    pub async fn next(&mut self) -> Option<ScanItem> {
        let item = self.items.recv().await?;
        if let ScanItem::Event(json) = &item {
            self.waiting.fetch_sub(json.len(), Ordering::Relaxed);
        }
        Some(item)
    }
}

impl ScanSender {
    /// Sends one event; waits a little for a slow receiver.
    ///
    /// # Errors
    /// When the receiver is gone or too slow; it has been told.
    pub fn event(&self, json: Arc<str>) -> Result<(), ScanStopped> {
        let bytes = json.len();
        while self.waiting.load(Ordering::Relaxed) > MAX_WAITING_BYTES {
            self.wait()?;
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let mut item = ScanItem::Event(json);
        loop {
            match self.items.try_send(item) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(ScanStopped),
                Err(TrySendError::Full(back)) => {
                    item = back;
                    self.wait()?;
                }
            }
        }
    }

    /// Everything was sent; see [`ScanItem::End`].
    pub fn end(&self, at: Seq, complete: bool) {
        // Not a blocking send: the receiver may never read.
        while self.items.try_send(ScanItem::End { at, complete }).is_err() {
            if self.wait().is_err() {
                return;
            }
        }
    }

    /// Ends the scan with an error.
    pub fn fail(&self, error: StoreError) {
        // When even this does not fit, the receiver sees the channel close, which is a failure too.
        let _ = self.items.try_send(ScanItem::Failed(error));
    }

    /// Whether the scan should go on. To be asked for each row, also when rows do not match.
    ///
    /// # Errors
    /// When the receiver is gone, or the scan takes too long; the receiver has been told.
    pub fn check(&self) -> Result<(), ScanStopped> {
        if self.items.is_closed() {
            return Err(ScanStopped);
        }
        if self.started.elapsed().saturating_sub(self.waited.get()) > LONGEST {
            self.fail(StoreError("the query took too long".to_owned()));
            return Err(ScanStopped);
        }
        Ok(())
    }

    /// The scan begins now: it was waiting for a reader.
    pub fn begin(&mut self) {
        self.started = Instant::now();
    }

    fn wait(&self) -> Result<(), ScanStopped> {
        const NAP: Duration = Duration::from_millis(2);
        if self.items.is_closed() {
            return Err(ScanStopped);
        }
        if self.waited.get() > PATIENCE {
            self.fail(StoreError("the query was given up: its results were not read".to_owned()));
            return Err(ScanStopped);
        }
        let since = Instant::now();
        thread::sleep(NAP);
        self.waited.set(self.waited.get() + since.elapsed());
        Ok(())
    }
}
