//! `import` and `export`: events from a file, and into one.

use std::{collections::HashSet, fs, time::Duration};

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{GATEWAY, management::call};

async fn gateway(name: &str) -> Gateway {
    GatewayBuilder::new(GATEWAY, name).topics(&["town"]).start().await
}

/// Writes a file with these lines into a directory of its own.
pub(crate) fn file(lines: &[String]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

pub(crate) fn lines(events: &[Event]) -> Vec<String> {
    events.iter().map(events::json).collect()
}

pub(crate) fn ids(exported: &str) -> Vec<String> {
    let id = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["id"].as_str().unwrap().to_owned()
    };
    exported.lines().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported_elsewhere_in_the_same_order() {
    let (a, b) = (gateway("A").await, gateway("B").await);
    let all = events::assortment(400);
    let (_dir, path) = file(&lines(&all));
    let imported = a.command(&["import", &path, "--topic", "town", "--json"]).await;
    let counts: Value = serde_json::from_str(&imported.stdout).unwrap();
    assert_eq!((&counts["lines"], &counts["known"]), (&json!(400), &json!(0)), "{counts}");
    let again = a.command(&["import", &path, "--topic", "town", "--json"]).await;
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["added"], 0, "{again}");

    // The topic has them, and whoever listens there.
    let mut client = RawClient::connect(&a.topic_url("town")).await;
    assert!(client.count(&[json!({})]).await > 100);

    let exported = a.command(&["export"]).await;
    exported.succeeded();
    let order = ids(&exported.stdout);
    assert!(order.len() > 100 && order.iter().collect::<HashSet<_>>().len() == order.len());
    let written: Vec<String> = exported.stdout.lines().map(str::to_owned).collect();
    let known: HashSet<String> = lines(&all).into_iter().collect();
    assert!(written.iter().all(|line| known.contains(line)), "not as it came");
    let (_dir, path) = file(&written);
    let imported = b.command(&["import", &path, "--no-topics", "--json"]).await.json();
    assert_eq!(imported["added"], order.len() as u64, "{imported}");
    assert_eq!(ids(&b.command(&["export"]).await.stdout).len(), order.len());
    let mut client = RawClient::connect(&b.topic_url("town")).await;
    assert_eq!(client.count(&[json!({})]).await, 0, "--no-topics");

    let notes = a.command(&["export", "--filter", r#"{"kinds":[1]}"#]).await;
    let notes = ids(&notes.stdout);
    assert!(!notes.is_empty() && notes.len() < order.len());
    let of_topic = a.command(&["export", "--topic", "town"]).await;
    assert_eq!(ids(&of_topic.stdout), order, "all of it went there");
    a.command(&["export", "--topic", "elsewhere"]).await.refuses(1, &["elsewhere"]);
    let of_topic = b.command(&["export", "--topic", "town"]).await;
    of_topic.refuses(1, &["nothing here was ever in a topic"]);
    let positions: Vec<_> =
        notes.iter().map(|id| order.iter().position(|other| other == id).unwrap()).collect();
    assert!(positions.is_sorted(), "in the order in which they came");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_back_by_a_file() {
    let admin = Keys::generate();
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .set("relay", "admins", &format!("[{:?}]", admin.public_key().to_hex()))
        .start()
        .await;
    let [alice, bob, eve] = [(); 3].map(|()| Keys::generate());
    let mut client = RawClient::connect(&gateway.url()).await;
    let now = events::now();
    let note = events::note(&alice, "regretted");
    let unseen = events::note(&alice, "not seen yet");
    let old = events::event(&alice, 30_023, "old", &[&["d", "a"]], now - 20);
    let address = format!("30023:{}:a", alice.public_key().to_hex());
    client.accept(&note).await;
    let (note_id, unseen_id) = (note.id.to_hex(), unseen.id.to_hex());
    let tags: [&[&str]; 3] = [&["e", &note_id], &["e", &unseen_id], &["a", &address]];
    client.accept(&events::event(&alice, 5, "", &tags, now)).await;
    let vanish = events::event(&bob, 62, "", &[&["relay", &gateway.url()]], now);
    client.accept(&vanish).await;
    let of_bob = events::event(&bob, 1, "from another time", &[], now - 50);
    call(&gateway, &admin, "banpubkey", json!([eve.public_key().to_hex(), "spam"])).await;
    let of_eve = events::note(&eve, "spam");
    let kept = events::note(&alice, "kept");
    let forged = events::json(&kept).replace("kept", "told");
    let late = events::event(&eve, 62, "", &[&["relay", &gateway.url()]], now);

    let mut all = lines(&[note, unseen, old, of_bob, of_eve, late, kept.clone()]);
    all.push(forged);
    all.extend(["{}".to_owned(), "no event".to_owned(), String::new()]);
    let (_dir, path) = file(&all);
    let imported = gateway.command(&["import", &path]).await;
    assert_eq!(imported.code, Some(1), "{imported:?}");
    assert!(imported.stdout.starts_with("1 new, 0 known, 9 refused\n"), "{imported:?}");
    assert!(imported.stdout.contains("events.jsonl:"), "{imported:?}");
    let stored = client.stored_ids(&[json!({"kinds": [1, 30_023]})]).await;
    assert_eq!(stored, [kept.id.to_hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_commands_say_what_to_do() {
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let (_dir, path) = file(&lines(&[events::note(&Keys::generate(), "x")]));
    for command in [vec!["export"], vec!["scan", "{}"], vec!["delete", "{}"], vec!["backup", "x"]] {
        builder.command(&command).await.refuses(1, &["no gateway is running", "--data-dir"]);
    }
    assert!(!builder.data_dir().join("gateway.db").exists(), "a mistyped directory is not filled");
    let gateway = builder.start().await;
    gateway.command(&["import", "/nowhere/x.jsonl"]).await.refuses(2, &["/nowhere/x.jsonl"]);
    gateway.command(&["import", &path, "--topic", "elsewhere"]).await.refuses(1, &["elsewhere"]);
    gateway.command(&["export", "--filter", "{"]).await.refuses(2, &["filter"]);
    let limited = gateway.command(&["export", "--filter", r#"{"limit":1}"#]).await;
    limited.refuses(2, &["limit"]);
    gateway.command(&["import", &path, "--topic", "town"]).await.succeeded();
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    assert_eq!(client.count(&[json!({})]).await, 1);
}

/// Whoever exports much holds up nobody.
#[tokio::test(flavor = "multi_thread")]
async fn clients_are_served_while_much_is_exported() {
    let gateway = gateway("A").await;
    let keys = Keys::generate();
    let notes: Vec<_> =
        (0..3_000).map(|n| events::note(&keys, &format!("{n} {}", "x".repeat(900)))).collect();
    let (_dir, path) = file(&lines(&notes));
    gateway.command(&["import", &path]).await.succeeded();
    let mut client = RawClient::connect(&gateway.url()).await;
    let (exported, slowest) = tokio::join!(gateway.command(&["export"]), async {
        let mut slowest = Duration::ZERO;
        for n in 0..50 {
            let begun = std::time::Instant::now();
            client.accept(&events::note(&keys, &format!("meanwhile {n}"))).await;
            slowest = slowest.max(begun.elapsed());
        }
        slowest
    });
    assert!(ids(&exported.stdout).len() >= 3_000);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}
