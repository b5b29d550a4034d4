//! What may cross between the gateway and other relays, and what stays where it is: each tried both ways.

use std::time::Duration;

use nostr_gateway_tests::{GatewayBuilder, IndependentRelay, RawClient, events, eventually};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{GATEWAY, alone};

const SOON: Duration = Duration::from_secs(60);

/// What must not cross, with a word for each. `me` is its author.
fn confidential(me: &Keys) -> Vec<(&'static str, Event)> {
    let you = Keys::generate().public_key().to_hex();
    let to: &[&str] = &["p", &you];
    let now = events::now();
    vec![
        ("a direct message", events::event(me, 4, "secret?iv=x", &[to], now)),
        ("a seal", events::event(me, 13, "sealed", &[], now)),
        ("a gift wrap", events::event(me, 1_059, "wrapped", &[to], now)),
        ("remote signing", events::event(me, 24_133, "request", &[to], now)),
        ("HTTP authentication", events::event(me, 27_235, "", &[&["u", "https://x"]], now)),
        ("a protected event", events::event(me, 1, "protected", &[&["-"]], now)),
        ("a request to vanish from one relay", {
            events::event(&Keys::generate(), 62, "", &[&["relay", "wss://relay.example.org"]], now)
        }),
    ]
}

/// Up: none of it leaves the gateway, whether or not the stream names topics. A note does.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_stay_here_does_not_go_up() {
    let _alone = alone().await;
    let (all, of_topic) = (IndependentRelay::start(&[]).await, IndependentRelay::start(&[]).await);
    let up = |name: &str, relay: &IndependentRelay, topics: &str| {
        let url = relay.url();
        format!(
            "[[upstream]]\nname = {name:?}\nurls = [{url:?}]\ndirection = \"up\"\ntopics = {topics}\n"
        )
    };
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .table("[[private_topic]]\nname = \"family\"")
        .table(&up("all", &all, "[]"))
        .table(&up("topic", &of_topic, "[\"town\"]"))
        .start()
        .await;
    let me = Keys::generate();
    let mut client = RawClient::connect(&gateway.url()).await;
    client.authenticate(&me, &gateway.url()).await;
    let mut taken = Vec::new();
    for (what, event) in confidential(&me) {
        // Some are refused by the gateway itself: those cannot leave either.
        if client.publish(&event).await.0 {
            taken.push(what);
        }
    }
    for what in ["a direct message", "a gift wrap", "a protected event"] {
        assert!(taken.contains(&what), "{what} is not held here, so nothing was tried: {taken:?}");
    }
    // What authenticates to a relay is no event to be published.
    let auth = events::auth(&me, "wss://relay.example.org", "challenge");
    client.publish(&auth).await;
    let private = events::note(&me, "for the family");
    RawClient::connect(&gateway.topic_url("family")).await.accept(&private).await;
    let note = events::note(&me, "for all");
    RawClient::connect(&gateway.topic_url("town")).await.accept(&note).await;

    for relay in [&all, &of_topic] {
        let mut there = RawClient::connect(&relay.url()).await;
        eventually("the note on the relay", SOON, async || {
            let stored = there.stored_ids(&[json!({"ids": [note.id.to_hex()]})]).await;
            (!stored.is_empty()).then_some(())
        })
        .await;
        // It was the last one, and the log is sent in its order.
        let stored = there.req("all", &[json!({"limit": 100})]).await;
        assert_eq!(stored.len(), 1, "more than the note left: {stored:?}");
    }
    for name in ["all", "topic"] {
        let stream = gateway.stream(name).await;
        assert_eq!((&stream["sent"], &stream["refused"]), (&json!(1), &json!({})), "{stream}");
    }
}

/// Down: none of it enters a topic. A note does.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_stay_there_does_not_come_down() {
    let _alone = alone().await;
    let me = Keys::generate();
    let auth = events::auth(&me, "wss://relay.example.org", "challenge");
    let expired = events::event(&me, 1, "expired", &[&["expiration", "1600000000"]], 1_599_999_999);
    let note = events::note(&me, "for all");
    let mut all: Vec<Event> = confidential(&me).into_iter().map(|(_, event)| event).collect();
    all.extend([auth, expired, note.clone()]);
    let relay = IndependentRelay::start(&[]).await;
    for event in &all {
        relay.load(event).await;
    }
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .upstream("down", &relay.url(), "town")
        .start()
        .await;
    let url = gateway.topic_url("town");
    eventually("the note here", SOON, async || {
        let mut client = RawClient::connect(&url).await;
        (!client.stored_ids(&[json!({"ids": [note.id.to_hex()]})]).await.is_empty()).then_some(())
    })
    .await;
    // And live.
    let mut there = RawClient::connect(&relay.url()).await;
    for (_, event) in confidential(&me) {
        there.publish(&event).await;
    }
    let last = events::note(&me, "the last one");
    there.accept(&last).await;
    eventually("the last note here", SOON, async || {
        let mut client = RawClient::connect(&url).await;
        (!client.stored_ids(&[json!({"ids": [last.id.to_hex()]})]).await.is_empty()).then_some(())
    })
    .await;
    // Whoever proves to be their author would see the direct messages too.
    let mut client = RawClient::connect(&gateway.url()).await;
    client.authenticate(&me, &gateway.url()).await;
    let stored = client.req("all", &[json!({"limit": 100})]).await;
    let mut ids: Vec<_> = stored.iter().map(|event| event["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, events::ids([&note, &last]), "{stored:?}");
}

/// A private topic may take events from a relay, and gives none.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_topic_takes_and_gives_nothing() {
    let note = events::note(&Keys::generate(), "from outside");
    let relay = IndependentRelay::start(std::slice::from_ref(&note)).await;
    let family = |direction: &str| {
        let url = relay.url();
        format!(
            "[[upstream]]\nname = \"in\"\nurls = [{url:?}]\ndirection = {direction:?}\n\
             topics = [\"family\"]\n"
        )
    };
    let builder = GatewayBuilder::new(GATEWAY, "A").table("[[private_topic]]\nname = \"family\"");
    for direction in ["up", "both"] {
        let refused = builder.clone().table(&family(direction)).command(&["config", "show"]).await;
        refused.refuses(
            2,
            &["upstream[0].topics[0]", "\"family\" is a private topic", "config.toml:"],
        );
    }
    let gateway = builder.table(&family("down")).start().await;
    eventually("the note in the topic", SOON, async || {
        let mut client = RawClient::connect(&gateway.topic_url("family")).await;
        (!client.stored_ids(&[json!({"ids": [note.id.to_hex()]})]).await.is_empty()).then_some(())
    })
    .await;
}
