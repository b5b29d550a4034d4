//! What the scenarios of bridges share.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, eventually};
use serde_json::Value;

use crate::GATEWAY;

pub use nostr_gateway_tests::compare::{difference, has_exactly, has_exactly_of};

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
