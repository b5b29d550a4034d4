//! What authors of plugins do: the guide as it is written, the templates, `plugin test`.
//!
//! The crates that these plugins need are those of `plugins/Cargo.lock`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nostr_gateway_tests::{Child, Finished, GatewayBuilder, RawClient, report};
use serde_json::{Value, json};

use crate::{GATEWAY, WS_PIPE, alone};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How long compiling may take where nothing is compiled yet, on a busy machine.
const BUILDING: Duration = Duration::from_secs(15 * 60);

/// A place for plugins in which they are built with what earlier runs compiled. Always the same one
/// for a test, or Cargo would keep what it built for each.
struct Workshop {
    dir: PathBuf,
    gateway: GatewayBuilder,
}

impl Workshop {
    /// Nothing, after saying so, where nobody could compile a plugin.
    async fn open(name: &str) -> Option<Self> {
        if !can_compile() {
            report(&format!(
                "{name} did not run: rustc has neither the target wasm32-unknown-unknown \
                 (rustup target add wasm32-unknown-unknown) nor its source (rustup component add rust-src)"
            ));
            return None;
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authoring").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::create_dir_all(dir.join("work")).unwrap();
        let gateway = GatewayBuilder::new(GATEWAY, name);
        // Writes the configuration that the commands below find.
        gateway.command(&["config", "path"]).await.succeeded();
        let workshop = Self { dir, gateway };
        workshop.tool("nostr-gateway", &format!("exec {GATEWAY:?} \"$@\""));
        Some(workshop)
    }

    /// A command that is found by its name.
    fn tool(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let file = self.dir.join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Runs lines of a shell to their end, beginning in this folder.
    async fn shell(&self, folder: &Path, script: &str) -> Finished {
        let mut command = Command::new("sh");
        command.args(["-e", "-u", "-x", "-c", script]).current_dir(folder);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.dir.join("bin").display()));
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authoring/target");
        command.env("CARGO_TARGET_DIR", shared);
        for (name, _) in std::env::vars() {
            if name.starts_with("NOSTR_GATEWAY_") {
                command.env_remove(name);
            }
        }
        command.env("NOSTR_GATEWAY_CONFIG", self.gateway.config_file());
        command.env("NOSTR_GATEWAY_DATA_DIR", self.gateway.data_dir());
        let mut child = Child::spawn(script.lines().next().unwrap_or_default(), command);
        let status = child.exit(BUILDING).await;
        let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
        Finished { code: status.code(), stdout: text(child.stdout()), stderr: text(child.stderr()) }
    }

    /// The same for what has to succeed; returns what it printed.
    async fn does(&self, folder: &Path, script: &str) -> String {
        let finished = self.shell(folder, script).await;
        assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
        finished.stdout
    }
}

/// As `plugin build` looks for it.
fn can_compile() -> bool {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let Ok(sysroot) = sysroot else { return false };
    let rustlib = Path::new(String::from_utf8_lossy(&sysroot.stdout).trim()).join("lib/rustlib");
    rustlib.join("wasm32-unknown-unknown/lib").is_dir()
        || rustlib.join("src/rust/library/std").is_dir()
}

/// The commands of the guide, a text for each block of them.
fn commands(guide: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = guide.lines();
    while lines.by_ref().any(|line| line == "```sh") {
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(block.join("\n"));
    }
    blocks
}

