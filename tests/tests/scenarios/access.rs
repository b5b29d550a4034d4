//! Who may use the relay, through proxies too, and what its document says of that (NIP-11, NIP-42).

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, http};
use nostr_sdk::Keys;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::GATEWAY;

const FORWARDED: &str = "X-Forwarded-For";

fn builder() -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, "access").topics(&["town"])
}

fn with_access(read: &str, write: &str, pubkeys: &[&Keys]) -> GatewayBuilder {
    let keys: Vec<String> = pubkeys.iter().map(|keys| keys.public_key().to_hex()).collect();
    builder()
        .set("access", "read", &format!("{read:?}"))
        .set("access", "write", &format!("{write:?}"))
        .set("access", "pubkeys", &format!("{keys:?}"))
}

/// Listens on loopback and believes what proxies there say.
fn behind_a_proxy() -> GatewayBuilder {
    with_access("open", "open", &[]).set("relay", "trusted_proxies", r#"["127.0.0.1"]"#)
}

pub async fn document(gateway: &Gateway) -> Value {
    let accept = [("Accept", "application/nostr+json")];
    let response = http::request(&gateway.relay, "GET", "/", &accept).await;
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_str(&response.body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_listener_needs_a_stated_policy() {
    let open = builder().set("relay", "listen", r#""0.0.0.0:0""#);
    let mut child = open.spawn();
    let status = child.exit(Duration::from_secs(30)).await;
    let stderr = child.stderr();
    assert_eq!(status.code(), Some(2), "{stderr:#?}");
    let file = format!("{}:", open.config_file().display());
    let words =
        [&file, "relay.listen", "access.read", "access.write", "open", "authenticated", "list"];
    let clear = stderr.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert_eq!(clear, 1, "{stderr:#?}");

    let stated = open.set("access", "read", r#""open""#).set("access", "write", r#""list""#);
    let gateway = stated.start().await;
    let port = gateway.relay.rsplit_once(':').unwrap().1;
    let mut client = RawClient::connect(&format!("ws://127.0.0.1:{port}/")).await;
    assert!(client.stored_ids(&[json!({})]).await.is_empty());
    client.refuse(&events::note(&Keys::generate(), "no key"), "auth-required").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_can_be_for_listed_keys_and_reading_for_all() {
    let (listed, other) = (Keys::generate(), Keys::generate());
    let gateway = with_access("open", "list", &[&listed]).start().await;
    let url = gateway.url();
    // NIP-42: the challenge may come at once.
    let mut client = RawClient::connect(&url).await;
    let challenge = client.next_challenge().await;
    assert!(client.stored_ids(&[json!({})]).await.is_empty());
    let note = events::note(&listed, "mine");
    client.refuse(&note, "auth-required").await;
    // NIP-62: nobody is kept from asking to be forgotten.
    let vanish = events::event(&other, 62, "", &[&["relay", "ALL_RELAYS"]], events::now() - 5);
    client.accept(&vanish).await;

    client.authenticate_with(&other, &url, &challenge).await;
    client.refuse(&note, "restricted").await;
    client.authenticate_with(&listed, &url, &challenge).await;
    client.accept(&note).await;
    // The policy is about who speaks, not about who wrote it.
    client.accept(&events::note(&Keys::generate(), "somebody else's")).await;

    let limits = document(&gateway).await["limitation"].take();
    assert_eq!(
        (&limits["auth_required"], &limits["restricted_writes"]),
        (&json!(false), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_can_be_for_any_key_or_listed_ones() {
    let (listed, other) = (Keys::generate(), Keys::generate());
    for (read, others_may) in [("authenticated", true), ("list", false)] {
        let gateway = with_access(read, "authenticated", &[&listed]).start().await;
        let url = gateway.url();
        let limits = document(&gateway).await["limitation"].take();
        assert_eq!(limits["auth_required"], true, "{limits}");

        let mut client = RawClient::connect(&url).await;
        let challenge = client.next_challenge().await;
        let refused = client.refused_req("r", &[json!({})]).await;
        assert!(refused.starts_with("auth-required: "), "{refused}");
        let refused = client.refused_count("c", &[json!({})]).await;
        assert!(refused.starts_with("auth-required: "), "{refused}");
        let refused = client.negentropy(&json!({}), &[]).await.unwrap_err();
        assert!(refused.starts_with("auth-required: "), "{refused}");

        client.authenticate_with(&other, &url, &challenge).await;
        if others_may {
            assert!(client.req("r", &[json!({})]).await.is_empty());
        } else {
            let refused = client.refused_req("r", &[json!({})]).await;
            assert!(refused.starts_with("restricted: "), "{refused}");
            let refused = client.refused_count("c", &[json!({})]).await;
            assert!(refused.starts_with("restricted: "), "{refused}");
        }
        let note = events::note(&other, "anybody with a key may write");
        client.accept(&note).await;
        client.authenticate_with(&listed, &url, &challenge).await;
        assert_eq!(client.req("r2", &[json!({})]).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_address_counts_only_from_a_proxy() {
    let limit = |builder: GatewayBuilder| builder.set("rates", "connections_per_ip", "1");
    let gateway = limit(behind_a_proxy()).start().await;
    let url = gateway.url();
    let connect =
        async |address: &str| RawClient::try_connect_with(&url, &[(FORWARDED, address)]).await;
    let _first = connect("203.0.113.7").await.ok().unwrap();
    // The proxy appends; what stands before is the client's own invention.
    match connect("198.51.100.1, 203.0.113.7").await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), 429);
            let body = String::from_utf8(response.into_body().unwrap()).unwrap();
            assert!(body.contains("rates.connections_per_ip"), "{body}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a second connection of one address"),
    }
    let _other = connect("203.0.113.8").await.ok().unwrap();
    // A local program has no bounds.
    let beside = || RawClient::connect_beside_proxy(&url);
    let _many = [beside().await, beside().await];
    // One without the header from where the proxy is may be anybody: all of them are one.
    let _one = RawClient::connect(&url).await;
    match RawClient::try_connect(&url).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 429),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a second one without a name"),
    }

    // The same header from no proxy: one client, whatever it claims.
    let gateway = limit(with_access("open", "open", &[])).start().await;
    let url = gateway.url();
    let connect =
        async |address: &str| RawClient::try_connect_with(&url, &[(FORWARDED, address)]).await;
    let _first = connect("203.0.113.7").await.ok().unwrap();
    for spoofed in ["203.0.113.8", "127.0.0.1", "::1"] {
        let Err(Error::Http(response)) = connect(spoofed).await else { panic!("{spoofed}") };
        assert_eq!(response.status(), 429, "{spoofed}");
    }
}

/// A private topic with a reader: others are asked to authenticate there.
fn private_topic(reader: &Keys) -> String {
    let reader = reader.public_key().to_hex();
    format!("[[private_topic]]\nname = \"family\"\nreaders = [{reader:?}]")
}

/// Behind a proxy on the same machine everybody seems to be local. Nobody who is announced is.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_connection_is_not_trusted_with_private_topics() {
    let private = private_topic(&Keys::generate());
    for builder in [builder(), behind_a_proxy()] {
        let gateway = builder.table(&private).start().await;
        let url = gateway.topic_url("family");
        let mut local = RawClient::connect_beside_proxy(&url).await;
        let secret = events::note(&Keys::generate(), "for the family");
        local.accept(&secret).await;
        assert_eq!(local.stored_ids(&[json!({})]).await.len(), 1);
        for header in [FORWARDED, "Forwarded", "X-Real-IP"] {
            for address in ["203.0.113.7", "127.0.0.1", "nonsense"] {
                let with = [(header, address)];
                let mut client = RawClient::try_connect_with(&url, &with).await.ok().unwrap();
                let refused = client.refused_req("r", &[json!({})]).await;
                assert!(refused.starts_with("auth-required: "), "{header} {address}: {refused}");
                let mut root =
                    RawClient::try_connect_with(&gateway.url(), &with).await.ok().unwrap();
                assert!(root.stored_ids(&[json!({})]).await.is_empty(), "{header} {address}");
            }
        }
    }
}

/// A proxy that was not told to send the header makes nobody a local program.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_names_nobody_opens_nothing() {
    let private = private_topic(&Keys::generate());
    let gateway = behind_a_proxy().table(&private).start().await;
    let url = gateway.topic_url("family");
    let mut local = RawClient::connect_beside_proxy(&url).await;
    local.accept(&events::note(&Keys::generate(), "for the family")).await;
    let mut unnamed = RawClient::connect(&url).await;
    let refused = unnamed.refused_req("r", &[json!({})]).await;
    assert!(refused.starts_with("auth-required: "), "{refused}");
    let mut root = RawClient::connect(&gateway.url()).await;
    assert!(root.stored_ids(&[json!({})]).await.is_empty());
    let tells = |line: &str| line.contains("relay.trusted_proxies");
    gateway.log_line(nostr_gateway_tests::PATIENCE, tells).await;
    assert_eq!(gateway.log().iter().filter(|line| tells(line)).count(), 1, "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_asked_of_clients_alone() {
    let plain = GatewayBuilder::new(GATEWAY, "plain").topics(&[]).start().await;
    let keys = Keys::generate();
    let lazy = loop {
        let event = events::note(&keys, &format!("{:?}", std::time::Instant::now()));
        if event.id.to_bytes()[0] >= 0x80 {
            break event;
        }
    };
    RawClient::connect(&plain.url()).await.accept(&lazy).await;

    let gateway = builder()
        .set("limits", "min_pow", "8")
        .upstream("plain", &plain.url(), "town")
        .start()
        .await;
    let document = document(&gateway).await;
    assert_eq!(document["limitation"]["min_pow_difficulty"], 8);
    assert_eq!(document["limitation"]["restricted_writes"], true);
    assert!(document["supported_nips"].as_array().unwrap().contains(&json!(13)));

    let mut client = RawClient::connect(&gateway.url()).await;
    let mine = |target: &str, bits: u32| {
        let found = (0..).map(|n: u32| {
            let tag: &[&str] = &["nonce", &n.to_string(), target];
            events::event(&keys, 1, "work", &[tag], events::now())
        });
        let zero_bits =
            |bytes: [u8; 32]| u32::from_be_bytes(bytes[..4].try_into().unwrap()).leading_zeros();
        found.into_iter().find(|event| zero_bits(event.id.to_bytes()) >= bits).unwrap()
    };
    let other = loop {
        let event = events::note(&keys, &format!("other {:?}", std::time::Instant::now()));
        if event.id.to_bytes()[0] >= 0x80 {
            break event;
        }
    };
    let (accepted, message) = client.publish(&other).await;
    assert_eq!((accepted, message.as_str()), (false, "pow: difficulty 0 is less than 8"));
    client.accept(&mine("8", 8)).await;
    // NIP-13: luck does not count when less was aimed at.
    client.refuse(&mine("7", 8), "pow").await;
    // NIP-62: nobody is kept from vanishing.
    let vanish =
        events::event(&Keys::generate(), 62, "", &[&["relay", "ALL_RELAYS"]], events::now());
    client.accept(&vanish).await;
    // What comes from elsewhere was published under other rules.
    nostr_gateway_tests::eventually("the upstream's event", Duration::from_secs(30), async || {
        let found = client.stored_ids(&[json!({"ids": [lazy.id.to_hex()]})]).await;
        (!found.is_empty()).then_some(())
    })
    .await;
}

/// NIP-11, "Server Limitations": each number is where it ends.
#[tokio::test(flavor = "multi_thread")]
async fn every_limit_of_the_document_is_the_limit() {
    let gateway = builder()
        .set("relay", "max_message_bytes", "20000")
        .set("relay", "max_subscriptions", "5")
        .set("relay", "max_filters", "3")
        .set("relay", "max_limit", "4")
        .set("relay", "default_limit", "2")
        .set("relay", "max_negentropy_events", "6")
        .set("limits", "max_event_bytes", "15000")
        .set("limits", "max_event_tags", "7")
        .set("limits", "max_future_s", "100")
        .set("limits", "max_past_s", "1000")
        .start()
        .await;
    let limits = document(&gateway).await["limitation"].take();
    let limit = |name: &str| limits[name].as_u64().unwrap_or_else(|| panic!("{name}: {limits}"));
    let keys = Keys::generate();
    let mut client = RawClient::connect(&gateway.url()).await;

    let tags = |count: u64| {
        let tags: Vec<&[&str]> = vec![&["t", "x"]; count as usize];
        events::event(&keys, 1, "tags", &tags, events::now())
    };
    client.accept(&tags(limit("max_event_tags"))).await;
    client.refuse(&tags(limit("max_event_tags") + 1), "invalid").await;
    // A few seconds may pass between the making and the checking.
    let at = |time: u64| events::event(&keys, 1, "time", &[], time);
    let now = events::now();
    client.accept(&at(now + limit("created_at_upper_limit"))).await;
    client.refuse(&at(now + limit("created_at_upper_limit") + 20), "invalid").await;
    client.accept(&at(now - limit("created_at_lower_limit") + 20)).await;
    client.refuse(&at(now - limit("created_at_lower_limit") - 1), "invalid").await;
    let sized = |bytes: u64| {
        let empty = events::json(&events::note(&keys, "")).len();
        let event = events::note(&keys, &"x".repeat(bytes as usize - empty));
        assert_eq!(events::json(&event).len() as u64, bytes);
        event
    };
    client.accept(&sized(limit("max_event_bytes"))).await;
    client.refuse(&sized(limit("max_event_bytes") + 1), "invalid").await;
    client.accept(&events::note(&keys, "a fifth")).await;
    client.accept(&events::note(&keys, "a sixth")).await;

    // Six are stored now.
    assert_eq!(client.stored_ids(&[json!({"limit": 100})]).await.len() as u64, limit("max_limit"));
    assert_eq!(client.stored_ids(&[json!({})]).await.len() as u64, limit("default_limit"));
    let six = client.negentropy(&json!({}), &[]).await;
    client.accept(&events::note(&keys, "a seventh")).await;
    let seven = client.negentropy(&json!({}), &[]).await;
    // A set exactly at the cap succeeds (NIP-77); above it the number is told.
    assert_eq!(limit("max_negentropy_events"), 6);
    assert_eq!(six.unwrap().only_there.len(), 6);
    let refused = seven.unwrap_err();
    assert!(refused.starts_with("blocked: ") && refused.contains('6'), "{refused}");

    let filters = |count: u64| vec![json!({"kinds": [1]}); count as usize];
    client.stored_ids(&filters(limit("max_filters"))).await;
    let refused = client.refused_req("filters", &filters(limit("max_filters") + 1)).await;
    assert!(refused.starts_with("invalid: "), "{refused}");
    let longest = "s".repeat(limit("max_subid_length") as usize);
    client.req(&longest, &[json!({"limit": 0})]).await;
    client.send(&json!(["REQ", format!("{longest}s"), {}])).await;
    let refused = client.wait_for(|m| m[0] == "NOTICE", "NOTICE").await;
    assert!(refused.contains("invalid"), "{refused}");
    for n in 1..limit("max_subscriptions") {
        client.req(&format!("s{n}"), &[json!({"limit": 0})]).await;
    }
    let refused = client.refused_req("one too many", &[json!({"limit": 0})]).await;
    assert!(refused.starts_with("rate-limited: "), "{refused}");

    let padded = |bytes: u64| {
        let text = r#"["CLOSE","nothing"]"#;
        format!("{text}{}", " ".repeat(bytes as usize - text.len()))
    };
    client.send_text(&padded(limit("max_message_length"))).await;
    assert_eq!(client.count(&[json!({})]).await, 7);
    client.try_send_text(&padded(limit("max_message_length") + 1)).await;
    assert_eq!(client.closed().await, Some(1009));
}
