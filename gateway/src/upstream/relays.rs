//! How the relays of one stream are doing, and what the log says of it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nostr_sdk::{
    RelayUrl, Url,
    pool::{
        ConnectionMode,
        transport::{
            error::TransportError,
            websocket::{
                DefaultWebsocketTransport, WebSocketSink, WebSocketStream, WebSocketTransport,
            },
        },
    },
    prelude::{BoxedFuture, RelayStatus},
};
use serde::Serialize;

use crate::metrics::Metrics;

/// One relay of a stream, for `/status`.
#[derive(Debug, Clone, Serialize)]
pub struct RelayState {
    pub url: String,
    /// `connecting`, `connected`, `unreachable` or `ended`.
    pub state: &'static str,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The log already says that it is away.
    #[serde(skip)]
    away: bool,
}

/// The relays of one stream.
pub(super) struct Relays {
    stream: String,
    states: Mutex<BTreeMap<String, RelayState>>,
    metrics: Arc<Metrics>,
}

impl Relays {
    pub fn new(stream: &str, urls: &[String], metrics: Arc<Metrics>) -> Self {
        let state = |url: &String| {
            let url = normal(url);
            (url.clone(), RelayState { url, state: "connecting", error: None, away: false })
        };
        let states = Mutex::new(urls.iter().map(state).collect());
        Self { stream: stream.to_owned(), states, metrics }
    }

    pub fn status(&self) -> Vec<RelayState> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().cloned().collect()
    }

    /// nostr-sdk says that a connection came or went.
    pub fn changed(&self, url: &str, status: RelayStatus) {
        let url = normal(url);
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(relay) = states.get_mut(&url) else { return };
        let was_connected = relay.state == "connected";
        relay.state = match status {
            RelayStatus::Connected => "connected",
            RelayStatus::Terminated | RelayStatus::Banned => "ended",
            RelayStatus::Disconnected => "unreachable",
            _ => "connecting",
        };
        let stream = &self.stream;
        if relay.state == "connected" {
            relay.away = false;
            relay.error = None;
            self.metrics.upstream_connects.inc();
            tracing::info!(stream, url, "connected to upstream");
        } else if was_connected {
            relay.away = true;
            tracing::warn!(stream, url, "lost upstream; trying again with growing pauses");
        }
    }

    /// An attempt to connect failed. Further ones are no news until one succeeds.
    fn failed(&self, url: &str, error: &TransportError) {
        let url = normal(url);
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(relay) = states.get_mut(&url) else { return };
        let reason = error.to_string();
        let stream = &self.stream;
        if relay.away {
            tracing::debug!(stream, url, reason, "still cannot reach upstream");
        } else {
            tracing::warn!(
                stream,
                url,
                reason,
                "cannot reach upstream; trying again with growing pauses"
            );
        }
        relay.away = true;
        relay.error = Some(reason);
    }
}

/// The URL as nostr-sdk writes it, whatever its case, port or closing slash in the configuration.
fn normal(url: &str) -> String {
    let parsed = RelayUrl::parse(url).map(|url| url.as_str().to_owned());
    parsed.as_deref().unwrap_or(url).trim_end_matches('/').to_owned()
}

/// nostr-sdk's own way to connect, which also tells us why an attempt failed.
pub(super) struct Dialer(pub Arc<Relays>);

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

impl WebSocketTransport for Dialer {
    fn support_ping(&self) -> bool {
        DefaultWebsocketTransport.support_ping()
    }

    fn connect<'a>(
        &'a self,
        url: &'a Url,
        mode: &'a ConnectionMode,
        timeout: Duration,
    ) -> BoxedFuture<'a, Result<(WebSocketSink, WebSocketStream), TransportError>> {
        Box::pin(async move {
            let connected = DefaultWebsocketTransport.connect(url, mode, timeout).await;
            connected.inspect_err(|error| self.0.failed(url.as_str(), error))
        })
    }
}
