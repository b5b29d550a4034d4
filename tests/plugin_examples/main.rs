//! The example plugins in other languages, in the running gateway.
//!
//! `plugins/examples/run` builds them with the tools of their languages and runs this; `cargo test` by
//! itself has nothing to run here.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code fails loudly")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{GatewayBuilder, RawClient, events, eventually};
use nostr_sdk::{Event, Keys};
use serde_json::json;

/// The gateway's binary, built from this tree together with this program.
const GATEWAY: &str = env!("CARGO_BIN_EXE_nostr-gateway-under-test");
/// Where `plugins/examples/run` has put the plugins, a folder for each language.
const EXAMPLES: &str = "PLUGIN_EXAMPLES";
const LANGUAGES: [&str; 2] = ["javascript", "python"];
/// For a plugin that is compiled while the gateway runs, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// An interpreter of 18 MB is compiled by a debug build, on a busy machine.
const COMPILED: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> ExitCode {
    let began = Instant::now();
    let mut passed = 0;
    if let Some(examples) = env::var_os(EXAMPLES).map(PathBuf::from) {
        for language in LANGUAGES {
            works(language, &examples.join(language)).await;
            passed += 1;
        }
    } else {
        println!("plugins/examples/run builds the examples and runs them here");
    }
    println!(
        "test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
         finished in {:.2}s",
        began.elapsed().as_secs_f32()
    );
    ExitCode::SUCCESS
}

/// An event that mentions so many people, each twice.
fn mentioning(kind: u16, people: usize) -> Event {
    let others: Vec<String> = (0..people).map(|_| Keys::generate().public_key().to_hex()).collect();
    let mut tags: Vec<Vec<&str>> = vec![vec!["p"], vec!["t", "p"]];
    tags.extend(others.iter().flat_map(|key| [vec!["p", key], vec!["p", key, "wss://x"]]));
    let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
    events::event(&Keys::generate(), kind, "hello", &tags, events::now())
}

/// A panic ends the program: the first that does not hold fails the run.
async fn works(language: &str, example: &Path) {
    let builder = GatewayBuilder::new(GATEWAY, language).topics(&[]).start_within(COMPILED);
    let folder = builder.plugin_folder("mentions");
    for file in ["mentions.wasm", "plugin.toml"] {
        fs::copy(example.join(file), folder.join(file)).unwrap();
    }
    let began = Instant::now();
    let gateway = builder.start().await;
    println!("{language}: the gateway was ready after {:?}", began.elapsed());
    let mut client = RawClient::connect(&gateway.url()).await;

    client.accept(&mentioning(1, 0)).await;
    client.accept(&mentioning(1, 20)).await;
    let refused = async |client: &mut RawClient, people: usize, most: usize| {
        let wanted = format!("blocked: mentions {people} people, more than {most}");
        assert_eq!(client.publish(&mentioning(1, people)).await, (false, wanted));
    };
    refused(&mut client, 21, 20).await;
    refused(&mut client, 400, 20).await;
    // Nobody asks it about lists of follows.
    client.accept(&mentioning(3, 400)).await;
    for _ in 0..50 {
        client.accept(&mentioning(1, 5)).await;
    }
    let shown = gateway.command(&["plugin", "show", "mentions", "--json"]).await.json();
    assert_eq!(shown["state"], json!({"ready": {"failures": 0}}), "{shown}");
    println!(
        "{language}: {} µs a call, {} MiB in all instances",
        shown["mean_call_us"].as_f64().unwrap().round(),
        shown["memory_bytes"].as_u64().unwrap() >> 20
    );

    // Another configuration, while it runs.
    let path = folder.join("plugin.toml");
    let manifest = fs::read_to_string(&path).unwrap();
    let with = |most: &str| {
        let changed = manifest.replace("most = 20", &format!("most = {most}"));
        assert_ne!(changed, manifest);
        let draft = path.with_extension("draft");
        fs::write(&draft, changed).unwrap();
        fs::rename(draft, &path).unwrap();
    };
    with("2");
    eventually("the new configuration counts", SOON, async || {
        (!client.publish(&mentioning(1, 3)).await.0).then_some(())
    })
    .await;
    refused(&mut client, 3, 2).await;
    client.accept(&mentioning(1, 2)).await;

    // One that it does not take.
    with("\"many\"");
    gateway.log_line(SOON, |line| line.contains("config.most: want a number from 1 on")).await;
    refused(&mut client, 3, 2).await;
    println!("{language}: ok");
}
