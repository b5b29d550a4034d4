//! The bridge of the README and the guide to bridging, as they are written.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use nostr_gateway_tests::{
    Child, Finished, IndependentRelay, RawClient, compare::has_exactly, events, eventually,
    free_port, ordinary,
};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{GATEWAY, alone, bridge::FLOW};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const START: Duration = Duration::from_secs(60);

/// A block of the text: what kind, and what is in it.
#[derive(Debug, PartialEq)]
enum Block {
    Shell(String),
    Configuration(String),
}

/// All blocks of the text in their order, with the relay's URL in place of that of the examples.
fn blocks(text: &str, relay: &str) -> Vec<Block> {
    let host = relay.trim_start_matches("ws://").split(':').next().unwrap();
    let text = text.replace("wss://relay.example.org", relay).replace("relay.example.org", host);
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let make: fn(String) -> Block = match line.trim_start() {
            "```sh" => Block::Shell,
            "```toml" => Block::Configuration,
            _ => continue,
        };
        let inside: Vec<&str> =
            lines.by_ref().map(str::trim_start).take_while(|line| *line != "```").collect();
        blocks.push(make(inside.join("\n")));
    }
    blocks
}

/// Somebody's machine: a configuration file, a data directory, and the program on the path. What would
/// reach beyond this machine is off, by the environment.
struct Machine {
    dir: tempfile::TempDir,
    relay: String,
    running: Option<Child>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let run = format!("exec {GATEWAY:?} \"$@\"");
        // What cargo would build here is what is tested.
        let cargo = format!("[ \"$1 $2 $3\" = 'run --release --' ] || exit 9; shift 3; {run}");
        for (name, script) in [("nostr-gateway", run.clone()), ("cargo", cargo)] {
            let file = bin.join(name);
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(dir.path().join("config.toml"), "").unwrap();
        Self { dir, relay: format!("127.0.0.1:{}", free_port()), running: None }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-e", "-u", "-c", script]).current_dir(self.dir.path());
        for (name, _) in std::env::vars() {
            if name.starts_with("NOSTR_GATEWAY_") {
                command.env_remove(name);
            }
        }
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("NOSTR_GATEWAY_CONFIG", self.dir.path().join("config.toml"))
            .env("NOSTR_GATEWAY_DATA_DIR", self.dir.path().join("data"))
            .env("NOSTR_GATEWAY_RELAY__LISTEN", &self.relay)
            .env("NOSTR_GATEWAY_ADMIN__LISTEN", "127.0.0.1:0")
            .env("NOSTR_GATEWAY_ENDPOINT__BIND", "127.0.0.1:0")
            .env("NOSTR_GATEWAY_ENDPOINT__IROH_RELAYS", "disabled")
            .env("NOSTR_GATEWAY_DISCOVERY__DHT", "false")
            .env("NOSTR_GATEWAY_DISCOVERY__MDNS", "false")
            .env("NOSTR_GATEWAY_SECRETS__STORE", "file")
            .env("RUST_LOG", "info");
        command
    }

    /// A command that runs until it is ended, in place of the one before.
    async fn run(&mut self, script: &str) {
        self.end().await;
        let child = Child::spawn(script, self.command(&format!("exec {script}")));
        child.stdout_line(START, |line| line == "ready").await;
        self.running = Some(child);
    }

    async fn end(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.signal("INT");
            assert!(child.exit(Duration::from_secs(20)).await.success());
        }
    }

    /// Lines of a shell that have to succeed; what they printed.
    async fn does(&self, script: &str) -> String {
        let mut child = Child::spawn(script, self.command(script));
        let status = child.exit(START).await;
        let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
        let finished = Finished {
            code: status.code(),
            stdout: text(child.stdout()),
            stderr: text(child.stderr()),
        };
        assert_eq!(finished.code, Some(0), "{script}: {finished:?}");
        finished.stdout
    }

    fn configure(&self, text: &str) {
        fs::write(self.dir.path().join("config.toml"), text).unwrap();
    }

    fn town(&self) -> String {
        format!("ws://{}/topic/town-square", self.relay)
    }
}

fn is_run(block: &Block) -> bool {
    matches!(block, Block::Shell(script) if script.starts_with("nostr-gateway run"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_of_the_readme_runs() {
    let _alone = alone().await;
    let past = ordinary(50, events::now() - 3_600);
    let relay = IndependentRelay::start(&past).await;
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let blocks = blocks(&readme, &relay.url());
    let mut examples = blocks.iter().filter_map(|block| match block {
        Block::Shell(script) if script.contains("--upstream") => Some(script),
        _ => None,
    });
    let example = examples.next().expect("the README has a bridge");
    assert!(examples.next().is_none() && example.contains(&relay.url()), "{example}");
    let mut machine = Machine::new();
    machine.run(example).await;
    has_exactly("the topic", &machine.town(), &past, FLOW).await;
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_to_bridging_works_as_it_is_written() {
    let _alone = alone().await;
    let mut all = ordinary(50, events::now() - 3_600);
    let relay = IndependentRelay::start(&all).await;
    let guide = fs::read_to_string(Path::new(ROOT).join("docs/bridging.md")).unwrap();
    let blocks = blocks(&guide, &relay.url());
    let mut machine = Machine::new();
    let (mut runs, mut said) = (0, String::new());
    let keys = Keys::generate();
    for block in &blocks {
        match block {
            block @ Block::Shell(script) if is_run(block) => {
                machine.run(script).await;
                runs += 1;
                has_exactly("the topic", &machine.town(), &all, FLOW).await;
                if runs == 2 {
                    all.extend(both_ways(&machine, &relay, &keys).await);
                }
            }
            Block::Shell(script) => said.push_str(&machine.does(script).await),
            Block::Configuration(text) => {
                machine.configure(text);
                for stream in ["articles", "timeline"] {
                    if machine.running.is_some() && text.contains(stream) {
                        counts_soon(&machine, stream).await;
                    }
                }
            }
        }
    }
    // Its key is nobody's here, so there is a list to look for.
    eventually("the timeline begins", FLOW, async || {
        let shown = machine.does("nostr-gateway upstream show timeline").await;
        shown.contains("was not found yet").then_some(())
    })
    .await;
    machine.end().await;
    assert_eq!(runs, 2, "{blocks:#?}");
    for wanted in ["127.0.0.1", "articles", "paused", "resumed", "town", "joined timeline"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

/// What is published on either side is on the other.
async fn both_ways(machine: &Machine, relay: &IndependentRelay, keys: &Keys) -> Vec<Event> {
    let here = events::note(keys, "written in the town square");
    let there = events::note(keys, "written on the relay");
    RawClient::connect(&machine.town()).await.accept(&here).await;
    RawClient::connect(&relay.url()).await.accept(&there).await;
    for (url, event) in [(relay.url(), &here), (machine.town(), &there)] {
        let mut client = RawClient::connect(&url).await;
        eventually("it is on the other side", FLOW, async || {
            let found = client.stored_ids(&[json!({"ids": [event.id.to_hex()]})]).await;
            (found.len() == 1).then_some(())
        })
        .await;
    }
    vec![here, there]
}

async fn counts_soon(machine: &Machine, stream: &str) {
    eventually("the changed file counts", FLOW, async || {
        machine.does("nostr-gateway upstream list").await.contains(stream).then_some(())
    })
    .await;
}
