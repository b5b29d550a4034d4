//! NIP-09, deletion, and NIP-62, the right to vanish: at once, for good, and by every way in.

use std::time::Duration;

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, Testnet, events, eventually,
};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{DHT_TESTNET, GATEWAY, alone};

const SOON: Duration = Duration::from_secs(30);

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "deletion").topics(&["town"]).start().await
}

fn deletion(keys: &Keys, tags: &[[&str; 2]]) -> Event {
    let tags: Vec<&[&str]> = tags.iter().map(<[_; 2]>::as_slice).collect();
    events::event(keys, 5, "", &tags, events::now())
}

fn deletion_of(keys: &Keys, event: &Event) -> Event {
    deletion(keys, &[["e", &event.id.to_hex()]])
}

async fn holds(client: &mut RawClient, event: &Event) -> bool {
    !client.stored_ids(&[json!({"ids": [event.id.to_hex()]})]).await.is_empty()
}

/// Two gateways that met in the topic `town`.
async fn two() -> (Testnet, Gateway, Gateway) {
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let start = |name| GatewayBuilder::new(GATEWAY, name).dht(&testnet).topics(&["town"]).start();
    let (a, b) = tokio::join!(start("A"), start("B"));
    for gateway in [&a, &b] {
        gateway.wait_for_neighbors("town", 1, Duration::from_secs(60)).await;
    }
    (testnet, a, b)
}

async fn arrives(client: &mut RawClient, event: &Event) {
    eventually("the event arrives", SOON, async || holds(client, event).await.then_some(())).await;
}

