//! Plugins that are programs in strfry's protocol, in the running gateway: scripts in Python and Node.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, events, eventually, report,
};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{GATEWAY, alone};

/// For what the gateway notices by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Copies a script into a folder as a plugin with this id.
fn write(folder: &Path, id: &str, script: &str, more: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/programs").join(script);
    fs::create_dir_all(folder).unwrap();
    fs::copy(from, folder.join(script)).unwrap();
    fs::write(folder.join("plugin.toml"), manifest(id, script, more)).unwrap();
}

fn manifest(id: &str, script: &str, more: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
         program = [\"./{script}\"]\n{more}\n"
    )
}

/// Whether the scripts can be run; says so if not.
fn can_run(scenario: &str) -> bool {
    let is_there = |program: &&str| {
        let asked = std::process::Command::new(program).arg("--version").output();
        asked.is_ok_and(|output| output.status.success())
    };
    let missing = ["python3", "node"].into_iter().find(|program| !is_there(program));
    if let Some(missing) = missing {
        report(&format!("{scenario} did not run: the command {missing} is missing"));
    }
    missing.is_none()
}

/// A gateway in which these programs are installed and allowed.
fn with(name: &str, programs: &[(&str, &str, &str)]) -> GatewayBuilder {
    let builder = GatewayBuilder::new(GATEWAY, name);
    let mut grants = String::new();
    for (id, script, more) in programs {
        write(&builder.plugin_folder(id), id, script, more);
        grants.push_str(&format!("[{id}]\ngrant = [\"program\"]\n"));
    }
    fs::write(builder.data_dir().join("grants.toml"), grants).unwrap();
    builder
}

fn note(content: &str) -> Event {
    events::note(&Keys::generate(), content)
}

async fn answer(client: &mut RawClient, content: &str) -> (bool, String) {
    client.publish(&note(content)).await
}

/// The text of a refusal that is JSON.
async fn told(client: &mut RawClient, event: &Event) -> Value {
    let (accepted, text) = client.publish(event).await;
    assert!(!accepted);
    serde_json::from_str(text.strip_prefix("blocked: ").expect(&text)).expect(&text)
}

async fn pid(client: &mut RawClient) -> u32 {
    let (_, text) = answer(client, "pid").await;
    text.strip_prefix("blocked: ").expect(&text).parse().expect(&text)
}

/// Whether there is such a process, and it is not only waiting to be waited for.
fn lives(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = state.rsplit(')').next().unwrap_or_default().trim();
    !state.is_empty() && !state.starts_with('Z')
}

/// Processes that ended, and for which the gateway has not waited.
fn zombies(gateway: &Gateway) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let parent = format!(" Z {} ", gateway.pid());
    stats.filter(|stat| stat.contains(&parent)).count()
}

