//! `backup` and `restore`: while events stream in, over what is there, and killed in the middle.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, publish_until_the_end};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{
    GATEWAY, alone,
    transfer::{file, ids, lines},
};

fn notes(count: usize, length: usize) -> Vec<Event> {
    let (keys, start) = (Keys::generate(), events::now() - 100_000);
    let text = |n| format!("{n} {}", "x".repeat(length));
    (0..count).map(|n| events::event(&keys, 1, &text(n), &[], start + n as u64)).collect()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

async fn stored(builder: &GatewayBuilder) -> usize {
    let exported = builder.command(&["export"]).await;
    exported.succeeded();
    ids(&exported.stdout).len()
}

/// Everything that was acknowledged before it began is in it, and it is a gateway again elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_complete_while_events_stream_in() {
    let _alone = alone().await;
    let place = tempfile::tempdir().unwrap();
    let backup = text(&place.path().join("gateway.backup"));
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).blocklist(&[], &["spam"]);
    let mut a = builder.clone().start().await;
    let before = notes(2_000, 500);
    let (_dir, path) = file(&lines(&before));
    a.command(&["import", &path, "--topic", "town"]).await.succeeded();
    a.command(&["topic", "join", "kept"]).await.succeeded();
    let publishing = tokio::spawn(publish_until_the_end(a.url()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let acknowledged = a.command(&["export"]).await;
    let known = ids(&acknowledged.stdout);

    let done = a.command(&["backup", &backup, "--json"]).await.json();
    assert!(done["events"].as_u64().unwrap() >= known.len() as u64, "{done}");
    assert_eq!(done["holds"], json!(["secrets.age"]), "{done}");
    assert_eq!(done["secrets"], "without their key", "{done}");
    assert!(done["plugin_files"].as_u64().unwrap() >= 2, "{done}");
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "one file");
    a.command(&["backup", &backup]).await.refuses(1, &["is there already"]);
    a.command(&["backup", "/nowhere/x"]).await.refuses(1, &["/nowhere/x"]);
    // Those that streamed in went on all the time.
    let live = a.command(&["scan", "{}", "--count"]).await.stdout;
    assert!(live.trim().parse::<usize>().unwrap() > known.len());
    let endpoint = a.endpoint.clone();
    a.interrupt().await;
    let published = publishing.await.unwrap();
    assert!(published.len() > 100);

    // On another machine: the key has been kept elsewhere.
    let other = GatewayBuilder::new(GATEWAY, "B").topics(&["town"]);
    fs::create_dir_all(other.data_dir()).unwrap();
    fs::copy(builder.data_dir().join("secrets.key"), other.data_dir().join("secrets.key")).unwrap();
    let restored = other.command(&["restore", &backup, "--json"]).await.json();
    assert_eq!(restored["events"], done["events"], "{restored}");
    assert_eq!(restored["before"], Value::Null);
    let offline = ids(&other.command(&["export"]).await.stdout);
    assert!(offline.starts_with(&known), "in the same order");
    let b = other.start().await;
    assert_eq!(b.endpoint, endpoint, "it is the same gateway");
    let topics = b.status().await["topics"].to_string();
    assert!(topics.contains("\"kept\""), "{topics}");
    let mut client = RawClient::connect(&b.topic_url("town")).await;
    assert_eq!(client.count(&[json!({})]).await, 2_000);
    client.refuse(&events::note(&Keys::generate(), "spam"), "blocked").await;
    client.accept(&events::note(&Keys::generate(), "it goes on")).await;
    // The index of words is made again.
    let mut client = RawClient::connect(&b.url()).await;
    nostr_gateway_tests::eventually("words are found", Duration::from_secs(60), async || {
        let found = client.stored_ids(&[json!({"search": "1234", "limit": 5})]).await;
        (!found.is_empty()).then_some(())
    })
    .await;
}

