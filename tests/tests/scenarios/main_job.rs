//! What the gateway is for: events flow between ordinary clients, a relay and a topic that is found
//! through a DHT, between separate processes.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, PATIENCE, RawClient, Testnet, events,
    publish_until_the_end, report, sdk_client,
};
use nostr_sdk::{Client, Event, Filter, Keys, RelayPoolNotification};
use serde_json::json;
use tokio::sync::broadcast::Receiver;

use crate::{DHT_TESTNET, GATEWAY, alone};

/// Two processes that look for one another, the second starting late in a minute included.
const MEETING: Duration = Duration::from_secs(60);

/// How long a few hundred events may take through relay, topic and fetches.
const FLOW: Duration = Duration::from_secs(60);

fn builder(name: &str, testnet: &Testnet) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).dht(testnet)
}

async fn meet(gateways: [&Gateway; 2], topics: &[&str]) {
    for gateway in gateways {
        for topic in topics {
            gateway.wait_for_neighbors(topic, 1, MEETING).await;
        }
    }
}

/// Collects what a subscription of nostr-sdk brings, until all of these are there.
async fn receive_all(notifications: &mut Receiver<RelayPoolNotification>, expected: &[Event]) {
    let mut missing: HashSet<_> = expected.iter().map(|event| event.id).collect();
    let receive = async {
        while !missing.is_empty() {
            if let RelayPoolNotification::Event { event, .. } = notifications.recv().await.unwrap()
            {
                missing.remove(&event.id);
            }
        }
    };
    if tokio::time::timeout(FLOW, receive).await.is_err() {
        let kinds: Vec<_> = expected
            .iter()
            .filter(|event| missing.contains(&event.id))
            .map(|event| (event.kind.as_u16(), events::json(event).len()))
            .collect();
        panic!("of {} events, these (kind, bytes) did not come: {kinds:?}", expected.len());
    }
}

