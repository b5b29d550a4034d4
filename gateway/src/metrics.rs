//! The gateway's figures, as Prometheus reads them. One registry, made in `app` and handed around.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Labels of [`Metrics::events`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    pub origin: &'static str,
    pub outcome: &'static str,
    /// The reason's prefix; empty unless refused.
    pub reason: &'static str,
}

/// Labels of figures that exist once per topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabels {
    pub topic: String,
}

/// Labels of [`Metrics::topic_state`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabels {
    pub topic: String,
    pub state: &'static str,
}

/// Labels of [`Metrics::discovery_steps`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    pub step: &'static str,
    /// `"ok"` or `"failed"`.
    pub result: &'static str,
}

/// Labels of figures that exist once per step of discovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OneStepLabels {
    pub step: &'static str,
}

/// Labels of [`Metrics::neighbors_found`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WayLabels {
    pub by: &'static str,
}

/// A cause, for things that are counted and dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CauseLabels {
    pub cause: &'static str,
}

/// Labels of figures of a stream, which are named in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabels {
    pub stream: String,
}

/// Labels of [`Metrics::upstream_received`] and [`Metrics::upstream_sent`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamOutcomeLabels {
    pub stream: String,
    /// `"new"`, `"taken"`, `"known"`, or why not.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::plugin_calls`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLabels {
    pub plugin: String,
    pub verdict: &'static str,
}

/// Labels of figures that exist once per plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginIdLabels {
    pub plugin: String,
}

/// Labels of [`Metrics::plugin_state`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginStateLabels {
    pub plugin: String,
    pub state: &'static str,
}

/// Labels of [`Metrics::plugin_swaps`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SwapLabels {
    pub plugin: String,
    /// `"taken"`, or `"refused"` when the earlier version goes on.
    pub result: &'static str,
}

/// The time of a call: finely where calls are to be, a few microseconds, and up to where limits end
/// them. A function, so that the family's type can be named.
fn call_times() -> Histogram {
    let micro = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e4, 5e4, 1e5, 1e6];
    Histogram::new(micro.into_iter().map(|bound| bound / 1e6))
}

