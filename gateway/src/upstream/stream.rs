//! One `[[upstream]]`: connects, subscribes, feeds the pipeline, reconnects.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use nostr_sdk::{
    Client, ClientOptions, JsonUtil, RelayOptions, RelayUrl, SubscribeOptions, SubscriptionId,
    pool::RelayLimits,
    prelude::{Monitor, MonitorNotification},
};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    UpstreamConfig,
    intake::{Intake, Received},
    relays::{Dialer, RelayState, Relays},
};
use crate::{
    metrics::Metrics,
    pipeline::{Candidate, Ingest, Origin, Outcome, Target},
};

/// Events taken from the relays and not yet in the pipeline.
const QUEUE: usize = 256;
/// Events of one stream on their way through the pipeline.
const MAX_UNDER_WAY: usize = 512;
/// The subscription that all streams use, each on connections of its own.
const SUBSCRIPTION: &str = "nostr-gateway";
/// How often each relay is asked whether the subscription is still there. A relay may end it with
/// CLOSED, after which nostr-sdk does not ask again.
const REVIEW: Duration = Duration::from_secs(10);
/// First pause before a new attempt; it grows with each failure to about ten minutes. nostr-sdk adds or
/// takes away up to three seconds, and subscribes again only if the new connection is from a later second
/// than the subscription: a shorter pause would leave some connections without one for ever.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// A running stream. Shared between its task and whoever asks for its state.
pub struct Stream {
    config: UpstreamConfig,
    ingest: Ingest,
    metrics: Arc<Metrics>,
    relays: Arc<Relays>,
    received: AtomicU64,
    new: AtomicU64,
    known: AtomicU64,
    refused: AtomicU64,
}

/// A stream's figures, for `/status`.
#[derive(Debug, Serialize)]
pub struct StreamStatus {
    pub name: String,
    pub relays: Vec<RelayState>,
    pub received: u64,
    pub new: u64,
    pub known: u64,
    pub refused: u64,
}

impl Stream {
    pub fn new(config: UpstreamConfig, ingest: Ingest, metrics: Arc<Metrics>) -> Arc<Self> {
        let relays = Arc::new(Relays::new(&config.name, &config.urls, metrics.clone()));
        Arc::new(Self {
            config,
            ingest,
            metrics,
            relays,
            received: AtomicU64::new(0),
            new: AtomicU64::new(0),
            known: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    pub fn status(&self) -> StreamStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StreamStatus {
            name: self.config.name.clone(),
            relays: self.relays.status(),
            received: count(&self.received),
            new: count(&self.new),
            known: count(&self.known),
            refused: count(&self.refused),
        }
    }

    /// Streams until the token is cancelled.
    pub async fn run(self: Arc<Self>, token: CancellationToken) {
        let name = self.config.name.clone();
        let (queue, received) = mpsc::channel(QUEUE);
        let monitor = Monitor::new(64);
        let changes = monitor.subscribe();
        let options = ClientOptions::new()
            // The pipeline has limits of its own, and says which of them an event breaks.
            .relay_limits(RelayLimits::disable())
            // A relay that sends other events than we asked for must not fill our topics.
            .verify_subscriptions(true)
            .automatic_authentication(false);
        let client = Client::builder()
            .admit_policy(Intake { queue })
            .websocket_transport(Dialer(self.relays.clone()))
            .monitor(monitor)
            .opts(options)
            .build();
        if let Err(error) = self.connect(&client).await {
            tracing::error!(stream = name, %error, "the upstream cannot be started");
            return;
        }
        tracing::info!(stream = name, relays = self.config.urls.len(), "streaming from upstream");
        tokio::select! {
            () = token.cancelled() => {}
            () = self.feed(received) => {}
            () = self.watch(changes) => {}
            () = self.renew(&client) => {}
        }
        client.shutdown().await;
    }

    async fn connect(&self, client: &Client) -> Result<(), String> {
        for url in &self.config.urls {
            let url = RelayUrl::parse(url).map_err(|error| format!("{url}: {error}"))?;
            let options = RelayOptions::new()
                .limits(RelayLimits::disable())
                .verify_subscriptions(true)
                .retry_interval(FIRST_RETRY)
                .adjust_retry_interval(true)
                .reconnect(true);
            client.pool().add_relay(url, options).await.map_err(|error| error.to_string())?;
        }
        client.connect().await;
        // It is sent again after every reconnection.
        let id = SubscriptionId::new(SUBSCRIPTION);
        let subscribed = client.subscribe_with_id(id, self.filter()?, None).await;
        subscribed.map(drop).map_err(|error| error.to_string())
    }

    fn filter(&self) -> Result<nostr_sdk::Filter, String> {
        let json = serde_json::to_string(&self.config.filter).map_err(|error| error.to_string())?;
        nostr_sdk::Filter::from_json(json).map_err(|error| error.to_string())
    }

    /// Subscribes again where a relay ended the subscription.
    async fn renew(&self, client: &Client) {
        let id = SubscriptionId::new(SUBSCRIPTION);
        let Ok(filter) = self.filter() else { return std::future::pending().await };
        loop {
            tokio::time::sleep(REVIEW).await;
            for (url, relay) in client.relays().await {
                if !relay.is_connected() {
                    continue;
                }
                let renewed = if relay.subscriptions().await.contains_key(&id) {
                    // Sends only what the relay closed or never got.
                    relay.resubscribe().await
                } else {
                    tracing::warn!(
                        stream = self.config.name,
                        url = url.as_str(),
                        "upstream had closed the subscription; subscribing again"
                    );
                    let options = SubscribeOptions::default();
                    relay.subscribe_with_id(id.clone(), filter.clone(), options).await
                };
                if let Err(error) = renewed {
                    tracing::debug!(url = url.as_str(), %error, "cannot subscribe again");
                }
            }
        }
    }

    async fn feed(&self, mut received: mpsc::Receiver<Received>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(outcome) = under_way.next() => self.count(&outcome),
                event = received.recv(), if under_way.len() < MAX_UNDER_WAY => {
                    let Some(Received { url, event }) = event else { return };
                    self.received.fetch_add(1, Ordering::Relaxed);
                    self.metrics.upstream_events.inc();
                    match event {
                        Ok(event) => {
                            let origin =
                                Origin::Upstream { stream: self.config.name.as_str().into(), url };
                            let target = Target::Topics(self.config.topics.clone());
                            let candidate = Candidate { event, origin, target };
                            let ingest = self.ingest.clone();
                            under_way.push(async move { ingest.submit(candidate).await });
                        }
                        Err(error) => {
                            tracing::debug!(url = &*url, %error, "upstream sent a malformed event");
                            self.refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
    }

    fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Stored(_) | Outcome::Passed => &self.new,
            Outcome::Joined(_) | Outcome::Duplicate => &self.known,
            Outcome::Shadowed => &self.refused,
            Outcome::Refused(reason) => {
                tracing::debug!(stream = self.config.name, %reason, "an upstream event was refused");
                &self.refused
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the log how the relays come and go.
    async fn watch(&self, mut changes: broadcast::Receiver<MonitorNotification>) {
        loop {
            match changes.recv().await {
                Ok(MonitorNotification::StatusChanged { relay_url, status }) => {
                    self.relays.changed(relay_url.as_str(), status);
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
            }
        }
    }
}