async fn goes(client: &mut RawClient, event: &Event) {
    eventually("the event goes", SOON, async || (!holds(client, event).await).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authors_delete_their_own_events_and_no_others() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let (alice, eve) = (Keys::generate(), Keys::generate());
    let (note, kept) = (events::note(&alice, "regretted"), events::note(&alice, "kept"));
    client.accept(&note).await;
    client.accept(&kept).await;
    // NIP-09: only by the same pubkey.
    client.accept(&deletion_of(&eve, &note)).await;
    assert!(holds(&mut client, &note).await);
    let request = deletion_of(&alice, &note);
    client.accept(&request).await;
    assert!(!holds(&mut client, &note).await);
    assert!(holds(&mut client, &kept).await);
    // The request is shown on; the event does not come back.
    assert!(holds(&mut client, &request).await);
    client.refuse(&note, "blocked").await;
    // NIP-09 "Deletion Request of a Deletion Request": no effect.
    client.accept(&deletion_of(&alice, &request)).await;
    assert!(holds(&mut client, &request).await);
    client.refuse(&note, "blocked").await;
    assert_eq!(
        client.count(&[json!({"authors": [alice.public_key().to_hex()], "kinds": [1]})]).await,
        1
    );

    // Before the event arrives: by its author alone.
    let late = events::note(&alice, "not yet here");
    client.accept(&deletion_of(&eve, &late)).await;
    client.accept(&late).await;
    let later = events::note(&alice, "not yet here either");
    client.accept(&deletion_of(&alice, &later)).await;
    client.refuse(&later, "blocked").await;
    assert!(!holds(&mut client, &later).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_deleted_up_to_the_time_of_the_request() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let (alice, eve) = (Keys::generate(), Keys::generate());
    let now = events::now();
    let article = |d: &str, at| events::event(&alice, 30_023, "text", &[&["d", d]], at);
    let (old, older, other) =
        (article("a:b", now - 20), article("a:b", now - 30), article("b", now - 20));
    let list = events::event(&alice, 10_002, "", &[], now - 20);
    for event in [&old, &other, &list] {
        client.accept(event).await;
    }
    let hex = alice.public_key().to_hex();
    let (article_address, list_address) = (format!("30023:{hex}:a:b"), format!("10002:{hex}:"));
    // NIP-09: not those of others.
    client.accept(&deletion(&eve, &[["a", &article_address], ["a", &list_address]])).await;
    assert!(holds(&mut client, &old).await && holds(&mut client, &list).await);
    let at = now - 10;
    let tags: [&[&str]; 2] = [&["a", &article_address], &["a", &list_address]];
    client.accept(&events::event(&alice, 5, "", &tags, at)).await;
    assert!(!holds(&mut client, &old).await && !holds(&mut client, &list).await);
    assert!(holds(&mut client, &other).await);
    // "all versions … up to the created_at timestamp of the deletion request".
    for gone in [&old, &older, &list, &article("a:b", at)] {
        client.refuse(gone, "blocked").await;
    }
    let newer = article("a:b", at + 1);
    client.accept(&newer).await;
    assert!(holds(&mut client, &newer).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_travels_and_holds_against_gossip() {
    let _alone = alone().await;
    let (_testnet, a, b) = two().await;
    let mut at_a = RawClient::connect(&a.topic_url("town")).await;
    let mut at_b = RawClient::connect(&b.topic_url("town")).await;
    let (alice, eve) = (Keys::generate(), Keys::generate());
    let (note, kept) = (events::note(&alice, "regretted"), events::note(&alice, "kept"));
    at_a.accept(&note).await;
    at_a.accept(&kept).await;
    arrives(&mut at_b, &note).await;
    arrives(&mut at_b, &kept).await;
    at_b.accept(&deletion_of(&eve, &kept)).await;
    // Published on the root of the other one: it goes where the event is.
    let request = deletion_of(&alice, &note);
    RawClient::connect(&b.url()).await.accept(&request).await;
    goes(&mut at_a, &note).await;
    at_a.refuse(&note, "blocked").await;
    at_b.refuse(&note, "blocked").await;
    assert!(holds(&mut at_a, &request).await);
    // Whatever B said before has arrived by now.
    assert!(holds(&mut at_a, &kept).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_holds_against_an_upstream_relay() {
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let (note, unseen) = (events::note(&alice, "regretted"), events::note(&alice, "not seen yet"));
    let mut relay = IndependentRelay::start(std::slice::from_ref(&note)).await;
    let gateway = GatewayBuilder::new(GATEWAY, "deletion")
        .topics(&["town"])
        .upstream("elsewhere", &relay.url(), "town")
        .start()
        .await;
    let mut client = RawClient::connect(&gateway.url()).await;
    arrives(&mut client, &note).await;
    client.accept(&deletion_of(&alice, &note)).await;
    client.accept(&deletion_of(&alice, &unseen)).await;
    let vanished = events::note(&bob, "from another time");
    let vanish = events::event(&bob, 62, "", &[&["relay", &gateway.url()]], events::now());
    client.accept(&vanish).await;
    assert!(!holds(&mut client, &note).await);
    // It comes again, with everything that the relay has.
    relay.stop();
    let marker = events::note(&Keys::generate(), "after");
    for event in [&unseen, &vanished, &marker] {
        relay.load(event).await;
    }
    relay.restart().await;
    arrives(&mut client, &marker).await;
    let refused = r#"nostr_gateway_events_total{origin="upstream",outcome="refused""#;
    gateway.wait_for_metric(refused, 3, SOON).await;
    for event in [&note, &unseen, &vanished] {
        assert!(!holds(&mut client, event).await);
    }
}

/// NIP-62: a request to one relay stays where it was made; one to all relays is carried out wherever it
/// comes from.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_relay_brings_requests_to_all_relays_alone() {
    const URL: &str = "wss://relay.example.org";
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let now = events::now();
    let note = |keys: &Keys, ago| events::event(keys, 1, "from before", &[], now - ago);
    let (of_alice, of_bob) = (note(&alice, 50), note(&bob, 50));
    let mut relay = IndependentRelay::start(&[of_alice.clone(), of_bob.clone()]).await;
    let gateway = GatewayBuilder::new(GATEWAY, "vanishing")
        .topics(&["town"])
        .set("relay", "url", &format!("{URL:?}"))
        .upstream("elsewhere", &relay.url(), "town")
        .start()
        .await;
    let mut client = RawClient::connect(&gateway.url()).await;
    arrives(&mut client, &of_alice).await;
    arrives(&mut client, &of_bob).await;

    let vanish = |keys: &Keys, url: &str| events::event(keys, 62, "", &[&["relay", url]], now - 10);
    let (here, local) = (vanish(&bob, URL), vanish(&bob, &gateway.url()));
    let all = vanish(&alice, "ALL_RELAYS");
    let (unseen, marker) = (note(&alice, 20), note(&bob, 1));
    relay.stop();
    for event in [&here, &local, &all] {
        relay.load(event).await;
    }
    relay.restart().await;
    goes(&mut client, &of_alice).await;
    arrives(&mut client, &all).await;
    // What it brings of her afterwards is refused.
    relay.stop();
    for event in [&of_alice, &unseen, &marker] {
        relay.load(event).await;
    }
    relay.restart().await;
    arrives(&mut client, &marker).await;
    let refused = r#"nostr_gateway_events_total{origin="upstream",outcome="refused""#;
    gateway.wait_for_metric(refused, 3, SOON).await;
    for event in [&of_alice, &unseen, &here, &local] {
        assert!(!holds(&mut client, event).await, "kind {}", event.kind);
    }
    assert!(holds(&mut client, &of_bob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_vanishes_is_gone_up_to_then() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let now = events::now();
    let hex = alice.public_key().to_hex();
    let at = |kind, at, tags: &[&[&str]]| events::event(&alice, kind, "", tags, at);
    let (note, profile) = (at(1, now - 50, &[]), at(0, now - 40, &[]));
    let request = at(5, now - 30, &[&["e", &"0".repeat(64)]]);
    let newer = at(1, now - 5, &[]);
    let of_bob = events::event(&bob, 1, "about alice", &[&["p", &hex]], now - 60);
    let wrap = events::event(&bob, 1_059, "", &[&["p", &hex]], now - 60);
    for event in [&note, &profile, &request, &newer, &of_bob, &wrap] {
        client.accept(event).await;
    }
    let vanish = |urls: &[&str]| {
        let tags: Vec<[&str; 2]> = urls.iter().map(|url| ["relay", url]).collect();
        let tags: Vec<&[&str]> = tags.iter().map(<[_; 2]>::as_slice).collect();
        at(62, now - 10, &tags)
    };
    // NIP-62: only when this relay is meant; at least one relay must be named.
    for wrong in [&["wss://relay.example.org"][..], &["all_relays"], &[]] {
        client.refuse(&vanish(wrong), "invalid").await;
    }
    assert!(holds(&mut client, &note).await);
    client.accept(&vanish(&["wss://relay.example.org", &gateway.url()])).await;
    // NIP-62: everything up to the timestamp, deletion requests too, and what was sent to it (NIP-59).
    for gone in [&note, &profile, &request] {
        assert!(!holds(&mut client, gone).await, "kind {}", gone.kind);
        client.refuse(gone, "blocked").await;
    }
    client.refuse(&at(1, now - 10, &[]), "blocked").await;
    for kept in [&newer, &of_bob] {
        assert!(holds(&mut client, kept).await);
    }
    client.accept(&at(1, now - 9, &[&["t", "new"]])).await;
    client.authenticate(&alice, &gateway.url()).await;
    assert!(client.stored_ids(&[json!({"kinds": [1_059]})]).await.is_empty());
    // Nor does that come back, and what was not here yet does not come.
    client.refuse(&wrap, "blocked").await;
    let unseen = events::event(&bob, 1_059, "", &[&["p", &hex]], now - 10);
    client.refuse(&unseen, "blocked").await;
    let later = events::event(&bob, 1_059, "", &[&["p", &hex]], now - 9);
    client.accept(&later).await;
    assert_eq!(client.stored_ids(&[json!({"kinds": [1_059]})]).await, [later.id.to_hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_request_to_all_relays_travels() {
    let _alone = alone().await;
    let (_testnet, a, b) = two().await;
    let mut at_a = RawClient::connect(&a.topic_url("town")).await;
    let mut at_b = RawClient::connect(&b.topic_url("town")).await;
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let now = events::now();
    let note = |keys: &Keys| events::event(keys, 1, "from before", &[], now - 20);
    let (of_alice, of_bob) = (note(&alice), note(&bob));
    for event in [&of_alice, &of_bob] {
        at_a.accept(event).await;
        arrives(&mut at_b, event).await;
    }
    let mut root_a = RawClient::connect(&a.url()).await;
    // Bob leaves A. All gateways share the loopback URLs, so this one stays there.
    let leaves = events::event(&bob, 62, "", &[&["relay", &a.url()]], now - 10);
    root_a.accept(&leaves).await;
    assert!(!holds(&mut root_a, &of_bob).await);
    // Alice leaves all.
    let vanishes = events::event(&alice, 62, "", &[&["relay", "ALL_RELAYS"]], now - 10);
    root_a.accept(&vanishes).await;
    goes(&mut at_b, &of_alice).await;
    assert!(holds(&mut at_b, &of_bob).await, "it left A alone");
    assert!(!holds(&mut at_b, &leaves).await);

    // Nothing comes back, neither from a client nor from the other gateway.
    for client in [&mut at_a, &mut at_b, &mut root_a] {
        client.refuse(&of_alice, "blocked").await;
    }
    at_a.refuse(&of_bob, "blocked").await;
    let unseen = events::event(&bob, 1, "B may have it", &[], now - 15);
    at_b.accept(&unseen).await;
    let marker = events::event(&bob, 1, "a new life", &[], now);
    at_b.accept(&marker).await;
    arrives(&mut at_a, &marker).await;
    assert!(!holds(&mut at_a, &unseen).await);
    let again = events::event(&alice, 1, "back again", &[], now);
    at_b.accept(&again).await;
    arrives(&mut at_a, &again).await;
}
