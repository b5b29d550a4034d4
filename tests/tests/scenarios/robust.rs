//! Topics under load, with members that are foreign, hostile or frozen.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use nostr_gateway_tests::{
    Gateway, GatewayBuilder, Network, RawClient, Testnet, events, eventually,
};
use nostr_sdk::{Event, Keys};

use crate::{
    DHT_TESTNET, GATEWAY, alone,
    namespaces::{MEETING, stock_node},
};

/// For some hundred events between processes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// All of them under way at once.
async fn publish_at_once(gateway: &Gateway, topic: &str, events: &[Event]) {
    let mut client = RawClient::connect(&gateway.topic_url(topic)).await;
    for event in events {
        client.send_event(event).await;
    }
    for event in events {
        let (accepted, message) = client.ok(&event.id.to_hex()).await;
        assert!(accepted, "{message}");
    }
}

/// Under load gateways tell one another ids. A node that knows gossip alone cannot fetch, and is the
/// neighbor of some of them only.
#[tokio::test(flavor = "multi_thread")]
async fn a_stock_node_among_five_gateways_under_load_sees_all_that_fits() {
    let scenario = "a_stock_node_among_five_gateways_under_load_sees_all_that_fits";
    let Some(network) = Network::available(scenario) else { return };
    let _alone = alone().await;
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let mut gateways = Vec::new();
    for n in 2..7 {
        let host = Arc::new(network.add(&format!("h{n}"), n, 1));
        let builder = GatewayBuilder::new(GATEWAY, &format!("{n}")).dht(&testnet).namespace(host);
        gateways.push(builder.topics(&["meeting"]).start().await);
    }
    let stranger = network.add("s", 7, 1);
    let node = stock_node(&stranger, "meeting");
    node.stdout_line(MEETING, |line| line == "joined").await;
    for gateway in &gateways {
        gateway.wait_for_neighbors("meeting", 1, MEETING).await;
    }

    let lengths = [100, 300, 900, 2_000, 3_500, 6_000];
    let all: Vec<Vec<Event>> = (0..gateways.len())
        .map(|gateway| {
            let keys = Keys::generate();
            let note = |n: usize| {
                let text = format!("{gateway} {n} {}", "x".repeat(lengths[n % lengths.len()]));
                events::note(&keys, &text)
            };
            (0..300).map(note).collect()
        })
        .collect();
    let publishing = gateways.iter().zip(&all);
    join_all(publishing.map(|(gateway, events)| publish_at_once(gateway, "meeting", events))).await;
    let fitting: HashSet<String> = (all.iter().flatten().map(events::json))
        .filter(|json| json.len() <= 4_000)
        .map(|json| format!("received {json}"))
        .collect();
    assert!(fitting.len() > 1_000);
    eventually("the stock node has seen all events that fit", SOON, async || {
        let seen: HashSet<String> = node.stdout().into_iter().collect();
        let missing = fitting.iter().filter(|line| !seen.contains(*line)).count();
        (missing == 0).then_some(())
    })
    .await;
    // The load was such that the gateways did tell ids.
    for gateway in &gateways {
        let fetched = r#"nostr_gateway_events_total{origin="fetch",outcome="stored""#;
        assert!(gateway.metric(fetched).await > 0);
    }
}