/// Every figure of the gateway. Fields are public: the part that knows a number counts it.
pub struct Metrics {
    registry: Registry,
    pub events: Family<EventLabels, Counter>,
    pub store_failures: Counter,
    pub store_commits: Counter,
    pub events_held: Gauge,
    pub events_gone: Gauge,
    pub evicted: Family<CauseLabels, Counter>,
    pub database_bytes: Gauge,
    pub database_free_bytes: Gauge,
    pub wal_bytes: Gauge,
    pub search_bytes: Gauge,
    pub search_indexed: Counter,
    pub search_lag_entries: Gauge,
    pub search_lag_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub connections: Gauge,
    pub subscriptions: Gauge,
    pub client_messages_malformed: Family<CauseLabels, Counter>,
    pub clients_limited: Family<CauseLabels, Counter>,
    pub neighbors: Family<TopicLabels, Gauge>,
    pub topic_state: Family<PhaseLabels, Gauge>,
    pub frames_sent: Family<TopicLabels, Counter>,
    pub frames_received: Family<TopicLabels, Counter>,
    pub frames_dropped: Family<CauseLabels, Counter>,
    pub rebuilds: Family<CauseLabels, Counter>,
    pub records_published: Counter,
    pub records_dropped: Family<CauseLabels, Counter>,
    pub lookups: Counter,
    pub discovery_steps: Family<StepLabels, Counter>,
    pub discovery_step_seconds: Family<OneStepLabels, Counter<f64, std::sync::atomic::AtomicU64>>,
    pub discovery_step_last: Family<OneStepLabels, Gauge>,
    pub neighbors_found: Family<WayLabels, Counter>,
    pub fetches: Family<CauseLabels, Counter>,
    pub syncs: Family<CauseLabels, Counter>,
    pub sync_rounds: Counter,
    pub sync_bytes: Family<CauseLabels, Counter>,
    pub sync_events: Family<CauseLabels, Counter>,
    pub lies: Family<CauseLabels, Counter>,
    pub upstream_events: Counter,
    pub upstream_connects: Counter,
    pub upstream_received: Family<StreamOutcomeLabels, Counter>,
    pub upstream_sent: Family<StreamOutcomeLabels, Counter>,
    pub upstream_waiting: Family<StreamLabels, Gauge>,
    pub upstream_lag_seconds: Family<StreamLabels, Gauge>,
    pub upstream_connected: Family<StreamLabels, Gauge>,
    pub plugin_calls: Family<PluginLabels, Counter>,
    pub plugin_traps: Family<PluginIdLabels, Counter>,
    pub plugin_seconds: Family<PluginIdLabels, Histogram, fn() -> Histogram>,
    pub plugin_memory: Family<PluginIdLabels, Gauge>,
    pub plugin_state: Family<PluginStateLabels, Gauge>,
    pub plugin_swaps: Family<SwapLabels, Counter>,
    pub plugin_kv_bytes: Family<PluginIdLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nostr_gateway");
        let started = Gauge::<i64>::default();
        started.set(i64::try_from(crate::clock::unix_now()).unwrap_or(0));
        registry.register_with_unit(
            "started",
            "When this process started, since the Unix epoch",
            Unit::Seconds,
            started,
        );
        let plugin_seconds: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(call_times);
        registry.register_with_unit(
            "plugin_call",
            "How long calls of plugins took",
            Unit::Seconds,
            plugin_seconds.clone(),
        );
        Self {
            events: register(
                &mut registry,
                "events",
                "Events that ended their way through the pipeline",
            ),
            store_failures: register(
                &mut registry,
                "store_failures",
                "Writes that the store failed",
            ),
            store_commits: register(&mut registry, "store_commits", "Group commits"),
            events_held: register(&mut registry, "events_held", "Stored events, once a minute"),
            events_gone: register(
                &mut registry,
                "events_gone",
                "Ids remembered of events that are not held, once a minute",
            ),
            evicted: register(
                &mut registry,
                "evicted",
                "Events removed because they expired or by retention",
            ),
            database_bytes: register(&mut registry, "database_bytes", "The database file"),
            database_free_bytes: register(
                &mut registry,
                "database_free_bytes",
                "The part of the database file that holds nothing",
            ),
            wal_bytes: register(&mut registry, "wal_bytes", "The write-ahead log"),
            search_bytes: register(&mut registry, "search_bytes", "The file of the search index"),
            search_indexed: register(
                &mut registry,
                "search_indexed",
                "Log entries that the search index has seen",
            ),
            search_lag_entries: register(
                &mut registry,
                "search_lag_entries",
                "Log entries that the search index has not seen yet",
            ),
            search_lag_seconds: register(
                &mut registry,
                "search_lag_seconds",
                "How long the search index has been behind",
            ),
            connections: register(&mut registry, "connections", "Open client connections"),
            subscriptions: register(&mut registry, "subscriptions", "Open subscriptions"),
            client_messages_malformed: register(
                &mut registry,
                "client_messages_malformed",
                "Messages of clients that were not understood",
            ),
            clients_limited: register(
                &mut registry,
                "clients_limited",
                "Connections, requests and messages of clients that were one too many or blocked",
            ),
            neighbors: register(&mut registry, "neighbors", "Gossip neighbors by topic"),
            topic_state: register(
                &mut registry,
                "topic_state",
                "1 for the state that a topic is in, 0 for the others",
            ),
            frames_sent: register(&mut registry, "frames_sent", "Gossip frames broadcast by topic"),
            frames_received: register(
                &mut registry,
                "frames_received",
                "Gossip frames received by topic",
            ),
            frames_dropped: register(
                &mut registry,
                "frames_dropped",
                "Gossip frames that were malformed or not wanted",
            ),
            rebuilds: register(
                &mut registry,
                "gossip_rebuilds",
                "Endpoints that were opened anew because gossip or the old one did not work",
            ),
            records_published: register(
                &mut registry,
                "dht_records_published",
                "Discovery records put into the DHT",
            ),
            records_dropped: register(
                &mut registry,
                "dht_records_dropped",
                "Discovery records that were malformed or forged",
            ),
            lookups: register(&mut registry, "dht_lookups", "Discovery lookups in the DHT"),
            discovery_steps: register(
                &mut registry,
                "discovery_steps",
                "Attempts of each step of discovery, over all topics, by result",
            ),
            discovery_step_seconds: register(
                &mut registry,
                "discovery_step_seconds",
                "Time that the attempts of each step of discovery took",
            ),
            discovery_step_last: register(
                &mut registry,
                "discovery_step_last_timestamp_seconds",
                "When each step of discovery last ended, since the Unix epoch",
            ),
            neighbors_found: register(
                &mut registry,
                "neighbors_found",
                "Neighbors that came, by how they were found",
            ),
            fetches: register(&mut registry, "fetches", "Fetches of announced events from peers"),
            syncs: register(&mut registry, "syncs", "Comparisons with other gateways by result"),
            sync_rounds: register(
                &mut registry,
                "sync_rounds",
                "Messages in which ids were compared with other gateways",
            ),
            sync_bytes: register(
                &mut registry,
                "sync_bytes",
                "Bytes sent and received while comparing, and events fetched and served",
            ),
            sync_events: register(
                &mut registry,
                "sync_events",
                "Events fetched after comparing, offered to the other side, and gone there",
            ),
            lies: register(
                &mut registry,
                "lies",
                "What peers sent on direct streams that no honest gateway sends",
            ),
            upstream_events: register(
                &mut registry,
                "upstream_events",
                "Events received from upstream relays",
            ),
            upstream_connects: register(
                &mut registry,
                "upstream_connects",
                "Connections made to upstream relays",
            ),
            upstream_received: register(
                &mut registry,
                "upstream_received",
                "Events that the relays of a stream sent, by outcome",
            ),
            upstream_sent: register(
                &mut registry,
                "upstream_sent",
                "Events that were to go to the relays of a stream, by outcome",
            ),
            upstream_waiting: register(
                &mut registry,
                "upstream_waiting",
                "Steps of the log that are still to be done for the relays of a stream",
            ),
            upstream_lag_seconds: register(
                &mut registry,
                "upstream_lag_seconds",
                "How long the oldest event that is to go to a relay of a stream has waited",
            ),
            upstream_connected: register(
                &mut registry,
                "upstream_connected",
                "How many relays of a stream are connected",
            ),
            plugin_calls: register(&mut registry, "plugin_calls", "Calls of plugins by verdict"),
            plugin_traps: register(
                &mut registry,
                "plugin_traps",
                "Calls of plugins that trapped or broke a limit",
            ),
            plugin_seconds,
            plugin_memory: register(
                &mut registry,
                "plugin_memory_bytes",
                "Memory that all instances of a plugin hold",
            ),
            plugin_state: register(
                &mut registry,
                "plugin_state",
                "1 for the state that a plugin is in, 0 for the others",
            ),
            plugin_swaps: register(
                &mut registry,
                "plugin_swaps",
                "Changes in a plugin's folder that were taken or refused",
            ),
            plugin_kv_bytes: register(
                &mut registry,
                "plugin_kv_bytes",
                "What plugins remember, as their quota counts",
            ),
            registry,
        }
    }
}

