//! Search (NIP-50) over the socket.

use std::time::{Duration, Instant};

use nostr_gateway_tests::{GatewayBuilder, RawClient, events};
use nostr_sdk::Keys;
use serde_json::{Value, json};

use crate::GATEWAY;

/// The index follows the log: it is asked until it knows, or a moment has passed.
async fn find(client: &mut RawClient, search: &str, count: usize) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let found = client.req("search", &[json!({ "search": search })]).await;
        if found.len() == count {
            return found;
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{search}: {} instead of {count}: {found:?}",
            found.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for the CLOSED of a REQ and returns its reason.
async fn refused(client: &mut RawClient, filter: Value) -> String {
    client.send(&json!(["REQ", "refused", filter])).await;
    let text = client.wait_for(|m| m[0] == "CLOSED" && m[1] == "refused", "CLOSED").await;
    serde_json::from_str::<Value>(&text).unwrap()[2].as_str().unwrap().to_owned()
}

/// NIP-50: results in the order of their quality, extensions ignored; what is deleted or replaced is
/// not found any more; all of it also after a restart and after the index was lost.
#[tokio::test]
async fn notes_are_found_by_their_words() {
    let builder = GatewayBuilder::new(GATEWAY, "search");
    let data_dir = builder.data_dir();
    let mut gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let long = "a long text that mentions zebras only once among many other words ".repeat(4);
    let best = events::note(&keys, "zebras zebras");
    for event in [
        &events::event(&keys, 1, &long, &[], events::now() + 5),
        &best,
        &events::event(&keys, 0, r#"{"name":"Zoë","about":"Stripes"}"#, &[], events::now()),
        &events::event(&keys, 7, "zebras", &[], events::now()),
        &events::event(&keys, 30_023, "Text.", &[&["d", "x"], &["title", "Okapis"]], events::now()),
        &events::event(
            &keys,
            4,
            "zebras in private",
            &[&["p", &keys.public_key().to_hex()]],
            events::now(),
        ),
    ] {
        client.accept(event).await;
    }
    let found = find(&mut client, "ZEBRAS", 2).await;
    assert_eq!(found[0]["id"], best.id.to_hex(), "the best comes first");
    assert_eq!(find(&mut client, "zebras -mentions language:en", 1).await, found[..1]);
    assert_eq!(find(&mut client, r#""mentions zebras""#, 1).await, found[1..]);
    find(&mut client, "zoe stripes", 1).await;
    find(&mut client, "okapis", 1).await;
    find(&mut client, "giraffes", 0).await;
    // The limit counts after ranking, and the other conditions hold.
    let filter =
        json!({"search": "zebras", "limit": 1, "kinds": [1], "authors": [keys.public_key()]});
    assert_eq!(client.req("one", std::slice::from_ref(&filter)).await, found[..1]);
    assert!(client.req("none", &[json!({"search": "zebras", "kinds": [0]})]).await.is_empty());
    // A subscription with words brings nothing live; one with nothing but extensions does.
    client.req("words", &[json!({"search": "zebras"})]).await;
    client.req("all", &[json!({"search": "language:en"})]).await;
    let live = events::note(&keys, "new zebras");
    client.accept(&live).await;
    assert_eq!(client.live("all").await["id"], live.id.to_hex());
    client.send(&json!(["CLOSE", "all"])).await;
    client.expect_silence().await;

    let deletion = events::event(&keys, 5, "", &[&["e", &live.id.to_hex()]], events::now());
    let profile = events::event(&keys, 0, r#"{"name":"Ann"}"#, &[], events::now() + 9);
    client.accept(&deletion).await;
    client.accept(&profile).await;
    assert!(find(&mut client, "new zebras", 0).await.is_empty());
    find(&mut client, "zoe", 0).await;
    find(&mut client, "ann", 1).await;

    gateway.interrupt().await;
    let mut gateway = gateway.restart().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    find(&mut client, "zebras", 2).await;
    gateway.interrupt().await;
    std::fs::remove_file(data_dir.join("search.db")).unwrap();
    let gateway = gateway.restart().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    find(&mut client, "zebras", 2).await;
    find(&mut client, "ann", 1).await;
}

#[tokio::test]
async fn what_cannot_be_answered_is_closed_with_the_reason() {
    let gateway = GatewayBuilder::new(GATEWAY, "refusals").start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    for bad in ["x".repeat(257), "a ".repeat(17), "-only -without".to_owned()] {
        let reason = refused(&mut client, json!({ "search": bad })).await;
        assert!(reason.starts_with("invalid: "), "{reason}");
    }
    for odd in ["\"", "NEAR(", "a AND", "* ^ {x}:", "💥", "'; DROP TABLE parts"] {
        client.req("odd", &[json!({ "search": odd })]).await;
    }

    let off = GatewayBuilder::new(GATEWAY, "off").set("storage", "search", "false");
    let data_dir = off.data_dir();
    let off = off.start().await;
    let mut client = RawClient::connect(&off.url()).await;
    let reason = refused(&mut client, json!({"search": "words"})).await;
    assert!(reason.starts_with("unsupported: "), "{reason}");
    client.req("extensions", &[json!({"search": "language:en"})]).await;
    assert!(!data_dir.join("search.db").exists());
}

/// The index is never more than a second behind; a debug build on a busy machine gets five.
#[tokio::test]
async fn a_burst_is_searchable_at_once() {
    let _alone = crate::alone().await;
    const COUNT: usize = 3_000;
    let gateway = GatewayBuilder::new(GATEWAY, "burst").start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let notes: Vec<_> =
        (0..COUNT).map(|n| events::note(&keys, &format!("burst of words, number{n}"))).collect();
    for note in &notes {
        client.send_event(note).await;
    }
    assert!(client.ok(&notes[COUNT - 1].id.to_hex()).await.0);
    let committed = Instant::now();
    find(&mut client, &format!("number{}", COUNT - 1), 1).await;
    assert!(committed.elapsed() < Duration::from_secs(5), "{:?}", committed.elapsed());
    find(&mut client, "burst number0", 1).await;
}
