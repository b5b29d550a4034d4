//! One stream: its relays, each with a connection that brings events, takes them, or both.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nostr_sdk::{Keys, ToBech32};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::sleep};

use super::{
    config::{Direction, UpstreamConfig},
    demand::{Demand, Wanted},
    flow::Intake,
    follow::{AddressRules, Follow, FollowStatus, StartFollow, Trust},
    gate::Gate,
    key,
    link::LinkOptions,
    relay::{Relay, RelayStatus, StartRelay},
    up::{Choice, SharedUpStatus, StartUp, UpStatus},
};
use crate::{
    clock::unix_now,
    metrics::{Metrics, StreamOutcomeLabels},
    pipeline::{
        EventReader, FollowStore, Ingest, PrivateTopics, SecretError, SecretStore, Seq,
        UpstreamStore, streams::Part,
    },
    protocol::{Filter, OwnUrls, normal_url},
    tasks::Tasks,
};

/// How often secrets that do not answer are asked again.
const AGAIN: Duration = Duration::from_secs(30);

/// What every stream works with.
pub struct StreamSetup {
    pub ingest: Ingest,
    pub intake: Intake,
    pub options: LinkOptions,
    pub reader: Arc<dyn EventReader>,
    pub store: Arc<dyn UpstreamStore>,
    pub follows: Arc<dyn FollowStore>,
    pub own_urls: OwnUrls,
    pub gate: Arc<Gate>,
    pub secrets: Arc<dyn SecretStore>,
    pub private: PrivateTopics,
    pub metrics: Arc<Metrics>,
}

/// A stream that runs. Shared between its tasks and whoever asks for its state.
pub struct Stream {
    config: Arc<UpstreamConfig>,
    setup: Arc<StreamSetup>,
    /// The head of the log, and Unix seconds, when it began.
    began: (Seq, u64),
    /// Of a stream that follows public keys: who chooses its relays.
    follow: Option<Arc<Follow>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    relays: Vec<OneRelay>,
    trouble: Option<String>,
    /// The public key with which the gateway authenticates, as npub.
    key: Option<String>,
    /// What of the figures is in the metrics already.
    told: BTreeMap<&'static str, u64>,
}

/// A relay that the configuration names.
struct OneRelay {
    relay: Arc<Relay>,
    /// Kept so that the relay knows that the demand is still somebody's.
    _demand: watch::Sender<Demand>,
    up: Option<SharedUpStatus>,
}

/// How a stream is doing.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    pub direction: Direction,
    /// What keeps the stream from working as a whole.
    pub trouble: Option<String>,
    /// The key with which it authenticates to relays, as npub.
    pub key: Option<String>,
    /// Events that came, over all relays, and what became of them.
    pub received: u64,
    pub new: u64,
    pub known: u64,
    pub refused: BTreeMap<String, u64>,
    /// Events that relays took; steps of the log that are not done, of the relay that is furthest behind; and
    /// for how long, in seconds.
    pub sent: u64,
    pub waiting: u64,
    pub lag_s: u64,
    pub relays: Vec<OneStatus>,
    /// Nothing for a stream whose relays are configured.
    pub follow: Option<FollowStatus>,
}

/// How one relay of a stream is doing.
#[derive(Debug, Clone, Serialize)]
pub struct OneStatus {
    #[serde(flatten)]
    pub down: RelayStatus,
    /// Nothing for a stream that only brings events.
    pub up: Option<UpStatus>,
}

impl StreamStatus {
    /// Of a stream that does not run.
    pub fn idle(config: &UpstreamConfig) -> Self {
        Self::of(config, &State::default(), None)
    }

    /// How many relays are connected.
    pub fn connected(&self) -> u64 {
        self.relays.iter().filter(|relay| relay.down.connected_since.is_some()).count() as u64
    }

