//! `sync URL`: a gateway and a relay, brought together once.

use nostr_gateway_tests::{Gateway, GatewayBuilder, IndependentRelay, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{
    GATEWAY, alone,
    transfer::{file, ids, lines},
};

fn notes(keys: &Keys, numbers: std::ops::Range<u64>, in_one_second: u64) -> Vec<Event> {
    let start = events::now() - 100_000;
    let note = |n: u64| events::event(keys, 1, &n.to_string(), &[], start + n / in_one_second);
    numbers.map(note).collect()
}

async fn import(gateway: &Gateway, events: &[Event], how: &[&str]) {
    let (_dir, path) = file(&lines(events));
    let mut command = vec!["import", &path];
    command.extend(how);
    gateway.command(&command).await.succeeded();
}

async fn stored(gateway: &Gateway) -> Vec<String> {
    let mut ids = ids(&gateway.command(&["export"]).await.stdout);
    ids.sort();
    ids
}

/// The other relay has NIP-77: another gateway will do.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_get_what_they_lack_and_nothing_leaves_that_must_not() {
    let _alone = alone().await;
    let keys = Keys::generate();
    let (a, b) =
        (GatewayBuilder::new(GATEWAY, "A").topics(&["town"]), GatewayBuilder::new(GATEWAY, "B"));
    let builder = a.clone();
    let (mut a, b) = tokio::join!(a.start(), b.start());
    let all = notes(&keys, 0..450, 1);
    let other = Keys::generate().public_key().to_hex();
    let secret = events::event(&keys, 4, "cipher", &[&["p", &other]], events::now());
    let protected = events::event(&keys, 1, "mine", &[&["-"]], events::now());
    import(&a, &all[..300], &["--topic", "town"]).await;
    import(&a, &[secret, protected], &["--no-topics"]).await;
    import(&b, &all[100..], &[]).await;

    let both = ["sync", &b.url(), "--direction", "both"];
    let dry = a.command(&[&both[..], &["--dry-run", "--json"]].concat()).await.json();
    let counts = [&dry["missing_here"], &dry["missing_there"], &dry["received"], &dry["sent"]];
    assert_eq!(counts, [150, 101, 0, 0], "{dry}");
    assert_eq!(dry["by"], "negentropy");
    let old = ["sync", &b.url(), "--since", "1h", "--dry-run"];
    assert_eq!(a.command(&old).await.stdout, "0 events of the relay are missing here\n");

    let synced = a.command(&[&both[..], &["--topic", "town", "--json"]].concat()).await.json();
    let counts = [&synced["added"], &synced["sent"], &synced["not_taken"]];
    assert_eq!(counts, [150, 100, 0], "{synced}");
    assert_eq!(stored(&b).await, events::ids(&all), "the secret one and the protected one stayed");
    let mut client = RawClient::connect(&a.topic_url("town")).await;
    assert_eq!(client.count(&[json!({})]).await, 450);
    let again = a.command(&[&both[..], &["--json"]].concat()).await.json();
    let counts = [&again["received"], &again["sent"], &again["stayed"]];
    assert_eq!(counts, [0, 0, 1], "{again}");

    // Without a gateway, and by parts.
    let more = notes(&keys, 500..560, 1);
    import(&b, &more, &[]).await;
    a.interrupt().await;
    let filter = json!({"since": more[50].created_at.as_secs()}).to_string();
    let some = builder.command(&["sync", &b.url(), "--filter", &filter]).await;
    assert_eq!(some.stdout, "10 received: 10 new, 0 known, 0 refused\n", "{some:?}");
    assert!(some.stderr.contains("working on its files"), "{some:?}");
    let rest = builder.command(&["sync", &b.url()]).await;
    assert!(rest.stdout.starts_with("50 received: 50 new"), "{rest:?}");
    // What is deleted here is not asked for again.
    builder.command(&["delete", &filter, "--yes"]).await.succeeded();
    let dry = builder.command(&["sync", &b.url(), "--dry-run"]).await;
    assert_eq!(dry.stdout, "0 events of the relay are missing here\n", "{dry:?}");
}

/// The other relay is not of our making.
#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_relay_is_read_where_it_cannot_compare() {
    let keys = Keys::generate();
    let all = notes(&keys, 0..1_700, 600);
    let relay = IndependentRelay::start(&all).await;
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).blocklist(&[], &["1234"]);
    let synced = builder.command(&["sync", &relay.url(), "--topic", "town", "--json"]).await.json();
    assert_eq!((&synced["added"], &synced["refused"]), (&json!(1_699), &json!(1)), "{synced}");
    let own = events::note(&keys, "from here");
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    assert_eq!(client.count(&[json!({})]).await, 1_699);
    client.accept(&own).await;
    let up = gateway.command(&["sync", &relay.url(), "--direction", "up", "--json"]).await.json();
    assert_eq!((&up["sent"], &up["received"]), (&json!(1), &json!(0)), "{up}");
    let mut there = RawClient::connect(&relay.url()).await;
    let found = there.stored_ids(&[json!({"ids": [own.id.to_hex()]})]).await;
    assert_eq!(found, [own.id.to_hex()]);
    let again =
        gateway.command(&["sync", &relay.url(), "--direction", "both", "--json"]).await.json();
    assert_eq!((&again["added"], &again["sent"]), (&json!(0), &json!(0)), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said() {
    let keys = Keys::generate();
    let closed = GatewayBuilder::new(GATEWAY, "closed")
        .set("access", "write", r#""list""#)
        .set("access", "pubkeys", &format!("[{:?}]", Keys::generate().public_key().to_hex()))
        .start()
        .await;
    let gateway = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).start().await;
    import(&gateway, &notes(&keys, 0..60, 1), &["--topic", "town"]).await;
    let url = closed.url();
    let port = nostr_gateway_tests::free_port();
    let nobody = format!("ws://127.0.0.1:{port}");
    gateway.command(&["sync", "relay.example.org"]).await.refuses(2, &["wss://relay.example.org"]);
    gateway.command(&["sync", &nobody]).await.refuses(1, &["cannot connect to", &port.to_string()]);
    gateway.command(&["sync", &url, "--topic", "nowhere"]).await.refuses(1, &["nowhere"]);
    gateway.command(&["sync", &url, "--filter", "["]).await.refuses(2, &["the filter"]);
    gateway.command(&["sync", &url, "--filter", r#"{"limit":3}"#]).await.refuses(2, &["limit"]);
    gateway.command(&["sync", &url, "--since", "soon"]).await.refuses(2, &["30d"]);
    let refused = gateway.command(&["sync", &url, "--direction", "up", "--json"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("the relay refuses everything"), "{refused:?}");
    let figures: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert!(figures["not_taken"].as_u64().unwrap() >= 20, "{figures}");
    assert_eq!(figures["sent"], 0, "{figures}");
}
