//! Starts under bad circumstances: one clear line each, and only what cannot go on stops.

use std::{fs, net::TcpListener, path::Path, time::Duration};

use nostr_gateway_tests::{GatewayBuilder, PATIENCE, RawClient, events, free_port};
use nostr_sdk::Keys;

use crate::GATEWAY;

fn builder() -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, "bad start").topics(&["town"])
}

/// Expects that it ends, with this exit code, and that exactly one line says all of these words.
pub(crate) async fn refuses_to_start(builder: &GatewayBuilder, code: i32, words: &[&str]) {
    let mut child = builder.spawn();
    let status = child.exit(Duration::from_secs(30)).await;
    let stderr = child.stderr();
    assert_eq!(status.code(), Some(code), "{stderr:#?}");
    let clear = stderr.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert_eq!(clear, 1, "one line has {words:?}: {stderr:#?}");
    assert!(!stderr.iter().any(|line| line.contains("panicked")), "{stderr:#?}");
    assert!(!child.stdout().iter().any(|line| line == "ready"), "it said that it is ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_relay_cannot_go_on_without_its_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let relay = builder().set("relay", "listen", &format!("{address:?}"));
    refuses_to_start(&relay, 1, &[&address, "in use", "relay.listen"]).await;

    // Without metrics it is still a relay.
    let builder = builder().set("admin", "listen", &format!("{address:?}"));
    let admin = builder.spawn();
    admin.stdout_line(Duration::from_secs(60), |line| line == "ready").await;
    let is_clear =
        |line: &str| [&address, "in use", "admin.listen"].iter().all(|word| line.contains(*word));
    admin.stderr_line(PATIENCE, is_clear).await;
    let relay = admin.stdout_line(PATIENCE, |line| line.contains("ws://")).await;
    let mut client = RawClient::connect(&relay[relay.find("ws://").unwrap()..]).await;
    client.accept(&events::note(&Keys::generate(), "still a relay")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_used_ends_it() {
    let builder = builder();
    let data = builder.data_dir();
    fs::write(&data, "this is a file").unwrap();
    refuses_to_start(&builder, 1, &[data.to_str().unwrap()]).await;
    assert_eq!(fs::read_to_string(&data).unwrap(), "this is a file");

    // Nobody may create files there, root neither.
    fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink("/proc/self/fdinfo", &data).unwrap();
    refuses_to_start(&builder, 1, &[data.to_str().unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_its_place() {
    let file = |builder: &GatewayBuilder| builder.config_file().to_str().unwrap().to_owned();
    // The sections are in alphabetical order, admin with its one key comes first.
    let unknown = builder().set("admin", "lisen", "1");
    refuses_to_start(&unknown, 2, &[&format!("{}:3:", file(&unknown)), "lisen", "listen"]).await;
    let wrong_type = builder().set("admin", "listen", "4870");
    refuses_to_start(&wrong_type, 2, &[&format!("{}:2:", file(&wrong_type)), "admin.listen"]).await;
    let impossible = builder().set("admin", "listen", r#""127.0.0.1:70000""#);
    refuses_to_start(&impossible, 2, &[&format!("{}:2:", file(&impossible)), "admin.listen"]).await;
    let section = builder().table("[relais]\nlisten = \"127.0.0.1:0\"");
    refuses_to_start(&section, 2, &[&file(&section), "relais", "relay"]).await;
    let not_toml = builder().table("[[upstream");
    refuses_to_start(&not_toml, 2, &[&file(&not_toml)]).await;
    let elsewhere = builder().upstream("elsewhere", "ws://127.0.0.1:1", "village");
    refuses_to_start(&elsewhere, 2, &[&file(&elsewhere), "village"]).await;
    let variable = "NOSTR_GATEWAY_RELAY__MAX_LIMIT";
    refuses_to_start(&builder().env(variable, "many"), 2, &[variable]).await;
    let variable = "NOSTR_GATEWAY_RELAY__LISEN";
    refuses_to_start(&builder().env(variable, "127.0.0.1:0"), 2, &[variable]).await;
    refuses_to_start(&builder().argument("--listen=nowhere"), 2, &["--listen", "nowhere"]).await;
}

const MANIFEST: &str = r#"
id = "broken"
version = "0.1.0"
world = "event-filter"
file = "broken.wasm"
"#;

/// A plugin that cannot be asked refuses, unless its manifest says that its failure lets events pass.
async fn runs_with_plugin(manifest: &str, wasm: Option<&[u8]>, file: &str, accepts: bool) {
    let builder = builder();
    let folder = builder.plugin_folder("broken");
    fs::write(folder.join("plugin.toml"), manifest).unwrap();
    if let Some(wasm) = wasm {
        fs::write(folder.join("broken.wasm"), wasm).unwrap();
    }
    let gateway = builder.start().await;
    let is_clear = |line: &str| line.contains("ERROR") && line.contains(file);
    gateway.log_line(PATIENCE, is_clear).await;
    let errors: Vec<_> = gateway.log().into_iter().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let mut client = RawClient::connect(&gateway.url()).await;
    let (accepted, message) = client.publish(&events::note(&Keys::generate(), "anything")).await;
    assert_eq!(accepted, accepts, "{message}");
    // The rest of the gateway goes on, and the operator can see what is wrong.
    assert!(client.stored_ids(&[serde_json::json!({"kinds": [7]})]).await.is_empty());
    assert!(gateway.status().await["plugins"].to_string().contains("broken"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_plugin_stops_what_it_should_have_seen() {
    runs_with_plugin(MANIFEST, Some(b"this is no component"), "broken.wasm", false).await;
    // A valid module, but no component.
    runs_with_plugin(MANIFEST, Some(b"\0asm\x01\0\0\0"), "broken.wasm", false).await;
    runs_with_plugin(MANIFEST, None, "broken.wasm", false).await;
    runs_with_plugin("id = 7", None, "plugin.toml", false).await;
    let lets_pass = format!("{MANIFEST}on_failure = \"pass\"\n");
    runs_with_plugin(&lets_pass, Some(b"this is no component"), "broken.wasm", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_relay_is_one_line_and_tried_again() {
    let url = format!("ws://127.0.0.1:{}", free_port());
    let gateway = builder().upstream("elsewhere", &url, "town").start().await;
    let is_clear =
        |line: &str| line.contains("WARN") && line.contains("elsewhere") && line.contains(&url);
    gateway.log_line(Duration::from_secs(30), is_clear).await;
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    client.accept(&events::note(&Keys::generate(), "without it")).await;
    // The back-off keeps the log quiet.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let lines = gateway.log().iter().filter(|line| is_clear(line)).count();
    assert!(lines <= 4, "{lines} lines in a few seconds");
}

/// The scenarios would test nothing if this tree's plugin were not where they look for it.
#[test]
fn the_shipped_plugin_is_there() {
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/blocklist");
    for file in ["plugin.toml", "blocklist.wasm", "config.schema.json"] {
        assert!(plugin.join(file).is_file(), "{file} is missing");
    }
}
