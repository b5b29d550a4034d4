//! `import` where no gateway runs, and imports that are broken off.

use std::{fs, path::Path, time::Duration};

use nostr_gateway_tests::{Child, GatewayBuilder, RawClient, events, eventually};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{
    GATEWAY, alone,
    transfer::{file, ids, lines},
};

const SOON: Duration = Duration::from_secs(60);
const OFFLINE: &str = "working on its files";

fn notes(count: usize, length: usize) -> Vec<Event> {
    let (keys, start) = (Keys::generate(), events::now() - 100_000);
    let text = |n| format!("{n} {}", "x".repeat(length));
    (0..count).map(|n| events::event(&keys, 1, &text(n), &[], start + n as u64)).collect()
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits until an import has noted how far it is.
async fn noted(data_dir: &Path) {
    eventually("the import is under way", SOON, async || {
        data_dir.join("import.json").exists().then_some(())
    })
    .await;
}

async fn ended(mut child: Child) -> (Option<i32>, String, String) {
    let code = child.exit(SOON).await.code();
    (code, child.stdout().join("\n"), child.stderr().join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gateway_the_same_rules_hold_and_topics_hear_of_it_later() {
    let _alone = alone().await;
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).blocklist(&[], &["spam"]);
    let all = notes(50, 100);
    let spam = events::note(&Keys::generate(), "spam");
    let mut wrong = lines(&all);
    wrong.push(events::json(&spam));
    // Of another id than any that is known: a known one is not looked at again.
    wrong.push(events::json(&events::note(&Keys::generate(), "true")).replace("true", "told"));
    let (_dir, path) = file(&wrong);
    builder.command(&["import", &path, "--topic", "nowhere"]).await.refuses(1, &["nowhere"]);
    let imported = builder.command(&["import", &path, "--topic", "town", "--json"]).await;
    assert_eq!(imported.code, Some(1), "{imported:?}");
    assert!(imported.stderr.contains(OFFLINE), "{imported:?}");
    let counts = json_of(&imported.stdout);
    assert_eq!((&counts["added"], &counts["refused"]), (&json!(50), &json!(2)), "{counts}");
    assert_eq!(counts["first_refused"]["line"], 51, "{counts}");
    let again = builder.command(&["import", &path, "--topic", "town", "--json"]).await;
    assert_eq!(json_of(&again.stdout)["known"], 50, "{again:?}");

    let a = builder.start().await;
    let mut client = RawClient::connect(&a.topic_url("town")).await;
    assert_eq!(client.count(&[json!({})]).await, 50);
    // It asks the gateway from now on.
    let online = a.command(&["export", "--topic", "town"]).await;
    assert!(online.stderr.contains("asking the gateway that runs in"), "{online:?}");
    let mut held = ids(&online.stdout);
    held.sort();
    assert_eq!(held, events::ids(&all));

    let peers = format!("[{:?}]", a.as_peer().await);
    let b = GatewayBuilder::new(GATEWAY, "B").topics(&["town"]).set("discovery", "peers", &peers);
    let b = b.start().await;
    eventually("the neighbor has what was imported", SOON, async || {
        let mut client = RawClient::connect(&b.topic_url("town")).await;
        (client.count(&[json!({})]).await == 50).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_works_on_a_data_directory_is_alone_there() {
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let mut import = builder.begin(&["import", "-"]);
    import.stderr_line(SOON, |line| line.contains(OFFLINE)).await;
    let note = events::note(&Keys::generate(), "meanwhile");
    import.write_line(&events::json(&note)).await;
    let (_dir, path) = file(&[events::json(&note)]);
    builder.command(&["import", &path]).await.refuses(1, &["somebody works in"]);
    let mut gateway = builder.spawn();
    assert_eq!(gateway.exit(SOON).await.code(), Some(1));
    assert!(gateway.stderr().join("\n").contains("is in use by"), "{:?}", gateway.stderr());
    import.end_input("").await;
    let (code, stdout, stderr) = ended(import).await;
    assert_eq!((code, stdout.as_str()), (Some(0), "1 new, 0 known, 0 refused"), "{stderr}");
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(client.stored_ids(&[json!({})]).await, [note.id.to_hex()]);
}

/// Ctrl-C, then SIGKILL, then to the end: what was counted is there each time.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_files_goes_on_where_it_was_broken_off() {
    let _alone = alone().await;
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let data_dir = builder.data_dir();
    let all = notes(9_000, 2_000);
    let (_dir, path) = file(&lines(&all));
    builder.command(&["import", &path, "--resume"]).await.refuses(1, &["no import of", "--resume"]);
    builder.command(&["import", "-", "--resume"]).await.refuses(2, &["--resume needs a file"]);

    let import = builder.begin(&["import", &path, "--json"]);
    noted(&data_dir).await;
    import.signal("INT");
    let (code, stdout, stderr) = ended(import).await;
    let counts = json_of(&stdout);
    assert_eq!((code, &counts["complete"]), (Some(130), &json!(false)), "{counts} {stderr}");
    assert!(stderr.contains("--resume goes on behind line"), "{stderr}");
    let first = counts["added"].as_u64().unwrap();
    assert!((400..9_000).contains(&first), "{counts}");
    let stored = builder.command(&["scan", "{}", "--count"]).await;
    assert_eq!(stored.stdout.trim(), first.to_string(), "what was acknowledged, and no more");

    let mark = json_of(&fs::read_to_string(data_dir.join("import.json")).unwrap());
    let mut import = builder.begin(&["import", &path, "--resume", "--json"]);
    eventually("it is further", SOON, async || {
        let now = json_of(&fs::read_to_string(data_dir.join("import.json")).unwrap());
        (now["line"].as_u64() > mark["line"].as_u64()).then_some(())
    })
    .await;
    import.kill().await;
    let mark = json_of(&fs::read_to_string(data_dir.join("import.json")).unwrap());
    let line = mark["line"].as_u64().unwrap();
    assert!(line > first, "{mark}");
    let exported = ids(&builder.command(&["export"]).await.stdout);
    let expected: Vec<_> = all.iter().map(|note| note.id.to_hex()).collect();
    let missing = expected[..line as usize].iter().filter(|id| !exported.contains(id)).count();
    assert_eq!(missing, 0, "all before line {line} is on disk");

    let rest = builder.command(&["import", &path, "--resume", "--json"]).await.json();
    assert_eq!(rest["resumed_at_line"], line + 1, "{rest}");
    assert_eq!(rest["lines"], 9_000 - line, "{rest}");
    assert!(!data_dir.join("import.json").exists());
    builder.command(&["import", &path, "--resume"]).await.refuses(1, &["no import of"]);
    let stored = builder.command(&["scan", "{}", "--count"]).await;
    assert_eq!(stored.stdout.trim(), "9000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_in_the_middle_loses_nothing_of_what_was_counted() {
    let _alone = alone().await;
    let builder = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]);
    let mut gateway = builder.clone().start().await;
    let all = notes(9_000, 2_000);
    let (_dir, path) = file(&lines(&all));
    let import = builder.begin(&["import", &path, "--json"]);
    noted(&builder.data_dir()).await;
    gateway.kill9().await;
    let (code, stdout, stderr) = ended(import).await;
    let counts = json_of(&stdout);
    assert_eq!((code, &counts["complete"]), (Some(1), &json!(false)), "{counts} {stderr}");
    assert!(stderr.contains("--resume goes on behind line"), "{stderr}");
    let gateway = gateway.restart().await;
    let stored = gateway.command(&["scan", "{}", "--count"]).await.stdout;
    assert!(stored.trim().parse::<u64>().unwrap() >= counts["added"].as_u64().unwrap());
    let rest = gateway.command(&["import", &path, "--resume", "--json"]).await.json();
    assert!(rest["lines"].as_u64().unwrap() < 9_000, "{rest}");
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(client.count(&[json!({"kinds": [1]})]).await, 9_000);
}
