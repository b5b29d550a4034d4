//! What clients of other machines may do, and what they are answered beyond it. A proxy on loopback
//! stands for the other machines.

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, http};
use nostr_sdk::Keys;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::GATEWAY;

fn builder() -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, "rates")
        .topics(&[])
        .set("access", "read", r#""open""#)
        .set("access", "write", r#""open""#)
        .set("relay", "trusted_proxies", r#"["127.0.0.1"]"#)
        .set("relay", "max_message_bytes", "20000")
        .set("limits", "max_event_bytes", "20000")
}

async fn from(gateway: &Gateway, address: &str) -> RawClient {
    RawClient::try_connect_with(&gateway.url(), &[("X-Forwarded-For", address)])
        .await
        .unwrap_or_else(|error| panic!("{address}: {error}"))
}

fn is_limited(text: &Value, key: &str) {
    let text = text.as_str().unwrap();
    assert!(text.starts_with("rate-limited: ") && text.contains(key), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_messages_are_answered_as_what_they_are() {
    let gateway = builder()
        .set("rates", "messages_per_s", "1")
        .set("rates", "burst_s", "20")
        .set("rates", "bytes_per_s", "0")
        .set("rates", "bytes_per_s_per_ip", "0")
        .start()
        .await;
    let mut client = from(&gateway, "203.0.113.7").await;
    let keys = Keys::generate();
    let burst: Vec<_> = (0..20).map(|n| events::note(&keys, &n.to_string())).collect();
    let event = events::note(&keys, "one too many");
    for event in burst.iter().chain([&event]) {
        client.send_event(event).await;
    }
    for event in &burst {
        assert_eq!(client.ok(&event.id.to_hex()).await, (true, String::new()));
    }
    let (accepted, text) = client.ok(&event.id.to_hex()).await;
    assert!(!accepted);
    is_limited(&json!(text), "rates.messages_per_s");
    // A second gives back one message; a slow machine may be given some.
    let mut answers = Vec::new();
    for question in [
        json!(["REQ", "r", {"limit": 0}]),
        json!(["COUNT", "c", {}]),
        json!(["NEG-OPEN", "n", {}, "6100000200"]),
        json!(["HELLO"]),
    ] {
        for _ in 0..3 {
            client.send(&question).await;
        }
        let verb = match question[0].as_str().unwrap() {
            "REQ" | "COUNT" => "CLOSED",
            "NEG-OPEN" => "NEG-ERR",
            _ => "NOTICE",
        };
        let limited = |m: &Value| {
            let reason = m.as_array().and_then(|all| all.last()?.as_str()).unwrap_or_default();
            m[0] == verb && reason.starts_with("rate-limited: ")
        };
        answers.push(client.wait_for(limited, verb).await);
    }
    // Programs on this machine are not meant, nor are other addresses.
    for mut client in
        [RawClient::connect_beside_proxy(&gateway.url()).await, from(&gateway, "203.0.113.8").await]
    {
        client.accept(&events::note(&keys, "at once")).await;
    }
    let mut local = RawClient::connect_beside_proxy(&gateway.url()).await;
    for n in 0..200 {
        local.accept(&events::note(&keys, &format!("local {n}"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_on_and_on_is_closed_with_a_reason() {
    let gateway = builder()
        .set("rates", "messages_per_s", "1")
        .set("rates", "bytes_per_s", "0")
        .set("rates", "bytes_per_s_per_ip", "0")
        .start()
        .await;
    let mut client = from(&gateway, "203.0.113.7").await;
    for _ in 0..300 {
        client.try_send_text(r#"["REQ","r",{"limit":0}]"#).await;
    }
    // RFC 6455 §7.4.1: a policy was violated.
    assert_eq!(client.closed().await, Some(1008));
    // Frames that carry nothing cost as much.
    let empty = bytes::Bytes::new();
    for frame in [Message::Ping(empty.clone()), Message::Binary(empty)] {
        let mut client = from(&gateway, "203.0.113.7").await;
        for _ in 0..300 {
            client.try_send_frame(frame.clone()).await;
        }
        assert_eq!(client.closed().await, Some(1008), "{frame:?}");
    }
    assert!(gateway.metric(r#"nostr_gateway_clients_limited_total{cause="messages""#).await >= 300);
    // It may come back; the connection was closed, not the address.
    from(&gateway, "203.0.113.7").await.req("r", &[json!({"limit": 0})]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_subscriptions_filters_and_events_are_bounded() {
    let gateway = builder()
        .set("rates", "bytes_per_s", "4000")
        .set("rates", "subscriptions_per_ip", "4")
        .set("rates", "filters_per_ip", "6")
        .set("rates", "events_per_minute_per_ip", "5")
        .start()
        .await;
    let keys = Keys::generate();
    let (mut one, mut two) =
        (from(&gateway, "2001:db8::1").await, from(&gateway, "2001:db8::2").await);
    // One /64 is one address, over all its connections.
    let filter = json!({"limit": 0});
    for id in ["a", "b"] {
        one.req(id, std::slice::from_ref(&filter)).await;
    }
    two.req("a", std::slice::from_ref(&filter)).await;
    is_limited(&json!(two.refused_req("b", &vec![filter.clone(); 4]).await), "filters_per_ip");
    two.req("b", &vec![filter.clone(); 3]).await;
    // Replacing one is no further one.
    two.req("b", &vec![filter.clone(); 3]).await;
    two.send(&json!(["CLOSE", "b"])).await;
    two.req("b", std::slice::from_ref(&filter)).await;
    is_limited(
        &json!(one.refused_req("c", std::slice::from_ref(&filter)).await),
        "subscriptions_per_ip",
    );
    let mut elsewhere = from(&gateway, "2001:db8:0:1::1").await;
    elsewhere.req("c", std::slice::from_ref(&filter)).await;
    // What a connection had is given back when it ends.
    drop(two);
    nostr_gateway_tests::eventually("room again", nostr_gateway_tests::PATIENCE, async || {
        one.send(&json!(["REQ", "c", {"limit": 0}])).await;
        let answer = one.wait_for(|m| m[1] == "c", "an answer").await;
        answer.starts_with("[\"EOSE\"").then_some(())
    })
    .await;

    for n in 0..5 {
        one.accept(&events::note(&keys, &n.to_string())).await;
    }
    let (accepted, text) = one.publish(&events::note(&keys, "a sixth")).await;
    assert!(!accepted);
    is_limited(&json!(text), "events_per_minute_per_ip");
    elsewhere.accept(&events::note(&keys, "a sixth")).await;

    // Forty thousand bytes at once, in messages of nearly twenty thousand.
    let mut heavy = from(&gateway, "203.0.113.7").await;
    let long = events::note(&keys, &"x".repeat(19_000));
    heavy.accept(&long).await;
    heavy.publish(&long).await;
    let (accepted, text) = heavy.publish(&long).await;
    assert!(!accepted);
    is_limited(&json!(text), "rates.bytes_per_s");
}

/// RFC 6455 §5.4 sets no bound to the fragments of a message, and they may be empty.
#[tokio::test(flavor = "multi_thread")]
async fn fragments_count_as_what_they_take() {
    let gateway = builder()
        .set("rates", "bytes_per_s", "4000")
        .set("rates", "bytes_per_s_per_ip", "0")
        .start()
        .await;
    let fragment = |text: &str, data, is_final| {
        Message::Frame(Frame::message(text.to_owned(), OpCode::Data(data), is_final))
    };
    let cut = async |client: &mut RawClient, question: &str, pieces: usize| {
        client.send_frame(fragment(question, Data::Text, false)).await;
        for _ in 0..pieces {
            client.try_send_frame(fragment("", Data::Continue, false)).await;
        }
        client.try_send_frame(fragment("", Data::Continue, true)).await;
    };
    // In a few pieces, a message is a message.
    let mut client = from(&gateway, "203.0.113.7").await;
    cut(&mut client, r#"["REQ","a",{"limit":0}]"#, 20).await;
    client.wait_for(|m| m[0] == "EOSE" && m[1] == "a", "EOSE").await;
    // Six bytes each: the second time there is no room in the bucket of 40,000.
    cut(&mut client, r#"["REQ","b",{"limit":0}]"#, 5_000).await;
    client.wait_for(|m| m[0] == "EOSE" && m[1] == "b", "EOSE").await;
    cut(&mut client, r#"["REQ","c",{"limit":0}]"#, 5_000).await;
    let answer = client.wait_for(|m| m[1] == "c", "an answer").await;
    is_limited(&serde_json::from_str::<Value>(&answer).unwrap()[2], "rates.bytes_per_s");

    // Without an end it is no message, also for a program on this machine.
    for mut client in
        [from(&gateway, "203.0.113.8").await, RawClient::connect_beside_proxy(&gateway.url()).await]
    {
        client.send_frame(fragment("[", Data::Text, false)).await;
        for _ in 0..40_000 {
            client.try_send_frame(fragment("", Data::Continue, false)).await;
        }
        assert_eq!(client.closed().await, Some(1008));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_requests_are_messages_too() {
    let gateway = builder()
        .set("rates", "messages_per_s_per_ip", "1")
        .set("rates", "burst_s", "5")
        .start()
        .await;
    let ask = async |address: &str| {
        let headers = [("X-Forwarded-For", address), ("Accept", "application/nostr+json")];
        http::request(&gateway.relay, "GET", "/", &headers).await.status
    };
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(ask("203.0.113.7").await);
    }
    assert_eq!(answers[..5], [200; 5]);
    assert!(answers.contains(&429), "{answers:?}");
    assert_eq!(ask("203.0.113.8").await, 200);
    for _ in 0..20 {
        assert_eq!(http::get_beside_proxy(&gateway.relay, "/").await.status, 200, "local");
    }
}
