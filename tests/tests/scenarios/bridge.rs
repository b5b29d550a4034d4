//! What the scenarios of bridges share.

use std::time::Duration;

use nostr_gateway_tests::{Difference, Gateway, GatewayBuilder, RawClient, eventually};
use nostr_sdk::Event;
use serde_json::{Value, json};

use crate::GATEWAY;

/// How long a few thousand events may take over a bridge, on a busy machine.
pub const FLOW: Duration = Duration::from_secs(90);
/// Two gateways that know one another.
pub const MEETING: Duration = Duration::from_secs(60);

/// A gateway in one topic.
pub fn builder(name: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).topics(&["town"])
}

/// One that knows another as a peer.
pub async fn beside(name: &str, other: &Gateway) -> GatewayBuilder {
    let peers = format!("[{:?}]", other.as_peer().await);
    builder(name).set("discovery", "peers", &peers)
}

/// A stream of the topic `town`, with more lines of TOML.
pub fn stream(name: &str, url: &str, direction: &str, more: &str) -> String {
    format!(
        "[[upstream]]\nname = {name:?}\nurls = [{url:?}]\ndirection = {direction:?}\n\
         topics = [\"town\"]\n{more}\n"
    )
}

/// What `upstream show NAME --json` says of a stream with one relay: the stream, and the relay.
pub async fn shown(gateway: &Gateway, name: &str) -> (Value, Value) {
    let stream = gateway.command(&["upstream", "show", name, "--json"]).await.json();
    let relays = stream["relays"].as_array().unwrap_or_else(|| panic!("no relays: {stream}"));
    assert_eq!(relays.len(), 1, "{stream}");
    let relay = relays[0].clone();
    (stream, relay)
}

/// What a relay with NIP-77 has in comparison with these events.
pub async fn difference(url: &str, filter: &Value, events: &[Event]) -> Difference {
    let mut client = RawClient::connect(url).await;
    client.negentropy(filter, events).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Waits until a relay with NIP-77 has exactly these events.
pub async fn has_exactly(what: &str, url: &str, events: &[Event], deadline: Duration) {
    has_exactly_of(what, url, &json!({}), events, deadline).await;
}

/// The same of what a filter matches.
pub async fn has_exactly_of(
    what: &str,
    url: &str,
    filter: &Value,
    events: &[Event],
    deadline: Duration,
) {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let found = difference(url, filter, events).await;
        if found.only_here.is_empty() && found.only_there.is_empty() {
            return;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "within {deadline:?}, {what} did not have exactly these {} events: {} are missing ({}), \
             {} are too many ({})",
            events.len(),
            found.only_here.len(),
            described(&found.only_here, events),
            found.only_there.len(),
            found.only_there.first().map_or("none", String::as_str),
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn described(ids: &[String], events: &[Event]) -> String {
    let first = ids.iter().take(3).filter_map(|id| {
        let event = events.iter().find(|event| event.id.to_hex() == *id)?;
        Some(format!("kind {} of {}", event.kind.as_u16(), event.created_at.as_secs()))
    });
    first.collect::<Vec<_>>().join(", ")
}

/// Waits until both are neighbors in `town`.
pub async fn meet(gateways: [&Gateway; 2]) {
    for gateway in gateways {
        gateway.wait_for_neighbors("town", 1, MEETING).await;
    }
}

/// Waits until a number has not grown for this long, and returns it.
pub async fn settled(what: &str, quiet: Duration, mut number: impl AsyncFnMut() -> u64) -> u64 {
    let mut last = number().await;
    let mut since = tokio::time::Instant::now();
    eventually(&format!("{what} comes to rest"), FLOW, async || {
        let now = number().await;
        if now != last {
            (last, since) = (now, tokio::time::Instant::now());
        }
        (since.elapsed() >= quiet).then_some(now)
    })
    .await
}
