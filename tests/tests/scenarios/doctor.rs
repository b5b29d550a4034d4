//! `nostr-gateway doctor`, with parts that work and parts that do not.

use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{Finished, GatewayBuilder, Keyring, Network, Testnet};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net,
};

use crate::{DHT_TESTNET, GATEWAY, alone, nat::start_iroh_relay};

/// The verdict of one check, and all that is said of it.
fn check(finished: &Finished, what: &str) -> (String, String) {
    let answer: Value = serde_json::from_str(&finished.stdout).unwrap();
    let checks = answer["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["what"] == what);
    let found = found.unwrap_or_else(|| panic!("{what}: {answer}"));
    (found["verdict"].as_str().unwrap().to_owned(), found.to_string())
}

/// A server that knows what time it is, or does not.
async fn clock(date: &'static str) -> String {
    let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1_024];
            let _ = stream.read(&mut request).await;
            let answer =
                format!("HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_works_is_told_with_and_without_a_gateway() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let builder = GatewayBuilder::new(GATEWAY, "well").dht(&testnet);
    let before = builder.command(&["doctor", "--json"]).await;
    let gateway = builder.start().await;
    let while_it_runs = gateway.command(&["doctor", "--json"]).await;
    for finished in [&before, &while_it_runs] {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        for what in ["UDP", "DHT", "relay port", "admin port", "disk space"] {
            let (verdict, text) = check(finished, what);
            assert_eq!(verdict, "ok", "{text}");
        }
        for what in ["mDNS", "iroh relay", "NAT", "port mapping", "clock"] {
            let (verdict, text) = check(finished, what);
            assert_eq!(verdict, "not_checked", "{text}");
        }
    }
    // It asks the one that runs instead of taking its ports for somebody else's.
    let (_, text) = check(&while_it_runs, "relay port");
    assert!(text.contains(&gateway.relay), "{text}");
    let answer: Value = serde_json::from_str(&while_it_runs.stdout).unwrap();
    assert_eq!(answer["gateway_running"], true);
    assert_eq!(check(&before, "keyring").0, "not_checked", "there were no secrets yet");
    assert_eq!(check(&while_it_runs, "keyring").0, "ok");
    assert_eq!(check(&before, "data directory").0, "not_checked", "there was none yet");
    assert_eq!(check(&while_it_runs, "data directory").0, "ok");
    let told = gateway.command(&["doctor"]).await;
    assert!(told.stdout.lines().any(|line| line.starts_with("ok ") && line.contains("DHT")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_with_what_to_do() {
    let _alone = alone().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (taken_address, silent_address) =
        (taken.local_addr().unwrap(), silent.local_addr().unwrap());
    let wrong_clock = clock("Sun, 06 Nov 1994 08:49:37 GMT").await;
    let builder = GatewayBuilder::new(GATEWAY, "ill")
        .set("relay", "listen", &format!("\"{taken_address}\""))
        .set("endpoint", "bind", &format!("\"{silent_address}\""))
        .set("endpoint", "iroh_relays", &format!("{wrong_clock:?}"))
        .set("discovery", "dht", "true")
        .set("discovery", "dht_bootstrap", &format!("[\"{silent_address}\"]"));
    std::fs::create_dir_all(builder.data_dir().parent().unwrap()).unwrap();
    std::fs::write(builder.data_dir(), "a file").unwrap();
    let finished = builder.command(&["doctor", "--json"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for (what, words) in [
        ("UDP", "endpoint.bind"),
        ("DHT", "firewall"),
        ("relay port", "relay.listen"),
        ("clock", "NTP"),
        ("data directory", "--data-dir"),
    ] {
        let (verdict, text) = check(&finished, what);
        assert_eq!(verdict, "failed", "{text}");
        assert!(text.contains(words), "{text}");
    }
    let told = builder.command(&["doctor"]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stdout.contains("-> set the clock"), "{told:?}");
    // A configuration that is wrong is said first.
    builder.command(&["doctor", "--listen", "nowhere"]).await.refuses(2, &["--listen"]);
}

fn with_keyring(store: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, store)
        .set("secrets", "store", &format!("{store:?}"))
        .set("secrets", "timeout_ms", "2000")
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
}

async fn doctor(builder: &GatewayBuilder) -> Finished {
    builder.command(&["doctor", "--json"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyring_is_tried_out_before_the_first_start() {
    let scenario = "a_keyring_is_tried_out_before_the_first_start";
    let Some(keyring) = Keyring::available(scenario) else { return };
    let _alone = alone().await;
    for (which, session, says) in [
        ("locked", keyring.locked().await, "the keyring"),
        ("missing", keyring.without_service().await, "the keyring"),
        ("hanging", keyring.with_service_that_hangs().await, "secrets.timeout_ms"),
    ] {
        for (store, expected) in [("keyring", "failed"), ("auto", "warning")] {
            let builder = session.for_gateway(with_keyring(store));
            let began = Instant::now();
            let finished = doctor(&builder).await;
            assert!(began.elapsed() < Duration::from_secs(20), "{which}: {:?}", began.elapsed());
            let (verdict, text) = check(&finished, "keyring");
            assert_eq!(verdict, expected, "{which}, {store}: {text}");
            assert!(text.contains(says), "{which}, {store}: {text}");
            assert!(text.contains("unlock the keyring"), "{which}, {store}: {text}");
            assert_eq!(finished.code, Some(i32::from(expected == "failed")), "{finished:?}");
            assert!(!builder.data_dir().exists(), "asking makes no data directory");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyring_that_works_is_told_from_one_that_went() {
    let scenario = "a_keyring_that_works_is_told_from_one_that_went";
    let Some(keyring) = Keyring::available(scenario) else { return };
    let _alone = alone().await;
    let session = keyring.unlocked().await;
    let builder = session.for_gateway(with_keyring("keyring"));
    let (verdict, text) = check(&doctor(&builder).await, "keyring");
    assert_eq!(verdict, "ok", "{text}");
    assert!(text.contains("gave back"), "{text}");
    assert_eq!(session.entries("nostr-gateway"), 0, "what was put in is gone again");
    let mut gateway = builder.clone().start().await;
    let (verdict, text) = check(&gateway.command(&["doctor", "--json"]).await, "keyring");
    assert_eq!(verdict, "ok", "{text}");
    assert!(text.contains("secrets rest in: keyring"), "{text}");
    assert_eq!(session.entries("nostr-gateway"), 1, "the identity, and nothing else");

    // The session ends under the gateway's feet.
    drop(session);
    let finished = gateway.command(&["doctor", "--json"]).await;
    let (verdict, text) = check(&finished, "keyring");
    assert_eq!((verdict.as_str(), finished.code), ("failed", Some(1)), "{text}");
    assert!(text.contains("unlock the keyring"), "{text}");
    gateway.interrupt().await;
    // Nor would it start again.
    let finished = doctor(&builder).await;
    let (verdict, text) = check(&finished, "keyring");
    assert_eq!((verdict.as_str(), finished.code), ("failed", Some(1)), "{text}");
    assert!(text.contains("keyring.json") && text.contains("unlock the keyring"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_lacks_something_is_told_with_what_to_do() {
    let scenario = "a_network_that_lacks_something_is_told_with_what_to_do";
    let Some(network) = Network::available(scenario) else { return };
    let _alone = alone().await;
    let host = Arc::new(network.add("a", 2, 1));
    let elsewhere = network.add("relay", 3, 1);
    let (mut relay, url) = start_iroh_relay(&elsewhere).await;
    let builder = GatewayBuilder::new(GATEWAY, "network")
        .namespace(host.clone())
        .set("discovery", "mdns", "true")
        .set("endpoint", "iroh_relays", &format!("{url:?}"));
    let well = doctor(&builder).await;
    for what in ["mDNS", "iroh relay"] {
        let (verdict, text) = check(&well, what);
        assert_eq!(verdict, "ok", "{text}");
    }
    // There is no router that could be asked.
    let (verdict, text) = check(&well, "port mapping");
    assert_eq!(verdict, "warning", "{text}");
    assert!(text.contains("forward a UDP port"), "{text}");

    host.filter("multicast", "output", "ip daddr 224.0.0.0/4 drop");
    relay.kill().await;
    let ill = doctor(&builder).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    for (what, expected, advice) in
        [("mDNS", "warning", "224.0.0.251"), ("iroh relay", "failed", "endpoint.iroh_relays")]
    {
        let (verdict, text) = check(&ill, what);
        assert_eq!(verdict, expected, "{text}");
        assert!(text.contains(advice), "{text}");
    }
    let off = builder.set("discovery", "mdns", "false");
    let (verdict, text) = check(&doctor(&off).await, "mDNS");
    assert_eq!(verdict, "not_checked", "{text}");
    assert!(text.contains("discovery.mdns"), "{text}");
}