    fn of(config: &UpstreamConfig, state: &State, follow: Option<&Follow>) -> Self {
        let mut relays: Vec<OneStatus> = state.relays.iter().map(OneRelay::status).collect();
        let (chosen, past) = follow.map(Follow::relays).unwrap_or_default();
        relays.extend(chosen.iter().map(|relay| OneStatus { down: relay.status(), up: None }));
        let sum = |figure: fn(&RelayStatus) -> u64| -> u64 {
            relays.iter().map(|relay| figure(&relay.down)).sum()
        };
        let most = |figure: fn(&UpStatus) -> u64| {
            relays.iter().filter_map(|relay| relay.up.as_ref()).map(figure).max().unwrap_or(0)
        };
        let mut refused = past.refused;
        for (reason, times) in relays.iter().flat_map(|relay| &relay.down.refused) {
            *refused.entry((*reason).to_owned()).or_default() += times;
        }
        Self {
            direction: config.direction,
            trouble: state.trouble.clone(),
            key: state.key.clone(),
            received: past.received + sum(|relay| relay.received),
            new: past.new + sum(|relay| relay.new),
            known: past.known + sum(|relay| relay.known),
            refused,
            sent: relays.iter().filter_map(|relay| relay.up.as_ref()).map(|up| up.sent).sum(),
            waiting: most(|up| up.waiting),
            lag_s: most(|up| up.lag_s),
            relays,
            follow: follow.map(Follow::status),
        }
    }
}

