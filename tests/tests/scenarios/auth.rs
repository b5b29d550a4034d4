//! NIP-42, authentication, and NIP-70, protected events.

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::GATEWAY;

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "auth").topics(&["town"]).start().await
}

fn letter(from: &Keys, to: &Keys, content: &str) -> Event {
    events::event(from, 4, content, &[&["p", &to.public_key().to_hex()]], events::now())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_challenge_comes_before_the_refusal_that_needs_it() {
    let gateway = gateway().await;
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let mut client = RawClient::connect(&gateway.url()).await;
    // NIP-42 "Protocol flow": nothing that needs no key asks for one.
    let dm = letter(&alice, &bob, "hello");
    client.accept(&dm).await;
    assert!(client.req("all", &[json!({})]).await.is_empty());
    client.expect_silence().await;

    client.send(&json!(["REQ", "dms", {"kinds": [4]}])).await;
    let challenge = client.next().await;
    assert_eq!(challenge[0], "AUTH");
    let challenge = challenge[1].as_str().unwrap().to_owned();
    assert!(challenge.len() >= 32, "{challenge}");
    let closed = client.next().await;
    assert_eq!((&closed[0], &closed[1]), (&json!("CLOSED"), &json!("dms")));
    assert!(closed[2].as_str().unwrap().starts_with("auth-required: "), "{closed}");
    // It is sent once: it is valid as long as the connection.
    let again = client.refused_req("dms", &[json!({"kinds": [4]})]).await;
    assert!(again.starts_with("auth-required: "), "{again}");
    client.expect_silence().await;

    client.authenticate_with(&bob, &gateway.url(), &challenge).await;
    assert_eq!(client.req("dms", &[json!({"kinds": [4]})]).await, [events::value(&dm)]);
    // The open subscription of before sees from now on what the key may see (NIP-42: "the
    // authenticated session is valid afterwards").
    let next = letter(&alice, &bob, "are you there");
    client.accept(&next).await;
    for subscription in ["all", "dms"] {
        assert_eq!(client.live(subscription).await["id"], next.id.to_hex());
    }
    // Each connection has a challenge of its own.
    let mut other = RawClient::connect(&gateway.url()).await;
    assert_ne!(other.challenge().await, challenge);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_authentication_says_what_is_wrong() {
    let gateway = gateway().await;
    let (url, keys, now) = (gateway.url(), Keys::generate(), events::now());
    let mut client = RawClient::connect(&url).await;

    // Without a challenge there is nothing to answer; the client gets one then.
    let (accepted, message) = client.send_auth(&events::auth(&keys, &url, "")).await;
    assert!(!accepted && message.starts_with("invalid: "), "{message}");
    let challenge = client.next_challenge().await;
    let mut other = RawClient::connect(&url).await;
    let elsewhere = other.challenge().await;

    let (relay, right) = (["relay", url.as_str()], ["challenge", challenge.as_str()]);
    let port = gateway.relay.rsplit_once(':').unwrap().1;
    let evil = [
        format!("ws://evil.example:{port}/"),
        format!("ws://127.0.0.1.evil.example:{port}/"),
        format!("ws://127.0.0.1:{port}@evil.example/"),
        "ws://127.0.0.1/".to_owned(),
    ];
    let auth = |kind, tags: &[&[&str]], at| events::event(&keys, kind, "", tags, at);
    // NIP-42 "Signed Event Verification".
    let mut wrong = vec![
        (auth(1, &[&relay, &right], now), "22242"),
        (auth(27_235, &[&relay, &right], now), "22242"),
        (auth(22_242, &[&relay, &right], now - 700), "created_at"),
        (auth(22_242, &[&relay, &right], now + 700), "created_at"),
        (auth(22_242, &[&relay], now), "challenge"),
        (auth(22_242, &[&relay, &["challenge", &elsewhere]], now), "challenge"),
        (auth(22_242, &[&relay, &["challenge", ""]], now), "challenge"),
        (auth(22_242, &[&right], now), "relay"),
    ];
    wrong.extend(evil.iter().map(|u| (auth(22_242, &[&["relay", u], &right], now), "relay")));
    for (event, named) in &wrong {
        let (accepted, message) = client.send_auth(event).await;
        assert!(!accepted, "{}", events::json(event));
        assert!(message.starts_with("invalid: ") && message.contains(named), "{named}: {message}");
    }

    // Well-formed, but not signed by the key it names.
    let good = events::auth(&keys, &url, &challenge);
    let mut forged = events::value(&good);
    forged["pubkey"] = json!(Keys::generate().public_key().to_hex());
    let mut unsigned = events::value(&good);
    unsigned["sig"] = json!("0".repeat(128));
    for event in [forged, unsigned] {
        client.send(&json!(["AUTH", event])).await;
        let (accepted, message) = client.ok(&good.id.to_hex()).await;
        assert!(!accepted && message.starts_with("invalid: "), "{message}");
    }
    // Not events at all.
    for text in [r#"["AUTH"]"#, r#"["AUTH","challenge"]"#, r#"["AUTH",{}]"#] {
        client.send_text(text).await;
        assert_eq!(client.next().await[0], "NOTICE", "{text}");
    }

    // None of them counted, and the right one still does, as often as it is sent.
    let refused = client.refused_req("dms", &[json!({"kinds": [4]})]).await;
    assert!(refused.starts_with("auth-required: "), "{refused}");
    for _ in 0..2 {
        assert_eq!(client.send_auth(&good).await, (true, String::new()));
    }
    assert!(client.req("dms", &[json!({"kinds": [4]})]).await.is_empty());
    // NIP-42: such events are never shown to anybody.
    assert!(client.stored_ids(&[json!({"kinds": [22_242]})]).await.is_empty());
    // Another connection gained nothing.
    let refused = other.refused_req("dms", &[json!({"kinds": [4]})]).await;
    assert!(refused.starts_with("auth-required: "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_holds_several_keys_and_not_endlessly_many() {
    let gateway = gateway().await;
    let url = gateway.url();
    let (alice, bob, carol) = (Keys::generate(), Keys::generate(), Keys::generate());
    let mut client = RawClient::connect(&url).await;
    let (to_alice, to_bob) = (letter(&carol, &alice, "1"), letter(&carol, &bob, "2"));
    client.accept(&to_alice).await;
    client.accept(&to_bob).await;
    let challenge = client.challenge().await;
    let dms = [json!({"kinds": [4]})];
    client.authenticate_with(&alice, &url, &challenge).await;
    assert_eq!(client.stored_ids(&dms).await, [to_alice.id.to_hex()]);
    client.authenticate_with(&bob, &url, &challenge).await;
    let mut both = client.stored_ids(&dms).await;
    both.sort();
    assert_eq!(both, events::ids([&to_alice, &to_bob]));

    for _ in 2..20 {
        client.authenticate_with(&Keys::generate(), &url, &challenge).await;
    }
    let one_more = events::auth(&carol, &url, &challenge);
    let (accepted, message) = client.send_auth(&one_more).await;
    assert!(!accepted && message.starts_with("rate-limited: "), "{message}");
    // One that it holds already is none more.
    client.authenticate_with(&alice, &url, &challenge).await;
    // Nor is an endless series of forgeries checked.
    let mut forged = events::value(&one_more);
    forged["sig"] = json!("0".repeat(128));
    let mut prefixes = Vec::new();
    for _ in 0..100 {
        client.send(&json!(["AUTH", forged])).await;
        let (accepted, message) = client.ok(&one_more.id.to_hex()).await;
        assert!(!accepted);
        prefixes.push(message.split(':').next().unwrap().to_owned());
    }
    assert_eq!(prefixes.first().unwrap(), "invalid");
    assert_eq!(prefixes.last().unwrap(), "rate-limited");
    assert_eq!(client.stored_ids(&dms).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_events_are_published_by_their_author_alone() {
    let gateway = gateway().await;
    let url = gateway.url();
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let protected = |keys: &Keys, text: &str| {
        events::event(keys, 1, text, &[&["-"], &["t", "town"]], events::now())
    };
    let (by_alice, by_bob) = (protected(&alice, "mine"), protected(&bob, "not yours"));
    let mut client = RawClient::connect(&url).await;

    // NIP-70: refused, with the challenge first.
    client.send_event(&by_alice).await;
    let challenge = client.next().await;
    assert_eq!(challenge[0], "AUTH");
    client.ok(&by_alice.id.to_hex()).await;
    client.refuse(&by_alice, "auth-required").await;
    client.authenticate_with(&alice, &url, challenge[1].as_str().unwrap()).await;
    client.accept(&by_alice).await;
    client.refuse(&by_bob, "auth-required").await;
    assert_eq!(client.stored_ids(&[json!({})]).await, [by_alice.id.to_hex()]);

    // It stays here: neither its tag nor the topic's own URL lets it into the topic.
    let mut in_topic = RawClient::connect(&gateway.topic_url("town")).await;
    assert!(in_topic.stored_ids(&[json!({})]).await.is_empty());
    in_topic.authenticate(&alice, &url).await;
    in_topic.refuse(&by_alice, "restricted").await;
    in_topic.refuse(&protected(&alice, "another"), "restricted").await;
    // NIP-70: nobody reposts it, not even its author.
    let repost = events::event(&alice, 6, &events::json(&by_alice), &[], events::now());
    client.refuse(&repost, "restricted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_for_all_addresses_is_named_by_the_one_that_was_used() {
    let gateway = GatewayBuilder::new(GATEWAY, "everywhere")
        .set("relay", "listen", r#""0.0.0.0:0""#)
        .set("access", "read", r#""authenticated""#)
        .set("access", "write", r#""open""#)
        .start()
        .await;
    let port = gateway.relay.rsplit_once(':').unwrap().1;
    let keys = Keys::generate();
    // Any address of the machine will do: loopback has many.
    let url = format!("ws://127.0.0.2:{port}/");
    let mut client = RawClient::connect(&url).await;
    let challenge = client.next_challenge().await;
    let other = events::auth(&keys, &format!("ws://127.0.0.3:{port}/"), &challenge);
    let (accepted, message) = client.send_auth(&other).await;
    assert!(!accepted && message.contains("relay tag"), "{message}");
    client.authenticate_with(&keys, &url, &challenge).await;
    assert!(client.req("all", &[json!({})]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_message_of_others_is_held_cannot_be_asked_with_a_forgery() {
    let gateway = gateway().await;
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let dm = letter(&alice, &bob, "hello");
    RawClient::connect(&gateway.url()).await.accept(&dm).await;
    let mut stranger = RawClient::connect(&gateway.url()).await;
    let mut forged = events::value(&dm);
    forged["sig"] = "00".repeat(64).into();
    stranger.send(&json!(["EVENT", forged])).await;
    let (accepted, message) = stranger.ok(&dm.id.to_hex()).await;
    assert!(!accepted && message.starts_with("invalid: "), "{message}");
}
