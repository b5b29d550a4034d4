//! Clients that send nonsense get the right answer and keep their connection.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, Testnet, events};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    Bytes, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{DHT_TESTNET, GATEWAY, alone};

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "bad input")
        .topics(&["town"])
        .set("relay", "max_message_bytes", "100000")
        .set("limits", "max_event_bytes", "90000")
        .start()
        .await
}

async fn still_works(client: &mut RawClient) {
    let event = events::note(&Keys::generate(), "still here");
    client.accept(&event).await;
    let stored = client.stored_ids(&[json!({"ids": [event.id.to_hex()]})]).await;
    assert_eq!(stored, [event.id.to_hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_get_a_notice() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let long_verb = format!(r#"["{}"]"#, "V".repeat(10_000));
    let deep = "[".repeat(50_000);
    let bad = [
        "",
        " ",
        "hello",
        "{}",
        "[]",
        "[1,2]",
        "null",
        r#"["EVENT""#,
        r#"["EVENT"]"#,
        r#"["EVENT",1]"#,
        r#"["EVENT",{}]"#,
        r#"["EVENT",{"id":"zz"}]"#,
        r#"["EVENT",{},{}]"#,
        r#"["REQ"]"#,
        r#"["REQ",1,{}]"#,
        r#"["REQ","",{}]"#,
        r#"["CLOSE"]"#,
        r#"["CLOSE",7]"#,
        r#"["PUBLISH",{}]"#,
        r#"["req","lower case",{}]"#,
        "[\"REQ\",\"half a surrogate \\ud800\",{}]",
        long_verb.as_str(),
        deep.as_str(),
    ];
    for text in bad {
        client.send_text(text).await;
        let answer = client.next().await;
        assert_eq!(answer[0], "NOTICE", "{text:.80}: {answer}");
        let notice = answer[1].as_str().unwrap();
        assert!(!notice.is_empty() && notice.len() < 500, "{text:.80}: {notice}");
    }
    still_works(&mut client).await;

    client.send_frame(Message::Binary(Bytes::from_static(b"[\"REQ\",\"binary\",{}]"))).await;
    assert_eq!(client.next().await[0], "NOTICE");
    client.send_frame(Message::Ping(Bytes::from_static(b"are you there"))).await;
    still_works(&mut client).await;

    let counted = gateway.metric("nostr_gateway_client_messages_malformed_total").await;
    assert!(counted > bad.len() as u64, "only {counted} of {} were counted", bad.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_closed() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let too_many = vec![json!({}); 51];
    let id = "0".repeat(63);
    for (filters, prefix) in [
        (vec![], "invalid"),
        (vec![json!(1)], "invalid"),
        (vec![json!({"kinds": 1})], "invalid"),
        (vec![json!({"kinds": [-1]})], "invalid"),
        (vec![json!({"ids": [id]})], "invalid"),
        (vec![json!({"ids": ["Z".repeat(64)]})], "invalid"),
        (vec![json!({"authors": [1]})], "invalid"),
        (vec![json!({"since": "yesterday"})], "invalid"),
        (vec![json!({"limit": -1})], "invalid"),
        (vec![json!({"#e": "not a list"})], "invalid"),
        (vec![json!({"kinds": [1]}), json!({"kinds": "1"})], "invalid"),
        (vec![json!({"search": 1})], "invalid"),
        (vec![json!({"#emoji": ["x"]})], "unsupported"),
        (too_many, "invalid"),
    ] {
        let mut message = vec![json!("REQ"), json!("bad")];
        message.extend(filters.clone());
        client.send(&Value::Array(message)).await;
        let answer = client.next().await;
        assert_eq!(answer[0], "CLOSED", "{filters:?}: {answer}");
        assert_eq!(answer[1], "bad");
        let reason = answer[2].as_str().unwrap();
        assert!(reason.starts_with(&format!("{prefix}: ")), "{filters:?}: {reason}");
    }
    client.send_text(r#"["REQ","bad",{"kinds":[1],"kinds":[2]}]"#).await;
    assert_eq!(client.next().await[0], "CLOSED");
    // A kind that no event can have is no mistake: nothing matches it.
    assert!(client.stored_ids(&[json!({"kinds": [65_536]})]).await.is_empty());
    still_works(&mut client).await;

    // One subscription too many is closed; the others go on.
    for n in 0..100 {
        client.req(&format!("open {n}"), &[json!({"kinds": [7]})]).await;
    }
    client.send(&json!(["REQ", "one too many", {"kinds": [7]}])).await;
    let answer = client.next().await;
    assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("one too many")));
    let event = events::event(&Keys::generate(), 7, "+", &[], events::now());
    client.accept(&event).await;
    for n in 0..100 {
        assert_eq!(client.live(&format!("open {n}")).await["id"], event.id.to_hex());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_events_are_refused() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let good = events::event(&Keys::generate(), 1, "good", &[&["t", "x"]], events::now());
    let other = events::note(&Keys::generate(), "other");
    let spoil = |field: &str, value: Value| {
        let mut event = events::value(&good);
        event[field] = value;
        event
    };
    let without = |field: &str| {
        let mut event = events::value(&good);
        event.as_object_mut().unwrap().remove(field);
        event
    };
    let other = events::value(&other);
    let mut bad = vec![
        // Well-formed, but not what was signed.
        spoil("content", json!("better")),
        spoil("created_at", json!(good.created_at.as_secs() - 1)),
        spoil("kind", json!(2)),
        spoil("tags", json!([])),
        spoil("sig", json!("0".repeat(128))),
        spoil("sig", other["sig"].clone()),
        spoil("pubkey", other["pubkey"].clone()),
        spoil("pubkey", json!("f".repeat(64))),
        spoil("id", json!("0".repeat(64))),
        spoil("id", other["id"].clone()),
        // Not well-formed.
        spoil("created_at", json!(1.5)),
        spoil("created_at", json!("1")),
        spoil("created_at", json!(-1)),
        spoil("created_at", json!(u64::MAX)),
        spoil("kind", json!(65_536)),
        spoil("kind", json!("1")),
        spoil("tags", json!([[1]])),
        spoil("tags", json!(["t"])),
        spoil("tags", json!([["t", null]])),
        spoil("tags", json!({})),
        spoil("content", json!(null)),
        spoil("sig", json!("abc")),
        spoil("sig", json!(good.sig.to_string().to_uppercase())),
        spoil("pubkey", json!("abc")),
    ];
    bad.extend(["pubkey", "created_at", "kind", "tags", "content", "sig"].map(without));
    for event in &bad {
        client.send(&json!(["EVENT", event])).await;
        let (accepted, message) = client.ok(event["id"].as_str().unwrap()).await;
        assert!(!accepted && message.starts_with("invalid: "), "{event}: {message}");
    }

    // The same key twice: parsers differ in which one they take, so nobody can know what was meant.
    let text = events::json(&good);
    for twice in [
        text.replace(r#""kind":1"#, r#""kind":2,"kind":1"#),
        text.replace(r#""kind":1"#, r#""kind":1,"kind":1"#),
        text.replace(r#""kind":1"#, r#""kind":1,"note":1,"note":2"#),
        text.replace(r#""kind":1"#, r#""kind":1,"k\u0069nd":1"#),
    ] {
        client.send_text(&format!(r#"["EVENT",{twice}]"#)).await;
        let (accepted, message) = client.ok(&good.id.to_hex()).await;
        assert!(!accepted && message.starts_with("invalid: "), "{twice}: {message}");
    }

    // Out of the bounds.
    let keys = Keys::generate();
    let now = events::now();
    let expired = (now - 5).to_string();
    for event in [
        events::event(&keys, 1, "from the future", &[], now + 1_000),
        events::event(&keys, 1, "expired", &[&["expiration", &expired]], now - 10),
        events::event(&keys, 22_242, "", &[&["challenge", "x"]], now),
        events::event(&keys, 27_235, "", &[&["u", "https://example.org"]], now),
    ] {
        client.refuse(&event, "invalid").await;
    }

    // None of the forgeries stands in the way of the real one, and nothing else was stored.
    client.accept(&good).await;
    assert_eq!(client.stored_ids(&[json!({})]).await, [good.id.to_hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_over_long_message_ends_only_its_connection() {
    let gateway = gateway().await;
    let mut other = RawClient::connect(&gateway.url()).await;
    let mut client = RawClient::connect(&gateway.url()).await;
    // Just within the limits, and between them.
    client.accept(&events::note(&Keys::generate(), &"x".repeat(89_000))).await;
    client.refuse(&events::note(&Keys::generate(), &"x".repeat(95_000)), "invalid").await;
    client.send_text(&format!(r#"["REQ","{}",{{}}]"#, "x".repeat(200_000))).await;
    // RFC 6455 §7.4.1: message too big.
    assert_eq!(client.closed().await, Some(1009));
    still_works(&mut other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_enter_a_public_topic_never_does() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let start = |name| GatewayBuilder::new(GATEWAY, name).dht(&testnet).topics(&["town"]).start();
    let (a, b) = tokio::join!(start("A"), start("B"));
    a.wait_for_neighbors("town", 1, Duration::from_secs(60)).await;
    let mut at_b = RawClient::connect(&b.url()).await;
    assert!(at_b.req("live", &[json!({})]).await.is_empty());

    let keys = Keys::generate();
    let party = keys.public_key().to_hex();
    // The tag names the topic: what is published on / must not get there by it either.
    let tags: [&[&str]; 2] = [&["p", &party], &["t", "town"]];
    let confidential: Vec<Event> = [4, 13, 1059, 21_059, 24_133]
        .map(|kind| events::event(&keys, kind, "secret", &tags, events::now()))
        .into();
    let protected = events::event(&keys, 1, "mine", &[&["-"], &["t", "town"]], events::now());
    let auth = events::event(&keys, 22_242, "", &[&["t", "town"]], events::now());

    let mut in_topic = RawClient::connect(&a.topic_url("town")).await;
    let mut on_root = RawClient::connect(&a.url()).await;
    for event in &confidential {
        in_topic.refuse(event, "restricted").await;
        // Stored for its parties or refused: either way it stays here.
        on_root.publish(event).await;
    }
    for client in [&mut in_topic, &mut on_root] {
        client.refuse(&protected, "auth-required").await;
        client.refuse(&auth, "invalid").await;
    }
    // Whoever did not prove to be a party of these reads none.
    let kinds = json!({"kinds": [4, 1059, 21_059]});
    let refused = on_root.refused_req("dms", &[kinds]).await;
    assert!(refused.starts_with("auth-required: "), "{refused}");
    assert!(in_topic.stored_ids(&[json!({})]).await.is_empty());

    // An event that came after them is at B; none of them is.
    let marker = events::event(&keys, 1, "public", &[&["t", "town"]], events::now());
    on_root.accept(&marker).await;
    assert_eq!(at_b.live("live").await["id"], marker.id.to_hex());
    at_b.expect_silence().await;
    assert_eq!(at_b.stored_ids(&[json!({})]).await, [marker.id.to_hex()]);
    let confidential_at_b = b.metric(r#"nostr_gateway_events_total{outcome="refused""#).await;
    assert_eq!(confidential_at_b, 0, "B was sent something that it had to refuse");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_learns_why_it_is_closed_while_it_is_still_sending() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    // Far more than the buffers of the sockets hold.
    client.try_send_text(&format!(r#"["REQ","{}",{{}}]"#, "x".repeat(6_000_000))).await;
    assert_eq!(client.closed().await, Some(1009));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_answered_with_a_close() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    still_works(&mut client).await;
    // RFC 6455 §5.5.1.
    let frame = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    client.send_frame(Message::Close(Some(frame))).await;
    assert_eq!(client.closed().await, Some(1000));
    let malformed = gateway.metric(r#"nostr_gateway_client_messages_malformed_total"#).await;
    assert_eq!(malformed, 0, "leaving is no fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_filters_name_is_bounded() {
    let gateway = GatewayBuilder::new(GATEWAY, "filters").topics(&["town"]).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let values: Vec<String> = (0..15_000).map(|n| n.to_string()).collect();
    assert!(client.req("a", &[json!({"#t": values})]).await.is_empty());
    client.send(&json!(["REQ", "b", {"#t": values}])).await;
    let closed = client.next().await;
    assert_eq!((&closed[0], &closed[1]), (&json!("CLOSED"), &json!("b")), "{closed}");
    assert!(closed[2].as_str().unwrap().starts_with("rate-limited: "), "{closed}");
    still_works(&mut client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reposts_of_protected_events_are_refused() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let protected = events::event(&keys, 1, "mine", &[&["-"]], events::now());
    let repost = events::event(&keys, 6, &events::json(&protected), &[], events::now());
    client.refuse(&repost, "restricted").await;
    let open = events::note(&keys, "anybody's");
    client.accept(&events::event(&keys, 6, &events::json(&open), &[], events::now())).await;
}
