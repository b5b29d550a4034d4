//! The streams of a running gateway: which there are, which of them run, and changing that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    config::UpstreamConfig,
    gate::Gate,
    stream::{Stream, StreamSetup, StreamStatus},
    up,
};
use crate::{
    clock::unix_now,
    metrics::{Metrics, StreamLabels},
    pipeline::{
        DroppedEvent, JoinedTopics, PrivateTopics, StoreError, StreamScopes, UpstreamStore,
    },
    protocol::TopicName,
    tasks::Tasks,
};

/// How often it is looked whether what keeps a stream from running is still so.
const REVIEW: Duration = Duration::from_millis(500);
/// How long a stream may take to end.
const END: Duration = Duration::from_secs(5);

/// What all streams work with.
pub struct StartStreams {
    pub setup: Arc<StreamSetup>,
    pub store: Arc<dyn UpstreamStore>,
    pub gate: Arc<Gate>,
    pub scopes: StreamScopes,
    pub joined: JoinedTopics,
    pub private: PrivateTopics,
    pub metrics: Arc<Metrics>,
    /// The streams end with it.
    pub tasks: Tasks,
}

/// The set of streams. Its order of the configuration is kept for whoever looks.
pub struct Streams {
    start: StartStreams,
    entries: Mutex<Vec<Entry>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

/// A stream of the configuration.
struct Entry {
    config: Arc<UpstreamConfig>,
    /// By the operator, since when in Unix seconds.
    paused: Option<u64>,
    /// Why it does not run although nobody paused it.
    obstacle: Option<String>,
    /// Since when it is as it is.
    since: u64,
    running: Option<Running>,
}

#[derive(Clone)]
struct Running {
    stream: Arc<Stream>,
    tasks: Tasks,
}

/// A stream as others see it.
#[derive(Debug, Serialize)]
pub struct StreamReport {
    pub name: String,
    /// `running`, `paused` or `waiting`.
    pub state: &'static str,
    /// What it waits for.
    pub reason: Option<String>,
    /// Since when it is in this state; Unix seconds.
    pub since: u64,
    #[serde(flatten)]
    pub status: StreamStatus,
}

/// What [`Streams::apply`] did, by the names of the streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Applied {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Why a stream was not paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("there is no stream {0:?}; `nostr-gateway upstream list` has them")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Streams {
    /// With no stream yet.
    pub fn new(start: StartStreams) -> Arc<Self> {
        let (entries, changing) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Self { start, entries, changing })
    }

    /// Lets the streams be those of the configuration: ends those that are no longer there, begins those
    /// that are new, and begins those anew that changed. The others notice nothing.
    ///
    /// # Errors
    /// When the store does not say which ones the operator paused; nothing was changed then.
    pub async fn apply(&self, configs: &[UpstreamConfig]) -> Result<Applied, StoreError> {
        let _one = self.changing.lock().await;
        let paused: BTreeMap<String, u64> = self.start.store.paused().await?.into_iter().collect();
        let (next, former, applied) = {
            let mut entries = self.entries();
            let mut former = std::mem::take(&mut *entries);
            let applied = compare(former.iter().map(|entry| &*entry.config), configs);
            let mut next = Vec::with_capacity(configs.len());
            for config in configs {
                let same = former.iter().position(|entry| *entry.config == *config);
                next.push(match same {
                    Some(at) => former.swap_remove(at),
                    None => Entry {
                        config: Arc::new(config.clone()),
                        paused: paused.get(&config.name).copied(),
                        obstacle: None,
                        since: unix_now(),
                        running: None,
                    },
                });
            }
            (next, former, applied)
        };
        // Those that stay are there again at once; what changed comes back when its former self has ended.
        let names: Vec<String> = former.iter().map(|entry| entry.config.name.clone()).collect();
        *self.entries() = next;
        let ends =
            former.into_iter().filter_map(|entry| entry.running).map(|running| running.end());
        join_all(ends).await;
        for name in names.iter().filter(|name| applied.removed.contains(name)) {
            self.start.scopes.set(&name.as_str().into(), None);
            self.forget(name);
        }
        self.review();
        Ok(applied)
    }

    /// Ends the stream until it is resumed, also over restarts. Returns whether it was paused before.
    ///
    /// # Errors
    /// When there is no such stream, or the pause cannot be kept.
    pub async fn pause(&self, name: &str) -> Result<bool, StreamError> {
        let _one = self.changing.lock().await;
        let was = self.paused(name)?;
        if was {
            return Ok(true);
        }
        let now = unix_now();
        self.start.store.pause(name.into(), Some(now)).await?;
        let running = self.with(name, |entry| {
            (entry.paused, entry.obstacle, entry.since) = (Some(now), None, now);
            entry.running.take()
        });
        if let Some(running) = running.flatten() {
            running.end().await;
        }
        tracing::info!(stream = name, "the operator paused the stream");
        Ok(false)
    }

    /// Lets a paused stream go on. Returns whether it was paused.
    ///
    /// # Errors
    /// When there is no such stream, or it cannot be kept that it goes on.
    pub async fn resume(&self, name: &str) -> Result<bool, StreamError> {
        let _one = self.changing.lock().await;
        if !self.paused(name)? {
            return Ok(false);
        }
        self.start.store.pause(name.into(), None).await?;
        self.with(name, |entry| (entry.paused, entry.since) = (None, unix_now()));
        tracing::info!(stream = name, "the operator resumed the stream");
        self.review();
        Ok(true)
    }

    /// All streams, in the order of the configuration.
    pub fn status(&self) -> Vec<StreamReport> {
        self.entries().iter().map(Entry::report).collect()
    }

    /// One stream with its configuration; nothing when there is none of this name.
    pub fn show(&self, name: &str) -> Option<(Arc<UpstreamConfig>, StreamReport)> {
        self.with(name, |entry| (entry.config.clone(), entry.report()))
    }

    /// The last events of a stream that its relays did not take, newest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn dropped(&self, name: &str) -> Result<Vec<DroppedEvent>, StoreError> {
        self.start.store.dropped(name.into()).await
    }

    /// Starts streams when what they need has come, and ends them when it has gone, until the token is
    /// cancelled.
    pub async fn tend(self: Arc<Self>, token: CancellationToken) {
        let mut ticks = interval(REVIEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(ticks.tick()).await.is_some() {
            // Whoever changes the streams looks at the end.
            let Ok(_one) = self.changing.try_lock() else { continue };
            self.review();
        }
    }

    /// Ends all streams. Returns whether they did so in time.
    pub async fn stop(&self) -> bool {
        let _one = self.changing.lock().await;
        let entries = std::mem::take(&mut *self.entries());
        let running: Vec<Running> = entries.into_iter().filter_map(|e| e.running).collect();
        let ends = running.iter().map(|running| running.tasks.stop(END));
        join_all(ends).await.into_iter().all(|in_time| in_time)
    }

    /// Brings the figures up to date that nobody counts as they change.
    pub fn measure(&self) {
        let running: Vec<Arc<Stream>> = {
            let entries = self.entries();
            entries
                .iter()
                .filter_map(|entry| Some(entry.running.as_ref()?.stream.clone()))
                .collect()
        };
        running.iter().for_each(|stream| stream.measure());
        for report in self.status() {
            let labels = StreamLabels { stream: report.name };
            let metrics = &self.start.metrics;
            let figure = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            metrics.upstream_waiting.get_or_create(&labels).set(figure(report.status.waiting));
            metrics.upstream_lag_seconds.get_or_create(&labels).set(figure(report.status.lag_s));
            let connected = figure(report.status.connected());
            metrics.upstream_connected.get_or_create(&labels).set(connected);
        }
    }

    /// Starts what may run and does not, and ends what may not and does. Whoever calls it holds the right
    /// to change.
    fn review(&self) {
        for entry in &mut *self.entries() {
            if entry.paused.is_some() {
                continue;
            }
            let obstacle = self.obstacle(&entry.config);
            if obstacle.is_none() && entry.running.is_none() {
                self.begin(entry);
                continue;
            }
            if obstacle == entry.obstacle {
                continue;
            }
            let stream = &entry.config.name;
            if let Some(obstacle) = &obstacle {
                tracing::error!(
                    stream,
                    "{obstacle}; the stream brings and sends nothing until then"
                );
                if let Some(running) = entry.running.take() {
                    // It ends on its own; what it has under way is refused, for the same reason.
                    running.tasks.token().cancel();
                }
            }
            (entry.obstacle, entry.since) = (obstacle, unix_now());
        }
    }

    /// What keeps a stream from running.
    fn obstacle(&self, config: &UpstreamConfig) -> Option<String> {
        let is_here = |topic: &&TopicName| {
            self.start.joined.contains(topic.as_str()) || self.start.private.contains(topic)
        };
        if let Some(plugins) = &config.plugins
            && let Some(missing) = self.start.gate.lacks(plugins)
        {
            return Some(format!(
                "the plugin {missing:?}, which is to judge it, is not there or switched off"
            ));
        }
        let topic = config.topics.iter().find(|topic| !is_here(topic))?;
        Some(format!("the topic {:?} is not joined", topic.as_str()))
    }

    fn begin(&self, entry: &mut Entry) {
        let config = &entry.config;
        let tasks = self.start.tasks.child();
        // Before its first event.
        self.start.scopes.set(&config.name.as_str().into(), config.plugins.as_deref());
        let stream = Stream::new(config.clone(), &self.start.setup);
        tasks.spawn("upstream", stream.clone().run(tasks.clone()));
        (entry.obstacle, entry.since) = (None, unix_now());
        entry.running = Some(Running { stream, tasks });
    }

    fn paused(&self, name: &str) -> Result<bool, StreamError> {
        let paused = self.with(name, |entry| entry.paused.is_some());
        paused.ok_or_else(|| StreamError::Unknown(name.to_owned()))
    }

    fn with<T>(&self, name: &str, look: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.entries().iter_mut().find(|entry| entry.config.name == name).map(look)
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, name: &str) {
        let mut outcomes = up::outcomes();
        outcomes.extend(["new", "refused"]);
        self.start.metrics.forget_stream(name, &outcomes);
    }
}

