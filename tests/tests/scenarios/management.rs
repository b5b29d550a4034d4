//! NIP-86, the operator's requests, and NIP-98, how they are authorized.

use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use nostr_gateway_tests::{
    Gateway, GatewayBuilder, PATIENCE, RawClient, Testnet, events, eventually, http,
};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_tungstenite::tungstenite::Error;

use crate::{DHT_TESTNET, GATEWAY, access::document, alone};

const RPC: &str = "application/nostr+json+rpc";

fn managed(name: &str, admin: &Keys) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).topics(&[]).set(
        "relay",
        "admins",
        &format!("[{:?}]", admin.public_key().to_hex()),
    )
}

fn payload(body: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

fn signed(keys: &Keys, url: &str, body: &str) -> Event {
    let tags: [&[&str]; 3] = [&["u", url], &["method", "POST"], &["payload", &payload(body)]];
    events::event(keys, 27_235, "", &tags, events::now())
}

fn header(event: &Event) -> String {
    format!("Nostr {}", BASE64.encode(events::json(event).as_bytes()))
}

async fn post(gateway: &Gateway, authorization: Option<&str>, body: &str) -> http::Response {
    let mut headers = vec![("Content-Type", RPC)];
    headers.extend(authorization.map(|value| ("Authorization", value)));
    http::with_body(&gateway.relay, "POST", "/", &headers, body).await
}

/// The body of a request. The nonce keeps two of the same second apart.
fn body(method: &str, params: Value) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NONCE: AtomicU64 = AtomicU64::new(0);
    let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
    json!({"method": method, "params": params, "nonce": nonce}).to_string()
}

async fn answered(gateway: &Gateway, admin: &Keys, method: &str, params: Value) -> Value {
    let body = body(method, params);
    let url = format!("http://{}/", gateway.relay);
    let response = post(gateway, Some(&header(&signed(admin, &url, &body))), &body).await;
    assert_eq!(response.status, 200, "{method}: {response:?}");
    serde_json::from_str(&response.body).unwrap()
}

/// Calls a method that must succeed.
pub async fn call(gateway: &Gateway, admin: &Keys, method: &str, params: Value) -> Value {
    let mut answer = answered(gateway, admin, method, params).await;
    assert!(answer.get("error").is_none(), "{method}: {answer}");
    answer["result"].take()
}

