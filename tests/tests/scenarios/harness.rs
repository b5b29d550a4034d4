//! The parts around the gateway, without it: when one of these fails, the tests are at fault.

use std::time::Duration;

use mainline::{Dht, MutableItem, SigningKey};
use nostr_gateway_tests::{
    IndependentRelay, Network, RawClient, Testnet, events, http, sdk_client,
};
use nostr_sdk::{Filter, Keys};
use serde_json::json;

use crate::{DHT_TESTNET, namespaces};

#[test]
fn the_assortment_is_what_relays_hold() {
    let events = events::assortment(200);
    let sizes: Vec<usize> = events.iter().map(|event| events::json(event).len()).collect();
    assert!(sizes.iter().filter(|size| **size > 4_096).count() > 40);
    assert!(*sizes.iter().max().unwrap() > 50_000);
    assert!(sizes.iter().filter(|size| **size < 1_000).count() > 80);
    let mut kinds: Vec<u16> = events.iter().map(|event| event.kind.as_u16()).collect();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, [0, 1, 3, 7, 10_002, 30_023]);
    assert!(events.iter().all(|event| event.verify().is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_independent_relay_serves_both_clients_and_restarts() {
    let loaded = events::assortment(20);
    let mut relay = IndependentRelay::start(&loaded).await;
    let mut raw = RawClient::connect(&relay.url()).await;
    let mut ids = raw.stored_ids(&[json!({"limit": 100})]).await;
    ids.sort();
    assert_eq!(ids, events::ids(&loaded));

    let note = events::note(&Keys::generate(), "one more");
    raw.accept(&note).await;
    relay.stop();
    raw.closed().await;
    relay.restart().await;

    let sdk = sdk_client(&relay.url()).await;
    let all = sdk.fetch_events(Filter::new(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(all.len(), 21);
    assert!(all.iter().any(|event| event.id == note.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_dht_keeps_records() {
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let client = || Dht::builder().bootstrap(&testnet.bootstrap).build().unwrap().as_async();
    // From nothing to the most that a record may have.
    for (n, value) in [&b""[..], b"hello", &[0xff; 999]].into_iter().enumerate() {
        let key = SigningKey::from_bytes(&[n as u8; 32]);
        let item = MutableItem::new(key.clone(), value, 1, None);
        client().put_mutable(item, None).await.unwrap();
        let found = client().get_mutable_most_recent(key.verifying_key().as_bytes(), None).await;
        assert_eq!(found.unwrap().value(), value);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_pkarr_relay_configuration_works() {
    let scenario = "the_shipped_pkarr_relay_configuration_works";
    let Some(network) = Network::available(scenario) else { return };
    let dht = network.add("dht", 2, 2);
    let _testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let pkarr = network.add("pkarr", 3, 2);
    let cache = tempfile::tempdir().unwrap();
    let _relay = namespaces::start_pkarr_relay(&pkarr, cache.path()).await;
    let unknown = iroh::SecretKey::generate().public().to_z32();
    let answer = http::get(&format!("{}:8080", pkarr.address()), &format!("/{unknown}")).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(cache.path().join("pkarr-cache").is_dir());
}
