//! The only place that spawns. A task belongs to the [`Tasks`] that started it, has a name, hears of
//! the shutdown through a token, and is waited for. An [`Aside`] belongs to whoever holds it, and ends
//! with it.

use std::{
    future::Future,
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{self, Poll},
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// A group of tasks that end together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), token: CancellationToken::new() }
    }

    /// A group of its own whose token is cancelled together with this one's, or alone.
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), token: self.token.child_token() }
    }

    /// Cancelled when the group is to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a future to its end on the runtime. It must watch [`Self::token`] itself. A panic is
    /// logged and ends this task alone.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Not an async block, which would hold the future twice: thousands of tasks are sessions.
        let watched = AssertUnwindSafe(future).catch_unwind().map(move |ended| {
            if ended.is_err() {
                tracing::error!(task = name, "a task panicked; this is a defect, please report it");
            }
        });
        let tracked = self.tracker.track_future(watched.instrument(tracing::Span::current()));
        #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
        tokio::spawn(tracked);
    }

    /// Cancels the token and waits for every task, at most `deadline`. Returns whether all ended.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}

/// What goes on whether or not anybody polls for its end: whoever waits for something that others
/// wait for too must not sit on it while it is busy elsewhere. Given up when dropped.
#[derive(Debug)]
pub struct Aside<T>(JoinHandle<Option<T>>);

/// Runs a future beside the one that holds the handle. A panic is logged, and ends it without a result.
pub fn aside<T: Send + 'static>(
    name: &'static str,
    future: impl Future<Output = T> + Send + 'static,
) -> Aside<T> {
    let watched = AssertUnwindSafe(future).catch_unwind().map(move |ended| {
        if ended.is_err() {
            tracing::error!(task = name, "a task panicked; this is a defect, please report it");
        }
        ended.ok()
    });
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    Aside(tokio::spawn(watched.instrument(tracing::Span::current())))
}

impl<T> Future for Aside<T> {
    /// `None` when it panicked, or the runtime is shutting down.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.0).poll(context).map(|ended| ended.ok().flatten())
    }
}

impl<T> Drop for Aside<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a blocking call off the async workers.
///
/// # Errors
/// When the call panicked or the runtime is shutting down.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)
}

/// Starts a named thread for work that never awaits: verification, SQLite, the epoch ticker.
///
/// # Errors
/// When the operating system has no thread left.
pub fn thread(
    name: impl Into<String>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    thread::Builder::new().name(name.into()).spawn(body)
}
