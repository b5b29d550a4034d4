//! The life of plugins in the running gateway: coming, changing, failing and going.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, eventually, http, report};
use nostr_sdk::Keys;
use serde_json::{Value, json};

use crate::{GATEWAY, alone};

/// For what the gateway notices by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(name)
}

/// The manifest of the fixture that does what an event's content says.
fn manifest(id: &str, more: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"fixtures.wasm\"\n\
         capabilities = [\"log\", \"config\", \"clock\"]\n{more}"
    )
}

/// A folder with the fixture, outside of any gateway.
fn fixture(directory: &Path, id: &str, more: &str) -> PathBuf {
    let folder = directory.join(id);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(shipped("fixtures/fixtures.wasm"), folder.join("fixtures.wasm")).unwrap();
    fs::write(folder.join("plugin.toml"), manifest(id, more)).unwrap();
    folder
}

fn builder(name: &str) -> GatewayBuilder {
    // The machine may be busy: time is not what is tested here.
    GatewayBuilder::new(GATEWAY, name).set("plugins", "budget_ms", "5000")
}

async fn answer(client: &mut RawClient, content: &str) -> (bool, String) {
    client.publish(&events::note(&Keys::generate(), content)).await
}

/// A plugin as `plugin list` shows it.
async fn listed(gateway: &Gateway, id: &str) -> Value {
    let list = gateway.command(&["plugin", "list", "--json"]).await.json();
    assert_eq!(list["running"], true, "{list}");
    let mut plugins = list["plugins"].as_array().unwrap().iter();
    plugins.find(|plugin| plugin["id"] == id).cloned().unwrap_or(Value::Null)
}

/// Puts a file into place as editors and package managers do.
fn replace(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("draft");
    fs::write(&draft, bytes).unwrap();
    fs::rename(draft, path).unwrap();
}