async fn state(gateway: &Gateway, id: &str) -> Value {
    let list = gateway.command(&["plugin", "list", "--json"]).await.json();
    let mut plugins = list["plugins"].as_array().unwrap().iter();
    plugins.find(|plugin| plugin["id"] == id).cloned().unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_in_python_and_node_decide() {
    if !can_run("scripts_in_python_and_node_decide") {
        return;
    }
    let _alone = alone().await;
    for script in ["policy.py", "policy.mjs"] {
        // The newest comes by the live subscription and by catching up: one that is refused would be judged
        // twice.
        let older = events::event(&Keys::generate(), 1, "about:", &[], events::now() - 100);
        let relay = IndependentRelay::start(&[older, note("from the relay")]).await;
        let gateway = with("A", &[("policy", script, "")])
            .topics(&["town"])
            .upstream("elsewhere", &relay.url(), "town")
            .env("NOSTR_GATEWAY_RELAY__DESCRIPTION", "a secret perhaps")
            .start()
            .await;
        let mut client = RawClient::connect(&gateway.url()).await;
        let fine = note("fine\nand \"good\" \u{2028} ✓");
        client.accept(&fine).await;
        assert_eq!(
            answer(&mut client, "reject:blocked: not today").await,
            (false, "blocked: not today".to_owned())
        );
        assert_eq!(
            answer(&mut client, "reject:rate-limited: slow\ndown").await,
            (false, "rate-limited: slow down".to_owned())
        );
        let shadowed = note("shadow");
        assert_eq!(client.publish(&shadowed).await, (true, String::new()));
        let ids = [fine.id.to_hex(), shadowed.id.to_hex()];
        assert_eq!(client.stored_ids(&[json!({ "ids": ids })]).await, [fine.id.to_hex()]);

        // Who sent it.
        let about = |authed: Value| {
            json!({
                "type": "new", "sourceType": "IP4", "sourceInfo": "127.0.0.1", "authed": authed,
                "late": false,
            })
        };
        assert_eq!(told(&mut client, &note("about:")).await, about(Value::Null));
        let keys = Keys::generate();
        client.authenticate(&keys, &gateway.url()).await;
        let event = events::note(&keys, "about:");
        assert_eq!(told(&mut client, &event).await, about(json!(keys.public_key().to_hex())));

        // The upstream relay's events are asked about too.
        gateway
            .wait_for_metric(
                r#"nostr_gateway_events_total{origin="upstream",outcome="stored""#,
                1,
                SOON,
            )
            .await;
        let of = |verdict: &str| {
            format!(r#"nostr_gateway_plugin_calls_total{{plugin="policy",verdict="{verdict}""#)
        };
        eventually("both of its events were judged", SOON, async || {
            (gateway.metric(&of("reject")).await == 5).then_some(())
        })
        .await;
        assert_eq!(gateway.metric(&of("accept")).await, 2);
        assert_eq!(gateway.metric(&of("shadow-reject")).await, 1);
        assert_eq!(gateway.metric("nostr_gateway_plugin_traps_total").await, 0);

        if script == "policy.py" {
            let environment = told(&mut client, &note("environment")).await;
            let names = environment["names"].as_array().unwrap();
            let is_ours = |name: &Value| name.as_str().unwrap().starts_with("NOSTR_GATEWAY");
            assert!(names.contains(&json!("PATH")) && !names.iter().any(is_ours), "{names:?}");
            assert_eq!(environment["folder"], "policy");
        }
    }
}

/// However a program misbehaves, the event in hand is refused and the next one judged.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_misbehaves_is_ended_and_started_again() {
    if !can_run("a_program_that_misbehaves_is_ended_and_started_again") {
        return;
    }
    let _alone = alone().await;
    let programs = [("policy", "policy.py", "limits.time_ms = 1500")];
    let gateway = with("A", &programs).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let failed = (false, "error: plugin policy failed".to_owned());
    let mut before = pid(&mut client).await;
    for (content, why) in [
        ("hang", "it ran longer than 1500 ms"),
        ("garbage", "it wrote a line that is no answer: I think so"),
        ("other", "it answered about another event"),
        ("maybe", "it answered with an action that there is not"),
        ("long", "it handed over more than 262144 bytes"),
        ("exit", "it ended (exit status: 3): I have had enough"),
    ] {
        let began = Instant::now();
        assert_eq!(answer(&mut client, content).await, failed, "{content}");
        assert!(began.elapsed() < Duration::from_secs(10), "{content}: {:?}", began.elapsed());
        gateway
            .log_line(SOON, |line| line.contains("the plugin failed") && line.contains(why))
            .await;
        let now = pid(&mut client).await;
        assert!(now != before && !lives(before), "{content}");
        before = now;
    }
    let child = gateway.log_line(SOON, |line| line.contains(" child ")).await;
    let child = child.rsplit(' ').next().unwrap().parse().unwrap();
    eventually("what it had started is ended too", SOON, async || (!lives(child)).then_some(()))
        .await;
    assert_eq!(gateway.metric("nostr_gateway_plugin_traps_total").await, 6);
    assert_eq!(state(&gateway, "policy").await["state"], json!({ "ready": { "failures": 6 } }));

    // One line too many is seen at the latest by the next event.
    assert_eq!(answer(&mut client, "twice").await, (true, String::new()));
    eventually("it is started again", SOON, async || {
        let (_, text) = answer(&mut client, "pid").await;
        (text != failed.1 && text != format!("blocked: {before}")).then_some(())
    })
    .await;
    // What it writes to its standard error is in the log, as far as that can bear it.
    assert!(answer(&mut client, "say:500").await.0);
    gateway.log_line(SOON, |line| line.contains("line 3") && !line.contains('\u{1b}')).await;
    let lines = gateway.log().iter().filter(|line| line.contains("plugin::policy: line ")).count();
    assert!(lines <= 60, "{lines} lines");
    assert_eq!(zombies(&gateway), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_again_and_again_is_in_quarantine() {
    if !can_run("one_that_fails_again_and_again_is_in_quarantine") {
        return;
    }
    let programs = [("policy", "policy.py", "")];
    let gateway = with("A", &programs).set("plugins", "quarantine_after", "3").start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    eventually("it is in quarantine", SOON, async || {
        answer(&mut client, "garbage").await;
        let state = state(&gateway, "policy").await;
        (!state["state"]["quarantined"].is_null()).then_some(())
    })
    .await;
    assert_eq!(answer(&mut client, "fine").await.1, "error: plugin policy failed");
    gateway.command(&["plugin", "enable", "policy"]).await.succeeded();
    assert!(answer(&mut client, "fine").await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_program_counts_without_a_restart() {
    if !can_run("a_changed_program_counts_without_a_restart") {
        return;
    }
    let _alone = alone().await;
    let builder = with("A", &[("policy", "policy.py", "")]);
    let folder = builder.plugin_folder("policy");
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(answer(&mut client, "fine").await.0);
    let before = pid(&mut client).await;

    let script = folder.join("policy.py");
    let text = fs::read_to_string(&script).unwrap();
    let changed =
        text.replace(r#""action": "accept"}"#, r#""action": "reject", "msg": "changed"}"#);
    assert_ne!(text, changed);
    fs::write(&script, changed).unwrap();
    eventually("the change counts", SOON, async || {
        (answer(&mut client, "fine").await.1 == "blocked: changed").then_some(())
    })
    .await;
    eventually("the former one has ended", SOON, async || (!lives(before)).then_some(())).await;

    // One that does not stay leaves the one before running.
    let now = pid(&mut client).await;
    fs::write(&script, "#!/bin/sh\necho 'no such module' >&2\nexit 1\n").unwrap();
    eventually("the list says why", SOON, async || {
        let update = state(&gateway, "policy").await["update"].as_str()?.to_owned();
        assert!(update.contains("it ended (exit status: 1): no such module"), "{update}");
        Some(())
    })
    .await;
    assert_eq!(
        (answer(&mut client, "fine").await.1.as_str(), pid(&mut client).await),
        ("blocked: changed", now)
    );
    assert_eq!(zombies(&gateway), 0);
}

/// The time from sending an event to its OK, for some events of a kind that no program is asked about.
async fn times(client: &mut RawClient, keys: &Keys, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..count {
        let event = events::event(keys, 1, &format!("{n}"), &[], events::now());
        let began = Instant::now();
        client.accept(&event).await;
        times.push(began.elapsed());
    }
    times.sort();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_program_delays_its_own_events_only() {
    if !can_run("a_slow_program_delays_its_own_events_only") {
        return;
    }
    let _alone = alone().await;
    let gateway = with("A", &[("policy", "policy.mjs", "[applies_to]\nkinds = [7]")]).start().await;
    let keys = Keys::generate();
    let reaction = |content: &str| events::event(&Keys::generate(), 7, content, &[], events::now());
    let mut other = RawClient::connect(&gateway.url()).await;
    let mut slow = RawClient::connect(&gateway.url()).await;
    slow.accept(&reaction("fine")).await;
    times(&mut other, &keys, 100).await;
    let alone = times(&mut other, &keys, 400).await;

    // More of them than may wait for a program that is slow, from one connection.
    let began = Instant::now();
    let first = reaction("sleep:3");
    slow.send_event(&first).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting: Vec<_> = (0..100).map(|n| reaction(&format!("{n}"))).collect();
    for event in &waiting {
        slow.send_event(event).await;
    }
    let beside = times(&mut other, &keys, 400).await;
    // The same connection's others pass too.
    let same = {
        let event = events::event(&keys, 1, "same connection", &[], events::now());
        let began = Instant::now();
        slow.send_event(&event).await;
        assert_eq!(slow.ok(&event.id.to_hex()).await, (true, String::new()));
        began.elapsed()
    };
    assert!(began.elapsed() < Duration::from_secs(3), "all that while one event waited");
    let mut busy = 0;
    for event in &waiting {
        match slow.ok(&event.id.to_hex()).await {
            (true, _) => {}
            (false, text) => {
                assert_eq!(text, "error: plugin policy is busy");
                busy += 1;
            }
        }
    }
    assert_eq!(slow.ok(&first.id.to_hex()).await, (true, String::new()));
    assert!(began.elapsed() >= Duration::from_secs(3));
    let counted = r#"nostr_gateway_plugin_calls_total{plugin="policy",verdict="busy""#;
    assert_eq!(gateway.metric(counted).await, busy);
    assert_eq!(busy, 100 - 63, "64 of a connection may wait, the one in hand among them");
    let [p50, p99] = [50, 99].map(|part| (alone[400 * part / 100], beside[400 * part / 100]));
    report(&format!(
        "a slow program: other events' OK after {:?} at the median and {:?} at the 99th percentile \
         without it, {:?} and {:?} beside it; {same:?} on its own connection",
        p50.0, p99.0, p50.1, p99.1
    ));
    // The machine may be busy: seconds would be a defect, milliseconds are noise.
    assert!(p50.1 < p50.0 * 3 + Duration::from_millis(5), "{p50:?}");
    assert!(p99.1 < p99.0 * 3 + Duration::from_millis(100), "{p99:?}");
    assert!(same < Duration::from_millis(500), "{same:?}");
}

/// A fast program has room for a burst.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_judged_in_full() {
    if !can_run("a_burst_is_judged_in_full") {
        return;
    }
    let _alone = alone().await;
    let gateway = with("A", &[("policy", "policy.mjs", "")]).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let notes: Vec<_> = (0..800).map(|n| note(&format!("{n}"))).collect();
    let began = Instant::now();
    for event in &notes {
        client.send_event(event).await;
    }
    for event in &notes {
        assert_eq!(client.ok(&event.id.to_hex()).await, (true, String::new()));
    }
    let each = began.elapsed() / 800;
    report(&format!("a program in Node: 800 events of one client, {each:?} each"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_only_when_the_operator_says_so() {
    if !can_run("a_program_runs_only_when_the_operator_says_so") {
        return;
    }
    let _alone = alone().await;
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("policy");
    write(&folder, "policy", "policy.py", "");
    fs::create_dir(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/words.txt"), "x").unwrap();
    let path = folder.to_str().unwrap();
    let gateway = GatewayBuilder::new(GATEWAY, "A").start().await;
    let mut client = RawClient::connect(&gateway.url()).await;

    let checked = gateway.command(&["plugin", "check", path]).await;
    checked.succeeded();
    assert!(
        checked.stdout.contains("it was not started: a program is not sandboxed"),
        "{checked:?}"
    );
    let refused = gateway.command(&["plugin", "add", path]).await;
    refused.refuses(
        1,
        &["sandbox         NONE", "program         \"./policy.py\"", "--grant program"],
    );
    assert_eq!(state(&gateway, "policy").await, Value::Null);
    assert!(answer(&mut client, "reject:no").await.0);

    let added = gateway.command(&["plugin", "add", path, "--grant", "program"]).await;
    added.succeeded();
    assert!(
        added.stdout.contains("in the running gateway it is ready (not sandboxed)"),
        "{added:?}"
    );
    assert_eq!(answer(&mut client, "reject:no").await.1, "blocked: no");
    gateway.log_line(SOON, |line| line.contains("the plugin is a program and not sandboxed")).await;
    let data_dir = gateway.control_socket().parent().unwrap().to_owned();
    assert!(data_dir.join("plugins/policy/lib/words.txt").exists());
    let listed = gateway.command(&["plugin", "list"]).await;
    assert!(listed.stdout.contains("ready (not sandboxed)"), "{listed:?}");
    let shown = gateway.command(&["plugin", "show", "policy"]).await;
    for line in ["sandbox         NONE", "limits          10000 ms\n", "reject calls    1\n"] {
        assert!(shown.stdout.contains(line), "{line}: {shown:?}");
    }

    // Taken back, it ends.
    let running = pid(&mut client).await;
    fs::write(data_dir.join("grants.toml"), "").unwrap();
    eventually("it has ended", SOON, async || (!lives(running)).then_some(())).await;
    assert_eq!(answer(&mut client, "fine").await.1, "error: plugin policy failed");
    let cause = state(&gateway, "policy").await["state"]["broken"]["cause"].to_string();
    assert!(cause.contains("plugin enable policy --grant program"), "{cause}");
    gateway.command(&["plugin", "remove", "policy"]).await.succeeded();
    assert!(answer(&mut client, "fine").await.0);

    // What cannot be started is not installed.
    fs::write(folder.join("policy.py"), "#!/bin/sh\necho 'something is missing' >&2\nexit 4\n")
        .unwrap();
    let refused = gateway.command(&["plugin", "add", path, "--grant", "program"]).await;
    refused.refuses(1, &["it ended (exit status: 4): something is missing"]);
    fs::remove_file(folder.join("policy.py")).unwrap();
    let checked = gateway.command(&["plugin", "check", path]).await;
    checked.refuses(1, &["./policy.py: No such file"]);
    let refused = gateway.command(&["plugin", "add", path, "--grant", "program"]).await;
    refused.refuses(1, &["./policy.py: No such file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_ends_with_the_gateway() {
    if !can_run("a_program_ends_with_the_gateway") {
        return;
    }
    let _alone = alone().await;
    let programs = [("policy", "policy.py", "")];
    let mut gateway = with("A", &programs).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let running = pid(&mut client).await;
    // What waits for it is answered.
    let waits = note("sleep:30");
    client.send_event(&waits).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let id = waits.id.to_hex();
    let (status, answered) = tokio::join!(gateway.interrupt(), client.ok(&id));
    assert!(status.success());
    assert_eq!(answered, (false, "error: the gateway is shutting down".to_owned()));
    assert!(!lives(running));

    // Killed, it takes along even one that does not listen.
    let mut gateway = with("B", &programs).start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let running = pid(&mut client).await;
    client.send_event(&note("sleep:1000")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    gateway.kill9().await;
    eventually("it has ended", Duration::from_secs(5), async || (!lives(running)).then_some(()))
        .await;
}

/// The example of docs/strfry-plugins.md, as it stands there.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_documentation_works() {
    if !can_run("the_example_of_the_documentation_works") {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/strfry-plugins.md");
    let text = fs::read_to_string(path).unwrap();
    let block = |language: &str| {
        let (_, after) = text.split_once(&format!("```{language}\n")).expect(language);
        after.split_once("```").expect(language).0
    };
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("policy");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("policy.py"), block("python")).unwrap();
    fs::write(folder.join("plugin.toml"), block("toml")).unwrap();
    let gateway = GatewayBuilder::new(GATEWAY, "A").start().await;
    for line in block("sh").lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["chmod", mode, file] => {
                let mut chmod = std::process::Command::new("chmod");
                assert!(
                    chmod.args([*mode, *file]).current_dir(&outside).status().unwrap().success()
                );
            }
            ["nostr-gateway", "plugin", "add", folder, rest @ ..] => {
                let folder = outside.path().join(folder);
                let command = [&["plugin", "add", folder.to_str().unwrap()], rest].concat();
                gateway.command(&command).await.succeeded();
            }
            other => panic!("a command that nobody tried: {other:?}"),
        }
    }
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(answer(&mut client, "fine").await.0);
    let refused = answer(&mut client, "My Casino").await;
    assert_eq!(refused, (false, "blocked: no advertising".to_owned()));
    gateway
        .log_line(SOON, |line| line.contains("plugin::policy: refused one from 127.0.0.1"))
        .await;
}