fn register<M>(registry: &mut Registry, name: &'static str, help: &'static str) -> M
where
    M: prometheus_client::registry::Metric + Default + Clone,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// Takes a topic that was left out of all figures that exist once per topic.
    pub fn forget_topic(&self, topic: &str, states: &[&'static str]) {
        let labels = TopicLabels { topic: topic.to_owned() };
        self.neighbors.remove(&labels);
        self.frames_sent.remove(&labels);
        self.frames_received.remove(&labels);
        for state in states {
            self.topic_state.remove(&PhaseLabels { topic: topic.to_owned(), state });
        }
    }

    /// Takes a plugin that is gone out of the figures that tell how one is doing.
    pub fn forget_plugin(&self, plugin: &str, states: &[&'static str]) {
        self.plugin_memory.remove(&PluginIdLabels { plugin: plugin.to_owned() });
        for state in states {
            self.plugin_state.remove(&PluginStateLabels { plugin: plugin.to_owned(), state });
        }
    }

    /// Takes a stream that is gone out of the figures that tell how one is doing.
    pub fn forget_stream(&self, stream: &str, outcomes: &[&'static str]) {
        let labels = StreamLabels { stream: stream.to_owned() };
        self.upstream_waiting.remove(&labels);
        self.upstream_lag_seconds.remove(&labels);
        self.upstream_connected.remove(&labels);
        for outcome in outcomes {
            let labels = StreamOutcomeLabels { stream: stream.to_owned(), outcome };
            self.upstream_received.remove(&labels);
            self.upstream_sent.remove(&labels);
        }
    }

    /// Notes an attempt of a step of discovery that ended `at`, in Unix seconds.
    pub fn discovery_step(&self, step: &'static str, ok: bool, took: Duration, at: u64) {
        let result = if ok { "ok" } else { "failed" };
        self.discovery_steps.get_or_create(&StepLabels { step, result }).inc();
        let labels = OneStepLabels { step };
        self.discovery_step_seconds.get_or_create(&labels).inc_by(took.as_secs_f64());
        self.discovery_step_last.get_or_create(&labels).set(i64::try_from(at).unwrap_or(i64::MAX));
    }

    /// The text that Prometheus scrapes (OpenMetrics).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