/// Calls a method that must fail, and returns why.
async fn fails(gateway: &Gateway, admin: &Keys, method: &str, params: Value) -> String {
    let answer = answered(gateway, admin, method, params).await;
    answer["error"].as_str().unwrap_or_else(|| panic!("{method}: {answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_who_signed_this_very_request_are_heard() {
    let (admin, other) = (Keys::generate(), Keys::generate());
    let gateway = managed("auth", &admin).start().await;
    let url = format!("http://{}/", gateway.relay);
    let victim = Keys::generate().public_key().to_hex();
    let body = json!({"method": "banpubkey", "params": [victim]}).to_string();
    let now = events::now();
    let hash = payload(&body);
    let (u, method, payload) =
        (&["u", url.as_str()][..], &["method", "POST"][..], &["payload", hash.as_str()][..]);
    let with = |kind, tags: &[&[&str]], at| events::event(&admin, kind, "", tags, at);
    let elsewhere = url.replace("127.0.0.1", "relay.example.org");
    let all = [u, method, payload];

    let mut forged = events::value(&with(27_235, &all, now));
    forged["sig"] = "0".repeat(128).into();
    let forged = format!("Nostr {}", BASE64.encode(forged.to_string().as_bytes()));
    let mut wrong =
        vec![None, Some("Nostr".to_owned()), Some("Nostr e30=".to_owned()), Some(forged)];
    for event in [
        with(22_242, &all, now),
        with(27_235, &all, now - 120),
        with(27_235, &all, now + 120),
        with(27_235, &[method, payload], now),
        with(27_235, &[&["u", &elsewhere], method, payload], now),
        with(27_235, &[&["u", &format!("{url}topic/x")], method, payload], now),
        with(27_235, &[u, payload], now),
        with(27_235, &[u, &["method", "GET"], payload], now),
        // NIP-86: the payload tag is required.
        with(27_235, &[u, method], now),
        with(27_235, &[u, method, &["payload", &"0".repeat(64)]], now),
    ] {
        wrong.push(Some(header(&event)));
    }
    for authorization in &wrong {
        let response = post(&gateway, authorization.as_deref(), &body).await;
        assert_eq!(response.status, 401, "{authorization:?}: {response:?}");
        assert!(response.header("www-authenticate").is_some(), "{response:?}");
        assert_eq!(response.header("access-control-allow-origin"), Some("*"), "{response:?}");
        let answer: Value = serde_json::from_str(&response.body).unwrap();
        assert!(!answer["error"].as_str().unwrap().is_empty(), "{answer}");
    }
    let stranger = header(&signed(&other, &url, &body));
    assert_eq!(post(&gateway, Some(&stranger), &body).await.status, 403);
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(call(&gateway, &admin, "listbannedpubkeys", json!([])).await, json!([]));

    // Once, and not a second time.
    let good = header(&with(27_235, &all, now));
    assert_eq!(post(&gateway, Some(&good), &body).await.status, 200);
    let again = post(&gateway, Some(&good), &body).await;
    assert_eq!(again.status, 401, "{again:?}");
    // The URL of the relay is as good as that of the request (NIP-86).
    let websocket = url.replace("http://", "ws://");
    assert_eq!(
        post(&gateway, Some(&header(&signed(&admin, &websocket, &body))), &body).await.status,
        200
    );

    // What is authorized but no request.
    for (body, status) in [("{", 400), ("[]", 400), (r#"{"params":[]}"#, 400)] {
        let response = post(&gateway, Some(&header(&signed(&admin, &url, body))), body).await;
        assert_eq!(response.status, status, "{body}: {response:?}");
    }
    let long = " ".repeat(70_000);
    assert_eq!(
        post(&gateway, Some(&header(&signed(&admin, &url, &long))), &long).await.status,
        413
    );
    let unknown = fails(&gateway, &admin, "stop", json!([])).await;
    assert!(unknown.contains("supportedmethods"), "{unknown}");
    // An event that authorizes is not to be published.
    client.refuse(&signed(&admin, &url, "x"), "invalid").await;

    let preflight = [
        ("Origin", "https://admin.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type"),
    ];
    let response = http::request(&gateway.relay, "OPTIONS", "/", &preflight).await;
    assert!(response.header("access-control-allow-methods").unwrap().contains("POST"));
    // A star does not stand for Authorization (Fetch standard).
    assert!(response.header("access-control-allow-headers").unwrap().contains("Authorization"));

    let document = document(&gateway).await;
    for nip in [86, 98] {
        assert!(document["supported_nips"].as_array().unwrap().contains(&json!(nip)), "{document}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_admins_there_is_nothing_to_call() {
    let keys = Keys::generate();
    let gateway = GatewayBuilder::new(GATEWAY, "unmanaged").topics(&[]).start().await;
    let body = body("supportedmethods", json!([]));
    let url = format!("http://{}/", gateway.relay);
    let response = post(&gateway, Some(&header(&signed(&keys, &url, &body))), &body).await;
    assert_eq!(response.status, 405, "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_take_out_what_is_stored_and_keep_out_what_comes() {
    let (admin, bad, good) = (Keys::generate(), Keys::generate(), Keys::generate());
    let gateway = managed("bans", &admin).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let (a, b) = (events::note(&bad, "a"), events::note(&bad, "b"));
    let (mine, other) = (events::note(&good, "mine"), events::note(&good, "other"));
    for event in [&a, &b, &mine, &other] {
        client.accept(event).await;
    }

    let key = bad.public_key().to_hex();
    assert_eq!(call(&gateway, &admin, "banpubkey", json!([key, "spam"])).await, json!(true));
    let mut stored = client.stored_ids(&[json!({})]).await;
    stored.sort();
    assert_eq!(stored, events::ids([&mine, &other]));
    client.refuse(&a, "blocked").await;
    client.refuse(&events::note(&bad, "c"), "blocked").await;
    // NIP-62: also of those who are banned.
    let vanish = events::event(&bad, 62, "", &[&["relay", "ALL_RELAYS"]], events::now() - 1_000);
    client.accept(&vanish).await;

    let id = mine.id.to_hex();
    call(&gateway, &admin, "banevent", json!([id, "illegal"])).await;
    assert!(client.stored_ids(&[json!({"ids": [id]})]).await.is_empty());
    client.refuse(&mine, "blocked").await;
    client.accept(&events::note(&good, "something else")).await;

    // What is banned stays so after a restart, with its reason.
    let mut gateway = gateway;
    gateway.interrupt().await;
    let gateway = gateway.restart().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    client.refuse(&a, "blocked").await;
    client.refuse(&mine, "blocked").await;
    let banned = call(&gateway, &admin, "listbannedpubkeys", json!([])).await;
    assert_eq!(banned, json!([{"pubkey": key, "reason": "spam"}]));
    let banned = call(&gateway, &admin, "listbannedevents", json!([])).await;
    assert_eq!(banned, json!([{"id": id, "reason": "illegal"}]));

    call(&gateway, &admin, "unbanpubkey", json!([key])).await;
    client.accept(&a).await;
    call(&gateway, &admin, "allowevent", json!([id])).await;
    client.accept(&mine).await;
    assert_eq!(call(&gateway, &admin, "listbannedevents", json!([])).await, json!([]));
    let allowed = call(&gateway, &admin, "listallowedevents", json!([])).await;
    assert_eq!(allowed, json!([{"id": id}]));
    // Unbanning is not allowing (NIP-86).
    assert_eq!(call(&gateway, &admin, "listallowedpubkeys", json!([])).await, json!([]));

    let own = admin.public_key().to_hex();
    assert!(fails(&gateway, &admin, "banpubkey", json!([own])).await.contains("admin"));
    for (method, params) in [
        ("banpubkey", json!([])),
        ("banpubkey", json!(["xyz"])),
        ("banpubkey", json!([key, 7])),
        ("banpubkey", json!([key, "x".repeat(1_025)])),
        ("banevent", json!([7])),
        ("allowkind", json!(["1"])),
        ("allowkind", json!([65_536])),
        ("blockip", json!(["localhost"])),
        ("changerelayname", json!([])),
        ("changerelayicon", json!(["javascript:alert(1)"])),
    ] {
        fails(&gateway, &admin, method, params).await;
    }
    assert_eq!(call(&gateway, &admin, "listbannedpubkeys", json!([])).await, json!([]));
    assert_eq!(call(&gateway, &admin, "listeventsneedingmoderation", json!([])).await, json!([]));
}

/// NIP-86: "every change persists". The process ends without a moment's warning.
#[tokio::test(flavor = "multi_thread")]
async fn every_list_survives_the_sudden_end_of_the_process() {
    let admin = Keys::generate();
    let mut gateway = managed("lists", &admin).start().await;
    let keys: Vec<String> = (0..4).map(|_| Keys::generate().public_key().to_hex()).collect();
    let ids: Vec<String> =
        (0..4).map(|n| events::note(&admin, &n.to_string()).id.to_hex()).collect();
    for (method, params) in [
        ("banpubkey", json!([keys[0], "spam"])),
        ("banpubkey", json!([keys[1], "lifted below"])),
        ("allowpubkey", json!([keys[2], "a friend"])),
        ("allowpubkey", json!([keys[3], "taken off below"])),
        ("banevent", json!([ids[0], "illegal"])),
        ("banevent", json!([ids[1]])),
        ("allowevent", json!([ids[2], "funny"])),
        ("allowevent", json!([ids[3]])),
        ("allowkind", json!([1])),
        ("allowkind", json!([30_023])),
        ("allowkind", json!([9])),
        ("disallowkind", json!([7])),
        ("disallowkind", json!([1_984])),
        ("blockip", json!(["203.0.113.7", "abuse"])),
        ("blockip", json!(["2001:db8::/64"])),
        ("blockip", json!(["198.51.100.0/24", "lifted below"])),
        ("changerelayname", json!(["renamed"])),
        // One of each is taken back.
        ("unbanpubkey", json!([keys[1]])),
        ("unallowpubkey", json!([keys[3]])),
        ("unbanevent", json!([ids[1]])),
        ("unallowevent", json!([ids[3]])),
        ("unlistkind", json!([9])),
        ("unlistkind", json!([1_984])),
        ("unblockip", json!(["198.51.100.0/24"])),
    ] {
        call(&gateway, &admin, method, params).await;
    }
    let expected = [
        ("listbannedpubkeys", json!([{"pubkey": keys[0], "reason": "spam"}])),
        ("listallowedpubkeys", json!([{"pubkey": keys[2], "reason": "a friend"}])),
        ("listbannedevents", json!([{"id": ids[0], "reason": "illegal"}])),
        ("listallowedevents", json!([{"id": ids[2], "reason": "funny"}])),
        ("listallowedkinds", json!([1, 30_023])),
        ("listdisallowedkinds", json!([7])),
        (
            "listblockedips",
            json!([{"ip": "203.0.113.7", "reason": "abuse"}, {"ip": "2001:db8::/64"}]),
        ),
    ];
    for killed in [false, true] {
        if killed {
            gateway.kill9().await;
            gateway = gateway.restart().await;
        }
        for (method, list) in &expected {
            let listed = call(&gateway, &admin, method, json!([])).await;
            assert_eq!(listed, *list, "{method}, killed: {killed}");
        }
        assert_eq!(document(&gateway).await["name"], "renamed");
    }
    // All lists that there are were compared.
    let methods = call(&gateway, &admin, "supportedmethods", json!([])).await;
    let lists = methods.as_array().unwrap().iter().filter(|method| {
        let method = method.as_str().unwrap();
        method.starts_with("list") && method != "listeventsneedingmoderation"
    });
    assert_eq!(lists.count(), expected.len());
    // And they are in force.
    let mut client = RawClient::connect(&gateway.url()).await;
    client.refuse(&events::event(&admin, 7, "+", &[], events::now()), "blocked").await;
    client.accept(&events::note(&admin, "allowed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_allowed_by_itself_survives_the_ban_of_its_author() {
    let (admin, bad) = (Keys::generate(), Keys::generate());
    let gateway = managed("exceptions", &admin).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let (allowed, other) = (events::note(&bad, "allowed"), events::note(&bad, "other"));
    client.accept(&allowed).await;
    client.accept(&other).await;
    call(&gateway, &admin, "allowevent", json!([allowed.id.to_hex()])).await;
    call(&gateway, &admin, "banpubkey", json!([bad.public_key().to_hex()])).await;
    assert_eq!(client.stored_ids(&[json!({})]).await, [allowed.id.to_hex()]);
    // A second look is taken some seconds later.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(client.stored_ids(&[json!({})]).await, [allowed.id.to_hex()]);
    client.refuse(&other, "blocked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_that_is_listed_is_there() {
    let admin = Keys::generate();
    let gateway = managed("methods", &admin).start().await;
    let methods = call(&gateway, &admin, "supportedmethods", json!([])).await;
    let methods: Vec<&str> =
        methods.as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert!(methods.len() >= 20 && methods.contains(&"banpubkey"), "{methods:?}");
    for method in methods {
        let answer = answered(&gateway, &admin, method, json!([])).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(!error.contains("not supported"), "{method}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_are_allowed_and_disallowed() {
    let (admin, keys) = (Keys::generate(), Keys::generate());
    let gateway = managed("kinds", &admin).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let mut nonce = 0;
    let mut event = |kind: u16| {
        nonce += 1;
        events::event(&keys, kind, &nonce.to_string(), &[], events::now())
    };
    call(&gateway, &admin, "disallowkind", json!([7])).await;
    client.refuse(&event(7), "blocked").await;
    client.accept(&event(1)).await;
    call(&gateway, &admin, "unlistkind", json!([7])).await;
    client.accept(&event(7)).await;

    call(&gateway, &admin, "allowkind", json!([1])).await;
    call(&gateway, &admin, "allowkind", json!([30_023])).await;
    client.accept(&event(1)).await;
    client.refuse(&event(7), "blocked").await;
    assert_eq!(call(&gateway, &admin, "listallowedkinds", json!([])).await, json!([1, 30_023]));
    assert_eq!(document(&gateway).await["limitation"]["restricted_writes"], true);
    call(&gateway, &admin, "disallowkind", json!([1])).await;
    client.refuse(&event(1), "blocked").await;
    assert_eq!(call(&gateway, &admin, "listdisallowedkinds", json!([])).await, json!([1]));
    for kind in [1, 30_023] {
        call(&gateway, &admin, "unlistkind", json!([kind])).await;
    }
    client.accept(&event(7)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_is_renamed_at_once_and_for_good() {
    let admin = Keys::generate();
    let mut gateway = managed("names", &admin)
        .set("relay", "name", r#""configured""#)
        .set("relay", "icon", r#""https://example.org/old.png""#)
        .start()
        .await;
    assert_eq!(document(&gateway).await["name"], "configured");
    for (method, value) in [
        ("changerelayname", "Näme \"quoted\""),
        ("changerelaydescription", "what it is for"),
        ("changerelayicon", "https://example.org/icon.png"),
    ] {
        call(&gateway, &admin, method, json!([value])).await;
    }
    for restart in [false, true] {
        if restart {
            gateway.interrupt().await;
            gateway = gateway.restart().await;
        }
        let document = document(&gateway).await;
        assert_eq!(document["name"], "Näme \"quoted\"", "{document}");
        assert_eq!(document["description"], "what it is for");
        assert_eq!(document["icon"], "https://example.org/icon.png");
    }
    for method in ["changerelayname", "changerelayicon"] {
        call(&gateway, &admin, method, json!([""])).await;
    }
    let document = document(&gateway).await;
    assert_eq!(document["name"], "configured");
    assert_eq!(document["icon"], "https://example.org/old.png");
    assert_eq!(document["description"], "what it is for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_address_is_put_out_and_kept_out() {
    let admin = Keys::generate();
    let gateway = managed("blocks", &admin)
        .set("relay", "trusted_proxies", r#"["127.0.0.1"]"#)
        .set("access", "read", r#""open""#)
        .set("access", "write", r#""open""#)
        .start()
        .await;
    let url = gateway.url();
    let connect = async |address: &str| {
        RawClient::try_connect_with(&url, &[("X-Forwarded-For", address)]).await
    };
    let mut blocked = connect("203.0.113.7").await.ok().unwrap();
    let mut network = connect("2001:db8::7").await.ok().unwrap();
    let mut neighbor = connect("203.0.113.8").await.ok().unwrap();
    for client in [&mut blocked, &mut network, &mut neighbor] {
        client.req("live", &[json!({})]).await;
    }
    call(&gateway, &admin, "blockip", json!(["203.0.113.7", "abuse"])).await;
    call(&gateway, &admin, "blockip", json!(["2001:db8::/64"])).await;
    blocked.closed().await;
    network.closed().await;
    for address in ["203.0.113.7", "2001:db8::8"] {
        match connect(address).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 403),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{address} is let in"),
        }
        let forwarded = [("X-Forwarded-For", address)];
        assert_eq!(http::request(&gateway.relay, "GET", "/", &forwarded).await.status, 403);
    }
    neighbor.accept(&events::note(&Keys::generate(), "still here")).await;
    let list = call(&gateway, &admin, "listblockedips", json!([])).await;
    let expected = json!([{"ip": "203.0.113.7", "reason": "abuse"}, {"ip": "2001:db8::/64"}]);
    assert_eq!(list, expected);

    call(&gateway, &admin, "unblockip", json!(["203.0.113.7"])).await;
    connect("203.0.113.7").await.ok().unwrap();
    // Nobody locks himself out.
    let own = fails(&gateway, &admin, "blockip", json!(["127.0.0.0/8"])).await;
    assert!(own.contains("yourself"), "{own}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_those_who_may_is_changed_at_once() {
    let (admin, member) = (Keys::generate(), Keys::generate());
    let gateway = managed("list", &admin)
        .set("access", "read", r#""list""#)
        .set("access", "write", r#""list""#)
        .start()
        .await;
    let key = member.public_key().to_hex();
    let mut client = RawClient::connect(&gateway.url()).await;
    let challenge = client.next_challenge().await;
    client.authenticate_with(&member, &gateway.url(), &challenge).await;
    let note = events::note(&member, "may I");
    client.refuse(&note, "restricted").await;
    call(&gateway, &admin, "allowpubkey", json!([key, "a friend"])).await;
    client.accept(&note).await;
    client.req("live", &[json!({})]).await;
    let allowed = call(&gateway, &admin, "listallowedpubkeys", json!([])).await;
    assert_eq!(allowed, json!([{"pubkey": key, "reason": "a friend"}]));
    // Its open subscriptions would go on.
    call(&gateway, &admin, "unallowpubkey", json!([key])).await;
    client.closed().await;

    // Banning takes off the list, allowing lifts the ban (NIP-86).
    call(&gateway, &admin, "allowpubkey", json!([key])).await;
    call(&gateway, &admin, "banpubkey", json!([key])).await;
    assert_eq!(call(&gateway, &admin, "listallowedpubkeys", json!([])).await, json!([]));
    call(&gateway, &admin, "allowpubkey", json!([key])).await;
    assert_eq!(call(&gateway, &admin, "listbannedpubkeys", json!([])).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_holds_against_gossip_and_other_relays() {
    let _alone = alone().await;
    let admin = Keys::generate();
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let elsewhere = GatewayBuilder::new(GATEWAY, "elsewhere").topics(&[]).start().await;
    let a = GatewayBuilder::new(GATEWAY, "A").dht(&testnet).topics(&["town"]);
    let b = managed("B", &admin).dht(&testnet).topics(&["town"]).upstream(
        "elsewhere",
        &elsewhere.url(),
        "town",
    );
    let (a, b) = tokio::join!(a.start(), b.start());
    let (bad, good) = (Keys::generate(), Keys::generate());
    let banned = events::note(&good, "this one");
    call(&b, &admin, "banpubkey", json!([bad.public_key().to_hex()])).await;
    call(&b, &admin, "banevent", json!([banned.id.to_hex()])).await;
    a.wait_for_neighbors("town", 1, Duration::from_secs(60)).await;
    b.wait_for_neighbors("town", 1, Duration::from_secs(60)).await;

    let mut at_b = RawClient::connect(&b.topic_url("town")).await;
    at_b.req("live", &[json!({})]).await;
    for source in [a.topic_url("town"), elsewhere.url()] {
        let mut client = RawClient::connect(&source).await;
        client.accept(&banned).await;
        client.accept(&events::note(&bad, &source)).await;
        let after = events::note(&good, &source);
        client.accept(&after).await;
        assert_eq!(at_b.live("live").await["id"], after.id.to_hex());
    }
    at_b.expect_silence().await;
    let refused = |origin: &str| {
        format!(
            r#"nostr_gateway_events_total{{origin="{origin}",outcome="refused",reason="blocked""#
        )
    };
    b.wait_for_metric(&refused("gossip"), 2, PATIENCE).await;
    b.wait_for_metric(&refused("upstream"), 2, PATIENCE).await;

    // Whoever was banned may come back.
    call(&b, &admin, "unbanpubkey", json!([bad.public_key().to_hex()])).await;
    let back = events::note(&bad, "back");
    RawClient::connect(&a.topic_url("town")).await.accept(&back).await;
    eventually("the event of the unbanned", PATIENCE, async || {
        let found = at_b.stored_ids(&[json!({"ids": [back.id.to_hex()]})]).await;
        (!found.is_empty()).then_some(())
    })
    .await;
}