/// Every command of the guide, literally and in its order, but for the relay's port: the one that is
/// written there may be taken.
#[tokio::test(flavor = "multi_thread")]
async fn the_guide_works_as_it_is_written() {
    let _alone = alone().await;
    let Some(workshop) = Workshop::open("guide").await else { return };
    if !found("websocat") {
        // One line there, one back.
        let one = format!("(cat; sleep 2) | {WS_PIPE:?} \"$2\" | sed -n '2{{p;q;}}'");
        workshop.tool("websocat", &one);
    }
    let guide = fs::read_to_string(Path::new(ROOT).join("docs/writing-plugins.md")).unwrap();
    let blocks = commands(&guide);
    let runs = blocks.iter().position(|block| block == "nostr-gateway run").unwrap();
    let (before, after) = (&blocks[..runs], &blocks[runs + 1..]);
    assert!(before.len() >= 5 && after.len() >= 3, "{blocks:#?}");

    let said = workshop.does(&workshop.work(), &before.join("\n")).await;
    for wanted in [
        "test result: ok. 2 passed",
        "few-hashtags.wasm: ",
        "reject   ",
        "blocked: 6 hashtags, more than 5",
        "as in golden.txt",
        "wrote golden.txt",
        "asks for        log, config",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let folder = workshop.work().join("few-hashtags");
    assert_eq!(fs::read_to_string(folder.join("golden.txt")).unwrap().lines().count(), 5);

    let gateway = workshop.gateway.clone().start().await;
    let after = after.join("\n").replace("127.0.0.1:4869", &gateway.relay);
    assert!(after.contains(&format!("ws://{}", gateway.relay)));
    let said = workshop.does(&folder, &after).await;
    let ok = said.lines().find(|line| line.starts_with("[\"OK\",")).expect(&said);
    let ok: Value = serde_json::from_str(ok).unwrap();
    assert_eq!(ok[2], false);
    assert_eq!(ok[3], "blocked: 6 hashtags, more than 5");
    assert!(said.contains("reject calls    1"), "{said}");
    assert!(said.contains("in the running gateway it is ready"), "{said}");

    // The other events of the examples pass, in the version that was put in its place as well.
    let mut client = RawClient::connect(&gateway.url()).await;
    let events = fs::read_to_string(folder.join("events.jsonl")).unwrap();
    for (at, is_right) in [(0, true), (1, true), (2, false)] {
        let event: Value = serde_json::from_str(events.lines().nth(at).unwrap()).unwrap();
        client.send(&json!(["EVENT", event])).await;
        let (accepted, reason) = client.ok(event["id"].as_str().unwrap()).await;
        assert_eq!(accepted, is_right, "{reason}");
    }
}

fn found(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// `plugin new` for the other worlds.
#[tokio::test(flavor = "multi_thread")]
async fn what_begins_new_policies_builds_and_passes_its_tests() {
    let _alone = alone().await;
    let Some(workshop) = Workshop::open("policies").await else { return };
    for (name, world, said) in
        [("by-tag", "topic-policy", "cats, dogs"), ("by-size", "secret-rotation", "grace 600 s")]
    {
        let script = format!(
            "nostr-gateway plugin new {name} --world {world}\ncd {name}\ncargo test\n\
             nostr-gateway plugin build\nnostr-gateway plugin test\nnostr-gateway plugin check ."
        );
        let printed = workshop.does(&workshop.work(), &script).await;
        assert!(printed.contains(said) && printed.contains("it runs"), "{printed}");
    }
    // What does not compile is told, and the component of before stays.
    let folder = workshop.work().join("by-tag");
    let before = fs::read(folder.join("by-tag.wasm")).unwrap();
    fs::write(folder.join("src/lib.rs"), "compile_error!(\"not yet\");").unwrap();
    let failed = workshop.shell(&folder, "nostr-gateway plugin build").await;
    failed.refuses(1, &["not yet", "not built: cargo failed"]);
    assert!(fs::read(folder.join("by-tag.wasm")).unwrap() == before);
}

/// A folder with a component of the fixtures, its manifest and events.
fn folder(component: &str, capabilities: &str, events: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let component = Path::new(ROOT).join("plugins").join(component);
    fs::copy(component, dir.path().join("x.wasm")).unwrap();
    let manifest = format!(
        "id = \"x\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"x.wasm\"\n\
         capabilities = [{capabilities}]\n"
    );
    fs::write(dir.path().join("plugin.toml"), manifest).unwrap();
    fs::write(dir.path().join("events.jsonl"), events).unwrap();
    dir
}

async fn test(dir: &Path, more: &[&str]) -> Finished {
    let path = dir.to_str().unwrap();
    let arguments = [&["plugin", "test", path], more].concat();
    GatewayBuilder::new(GATEWAY, "author").env("RUST_LOG", "off").command(&arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_compares_with_what_is_to_be_said() {
    let events = "{\"content\":\"hello\"}\n{\"content\":\"reject:no\"}\n{\"event\":{},\"at\":5}\n\
                  {\"event\":{\"content\":\"now\"},\"at\":1234}\n";
    let capabilities = r#""log", "config", "clock""#;
    let dir = folder("fixtures/fixtures.wasm", capabilities, events);
    let golden = dir.path().join("golden.txt");

    let first = test(dir.path(), &[]).await;
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.stdout.contains("there is no golden file"), "{first:?}");
    test(dir.path(), &["--update"]).await.succeeded();
    let said = fs::read_to_string(&golden).unwrap();
    let verdicts: Vec<_> = said.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(verdicts, ["accept", "reject blocked: no", "accept", "reject blocked: 1234"]);
    let again = test(dir.path(), &["--json"]).await.json();
    assert_eq!((&again["golden"], &again["ok"]), (&"compared".into(), &true.into()));
    assert_eq!(again["events"][1]["detail"], "blocked: no");
    assert!(again["events"][1]["us"].as_f64().unwrap() > 0.0);
    assert!(again["p99_us"].as_f64() >= again["p50_us"].as_f64());

    fs::write(&golden, said.replace("blocked: no", "blocked: never")).unwrap();
    let differs = test(dir.path(), &[]).await;
    assert_eq!(differs.code, Some(1), "{differs:?}");
    assert!(differs.stdout.contains("events.jsonl:2: want "), "{differs:?}");

    // A failed call is a failure unless it is what is expected.
    fs::remove_file(&golden).unwrap();
    fs::write(dir.path().join("events.jsonl"), "{\"content\":\"loop\"}\n").unwrap();
    let failed = test(dir.path(), &[]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("it ran longer than 50 ms"), "{failed:?}");
    test(dir.path(), &["--update"]).await.succeeded();
    test(dir.path(), &[]).await.succeeded();

    fs::write(dir.path().join("events.jsonl"), "{}\n\n{\"kind\":-1}\n").unwrap();
    test(dir.path(), &[]).await.refuses(1, &["events.jsonl:3: "]);
    fs::write(dir.path().join("events.jsonl"), "").unwrap();
    test(dir.path(), &[]).await.refuses(1, &["events.jsonl is empty"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_in_a_test_remembers_and_asks_a_store() {
    let (a, b) = ("01".repeat(32), "02".repeat(32));
    let events = format!(
        "{{\"event\":{{\"content\":\"increment n 1 60\"}},\"at\":100}}\n\
         {{\"event\":{{\"content\":\"increment n 1 60\"}},\"at\":159}}\n\
         {{\"event\":{{\"content\":\"increment n 1 60\"}},\"at\":160}}\n\
         {{\"content\":\"follows {a} {b}\"}}\n{{\"content\":\"author {b}\"}}\n\
         {{\"pubkey\":\"{b}\",\"content\":\"passes\"}}\n{{\"content\":\"author {b}\",\"kind\":2}}\n"
    );
    let dir = folder("fixtures-store/fixtures-store.wasm", r#""log", "kv", "lookup""#, &events);
    let store = dir.path().join("held.jsonl");
    fs::write(&store, format!("{{\"kind\":3,\"tags\":[[\"p\",\"{b}\"]],\"pubkey\":\"{a}\"}}\n"))
        .unwrap();
    let said = test(dir.path(), &["--json", "--store", store.to_str().unwrap()]).await.json();
    let details: Vec<_> = said["events"].as_array().unwrap().iter().map(|e| &e["detail"]).collect();
    assert_eq!(details[..3], ["blocked: Ok(1)", "blocked: Ok(2)", "blocked: Ok(1)"]);
    assert_eq!(details[3], "blocked: Ok(true)");
    let events_of = |detail: &Value| detail.as_str().unwrap().contains("events: 1");
    assert!(!events_of(details[4]) && events_of(details[6]), "{said}");
    assert_eq!(said["events"][5]["verdict"], "accept");
}

/// Where the toolchain misses something, the answer is what to type.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_says_what_is_missing() {
    let dir = folder("fixtures/fixtures.wasm", "\"log\"", "");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = dir.path().to_str().unwrap();
    let gateway = GatewayBuilder::new(GATEWAY, "author").env("PATH", bin.to_str().unwrap());
    let build = async || gateway.command(&["plugin", "build", path]).await;
    build().await.refuses(1, &["no Cargo.toml"]);
    fs::write(dir.path().join("Cargo.toml"), "").unwrap();
    build().await.refuses(1, &["https://rustup.rs"]);
    let rustc = bin.join("rustc");
    fs::write(&rustc, format!("#!/bin/sh\necho {}\n", dir.path().display())).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
    build().await.refuses(1, &["rustup target add wasm32-unknown-unknown"]);
    fs::remove_file(dir.path().join("plugin.toml")).unwrap();
    build().await.refuses(1, &["plugin.toml"]);

    let new =
        async |arguments: &[&str]| gateway.command(&[&["plugin", "new"], arguments].concat()).await;
    new(&["../escape"]).await.refuses(1, &["cannot be called"]);
    let policy = ["x", "--lang", "python", "--world", "topic-policy"];
    new(&policy).await.refuses(1, &["event filters only"]);
    new(&["x", "--dir", path]).await.refuses(1, &["that is there already"]);
}
