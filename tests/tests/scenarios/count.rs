//! NIP-45, COUNT, and NIP-67, the hint in EOSE.

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::GATEWAY;

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "count").topics(&["town"]).start().await
}

/// Ten notes and five reactions of one author.
async fn publish_some(client: &mut RawClient, keys: &Keys) -> Vec<Event> {
    let start = events::now() - 100;
    let all: Vec<Event> = (0..15)
        .map(|n| {
            let kind = if n < 10 { 1 } else { 7 };
            events::event(keys, kind, &format!("{n}"), &[&["t", "x"]], start + n)
        })
        .collect();
    for event in &all {
        client.accept(event).await;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_and_each_event_counts_once() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let all = publish_some(&mut client, &keys).await;
    let author = keys.public_key().to_hex();
    for (filters, expected) in [
        (vec![json!({})], 15),
        (vec![json!({"kinds": [1]})], 10),
        (vec![json!({"kinds": [1], "limit": 3})], 10),
        (vec![json!({"authors": [author], "kinds": [7]})], 5),
        (vec![json!({"#t": ["x"], "since": all[12].created_at.as_secs()})], 3),
        (vec![json!({"ids": [all[0].id.to_hex(), "0".repeat(64)]})], 1),
        (vec![json!({"kinds": [3]})], 0),
        (vec![json!({"kinds": []})], 0),
        // NIP-45: several filters are one question; nothing is counted twice.
        (vec![json!({"kinds": [1]}), json!({"authors": [author]}), json!({"#t": ["x"]})], 15),
        (vec![json!({"kinds": [1]}), json!({"kinds": [7]})], 15),
    ] {
        assert_eq!(client.count(&filters).await, expected, "{filters:?}");
    }
    // The form of the answer.
    client.send(&json!(["COUNT", "a \"name\"", {"kinds": [7]}])).await;
    assert_eq!(client.next_text().await, r#"["COUNT","a \"name\"",{"count":5}]"#);
    // A topic's URL counts what is in the topic.
    let mut in_topic = RawClient::connect(&gateway.topic_url("town")).await;
    assert_eq!(in_topic.count(&[json!({})]).await, 0);
    in_topic.accept(&events::note(&keys, "in the topic")).await;
    assert_eq!(in_topic.count(&[json!({})]).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_count_is_closed_and_no_subscription_is_disturbed() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(client.req("same", &[json!({"kinds": [1]})]).await.is_empty());
    // NIP-45: a refusal is CLOSED. The subscription of the same id is another thing.
    let many: Vec<Value> = vec![json!({}); 51];
    let values: Vec<String> = (0..20_001).map(|n| n.to_string()).collect();
    for (filters, prefix) in [
        (vec![], "invalid"),
        (vec![json!({"kinds": "1"})], "invalid"),
        (many, "invalid"),
        (vec![json!({"#emoji": ["x"]})], "unsupported"),
        (vec![json!({"#t": values})], "rate-limited"),
        (vec![json!({"kinds": [4]})], "auth-required"),
    ] {
        let reason = client.refused_count("same", &filters).await;
        assert!(reason.starts_with(&format!("{prefix}: ")), "{reason}");
    }
    client.next_challenge().await;
    assert_eq!(client.count(&[json!({})]).await, 0);
    let event = events::note(&Keys::generate(), "for the subscription");
    client.accept(&event).await;
    assert_eq!(client.live("same").await["id"], event.id.to_hex());

    // Many at once are all answered, in their order.
    for n in 0..50 {
        client.send(&json!(["COUNT", format!("c{n}"), {}])).await;
    }
    for n in 0..50 {
        assert_eq!(client.next().await, json!(["COUNT", format!("c{n}"), {"count": 1}]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eose_says_when_everything_was_sent() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    publish_some(&mut client, &keys).await;
    // NIP-67: "finish" only when no limit can have cut the answer.
    for (filters, finished) in [
        (vec![json!({})], true),
        (vec![json!({"kinds": [7]})], true),
        (vec![json!({"kinds": [7], "limit": 6})], true),
        (vec![json!({"kinds": [7], "limit": 4})], false),
        (vec![json!({"kinds": [3]})], true),
        (vec![json!({"kinds": [7]}), json!({"kinds": [1], "limit": 2})], false),
    ] {
        let mut message = vec![json!("REQ"), json!("hint")];
        message.extend_from_slice(&filters);
        client.send(&Value::Array(message)).await;
        let eose = client.wait_for(|m| m[0] == "EOSE", "EOSE").await;
        let eose: Value = serde_json::from_str(&eose).unwrap();
        let hint = if finished { json!(["finish"]) } else { Value::Null };
        assert_eq!(eose.get(2).cloned().unwrap_or_default(), hint, "{filters:?}");
        client.forget();
    }
    // Whoever could see more after authenticating was not sent everything.
    client.send(&json!(["REQ", "mixed", {"kinds": [4, 7]}])).await;
    let eose = client.wait_for(|m| m[0] == "EOSE", "EOSE").await;
    assert_eq!(eose, r#"["EOSE","mixed"]"#);
    client.next_challenge().await;
}
