//! What is removed by rules and by expiry, seen from outside and in the file.

use std::time::Duration;

use nostr_gateway_tests::{GatewayBuilder, RawClient, events};
use nostr_sdk::Keys;
use serde_json::json;

use crate::GATEWAY;

/// Upkeep works every few seconds.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn rules_remove_the_oldest_and_refuse_them_when_they_come_back() {
    let gateway = GatewayBuilder::new(GATEWAY, "rules")
        .topics(&["cats"])
        .table("[[retention]]\nkinds = [7]\nmax_age_s = 3600")
        .table("[[retention]]\ntopic = \"cats\"\nmax_events = 3")
        .start()
        .await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let now = events::now();
    // By age: at the door.
    client.refuse(&events::event(&keys, 7, "+", &[], now - 4_000), "restricted").await;
    client.accept(&events::event(&keys, 7, "+", &[], now - 3_000)).await;
    client.accept(&events::event(&keys, 1, "old", &[], now - 4_000)).await;

    // By number, in one topic.
    let mut cats = RawClient::connect(&gateway.topic_url("cats")).await;
    let notes: Vec<_> =
        (0..6).map(|n| events::event(&keys, 1, "cat", &[], now - 1_000 + n)).collect();
    for note in &notes {
        cats.accept(note).await;
    }
    gateway.wait_for_metric("nostr_gateway_evicted_total", 3, SOON).await;
    let newest: Vec<_> = notes[3..].iter().rev().map(|note| note.id.to_hex()).collect();
    assert_eq!(cats.stored_ids(&[json!({})]).await, newest);
    cats.refuse(&notes[0], "restricted").await;
    assert_eq!(client.stored_ids(&[json!({"kinds": [1]})]).await.len(), 4);
}

/// NIP-40: "Relays MAY delete expired messages": here they leave the file.
#[tokio::test]
async fn expired_events_are_removed_from_the_file() {
    let gateway = GatewayBuilder::new(GATEWAY, "expiry").start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let soon = (events::now() + 2).to_string();
    client
        .accept(&events::event(&keys, 1, "brief", &[&["expiration", &soon]], events::now()))
        .await;
    client.accept(&events::note(&keys, "lasting")).await;
    gateway.wait_for_metric("nostr_gateway_evicted_total", 1, SOON).await;
    assert_eq!(client.stored_ids(&[json!({})]).await.len(), 1);
}