/// A client publishes all the time while a plugin changes again and again: every event is answered,
/// judged by one version, and called for once.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_change_under_load_and_no_event_is_lost_or_judged_twice() {
    let _alone = alone().await;
    let builder = builder("A");
    let folder = builder.plugin_folder("a");
    fixture(folder.parent().unwrap(), "a", "[config]\nsay = \"version 0\"\n");
    let gateway = builder.start().await;

    let (stop, swapping) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let publishing = tokio::spawn({
        let (url, stop, swapping) = (gateway.url(), stop.clone(), swapping.clone());
        async move {
            let keys = Keys::generate();
            let mut client = RawClient::connect(&url).await;
            let (mut accepted, mut said) = (Vec::new(), Vec::new());
            // Without and with swaps; what is refused, and what waits for the store too.
            let mut times = [const { Vec::new() }; 4];
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let content = if n % 2 == 0 { "say".to_owned() } else { format!("note {n}") };
                let event = events::event(&keys, 1, &content, &[], events::now() - n % 1_000);
                n += 1;
                let (began, at) = (Instant::now(), usize::from(swapping.load(Ordering::Relaxed)));
                let (is_accepted, text) = client.publish(&event).await;
                times[at + 2 * usize::from(is_accepted)].push(began.elapsed());
                match is_accepted {
                    true => accepted.push(event.id.to_hex()),
                    false => said.push(text),
                }
            }
            (accepted, said, times)
        }
    });
    // What the machine does without swaps, to compare with.
    tokio::time::sleep(Duration::from_secs(4)).await;
    swapping.store(true, Ordering::Relaxed);
    let path = folder.join("plugin.toml");
    for version in 1..=8 {
        let more = format!("[config]\nsay = \"version {version}\"\n");
        replace(&path, manifest("a", &more).as_bytes());
        gateway
            .wait_for_metric(
                r#"nostr_gateway_plugin_swaps_total{plugin="a",result="taken""#,
                version,
                SOON,
            )
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    let (accepted, said, mut times) = publishing.await.unwrap();
    let all = (accepted.len() + said.len()) as u64;
    // Each was judged once.
    let calls = gateway.metric(r#"nostr_gateway_plugin_calls_total{plugin="a""#).await;
    assert_eq!(calls, all, "{} accepted, {} refused", accepted.len(), said.len());
    // None fell into a gap, and versions came in their order.
    let versions: Vec<u64> = said
        .iter()
        .map(|text| text.strip_prefix("blocked: version ").expect(text).parse().unwrap())
        .collect();
    assert!(versions.is_sorted(), "{versions:?}");
    assert_eq!((versions.first(), versions.last()), (Some(&0), Some(&8)));
    RawClient::connect(&gateway.url()).await.assert_stored(&accepted).await;
    let phases = ["refused, no swap", "refused, 8 swaps", "stored, no swap", "stored, 8 swaps"];
    for (what, times) in phases.into_iter().zip(&mut times) {
        times.sort();
        report(&format!(
            "{what}: {} events under load, median {:?}, 99th {:?}, longest {:?}",
            times.len(),
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times[times.len() - 1]
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_new_version_leaves_the_old_one_running() {
    let _alone = alone().await;
    let builder = builder("A");
    let folder = builder.plugin_folder("a");
    fixture(folder.parent().unwrap(), "a", "[config]\nsay = \"old\"\n");
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(answer(&mut client, "say").await.1, "blocked: old");

    replace(&folder.join("fixtures.wasm"), b"nonsense");
    eventually("the list says why", SOON, async || {
        let update = listed(&gateway, "a").await["update"].as_str()?.to_owned();
        update.starts_with("fixtures.wasm: it is no component that compiles").then_some(())
    })
    .await;
    assert_eq!(answer(&mut client, "say").await.1, "blocked: old");
    gateway
        .log_line(SOON, |line| line.contains("the earlier version goes on: fixtures.wasm"))
        .await;
    let refused = r#"nostr_gateway_plugin_swaps_total{plugin="a",result="refused""#;
    assert_eq!(gateway.metric(refused).await, 1);
    let status = gateway.command(&["status"]).await;
    assert!(status.stdout.contains("what lies in its folder now does not run"), "{status:?}");

    // Mended, with a new configuration.
    replace(&folder.join("plugin.toml"), manifest("a", "[config]\nsay = \"new\"\n").as_bytes());
    let component = fs::read(shipped("fixtures/fixtures.wasm")).unwrap();
    replace(&folder.join("fixtures.wasm"), &component);
    eventually("the new version runs", SOON, async || {
        (answer(&mut client, "say").await.1 == "blocked: new").then_some(())
    })
    .await;
    assert_eq!(listed(&gateway, "a").await["update"], Value::Null);

    // A component that arrives slowly is waited for.
    fs::remove_file(folder.join("fixtures.wasm")).unwrap();
    for end in 1..=6 {
        fs::write(folder.join("fixtures.wasm"), &component[..component.len() * end / 6]).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(answer(&mut client, "say").await.1, "blocked: new");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(gateway.metric(refused).await, 1, "no half of it was taken");
    fs::remove_dir_all(&folder).unwrap();
    eventually("it is gone", SOON, async || answer(&mut client, "say").await.0.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_too_often_is_in_quarantine_until_it_is_enabled() {
    let _alone = alone().await;
    let builder = builder("A").set("plugins", "quarantine_after", "3");
    for (id, on_failure) in [("stops", "stop"), ("passes", "pass")] {
        let scope = if id == "stops" { "[1]" } else { "[7]" };
        let more = format!("on_failure = \"{on_failure}\"\n[applies_to]\nkinds = {scope}\n");
        let folder = builder.plugin_folder(id);
        fixture(folder.parent().unwrap(), id, &more);
    }
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    for (id, kind) in [("stops", 1), ("passes", 7)] {
        eventually("it is in quarantine", SOON, async || {
            let event = events::event(&keys, kind, "panic", &[], events::now());
            client.publish(&event).await;
            let state = &listed(&gateway, id).await["state"];
            state["quarantined"]["cause"].as_str()?.starts_with("it trapped").then_some(())
        })
        .await;
        let event = events::event(&keys, kind, "harmless", &[], events::now());
        assert_eq!(client.publish(&event).await.0, id == "passes");
    }
    let shown = gateway.command(&["plugin", "show", "stops"]).await;
    assert!(shown.stdout.contains("in quarantine for "), "{shown:?}");
    gateway.log_line(SOON, |line| line.contains("`nostr-gateway plugin enable stops`")).await;
    let quarantined = r#"nostr_gateway_plugin_state{plugin="stops",state="quarantined""#;
    assert_eq!(gateway.metric(quarantined).await, 1);

    let enabled = gateway.command(&["plugin", "enable", "stops"]).await;
    assert!(enabled.stdout.contains("its quarantine is ended"), "{enabled:?}");
    assert_eq!(answer(&mut client, "harmless").await, (true, String::new()));
    assert_eq!(gateway.metric(quarantined).await, 0);
    // The other one is tried again by itself.
    let works = |line: &str| line.contains("the plugin works again") && line.contains("passes");
    eventually("it works again", SOON, async || {
        client.publish(&events::event(&keys, 7, "harmless", &[], events::now())).await;
        gateway.log().iter().any(|line| works(line)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_traps_leave_memory_flat() {
    let _alone = alone().await;
    let builder = builder("A");
    let folder = builder.plugin_folder("a");
    fixture(folder.parent().unwrap(), "a", "limits.time_ms = 1000\n");
    let gateway = builder.start().await;
    let resident_kib = || {
        let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let mut client = RawClient::connect(&gateway.url()).await;
    let mut trap = async |times: usize| {
        for _ in 0..times {
            assert_eq!(answer(&mut client, "panic").await.1, "error: plugin a failed");
            // Never two in a row: there would be a pause.
            assert_eq!(answer(&mut client, "hold:2").await.1, "blocked: held 2");
        }
    };
    trap(100).await;
    let before = resident_kib();
    trap(1_000).await;
    let after = resident_kib();
    report(&format!("1,000 traps: {before} KiB resident before, {after} KiB after"));
    assert!(after < before + 16 * 1024, "{before} KiB before, {after} KiB after");
    assert_eq!(gateway.metric("nostr_gateway_plugin_traps_total").await, 1_100);
    let held = gateway.metric(r#"nostr_gateway_plugin_memory_bytes{plugin="a""#).await;
    assert!(held < 64 << 20, "{held} bytes");
}

/// What an operator does, by command, with and without a gateway.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_installed_and_looked_after_by_command() {
    let _alone = alone().await;
    let outside = tempfile::tempdir().unwrap();
    let builder = builder("A");
    let blocklist = shipped("blocklist");
    let blocklist = blocklist.to_str().unwrap();

    // Before the gateway ever ran.
    let none = builder.command(&["plugin", "list"]).await;
    assert!(none.stdout.contains("no gateway is running in"), "{none:?}");
    assert!(!builder.data_dir().exists(), "asking makes no data directory");
    let added = builder.command(&["plugin", "add", blocklist]).await;
    added.succeeded();
    assert!(added.stdout.contains("asks for        log, config"), "{added:?}");
    assert!(added.stdout.contains("it counts from the next start on"), "{added:?}");
    builder.command(&["plugin", "add", blocklist]).await.refuses(1, &["--replace"]);
    let list = builder.command(&["plugin", "list", "--json"]).await.json();
    assert_eq!((&list["running"], &list["plugins"][0]["id"]), (&json!(false), &json!("blocklist")));
    let gateway = builder.start().await;
    assert_eq!(listed(&gateway, "blocklist").await["state"], json!({"ready": {"failures": 0}}));
    let cache = gateway.control_socket().with_file_name("plugin-cache");
    let compiled = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let is_compiled = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "cwasm");
    assert_eq!(compiled.filter(is_compiled).count(), 1);

    // While it runs: at once.
    let guard = fixture(outside.path(), "guard", "[config]\nguard = true\n");
    let guard = guard.to_str().unwrap();
    gateway.command(&["plugin", "check", guard]).await.succeeded();
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(answer(&mut client, "x").await.0);
    let added = gateway.command(&["plugin", "add", guard]).await;
    assert!(added.stdout.ends_with("in the running gateway it is ready\n"), "{added:?}");
    assert!(answer(&mut client, "x").await.1.contains("guarded"));
    let shown = gateway.command(&["plugin", "show", "guard"]).await;
    assert!(shown.stdout.contains("reject calls    1\n"), "{shown:?}");
    let shown = gateway.command(&["plugin", "show", "guard", "--json"]).await.json();
    assert_eq!((&shown["config_keys"], &shown["calls"]["reject"]), (&json!(["guard"]), &json!(1)));
    let plugins = http::get(&gateway.admin, "/plugins").await;
    assert!(plugins.body.contains(r#""id":"guard""#), "{plugins:?}");

    gateway.command(&["plugin", "disable", "guard"]).await.succeeded();
    assert!(answer(&mut client, "x").await.0);
    assert_eq!(listed(&gateway, "guard").await["state"], json!({"disabled": {}}));
    gateway.command(&["plugin", "enable", "guard"]).await.succeeded();
    assert!(answer(&mut client, "x").await.1.contains("guarded"));
    gateway.command(&["plugin", "remove", "guard"]).await.succeeded();
    assert!(answer(&mut client, "x").await.0);
    assert_eq!(listed(&gateway, "guard").await, Value::Null);
    gateway.command(&["plugin", "remove", "guard"]).await.refuses(1, &["there is no plugin guard"]);
    for command in ["show", "enable", "disable"] {
        gateway.command(&["plugin", command, "x"]).await.refuses(1, &["there is no plugin x"]);
    }

    // What does not run is not installed.
    let broken = fixture(outside.path(), "broken", "[config]\ninit = \"fail\"\n");
    let broken = broken.to_str().unwrap();
    for command in ["check", "add"] {
        let refused = gateway.command(&["plugin", command, broken]).await;
        refused.refuses(1, &["it does not run", "told to fail in init"]);
    }
    assert_eq!(listed(&gateway, "broken").await, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_may_use_beyond_the_harmless_is_granted_by_the_operator() {
    let _alone = alone().await;
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("store");
    fs::create_dir(&folder).unwrap();
    let component = "fixtures-store.wasm";
    fs::copy(shipped("fixtures-store").join(component), folder.join(component)).unwrap();
    let text = manifest("store", "").replace("fixtures.wasm", component);
    let text = text.replace(r#""log", "config", "clock""#, r#""log", "kv", "lookup""#);
    fs::write(folder.join("plugin.toml"), text).unwrap();
    let path = folder.to_str().unwrap();

    let gateway = builder("A").start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    for (given, missing) in [(&[][..], "--grant kv,lookup"), (&["--grant", "kv"], "--grant lookup")]
    {
        let command = [&["plugin", "add", path], given].concat();
        let refused = gateway.command(&command).await;
        refused.refuses(1, &["asks for        log, kv, lookup", missing]);
        assert_eq!(listed(&gateway, "store").await, Value::Null);
    }
    let wrong = gateway.command(&["plugin", "add", path, "--grant", "net"]).await;
    wrong.refuses(2, &["there is no capability \"net\""]);
    let added = gateway.command(&["plugin", "add", path, "--grant", "kv,lookup"]).await;
    added.succeeded();
    assert_eq!(answer(&mut client, "get x").await.1, "blocked: None");

    // Taken back by hand, it counts soon; given again by command, at once.
    let grants = gateway.control_socket().with_file_name("grants.toml");
    assert!(fs::read_to_string(&grants).unwrap().contains(r#"grant = ["kv", "lookup"]"#));
    fs::write(&grants, "").unwrap();
    eventually("it may not run", SOON, async || {
        (answer(&mut client, "get x").await.1 == "error: plugin store failed").then_some(())
    })
    .await;
    let listed = listed(&gateway, "store").await;
    let cause = listed["state"]["broken"]["cause"].as_str().unwrap();
    assert!(cause.ends_with("nostr-gateway plugin enable store --grant kv,lookup"), "{cause}");
    let refused = gateway.command(&["plugin", "enable", "store", "--grant", "kv"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    gateway.command(&["plugin", "enable", "store", "--grant", "lookup"]).await.succeeded();
    assert_eq!(answer(&mut client, "get x").await.1, "blocked: None");
}