impl Running {
    async fn end(self) {
        if !self.tasks.stop(END).await {
            tracing::warn!(stream = self.stream.name(), "the stream did not end in time");
        }
    }
}

impl Entry {
    fn report(&self) -> StreamReport {
        let (state, reason) = match (&self.paused, &self.obstacle) {
            (Some(_), _) => ("paused", Some("by `upstream pause`".to_owned())),
            (None, Some(obstacle)) => ("waiting", Some(obstacle.clone())),
            (None, None) => ("running", None),
        };
        let status = match &self.running {
            Some(running) => running.stream.status(),
            None => StreamStatus::idle(&self.config),
        };
        let since = self.paused.unwrap_or(self.since);
        StreamReport { name: self.config.name.clone(), state, reason, since, status }
    }
}

/// Which streams are new, changed or gone.
fn compare<'a>(
    former: impl Iterator<Item = &'a UpstreamConfig>,
    next: &[UpstreamConfig],
) -> Applied {
    let former: BTreeMap<&str, &UpstreamConfig> =
        former.map(|config| (config.name.as_str(), config)).collect();
    let mut applied = Applied::default();
    for config in next {
        match former.get(config.name.as_str()) {
            None => applied.added.push(config.name.clone()),
            Some(before) if *before != config => applied.changed.push(config.name.clone()),
            Some(_) => {}
        }
    }
    let is_gone = |name: &&str| !next.iter().any(|config| config.name == **name);
    applied.removed = former.into_keys().filter(is_gone).map(str::to_owned).collect();
    applied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_touched() {
        let stream = |name: &str, url: &str| -> UpstreamConfig {
            serde_json::from_value(serde_json::json!({ "name": name, "urls": [url] })).unwrap()
        };
        let former = [stream("a", "wss://a"), stream("b", "wss://b"), stream("c", "wss://c")];
        let next = [stream("d", "wss://d"), stream("c", "wss://c"), stream("b", "wss://x")];
        let applied = compare(former.iter(), &next);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let expected =
            Applied { added: names(&["d"]), changed: names(&["b"]), removed: names(&["a"]) };
        assert_eq!(applied, expected);
        assert!(compare(next.iter(), &next).is_empty());
    }
}
