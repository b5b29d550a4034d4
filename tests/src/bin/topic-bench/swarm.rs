//! Gateways in one topic.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nostr_gateway_tests::{Gateway, GatewayBuilder, Namespace, Testnet};
use tokio::time::Instant;

pub const TOPIC: &str = "town";

/// How long gateways may take to find one another, before a row counts as not measured.
const MEETING: Duration = Duration::from_secs(60);
/// After it, for the first comparisons and the shape of the swarm.
const SETTLING: Duration = Duration::from_secs(5);

/// What a client over the network may do as much of as it likes.
const UNLIMITED: [&str; 5] = [
    "messages_per_s",
    "bytes_per_s",
    "messages_per_s_per_ip",
    "bytes_per_s_per_ip",
    "events_per_minute_per_ip",
];

/// What all rows need.
#[derive(Clone)]
pub struct Setup {
    pub gateway: PathBuf,
    pub dht_testnet: PathBuf,
    pub quick: bool,
}

impl Setup {
    /// The first when everything is measured, the second in a quick run.
    pub fn or<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub fn builder(&self, name: &str) -> GatewayBuilder {
        let builder = GatewayBuilder::new(self.gateway.to_str().unwrap(), name)
            .topics(&[TOPIC])
            .env("RUST_LOG", "warn");
        // Where gateways have hosts of their own, the client comes over the network.
        UNLIMITED.iter().fold(builder, |builder, rate| builder.set("rates", rate, "0"))
    }

    /// A gateway that knows these.
    pub async fn knowing(&self, name: &str, known: &[&Gateway]) -> GatewayBuilder {
        let mut peers = Vec::new();
        for gateway in known {
            peers.push(format!("{:?}", gateway.as_peer().await));
        }
        self.builder(name).set("discovery", "peers", &format!("[{}]", peers.join(", ")))
    }

    /// So many gateways on loopback, each knowing two of those before it.
    pub async fn swarm(&self, count: usize) -> Vec<Gateway> {
        let mut gateways: Vec<Gateway> = Vec::new();
        for n in 0..count {
            let mut known: Vec<_> = gateways.last().into_iter().collect();
            if n > 1 {
                known.push(&gateways[n / 2 - 1]);
            }
            let builder = self.knowing(&n.to_string(), &known).await;
            gateways.push(builder.start().await);
        }
        settle(&gateways).await;
        gateways
    }

    /// One that finds others in a DHT, on a host of its own.
    pub async fn on_host(&self, host: &Arc<Namespace>, dht: &Testnet) -> Gateway {
        let name = host.address().to_string();
        self.builder(&name).dht(dht).namespace(host.clone()).start().await
    }
}

/// Waits until each has a neighbor, and a little longer.
pub async fn settle(gateways: &[Gateway]) {
    for gateway in gateways {
        gateway.wait_for_neighbors(TOPIC, 1, MEETING).await;
    }
    tokio::time::sleep(SETTLING).await;
}

/// How many events a gateway has stored since it started.
pub async fn stored(gateway: &Gateway) -> u64 {
    gateway.metric(r#"nostr_gateway_events_total{outcome="stored""#).await
}

/// Waits until all of them have stored so many events. Returns how long it took since `from`.
pub async fn all_have<'a>(
    gateways: impl IntoIterator<Item = &'a Gateway>,
    count: usize,
    from: Instant,
    pause: Duration,
) -> Duration {
    let mut left: Vec<_> = gateways.into_iter().collect();
    let end = Instant::now() + Duration::from_secs(180);
    loop {
        let mut missing = Vec::new();
        let mut held = Vec::new();
        for gateway in left {
            let has = stored(gateway).await;
            if has < count as u64 {
                held.push(has);
                missing.push(gateway);
            }
        }
        if missing.is_empty() {
            return from.elapsed();
        }
        assert!(Instant::now() < end, "of {count} events, some hold {held:?} only");
        left = missing;
        tokio::time::sleep(pause).await;
    }
}
