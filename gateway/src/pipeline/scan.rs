//! The stream from a query to whoever asked: bounded in count, bytes and time, so that a client that
//! does not read cannot hold a reader thread.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Seq, StoreError};

/// What a scan yields, in this order: events newest first (filter by filter, each event once), in
/// batches, then one [`ScanItem::End`].
#[derive(Debug)]
pub enum ScanItem {
    /// Canonical JSON of each, at least one.
    Events(Vec<Arc<str>>),
    End {
        /// The log position of the snapshot that was read.
        at: Seq,
        /// Every stored event that matches was sent (NIP-67): no limit cut the answer.
        complete: bool,
    },
    Failed(StoreError),
}

/// Batches that may wait for the client.
const MAX_WAITING: usize = 1_024;
/// Bytes that may wait for the client.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// A batch has at most so many events, and little more than so many bytes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 64 << 10;
/// How long an event waits for others to go with: each batch wakes the receiver up.
const BATCH_WAIT: Duration = Duration::from_micros(500);
/// Calls of [`ScanSender::check`] for each look at the clock.
const CHECKS_PER_LOOK: u32 = 64;
/// How long a reader thread waits for the client, over the whole scan, before it gives it up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same while other queries wait for a reader: who does not read must not hold up who does.
const PATIENCE_BEFORE_OTHERS: Duration = Duration::from_millis(100);
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
    batch: RefCell<Batch>,
    checks: Cell<u32>,
    /// Whether other queries wait for a reader.
    others_wait: Option<Box<dyn Fn() -> bool + Send>>,
}

/// What goes to the receiver next.
struct Batch {
    events: Vec<Arc<str>>,
    bytes: usize,
    /// When the last batch went, or the scan began.
    last: Instant,
}

/// The scan is over: nobody listens any more, or not fast enough.
#[derive(Debug)]
pub struct ScanStopped;

impl Scan {
    #[allow(clippy::new_ret_no_self, reason = "both ends are made together, like a channel")]
    pub fn new() -> (ScanSender, Self) {
        let (sender, items) = mpsc::channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let started = Instant::now();
        let sender = ScanSender {
            items: sender,
            waiting: waiting.clone(),
            started,
            waited: Cell::default(),
            batch: RefCell::new(Batch { events: Vec::new(), bytes: 0, last: started }),
            checks: Cell::default(),
            others_wait: None,
        };
        (sender, Self { items, waiting })
    }

    /// The next item; `None` after the last one.
    pub async fn next(&mut self) -> Option<ScanItem> {
        let item = self.items.recv().await?;
        if let ScanItem::Events(events) = &item {
            self.waiting.fetch_sub(size(events), Ordering::Relaxed);
        }
        Some(item)
    }
}

impl ScanSender {
    /// Sends one event, alone or with the next ones; waits a little for a slow receiver.
    ///
    /// # Errors
    /// When the receiver is gone or too slow; it has been told.
    pub fn event(&self, json: Arc<str>) -> Result<(), ScanStopped> {
        let full = {
            let mut batch = self.batch.borrow_mut();
            batch.bytes += json.len();
            batch.events.push(json);
            batch.events.len() >= BATCH
                || batch.bytes >= BATCH_BYTES
                || batch.last.elapsed() >= BATCH_WAIT
        };
        if full { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), ScanStopped> {
        let events = {
            let mut batch = self.batch.borrow_mut();
            batch.bytes = 0;
            std::mem::take(&mut batch.events)
        };
        if events.is_empty() {
            return Ok(());
        }
        while self.waiting.load(Ordering::Relaxed) > MAX_WAITING_BYTES {
            self.wait()?;
        }
        self.waiting.fetch_add(size(&events), Ordering::Relaxed);
        let sent = self.send(ScanItem::Events(events));
        self.batch.borrow_mut().last = Instant::now();
        sent
    }

    /// Not a blocking send: the receiver may never read.
    fn send(&self, mut item: ScanItem) -> Result<(), ScanStopped> {
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
        if self.flush().is_ok() {
            // A receiver that is gone need not know.
            let _ = self.send(ScanItem::End { at, complete });
        }
    }

    /// Ends the scan with an error.
    pub fn fail(&self, error: StoreError) {
        // When even this does not fit, the receiver sees the channel close, which is a failure too.
        let _ = self.items.try_send(ScanItem::Failed(error));
    }

    /// Whether the scan should go on. To be asked for each row, also when rows do not match: most
    /// calls cost nothing.
    ///
    /// # Errors
    /// When the receiver is gone, or the scan takes too long; the receiver has been told.
    pub fn check(&self) -> Result<(), ScanStopped> {
        let checks = self.checks.get();
        self.checks.set(checks.wrapping_add(1));
        if !checks.is_multiple_of(CHECKS_PER_LOOK) {
            return Ok(());
        }
        if self.items.is_closed() {
            return Err(ScanStopped);
        }
        if !self.batch.borrow().events.is_empty()
            && self.batch.borrow().last.elapsed() >= BATCH_WAIT
        {
            self.flush()?;
        }
        if self.started.elapsed().saturating_sub(self.waited.get()) > LONGEST {
            self.fail(StoreError("the query took too long".to_owned()));
            return Err(ScanStopped);
        }
        Ok(())
    }

    /// Waits for its own client for a shorter time while others wait.
    pub fn yield_to(&mut self, others_wait: impl Fn() -> bool + Send + 'static) {
        self.others_wait = Some(Box::new(others_wait));
    }

    /// The scan begins now: it was waiting for a reader.
    pub fn begin(&mut self) {
        self.started = Instant::now();
        self.batch.get_mut().last = self.started;
    }

    fn wait(&self) -> Result<(), ScanStopped> {
        const NAP: Duration = Duration::from_millis(2);
        if self.items.is_closed() {
            return Err(ScanStopped);
        }
        let others_wait = self.others_wait.as_ref().is_some_and(|wait| wait());
        let patience = if others_wait { PATIENCE_BEFORE_OTHERS } else { PATIENCE };
        if self.waited.get() > patience {
            self.fail(StoreError("the query was given up: its results were not read".to_owned()));
            return Err(ScanStopped);
        }
        let since = Instant::now();
        thread::sleep(NAP);
        self.waited.set(self.waited.get() + since.elapsed());
        Ok(())
    }
}

fn size(events: &[Arc<str>]) -> usize {
    events.iter().map(|json| json.len()).sum()
}
