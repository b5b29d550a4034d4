//! What the relay serves over HTTP, and the exact bytes of its frames.

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, http};
use nostr_sdk::Keys;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::GATEWAY;

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "http").topics(&["one", "föö bar/baz"]).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_information_document_is_there_for_every_url() {
    let gateway = gateway().await;
    for path in ["/", "/topic/one", "/topic/one/", "/topic/f%C3%B6%C3%B6%20bar%2Fbaz"] {
        let accept = [("Accept", "application/nostr+json"), ("Origin", "https://example.org")];
        let response = http::request(&gateway.relay, "GET", path, &accept).await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
        let content_type = response.header("content-type").unwrap_or_default();
        assert!(content_type.starts_with("application/nostr+json"), "{content_type}");
        // NIP-11: relays must accept CORS requests.
        assert_eq!(response.header("access-control-allow-origin"), Some("*"), "{response:?}");
        assert!(response.header("access-control-allow-headers").is_some(), "{response:?}");
        assert!(response.header("access-control-allow-methods").is_some(), "{response:?}");

        let document: Value = serde_json::from_str(&response.body).unwrap();
        assert!(document["name"].is_string(), "{document}");
        let nips = document["supported_nips"].as_array().unwrap();
        for nip in [1, 9, 11, 40, 42, 45, 59, 62, 67, 70, 77] {
            assert!(nips.contains(&json!(nip)), "{document}");
        }
        // Off, or the clients' business alone.
        for nip in [13, 65, 86, 98] {
            assert!(!nips.contains(&json!(nip)), "claims NIP-{nip}: {document}");
        }
        let limits = &document["limitation"];
        assert_eq!(limits["max_message_length"], 1_048_576, "{document}");
        assert_eq!(limits["max_subscriptions"], 100, "{document}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_may_ask_beforehand() {
    let gateway = gateway().await;
    let headers = [
        ("Origin", "https://example.org"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "accept"),
    ];
    for path in ["/", "/topic/one"] {
        let response = http::request(&gateway.relay, "OPTIONS", path, &headers).await;
        assert!((200..300).contains(&response.status), "{response:?}");
        assert_eq!(response.header("access-control-allow-origin"), Some("*"), "{response:?}");
        let methods = response.header("access-control-allow-methods").unwrap_or_default();
        assert!(methods == "*" || methods.contains("GET"), "{response:?}");
        assert!(response.header("access-control-allow-headers").is_some(), "{response:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_paths_are_refused_before_the_upgrade() {
    let gateway = gateway().await;
    let nowhere =
        ["/other", "/topic", "/topic/", "/topic/unjoined", "/topic/one/more", "/topic/one//", "//"];
    for path in nowhere {
        match RawClient::try_connect(&format!("ws://{}{path}", gateway.relay)).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 404, "{path}"),
            Err(error) => panic!("{path}: {error}"),
            Ok(_) => panic!("{path} was upgraded"),
        }
        let accept = [("Accept", "application/nostr+json")];
        let response = http::request(&gateway.relay, "GET", path, &accept).await;
        assert_eq!(response.status, 404, "{path}: {response:?}");
    }
    // What follows the question mark is no path.
    RawClient::connect(&format!("ws://{}/?from=somewhere", gateway.relay)).await;
    let mut client = RawClient::connect(&gateway.topic_url("f%C3%B6%C3%B6%20bar%2Fbaz")).await;
    client.accept(&events::note(&Keys::generate(), "a name of all sorts")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_say_that_they_are_well() {
    let gateway = gateway().await;
    for address in [&gateway.relay, &gateway.admin] {
        let response = http::get(address, "/health").await;
        assert_eq!(response.status, 200, "{address}: {response:?}");
    }
    let metrics = http::get(&gateway.admin, "/metrics").await;
    assert!(metrics.body.ends_with("# EOF\n"), "OpenMetrics ends so: {}", metrics.body);
    let status = gateway.status().await;
    assert_eq!(status["endpoint"], gateway.endpoint.as_str());
    for topic in ["one", "föö bar/baz"] {
        assert!(gateway.topic_status(topic).await["neighbors"].as_array().unwrap().is_empty());
    }
}

/// Clients scan the raw text: compact JSON, in this order, and nothing that nobody signed.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_sent_in_their_canonical_form() {
    let gateway = gateway().await;
    let mut reader = RawClient::connect(&gateway.url()).await;
    assert!(reader.req("a \"sub\"", &[json!({})]).await.is_empty());
    let mut writer = RawClient::connect(&gateway.url()).await;
    let content =
        "tab\t newline\n quote\" backslash\\ nul\u{0} del\u{7f} é 日本 👋🏽 \u{2028}\u{ffff}";
    let keys = Keys::generate();
    let event = events::event(&keys, 1, content, &[&["x", ""], &["p"], &["e", "ü"]], events::now());
    let canonical = events::json(&event);

    let value = events::value(&event);
    let shuffled = format!(
        "[ \"EVENT\" ,\n {{\"sig\":{},\"unsigned\":{{\"id\":1}}, \"tags\" : {}, \"kind\":1,\"content\":{},\"seen\":[],\
         \"created_at\":{},\"pubkey\":{},\"id\":{} }} ]",
        value["sig"],
        value["tags"],
        value["content"],
        value["created_at"],
        value["pubkey"],
        value["id"]
    );
    writer.send_text(&shuffled).await;
    assert_eq!(writer.ok(&event.id.to_hex()).await, (true, String::new()));

    let expected = format!(r#"["EVENT","a \"sub\"",{canonical}]"#);
    let is_event = |m: &Value| m[0] == "EVENT";
    assert_eq!(reader.wait_for(is_event, "the live event").await, expected);
    reader.send(&json!(["REQ", "a \"sub\"", {"limit": 1}])).await;
    assert_eq!(reader.wait_for(is_event, "the stored event").await, expected);
}
