//! Takes changes of the configuration while the gateway runs: streams count at once, everything else
//! after a restart. What is wrong changes nothing.
//!
//! The file is read twice a second. The system's notifications would not come from network mounts, nor
//! through the links with which configurations are mounted and swapped.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::unix_now,
    config::{self, Config, Sources, needing_restart},
    tasks,
    upstream::{Applied, Streams},
};

/// How often the file is looked at. It must be the same twice before it is taken.
const PERIOD: Duration = Duration::from_millis(500);
/// A longer file is no configuration, and not read.
const MAX_BYTES: u64 = 4 << 20;

/// Reads the configuration again.
pub(super) struct Reload {
    /// As the gateway was started with: flags and variables count as they did then.
    sources: Sources,
    /// What everything but the streams goes by.
    running: Config,
    streams: Arc<Streams>,
    state: Mutex<ReloadState>,
    /// One reading at a time.
    reading: tokio::sync::Mutex<()>,
}

/// What came of the configuration, for `status`.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct ReloadState {
    /// The file that is looked at.
    file: Option<PathBuf>,
    /// When what counts now was read; Unix seconds.
    read_at: u64,
    /// What is wrong with the file as it is now, one line each. What was read before counts.
    errors: Vec<String>,
    /// Settings that were changed and count after a restart.
    needs_restart: Vec<String>,
}

/// What a reading did.
#[derive(Debug, Serialize)]
pub(super) struct Reloaded {
    file: Option<PathBuf>,
    #[serde(flatten)]
    applied: Applied,
    needs_restart: Vec<String>,
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Text(Vec<u8>),
    /// It is not there, or cannot be read.
    Nothing,
}

impl Reload {
    pub fn new(sources: Sources, running: Config, streams: Arc<Streams>) -> Arc<Self> {
        let file = sources.path();
        let state = ReloadState { file, read_at: unix_now(), ..ReloadState::default() };
        let (state, reading) = (Mutex::new(state), tokio::sync::Mutex::default());
        Arc::new(Self { sources, running, streams, state, reading })
    }

    pub fn state(&self) -> ReloadState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the configuration and lets the streams be those of it.
    ///
    /// # Errors
    /// With one line for everything that is wrong; nothing was changed then.
    pub async fn reload(&self) -> Result<Reloaded, Vec<String>> {
        let _one = self.reading.lock().await;
        let sources = self.sources.clone();
        let loaded = match tasks::blocking(move || config::load(&sources)).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(errors)) => {
                return Err(self.wrong(errors.iter().map(ToString::to_string).collect()));
            }
            Err(error) => return Err(self.wrong(vec![error.to_string()])),
        };
        let applied = match self.streams.apply(&loaded.config.upstream).await {
            Ok(applied) => applied,
            Err(error) => return Err(self.wrong(vec![error.to_string()])),
        };
        let needs_restart = needing_restart(&self.running, &loaded.config);
        self.took(&applied, &needs_restart);
        Ok(Reloaded { file: loaded.file, applied, needs_restart })
    }

    /// Watches the file until the token is cancelled.
    pub async fn watch(self: Arc<Self>, token: CancellationToken) {
        let Some(path) = self.sources.path() else { return };
        let mut taken = self.content(&path).await;
        let mut before = taken.clone();
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = self.content(&path).await;
            let is_settled = now == before;
            before = now;
            if !is_settled || before == taken {
                continue;
            }
            taken = before.clone();
            // What is wrong is in the log and in the status.
            let _ = self.reload().await;
        }
    }

    async fn content(&self, path: &std::path::Path) -> Content {
        let path = path.to_owned();
        let read = move || {
            let metadata = std::fs::metadata(&path).ok()?;
            // A pipe would be read to its end, and empty from then on.
            let is_readable = metadata.is_file() && metadata.len() <= MAX_BYTES;
            is_readable.then(|| std::fs::read(&path).ok()).flatten()
        };
        let read = tasks::blocking(read).await.ok().flatten();
        read.map_or(Content::Nothing, Content::Text)
    }

    fn wrong(&self, errors: Vec<String>) -> Vec<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks for it again hears it, and the log has it already.
        if state.errors != errors {
            for error in &errors {
                tracing::error!("{error}");
            }
            tracing::error!("the configuration was not taken; what was read before counts");
            state.errors.clone_from(&errors);
        }
        errors
    }

    fn took(&self, applied: &Applied, needs_restart: &[String]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (what, names) in
            [("new", &applied.added), ("changed", &applied.changed), ("gone", &applied.removed)]
        {
            if !names.is_empty() {
                tracing::info!(
                    "streams that are {what} in the configuration: {}",
                    names.join(", ")
                );
            }
        }
        if state.needs_restart != needs_restart && !needs_restart.is_empty() {
            let names = needs_restart.join(", ");
            tracing::warn!("changed in the configuration, and counting after a restart: {names}");
        }
        if !state.errors.is_empty() {
            tracing::info!("the configuration is in order again");
        }
        state.errors.clear();
        state.needs_restart = needs_restart.to_vec();
        state.read_at = unix_now();
    }
}