async fn subscribed(url: &str) -> (Client, Receiver<RelayPoolNotification>) {
    let client = sdk_client(url).await;
    // Before the subscription: what comes at once would be missed.
    let notifications = client.notifications();
    let output = client.subscribe(Filter::new(), None).await.unwrap();
    assert!(output.failed.is_empty(), "{:?}", output.failed);
    (client, notifications)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_flow_between_clients_a_relay_and_a_topic() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let loaded = events::assortment(200);
    let relay = IndependentRelay::start(&loaded).await;

    let b = builder("B", &testnet).topics(&["town"]).start().await;
    let (at_b, mut seen_at_b) = subscribed(&b.topic_url("town")).await;
    // A starts with the relay's whole history, and with a plugin that refuses a word.
    let a = builder("A", &testnet)
        .topics(&["town"])
        .upstream("elsewhere", &relay.url(), "town")
        .blocklist(&[], &["forbiddenword"])
        .start()
        .await;
    let (at_a, mut seen_at_a) = subscribed(&a.topic_url("town")).await;
    meet([&a, &b], &["town"]).await;
    for gateway in [&a, &b] {
        let ms = gateway.topic_status("town").await["first_neighbor_ms"].as_u64();
        let ms = ms.expect("first_neighbor_ms is a number once there was a neighbor");
        report(&format!("time to first neighbor of {}: {ms} ms", &gateway.endpoint[..8]));
    }

    // Everything the relay has arrives at B's client, the long ones too.
    receive_all(&mut seen_at_b, &loaded).await;
    let stored = at_b.fetch_events(Filter::new().limit(1_000), PATIENCE).await.unwrap();
    assert_eq!(events::ids(stored.iter()), events::ids(&loaded));

    // And what the relay gets from now on.
    let live = events::note(&Keys::generate(), "new on the relay");
    RawClient::connect(&relay.url()).await.accept(&live).await;
    receive_all(&mut seen_at_b, std::slice::from_ref(&live)).await;

    // The other way: B's client publishes, A's client receives.
    let replies: Vec<Event> =
        (0..20).map(|n| events::note(&Keys::generate(), &format!("reply {n}"))).collect();
    for reply in &replies {
        let output = at_b.send_event(reply).await.unwrap();
        assert!(output.failed.is_empty(), "{:?}", output.failed);
    }
    receive_all(&mut seen_at_a, &replies).await;

    // The plugin of A refuses: A's client is told so, and B never sees it.
    let refused = events::note(&Keys::generate(), "this has the ForbiddenWord in it");
    RawClient::connect(&a.topic_url("town")).await.refuse(&refused, "blocked").await;
    // What B's client says passes B, which has no plugin, and ends at A.
    let ends_at_a = events::note(&Keys::generate(), "forbiddenword, from the other side");
    let mut raw_b = RawClient::connect(&b.topic_url("town")).await;
    raw_b.accept(&ends_at_a).await;
    let (from_a, from_b) =
        (events::note(&Keys::generate(), "after"), events::note(&Keys::generate(), "after too"));
    at_a.send_event(&from_a).await.unwrap();
    raw_b.accept(&from_b).await;
    receive_all(&mut seen_at_b, &[from_a]).await;
    receive_all(&mut seen_at_a, &[from_b]).await;
    assert!(raw_b.stored_ids(&[json!({"ids": [refused.id.to_hex()]})]).await.is_empty());
    let mut raw_a = RawClient::connect(&a.url()).await;
    let both = json!({"ids": [refused.id.to_hex(), ends_at_a.id.to_hex()]});
    assert!(raw_a.stored_ids(&[both]).await.is_empty());

    // Nothing was sent back to the relay that came from elsewhere.
    let mut raw_relay = RawClient::connect(&relay.url()).await;
    assert_eq!(raw_relay.stored_ids(&[json!({"limit": 1000})]).await.len(), loaded.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_event_is_news_in_a_second_topic() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let a = builder("A", &testnet).topics(&["one", "two"]).start().await;
    let b = builder("B", &testnet).topics(&["one", "two"]).start().await;
    meet([&a, &b], &["one", "two"]).await;
    let mut in_one = RawClient::connect(&b.topic_url("one")).await;
    let mut in_two = RawClient::connect(&b.topic_url("two")).await;
    let mut on_root = RawClient::connect(&b.url()).await;
    for client in [&mut in_one, &mut in_two, &mut on_root] {
        assert!(client.req("live", &[json!({})]).await.is_empty());
    }
    let event = events::note(&Keys::generate(), "first here, then there");
    let id = json!(event.id.to_hex());

    RawClient::connect(&a.topic_url("one")).await.accept(&event).await;
    assert_eq!(in_one.live("live").await["id"], id);
    assert_eq!(on_root.live("live").await["id"], id);
    in_two.expect_silence().await;
    assert!(in_two.stored_ids(&[json!({"ids": [id]})]).await.is_empty());

    let (accepted, message) = RawClient::connect(&a.topic_url("two")).await.publish(&event).await;
    assert!(accepted && message.starts_with("duplicate: "), "{message}");
    assert_eq!(in_two.live("live").await["id"], id);
    assert_eq!(in_two.stored_ids(&[json!({"ids": [id]})]).await.len(), 1);
    in_one.expect_silence().await;
    on_root.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_sigkill() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let a = builder("A", &testnet).topics(&["town"]).start().await;
    let mut b = builder("B", &testnet).topics(&["town"]).start().await;
    meet([&a, &b], &["town"]).await;
    let mut acknowledged = Vec::new();
    for round in 1..=3 {
        let url = b.topic_url("town");
        let publisher = tokio::spawn(publish_until_the_end(url));
        tokio::time::sleep(Duration::from_millis(500 * round)).await;
        b.kill9().await;
        let new = tokio::time::timeout(PATIENCE, publisher).await.unwrap().unwrap();
        assert!(!new.is_empty(), "it was killed before the first acknowledgement");
        acknowledged.extend(new);
        b = b.restart().await;
        let mut client = RawClient::connect(&b.topic_url("town")).await;
        client.assert_stored(&acknowledged).await;
    }
    report(&format!("{} events were acknowledged before three SIGKILLs", acknowledged.len()));

    // With the same identity it is back in the topic, both ways.
    let mut at_b = RawClient::connect(&b.topic_url("town")).await;
    let mut at_a = RawClient::connect(&a.topic_url("town")).await;
    let live_only = [json!({"limit": 0})];
    assert!(at_a.req("live", &live_only).await.is_empty());
    assert!(at_b.req("live", &live_only).await.is_empty());
    b.wait_for_neighbors("town", 1, MEETING).await;
    let (from_a, from_b) =
        (events::note(&Keys::generate(), "from A"), events::note(&Keys::generate(), "from B"));
    at_a.accept(&from_a).await;
    at_b.wait_for(|m| m[2]["id"] == from_a.id.to_hex(), "A's event at B").await;
    at_b.accept(&from_b).await;
    at_a.wait_for(|m| m[2]["id"] == from_b.id.to_hex(), "B's event at A").await;
}

/// Only measured: a figure that depends on the machine is no reason to fail.
#[tokio::test(flavor = "multi_thread")]
async fn latency_between_clients_across_a_topic() {
    const EVENTS: usize = 300;
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let a = builder("A", &testnet).topics(&["town"]).start().await;
    let b = builder("B", &testnet).topics(&["town"]).start().await;
    meet([&a, &b], &["town"]).await;
    let mut writer = RawClient::connect(&a.topic_url("town")).await;
    let mut reader = RawClient::connect(&b.topic_url("town")).await;
    assert!(reader.req("live", &[json!({})]).await.is_empty());
    let keys = Keys::generate();
    let mut took = Vec::with_capacity(EVENTS);
    for n in 0..EVENTS {
        let event = events::note(&keys, &format!("{n}: {}", "x".repeat(300)));
        let sent = Instant::now();
        writer.send_event(&event).await;
        assert_eq!(reader.live("live").await["id"], event.id.to_hex());
        took.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took.sort();
    let ms = |share: usize| took[EVENTS * share / 100].as_secs_f64() * 1_000.0;
    report(&format!(
        "client → A → topic → B → client, {EVENTS} events: p50 {:.1} ms, p99 {:.1} ms (max {:.1})",
        ms(50),
        ms(99),
        took[EVENTS - 1].as_secs_f64() * 1_000.0
    ));
}

/// Away for longer than the connection lasts, so that both are alone and look for one another.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_missed_comes_back() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let a = builder("A", &testnet).topics(&["town"]).start().await;
    let mut b = builder("B", &testnet).topics(&["town"]).start().await;
    meet([&a, &b], &["town"]).await;
    b.kill9().await;
    nostr_gateway_tests::eventually("A misses B", MEETING, async || {
        (a.topic_status("town").await["state"] == "disconnected").then_some(())
    })
    .await;
    let b = b.restart().await;
    meet([&a, &b], &["town"]).await;
}