impl Stream {
    pub fn new(config: Arc<UpstreamConfig>, setup: &Arc<StreamSetup>) -> Arc<Self> {
        let follow = (!config.follow.is_empty()).then(Follow::new);
        let began = (*setup.reader.head().borrow(), unix_now());
        Arc::new(Self { config, setup: setup.clone(), began, follow, state: Mutex::default() })
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    pub fn status(&self) -> StreamStatus {
        StreamStatus::of(&self.config, &self.state(), self.follow.as_deref())
    }

    /// Adds what is new in the figures to the metrics.
    pub fn measure(&self) {
        let status = self.status();
        let refused = status.refused.values().sum();
        let mut state = self.state();
        for (outcome, now) in [("new", status.new), ("known", status.known), ("refused", refused)] {
            let before = state.told.insert(outcome, now).unwrap_or_default();
            let labels = StreamOutcomeLabels { stream: self.config.name.clone(), outcome };
            let received = self.setup.metrics.upstream_received.get_or_create(&labels);
            received.inc_by(now.saturating_sub(before));
        }
    }

    /// Starts what belongs to the stream as tasks of this group, whose end is the stream's.
    pub async fn run(self: Arc<Self>, tasks: Tasks) {
        // Its own copy: whether it authenticates is its own.
        let mut options = self.setup.options.clone();
        if self.config.auth {
            let key = tasks.token().run_until_cancelled(self.key()).await;
            let Some(key) = key else { return };
            self.state().key = key.public_key().to_bech32().ok();
            options.auth = Some(key);
        }
        if let Some(follow) = &self.follow {
            let keys = self.config.follow.len();
            tracing::info!(stream = self.config.name, keys, "the stream begins to follow");
            let following =
                follow.clone().run(self.follows(options, &tasks), tasks.token().clone());
            tasks.spawn("upstream follow", following);
            return;
        }
        let relays: Vec<OneRelay> =
            self.config.urls.iter().filter_map(|url| self.start(url, &options, &tasks)).collect();
        tracing::info!(stream = self.config.name, relays = relays.len(), "the stream begins");
        self.state().relays = relays;
    }

    /// The key to authenticate with; waits until there is one.
    async fn key(&self) -> Arc<Keys> {
        loop {
            match key::load_or_create(&*self.setup.secrets).await {
                Ok(key) => {
                    self.state().trouble = None;
                    return key;
                }
                Err(SecretError(error)) => {
                    let trouble = format!("no key to authenticate with (auth): {error}");
                    tracing::error!(stream = self.config.name, "{trouble}");
                    self.state().trouble = Some(trouble);
                }
            }
            sleep(AGAIN).await;
        }
    }

    fn follows(&self, options: LinkOptions, tasks: &Tasks) -> StartFollow {
        let Self { config, setup, .. } = self;
        let rules = AddressRules {
            private: config.allow_private_relays,
            hidden: config.allow_onion_relays,
            own: setup.own_urls.clone(),
        };
        let open = {
            let (config, setup, tasks) = (config.clone(), setup.clone(), tasks.clone());
            move |url: &Arc<str>, demand, trust| {
                let mut options = options.clone();
                options.only_global = trust == Trust::Stranger;
                relay(&config, &setup, url.clone(), demand, options, &tasks)
            }
        };
        StartFollow {
            config: config.clone(),
            rules,
            reader: setup.reader.clone(),
            private: setup.private.clone(),
            kept: setup.follows.clone(),
            open: Box::new(open),
            tasks: tasks.clone(),
        }
    }

    fn start(&self, url: &str, options: &LinkOptions, tasks: &Tasks) -> Option<OneRelay> {
        let Self { config, setup, .. } = self;
        // The configuration was checked.
        let url: Arc<str> = normal_url(url)?.into();
        let stream: Arc<str> = config.name.as_str().into();
        let (demand, demanded) = watch::channel(demand(config));
        let relay = relay(config, setup, url.clone(), demanded, options.clone(), tasks);
        let up = config.direction.is_up().then(|| {
            let status = SharedUpStatus::default();
            let seen = relay.clone();
            let up = StartUp {
                choice: Choice {
                    stream,
                    url,
                    filter: config.filter.clone(),
                    topics: config.topics.clone(),
                    private: setup.private.clone(),
                },
                history: config.history_up(),
                began: self.began,
                per_second: config.rates.up_events_per_s,
                links: relay.link(),
                seen: Box::new(move |id| seen.seen().contains(id)),
                reader: setup.reader.clone(),
                store: setup.store.clone(),
                gate: setup.gate.clone(),
                passing: setup.ingest.passing(),
                metrics: setup.metrics.clone(),
            };
            tasks.spawn("upstream outbox", up.run(status.clone(), tasks.token().clone()));
            status
        });
        tasks.spawn("upstream relay", relay.clone().run(tasks.token().clone()));
        Some(OneRelay { relay, _demand: demand, up })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OneRelay {
    fn status(&self) -> OneStatus {
        let up = self.up.as_ref();
        let up = up.map(|up| up.lock().unwrap_or_else(PoisonError::into_inner).clone());
        OneStatus { down: self.relay.status(), up }
    }
}

/// A relay of a stream, which nobody runs yet.
fn relay(
    config: &UpstreamConfig,
    setup: &StreamSetup,
    url: Arc<str>,
    demand: watch::Receiver<Demand>,
    options: LinkOptions,
    tasks: &Tasks,
) -> Arc<Relay> {
    Relay::new(StartRelay {
        stream: config.name.as_str().into(),
        url,
        topics: config.topics.clone(),
        demand,
        up: config.direction.is_up(),
        options,
        intake: setup.intake.clone(),
        reader: setup.reader.clone(),
        store: setup.store.clone(),
        tasks: tasks.clone(),
        metrics: setup.metrics.clone(),
    })
}

/// What the relays of a stream are asked for.
fn demand(config: &UpstreamConfig) -> Demand {
    let part = fingerprint(&config.filter);
    let wanted = match config.direction.is_down() {
        true => Wanted::with_requests(&config.filter, config.history_down(), part),
        false => Vec::new(),
    };
    Demand { wanted, events_per_s: config.rates.down_events_per_s }
}

/// Tells filters apart, over restarts and versions. The limit is no part of what a relay has.
fn fingerprint(filter: &Filter) -> Part {
    let filter = Filter { limit: None, ..filter.clone() };
    let text = serde_json::to_string(&filter).unwrap_or_default();
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(text));
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_ask_for_the_same_have_one_fingerprint() {
        let of = |json: &str| fingerprint(&Filter::parse(json).unwrap());
        assert_eq!(of(r#"{"kinds":[1,0],"limit":5}"#), of(r#"{"kinds":[0,1]}"#));
        assert_ne!(of(r#"{"kinds":[1]}"#), of(r#"{"kinds":[0,1]}"#));
        assert_eq!(of("{}"), 0x4413_6fa3_55b3_678a, "it is on disk: it must not change");
    }
}