async fn with_events(name: &str, count: usize) -> (GatewayBuilder, Gateway) {
    let builder = GatewayBuilder::new(GATEWAY, name).topics(&["town"]);
    let gateway = builder.clone().start().await;
    let (_dir, path) = file(&lines(&notes(count, 100)));
    gateway.command(&["import", &path]).await.succeeded();
    (builder, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_loses_nothing_of_what_was_there() {
    let place = tempfile::tempdir().unwrap();
    let (builder, mut gateway) = with_events("A", 10).await;
    let first = gateway.endpoint.clone();
    let backup = text(&place.path().join("a"));
    let said = gateway.command(&["backup", &backup, "--with-key"]).await;
    assert!(said.stdout.contains("10 events") && said.stdout.contains("Keep it to yourself"));
    gateway.command(&["restore", &backup]).await.refuses(1, &["stop it first"]);
    gateway.interrupt().await;

    let (other, mut gateway) = with_events("B", 25).await;
    let second = gateway.endpoint.clone();
    gateway.interrupt().await;
    other.command(&["restore", &backup]).await.refuses(1, &["already", "--force"]);
    other.command(&["restore", "/nowhere"]).await.refuses(2, &["/nowhere"]);
    let database = other.data_dir().join("gateway.db");
    for (name, damage, word) in [
        ("text", b"no database".to_vec(), "no backup"),
        ("empty", Vec::new(), "no backup"),
        ("cut", fs::read(&backup).unwrap()[..60_000].to_vec(), "cut"),
    ] {
        let path = place.path().join(name);
        fs::write(&path, damage).unwrap();
        let before = fs::read(&database).unwrap();
        let refused = other.command(&["restore", &text(&path), "--force"]).await;
        refused.refuses(1, &[word]);
        assert!(fs::read(&database).unwrap() == before, "{name}: it is untouched");
    }
    let mut spoilt = fs::read(&backup).unwrap();
    let middle = spoilt.len() / 2;
    spoilt[middle..middle + 8_192].fill(0xA5);
    fs::write(place.path().join("spoilt"), spoilt).unwrap();
    let refused = other.command(&["restore", &text(&place.path().join("spoilt")), "--force"]).await;
    refused.refuses(1, &["spoilt"]);
    assert_eq!(stored(&other).await, 25);

    let restored = other.command(&["restore", &backup, "--force"]).await;
    assert!(
        restored.stdout.contains("restored 10 events, secrets.age, secrets.key"),
        "{restored:?}"
    );
    assert!(restored.stdout.contains("before-restore-"), "{restored:?}");
    assert_eq!(stored(&other).await, 10);
    let gateway = other.clone().start().await;
    assert_eq!(gateway.endpoint, first);
    drop(gateway);

    // What was put aside is a data directory of its own.
    let entries = fs::read_dir(other.data_dir()).unwrap().map(|entry| entry.unwrap().path());
    let aside = entries.into_iter().find(|path| text(path).contains("before-restore-")).unwrap();
    let old = GatewayBuilder::new(GATEWAY, "C").topics(&["town"]);
    fs::rename(aside, old.data_dir()).unwrap();
    assert_eq!(stored(&old).await, 25);
    assert_eq!(old.start().await.endpoint, second);
    assert_eq!(stored(&builder).await, 10);
}

/// Killed at any moment, it is the old one or the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_was_never_begun_or_is_finished() {
    let _alone = alone().await;
    let place = tempfile::tempdir().unwrap();
    let backup = text(&place.path().join("a"));
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let (_dir, path) = file(&lines(&notes(4_000, 1_000)));
    builder.command(&["import", &path]).await.succeeded();
    builder.command(&["backup", &backup]).await.succeeded();

    let other = GatewayBuilder::new(GATEWAY, "B").topics(&["town"]);
    let (_dir, path) = file(&lines(&notes(30, 100)));
    let mut outcomes = Vec::new();
    for delay in [0, 5, 10, 20, 30, 45, 60, 80, 120, 200] {
        // Old again, whatever it is now.
        other.command(&["delete", "{}", "--yes"]).await;
        other.command(&["import", &path]).await.succeeded();
        let mut restore = other.begin(&["restore", &backup, "--force"]);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        restore.kill().await;
        let count = stored(&other).await;
        assert!([30, 4_000].contains(&count), "{count} after {delay} ms");
        outcomes.push(count);
    }
    assert!(outcomes.contains(&30), "the kill came too late each time: {outcomes:?}");
    other.command(&["restore", &backup, "--force"]).await.succeeded();
    let gateway = other.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(client.count(&[json!({})]).await, 4_000);
}
