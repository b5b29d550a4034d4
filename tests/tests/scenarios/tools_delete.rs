//! `scan` and `delete`, with and without a running gateway.

use std::time::Duration;

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, events, eventually,
};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{
    GATEWAY, alone,
    transfer::{file, ids, lines},
};

const SOON: Duration = Duration::from_secs(60);

fn hex(events: &[&Event]) -> Vec<String> {
    events.iter().map(|event| event.id.to_hex()).collect()
}

async fn count(gateway: &Gateway) -> u64 {
    let mut client = RawClient::connect(&gateway.url()).await;
    client.count(&[json!({})]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_shows_the_newest_first_and_says_the_same_both_ways() {
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let start = events::now() - 10_000;
    // More than a page, many of them in one second.
    let notes: Vec<_> = (0..1_300)
        .map(|n| events::event(&alice, 1, &format!("number {n}"), &[], start + n / 700))
        .collect();
    let to_bob = bob.public_key().to_hex();
    let secret = events::event(&alice, 4, "cipher", &[&["p", &to_bob]], start + 50);
    let apple = events::event(&bob, 1, "an apple a day", &[], start + 60);
    let mut all = lines(&notes);
    all.extend(lines(&[secret.clone(), apple.clone()]));
    let (_dir, path) = file(&all);
    let mut gateway = builder.clone().start().await;
    gateway.command(&["import", &path]).await.succeeded();
    eventually("the words are indexed", SOON, async || {
        let found = gateway.command(&["scan", r#"{"search":"apple"}"#]).await;
        (ids(&found.stdout) == hex(&[&apple])).then_some(())
    })
    .await;

    let of_bob = format!(r#"{{"authors":["{to_bob}"]}}"#);
    let questions: [&[&str]; 7] = [
        &["scan", "{}"],
        &["scan", "{}", "--count"],
        &["scan", r#"{"kinds":[1],"limit":3}"#],
        &["scan", r#"{"kinds":[1],"limit":900}"#, "--count", "--json"],
        &["scan", r#"{"kinds":[4]}"#],
        &["scan", &of_bob, "--json"],
        &["scan", r#"{"search":"apple"}"#],
    ];
    let mut online = Vec::new();
    for question in questions {
        let answer = gateway.command(question).await;
        answer.succeeded();
        online.push(answer.stdout);
    }
    let mut expected: Vec<_> = notes.iter().map(|note| (note.created_at, note.id)).collect();
    // NIP-01: ties by the lowest id.
    expected.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut newest_first = hex(&[&apple, &secret]);
    newest_first.extend(expected.iter().map(|(_, id)| id.to_hex()));
    assert_eq!(ids(&online[0]), newest_first, "each once, in order, direct messages too");
    assert_eq!(online[1].trim(), "1302");
    assert_eq!(ids(&online[2])[0], apple.id.to_hex());
    assert_eq!(ids(&online[2]).len(), 3);
    assert_eq!(serde_json::from_str::<Value>(&online[3]).unwrap()["count"], 900);
    assert_eq!(ids(&online[4]), hex(&[&secret]));
    assert_eq!(ids(&online[5]), hex(&[&apple]));
    gateway.command(&["scan", "{\"kinds\":"]).await.refuses(2, &["the filter"]);
    gateway.command(&["scan", "{}", "--topic", "nowhere"]).await.refuses(1, &["nowhere"]);

    gateway.interrupt().await;
    for (question, before) in questions.iter().zip(&online) {
        let answer = builder.command(question).await;
        assert!(answer.stderr.contains("working on its files"), "{answer:?}");
        assert_eq!(&answer.stdout, before, "{question:?}");
    }
    builder.command(&["scan", "{\"kinds\":"]).await.refuses(2, &["the filter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone_until_somebody_means_it() {
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let now = events::now();
    let old = events::event(&alice, 1, "old", &[], now - 3 * 86_400);
    let new = events::event(&alice, 1, "new", &[], now - 60);
    let of_bob: Vec<_> =
        (0..600).map(|n| events::event(&bob, 1, &n.to_string(), &[], now - 1_000 + n)).collect();
    let mut all = lines(&of_bob);
    all.extend(lines(&[old.clone(), new.clone()]));
    let (_dir, path) = file(&all);
    let mut gateway = builder.clone().start().await;
    gateway.command(&["import", &path]).await.succeeded();
    let filter = format!(r#"{{"authors":["{}"]}}"#, bob.public_key().to_hex());

    let counted = gateway.command(&["delete", &filter, "--dry-run", "--json"]).await.json();
    assert_eq!(counted, json!({"matches": 600, "deleted": 0}));
    let unsure = gateway.command(&["delete", &filter]).await;
    unsure.refuses(2, &["600 events match", "--yes"]);
    gateway.command(&["delete"]).await.refuses(2, &["FILTER"]);
    gateway.command(&["delete", "{", "--yes"]).await.refuses(2, &["the filter"]);
    let words = gateway.command(&["delete", r#"{"search":"old"}"#, "--yes"]).await;
    assert_eq!(words.code, Some(2), "{words:?}");
    assert_eq!(count(&gateway).await, 602, "nothing yet");

    let deleted = gateway.command(&["delete", &filter, "--yes"]).await;
    assert_eq!(deleted.stdout, "deleted 600 events\n", "{deleted:?}");
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(client.stored_ids(&[json!({})]).await, hex(&[&new, &old]));
    let aged = gateway.command(&["delete", "--older-than", "2d", "--yes", "--json"]).await.json();
    assert_eq!(aged, json!({"matches": 1, "deleted": 1}));
    // Its author means it.
    client.accept(&of_bob[7]).await;
    assert_eq!(count(&gateway).await, 2);
    let again = gateway.command(&["delete", &filter, "--yes"]).await;
    assert_eq!(again.stdout, "deleted 1 events\n");

    gateway.interrupt().await;
    let deleted = builder.command(&["delete", "{}", "--yes"]).await;
    assert_eq!(deleted.stdout, "deleted 1 events\n", "{deleted:?}");
    assert!(deleted.stderr.contains("working on its files"));
    let back = builder.command(&["import", &path, "--json"]).await.json();
    assert_eq!(back["added"], 602, "whoever imports it means it: {back}");
}

/// A neighbor and a relay that still have it do not bring it back, nor does a restart.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_stays_away_from_neighbors_and_relays() {
    let _alone = alone().await;
    let (keys, start) = (Keys::generate(), events::now() - 500);
    let note = |n: u64| events::event(&keys, 1, &n.to_string(), &[], start + n);
    let all: Vec<_> = (0..40).map(note).collect();
    let mut relay = IndependentRelay::start(&all[..20]).await;
    let a = GatewayBuilder::new(GATEWAY, "A").topics(&["town", "bridged"]);
    let a = a.set("sync", "interval_s", "2").upstream("relay", &relay.url(), "bridged");
    let mut a = a.start().await;
    let peers = format!("[{:?}]", a.as_peer().await);
    let b = GatewayBuilder::new(GATEWAY, "B").topics(&["town"]).set("sync", "interval_s", "2");
    let b = b.set("discovery", "peers", &peers).start().await;
    let mut on_b = RawClient::connect(&b.topic_url("town")).await;
    for event in &all[20..] {
        on_b.accept(event).await;
    }
    eventually("A has everything", SOON, async || (count(&a).await == 40).then_some(())).await;

    let (some, mut kept): (Vec<_>, Vec<_>) = all.iter().partition(|note| {
        let created_at = note.created_at.as_secs() - start;
        created_at % 2 == 0
    });
    let filter = json!({ "ids": hex(&some) }).to_string();
    let deleted = a.command(&["delete", &filter, "--yes"]).await;
    assert_eq!(deleted.stdout, "deleted 20 events\n", "{deleted:?}");

    // Later events show that the relay and the neighbor were at work since.
    let later = [100, 101, 102, 103].map(note);
    for round in 0..2 {
        let [from_b, from_relay] = [&later[2 * round], &later[2 * round + 1]];
        on_b.accept(from_b).await;
        relay.load(from_relay).await;
        kept.extend([from_b, from_relay]);
        if round == 0 {
            relay.restart().await;
        } else {
            a.kill9().await;
            a = a.restart().await;
        }
        let expected = events::ids(kept.iter().copied());
        let held = async || {
            let mut client = RawClient::connect(&a.url()).await;
            let mut held = client.stored_ids(&[json!({"limit": 500})]).await;
            held.sort();
            held
        };
        eventually("what came since is here, and nothing else", SOON, async || {
            (held().await == expected).then_some(())
        })
        .await;
        // Comparisons go on every two seconds.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(held().await, expected, "round {round}");
    }
    assert_eq!(count(&b).await, 22, "others keep what they have");
}
