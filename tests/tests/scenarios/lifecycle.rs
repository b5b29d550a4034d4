//! Starting, stopping, and carrying on when something around it goes away.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use nostr_gateway_tests::{
    Child, GatewayBuilder, IndependentRelay, Network, PATIENCE, RawClient, events, http,
    publish_until_the_end,
};
use nostr_sdk::Keys;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::{GATEWAY, WS_PIPE, alone};

/// A reconnect may wait for its back-off.
const RECONNECT: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_drains_and_exits_with_success() {
    let _alone = alone().await;
    let mut gateway = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).start().await;
    let mut acknowledged = Vec::new();
    for signal in ["INT", "TERM"] {
        let publishers: Vec<_> = [gateway.url(), gateway.topic_url("town"), gateway.url()]
            .map(|url| tokio::spawn(publish_until_the_end(url)))
            .into();
        tokio::time::sleep(Duration::from_secs(1)).await;
        gateway.signal(signal);
        let status = gateway.exit().await;
        assert_eq!(status.code(), Some(0), "after SIG{signal}: {status}");
        for publisher in publishers {
            let ids = tokio::time::timeout(PATIENCE, publisher).await.unwrap().unwrap();
            assert!(!ids.is_empty(), "there was no traffic");
            acknowledged.extend(ids);
        }
        gateway = gateway.restart().await;
        RawClient::connect(&gateway.url()).await.assert_stored(&acknowledged).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_told_that_it_goes() {
    let mut gateway = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(client.req("open", &[json!({})]).await.is_empty());
    gateway.signal("INT");
    // RFC 6455 §7.4.1: going away.
    assert_eq!(client.closed().await, Some(1001));
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let _alone = alone().await;
    let mut gateway = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    for n in 0..40 {
        client.accept(&events::note(&keys, &format!("{n}{}", "x".repeat(60_000)))).await;
    }
    // Somebody who asks for megabytes and reads nothing, so that there is something to wait for.
    for n in 0..40 {
        client.send(&json!(["REQ", format!("{n}"), {}])).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    gateway.signal("INT");
    tokio::time::sleep(Duration::from_millis(200)).await;
    if gateway.is_running() {
        gateway.signal("INT");
    }
    tokio::time::timeout(Duration::from_secs(2), gateway.exit()).await.expect("it ends at once");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_when_its_relay_comes_back() {
    let _alone = alone().await;
    let keys = Keys::generate();
    let first = events::note(&keys, "before");
    let mut relay = IndependentRelay::start(std::slice::from_ref(&first)).await;
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .upstream("elsewhere", &relay.url(), "town")
        .start()
        .await;
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    let stored = client.req("live", &[json!({})]).await;
    if stored.is_empty() {
        assert_eq!(client.live("live").await["id"], first.id.to_hex());
    }

    let connects = gateway.metric("nostr_gateway_upstream_connects_total").await;
    relay.stop();
    // The gateway is a relay of its own all the while.
    let meanwhile = events::note(&keys, "meanwhile here");
    client.accept(&meanwhile).await;
    assert_eq!(client.live("live").await["id"], meanwhile.id.to_hex());
    let missed = events::note(&keys, "meanwhile there");
    relay.load(&missed).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    relay.restart().await;
    gateway.wait_for_metric("nostr_gateway_upstream_connects_total", connects + 1, RECONNECT).await;

    assert_eq!(client.live("live").await["id"], missed.id.to_hex());
    let later = events::note(&keys, "after");
    RawClient::connect(&relay.url()).await.accept(&later).await;
    assert_eq!(client.live("live").await["id"], later.id.to_hex());
}

/// A machine with a loopback interface and nothing else, every source of peers switched on.
#[tokio::test(flavor = "multi_thread")]
async fn it_works_without_a_network() {
    let scenario = "it_works_without_a_network";
    let Some(network) = Network::available(scenario) else { return };
    let _alone = alone().await;
    let namespace = Arc::new(network.add_isolated("lonely"));
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .namespace(namespace.clone())
        .unset("endpoint", "bind")
        .unset("endpoint", "iroh_relays")
        .set("discovery", "dht", "true")
        .set("discovery", "mdns", "true")
        .topics(&["town"])
        .start()
        .await;
    let mut pipe = namespace.command(Path::new(WS_PIPE));
    pipe.arg(gateway.topic_url("town"));
    let mut client = Child::spawn("ws-pipe", pipe);
    client.stdout_line(PATIENCE, |line| line == "connected").await;
    let event = events::note(&Keys::generate(), "to nobody");
    client.write_line(&format!(r#"["EVENT",{}]"#, events::json(&event))).await;
    client.stdout_line(PATIENCE, |line| line == format!(r#"["OK","{}",true,""]"#, event.id)).await;
    client.write_line(r#"["REQ","s",{}]"#).await;
    let expected = format!(r#"["EVENT","s",{}]"#, events::json(&event));
    client.stdout_line(PATIENCE, |line| line == expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_and_environment_reach_the_gateway() {
    let event = events::note(&Keys::generate(), "upstream");
    let relay = IndependentRelay::start(std::slice::from_ref(&event)).await;
    let gateway = GatewayBuilder::new(GATEWAY, "flags")
        .set("relay", "max_subscriptions", "3")
        .set("relay", "name", r#""from the file""#)
        .unset("relay", "listen")
        .unset("topics", "join")
        .unset("topics", "default")
        .env("NOSTR_GATEWAY_RELAY__MAX_SUBSCRIPTIONS", "7")
        .env("NOSTR_GATEWAY_RELAY__LISTEN", "127.0.0.1:1")
        .argument("--listen=127.0.0.1:0")
        .argument("--topic=town")
        .argument("--topic=village")
        .argument(&format!("--upstream={}", relay.url()))
        .start()
        .await;
    let accept = [("Accept", "application/nostr+json")];
    let document = http::request(&gateway.relay, "GET", "/", &accept).await.body;
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["name"], "from the file");
    assert_eq!(document["limitation"]["max_subscriptions"], 7);
    let status = gateway.status().await;
    let topics: Vec<_> = status["topics"].as_array().unwrap().iter().map(|t| &t["name"]).collect();
    assert_eq!(topics, ["town", "village"]);
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    if client.req("live", &[json!({})]).await.is_empty() {
        assert_eq!(client.live("live").await["id"], event.id.to_hex());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_relay_closed_is_asked_for_again() {
    let _alone = alone().await;
    let event = events::note(&Keys::generate(), "after the second REQ");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let sent = event.clone();
    // A relay that ends the first subscription and serves the next one.
    let relay = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let mut requests = 0;
        while let Some(Ok(message)) = socket.next().await {
            let Ok(text) = message.to_text() else { continue };
            let Ok(Value::Array(parts)) = serde_json::from_str(text) else { continue };
            if parts[0] != "REQ" {
                continue;
            }
            requests += 1;
            let answers = match requests {
                1 => vec![json!(["CLOSED", parts[1], "error: closing idle subscriptions"])],
                _ => vec![
                    json!(["EVENT", parts[1], events::value(&sent)]),
                    json!(["EOSE", parts[1]]),
                ],
            };
            for answer in answers {
                socket.send(Message::text(answer.to_string())).await.unwrap();
            }
        }
    });
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .upstream("moody", &url, "town")
        .start()
        .await;
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    assert!(client.req("live", &[json!({})]).await.is_empty());
    let id = event.id.to_hex();
    gateway.log_line(RECONNECT, |line| line.contains("upstream had closed the subscription")).await;
    assert_eq!(client.live("live").await["id"], id);
    relay.abort();
}
