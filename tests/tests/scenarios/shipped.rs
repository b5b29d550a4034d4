//! The shipped blocklist and rate limit in the running gateway.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, eventually, report};
use nostr_sdk::{Event, Keys};

use crate::{GATEWAY, alone};

/// For what the gateway notices by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn builder() -> GatewayBuilder {
    // The machine may be busy: time is not what is tested here.
    GatewayBuilder::new(GATEWAY, "A").topics(&[]).set("plugins", "budget_ms", "5000")
}

fn hex(keys: &Keys) -> String {
    keys.public_key().to_hex()
}

async fn at(gateway: &Gateway) -> RawClient {
    RawClient::connect(&gateway.url()).await
}

/// Waits until an event like this one is refused with this reason.
async fn refused(gateway: &Gateway, reason: &str, event: impl Fn(u64) -> Event) {
    let mut client = at(gateway).await;
    let mut n = 0;
    eventually(reason, SOON, async || {
        n += 1;
        let (accepted, told) = client.publish(&event(n)).await;
        (!accepted && told == reason).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blocklist_refuses_by_pattern_and_by_mute_lists() {
    let (admin, bob, carol) = (Keys::generate(), Keys::generate(), Keys::generate());
    let config = format!(
        "patterns = ['(?i)free\\s+sats', '^GM$']\nmute_lists = [{:?}]\nmute_lists_refresh_s = 1",
        hex(&admin)
    );
    let gateway = builder().shipped("blocklist", &config, &[]).start().await;
    // Without the grant it cannot read them, and does not run.
    let list = gateway.command(&["plugin", "list", "--json"]).await.json();
    let cause = list["plugins"][0]["state"]["broken"]["cause"].as_str().unwrap();
    assert!(cause.ends_with("nostr-gateway plugin enable blocklist --grant lookup"), "{cause}");
    gateway.command(&["plugin", "enable", "blocklist", "--grant", "lookup"]).await.succeeded();

    let mut client = at(&gateway).await;
    let by_pattern = (false, "blocked: a pattern on the blocklist fits".to_owned());
    assert_eq!(client.publish(&events::note(&carol, "get FREE \n sats")).await, by_pattern);
    assert_eq!(client.publish(&events::note(&carol, "GM")).await, by_pattern);
    for passes in ["GM all", "freesats"] {
        client.accept(&events::note(&carol, passes)).await;
    }

    // A list counts soon after it was published.
    let now = events::now();
    client.accept(&events::note(&bob, "before")).await;
    let thread = events::note(&carol, "a long thread");
    let muted: &[&[&str]] =
        &[&["p", &hex(&bob)], &["word", "Casino"], &["t", "ads"], &["e", &thread.id.to_hex()]];
    client.accept(&events::event(&admin, 10_000, "", muted, now - 10)).await;
    refused(&gateway, "blocked: this author is on a mute list", |n| {
        events::note(&bob, &format!("note {n}"))
    })
    .await;
    refused(&gateway, "blocked: a word is on a mute list", |n| {
        events::note(&carol, &format!("CASINO {n}"))
    })
    .await;
    let tagged = |tag: [&str; 2]| events::event(&carol, 1, "x", &[&tag], now);
    for (event, reason) in [
        (tagged(["t", "Ads"]), "a hashtag is on a mute list"),
        (tagged(["e", &thread.id.to_hex()]), "its thread is on a mute list"),
        (thread.clone(), "this event is on a mute list"),
    ] {
        let expected = (false, format!("blocked: {reason}"));
        assert_eq!(client.publish(&event).await, expected);
    }
    client.accept(&events::event(&carol, 1, "the ads", &[&["p", &hex(&bob)]], now)).await;
    client.accept(&events::note(&admin, "casino")).await;

    // At a start it is in the store.
    let mut gateway = gateway;
    gateway.interrupt().await;
    let gateway = gateway.restart().await;
    let mut client = at(&gateway).await;
    let first = client.publish(&events::note(&bob, "after the start")).await;
    assert_eq!(first, (false, "blocked: this author is on a mute list".to_owned()));
    // An older list changes nothing, a newer one does.
    let (older, newer) = (now - 100, now - 5);
    client.publish(&events::event(&admin, 10_000, "", &[], older)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!client.publish(&events::note(&bob, "still muted")).await.0);
    client.accept(&events::event(&admin, 10_000, "", &[&["word", "casino"]], newer)).await;
    let mut n = 0;
    eventually("he may write again", SOON, async || {
        n += 1;
        client.publish(&events::note(&bob, &format!("again {n}"))).await.0.then_some(())
    })
    .await;
}

fn limited(per_author: u32, per_address: u32) -> GatewayBuilder {
    // The clock must not give back what the test counts.
    let limit = |burst| format!("{{ per_minute = 0.1, burst = {burst} }}");
    let config = format!(
        "per_author = {}\nper_address = {}\nexempt_kinds = [7]",
        limit(per_author),
        limit(per_address)
    );
    builder()
        .set("access", "read", r#""open""#)
        .set("access", "write", r#""open""#)
        .set("relay", "trusted_proxies", r#"["127.0.0.1"]"#)
        .shipped("rate-limit", &config, &["kv"])
}

async fn from(gateway: &Gateway, address: &str) -> RawClient {
    let headers = [("X-Forwarded-For", address)];
    RawClient::try_connect_with(&gateway.url(), &headers).await.unwrap()
}

/// How many notes of an author pass from an address, and what is said to the one after them.
async fn pass(gateway: &Gateway, keys: &Keys, address: &str) -> (usize, String) {
    let mut client = from(gateway, address).await;
    for n in 0..20 {
        let (accepted, told) = client.publish(&events::note(keys, &format!("{address} {n}"))).await;
        if !accepted {
            let (told, _) = told.split_once(';').expect("it says when to try again");
            return (n, told.to_owned());
        }
    }
    (20, String::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_limit_counts_authors_and_addresses() {
    let gateway = limited(3, 5).start().await;
    let [alice, bob, carol, dave] = [(); 4].map(|()| Keys::generate());
    let author = "rate-limited: too many events of this author";
    let address = "rate-limited: too many events of this address";
    assert_eq!(pass(&gateway, &alice, "203.0.113.1").await, (3, author.to_owned()));
    assert_eq!(pass(&gateway, &alice, "203.0.113.2").await, (0, author.to_owned()));
    assert_eq!(pass(&gateway, &bob, "203.0.113.1").await, (2, address.to_owned()));
    assert_eq!(pass(&gateway, &bob, "203.0.113.3").await, (1, author.to_owned()));
    // Of IPv6 a network is one.
    assert_eq!(pass(&gateway, &carol, "2001:db8::1").await, (3, author.to_owned()));
    assert_eq!(pass(&gateway, &dave, "2001:db8::2:0:0:1").await, (2, address.to_owned()));
    assert_eq!(pass(&gateway, &dave, "2001:db8:0:1::1").await, (1, author.to_owned()));
    let reaction = events::event(&alice, 7, "+", &[], events::now());
    from(&gateway, "203.0.113.1").await.accept(&reaction).await;

    // It is remembered when the gateway starts anew.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut gateway = gateway;
    gateway.interrupt().await;
    let gateway = gateway.restart().await;
    assert_eq!(pass(&gateway, &alice, "203.0.113.9").await, (0, author.to_owned()));
}

/// However many connections and threads, hardly more than the burst passes.
#[tokio::test(flavor = "multi_thread")]
async fn the_rate_limit_holds_on_many_connections_at_once() {
    let _alone = alone().await;
    let gateway = limited(20, 1_000_000).start().await;
    let keys = Keys::generate();
    let connections = (0..8).map(|connection| {
        let (url, keys) = (gateway.url(), keys.clone());
        tokio::spawn(async move {
            let mut client = RawClient::connect(&url).await;
            let events: Vec<_> =
                (0..50).map(|n| events::note(&keys, &format!("{connection} {n}"))).collect();
            for event in &events {
                client.send_event(event).await;
            }
            let mut accepted = 0;
            for event in &events {
                accepted += usize::from(client.ok(&event.id.to_hex()).await.0);
            }
            accepted
        })
    });
    let mut accepted = 0;
    for connection in connections.collect::<Vec<_>>() {
        accepted += connection.await.unwrap();
    }
    report(&format!(
        "rate limit: of 400 events at once on 8 connections {accepted} passed a burst of 20"
    ));
    // Threads that look at the same moment see the same.
    assert!((20..=30).contains(&accepted), "{accepted}");
}

/// Everything that is shipped is installed with one command, as it is.
#[tokio::test(flavor = "multi_thread")]
async fn shipped_plugins_are_added_as_they_are() {
    let gateway = builder().start().await;
    for (name, grant) in [
        ("blocklist", None),
        ("rate-limit", Some("kv")),
        ("web-of-trust", Some("lookup")),
        ("topic-router", None),
        ("rotate-by-age", None),
    ] {
        let path = format!("{}/../plugins/{name}", env!("CARGO_MANIFEST_DIR"));
        let add = ["plugin", "add", &path];
        let Some(grant) = grant else {
            gateway.command(&add).await.succeeded();
            continue;
        };
        gateway.command(&add).await.refuses(1, &[&format!("--grant {grant}")]);
        gateway.command(&[&add[..], &["--grant", grant]].concat()).await.succeeded();
    }
    let mut client = at(&gateway).await;
    client.accept(&events::note(&Keys::generate(), "hello")).await;
    let shown = gateway.command(&["plugin", "show", "blocklist"]).await;
    assert!(shown.stdout.contains("log, config; if granted lookup"), "{shown:?}");
    assert!(shown.stdout.contains("not granted     lookup"), "{shown:?}");
}
