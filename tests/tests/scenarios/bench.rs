//! `nostr-gateway bench` against a real gateway, and against what is none.

use std::{fs, path::Path, process::Command, time::Duration};

use nostr_gateway_tests::{Child, GatewayBuilder, Network, RawClient, free_port, report};
use serde_json::Value;

use crate::{DHT_TESTNET, GATEWAY, alone};

const DEADLINE: Duration = Duration::from_secs(60);

fn bench(url: &str, cache: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(GATEWAY);
    command.args(["bench", url, "--cache"]).arg(cache).args(arguments);
    Child::spawn("bench", command)
}

/// Runs it to its successful end. Returns the JSON it prints.
async fn measured(url: &str, cache: &Path, arguments: &[&str]) -> Value {
    let mut child = bench(url, cache, arguments);
    let status = child.exit(DEADLINE).await;
    assert_eq!(status.code(), Some(0), "{:#?}", child.stderr());
    serde_json::from_str(&child.stdout().join("\n")).unwrap()
}

/// Expects that it ends with this exit code and one line that has all of these words.
async fn fails(mut child: Child, code: i32, words: &[&str]) {
    let status = child.exit(DEADLINE).await;
    let stderr = child.stderr();
    assert_eq!(status.code(), Some(code), "{stderr:#?}");
    let clear = stderr.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert_eq!(clear, 1, "one line has {words:?}: {stderr:#?}");
    assert!(child.stdout().is_empty(), "{:#?}", child.stdout());
}

/// Whether a note says this. On a busy machine there is one more.
fn has_note(report: &Value, words: &str) -> bool {
    let notes = report["notes"].as_array().unwrap();
    notes.iter().any(|note| note.as_str().unwrap().contains(words))
}

const SMALL: &[&str] = &[
    "--events=300",
    "--authors=20",
    "--clients=2",
    "--in-flight=16",
    "--duration=0.5",
    "--subscribers=5",
    "--rate=100",
    "--burst=200",
    "--connections=30",
    "--json=-",
];

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_what_a_relay_does() {
    let _alone = alone().await;
    let gateway = GatewayBuilder::new(GATEWAY, "bench").start().await;
    let cache = tempfile::tempdir().unwrap();
    // Any process will do to see that figures of one are there.
    let pid = format!("--pid={}", std::process::id());
    let mut arguments = SMALL.to_vec();
    arguments.extend([&*pid, "--data-dir", cache.path().to_str().unwrap()]);
    let report = measured(&gateway.url(), cache.path(), &arguments).await;

    assert_eq!(report["url"], gateway.url());
    assert!(report["verify"]["per_second"].as_f64().unwrap() > 100.0, "{report}");
    assert!(report["verify"]["all_cores"].as_f64().unwrap() > 100.0, "{report}");
    assert!(report["verify"]["per_cpu_second"].as_f64().unwrap() > 100.0, "{report}");
    let publish = &report["publish"];
    assert_eq!(publish["accepted"], 300, "{publish}");
    assert_eq!((&publish["rejected"], &publish["duplicates"]), (&0.into(), &0.into()));
    assert!(publish["verify_ratio"].as_f64().unwrap() > 0.0, "{publish}");
    assert!(publish["ok"]["p99_ms"].as_f64() >= publish["ok"]["p50_ms"].as_f64(), "{publish}");
    assert!(publish["server"]["private_bytes"].as_u64().unwrap() > 0, "{publish}");
    assert!(publish["data_bytes"].as_u64().unwrap() > 300 * 500, "{publish}");

    for (scenario, shapes) in [("query", 4), ("clients", 5)] {
        let found = &report[scenario];
        assert!(found["requests"].as_u64().unwrap() > 10, "{found}");
        assert_eq!(found["shapes"].as_array().unwrap().len(), shapes, "{found}");
        for shape in found["shapes"].as_array().unwrap() {
            assert!(shape["events"].as_u64().unwrap() > 0, "{shape}");
            assert!(shape["eose"]["p50_ms"].as_f64().unwrap() > 0.0, "{shape}");
        }
    }
    // Search is measured where the relay claims to have it.
    let nips = report["relay"]["supported_nips"].as_array().unwrap();
    assert!(nips.contains(&1.into()), "{report}");
    if nips.contains(&50.into()) {
        assert!(report["search"]["requests"].as_u64().unwrap() > 10, "{report}");
    } else {
        assert!(report["search"].is_null(), "{report}");
        assert!(has_note(&report, "NIP-50"), "{report}");
    }
    // Every event that was asked for by its id is one that is stored and not replaced.
    let by_id = &report["query"]["shapes"][0];
    let share = by_id["events"].as_f64().unwrap() / by_id["requests"].as_f64().unwrap();
    assert!((0.9..=1.0).contains(&share), "{by_id}");

    let paced = &report["fanout"]["paced"];
    assert_eq!((&paced["expected"], &paced["delivered"]), (&250.into(), &250.into()));
    assert!(paced["delivery"]["p99_ms"].as_f64().unwrap() > 0.0, "{paced}");
    let unpaced = &report["fanout"]["unpaced"];
    assert_eq!((&unpaced["expected"], &unpaced["delivered"]), (&1000.into(), &1000.into()));
    assert_eq!(report["idle"]["opened"], 30, "{report}");
    assert!(report["idle"]["publish_with"]["p99_ms"].as_f64().unwrap() > 0.0, "{report}");

    // The relay really has them.
    let set = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
    let set = set.into_iter().find(|path| path.extension().unwrap() == "jsonl").unwrap();
    let frames: Vec<Value> = fs::read_to_string(set)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(frames.len(), 300);
    let notes = frames.iter().filter(|frame| frame[1]["kind"] == 1);
    let ids: Vec<String> = notes.map(|note| note[1]["id"].as_str().unwrap().to_owned()).collect();
    RawClient::connect(&gateway.url()).await.assert_stored(&ids).await;

    // A second time, the relay has the events, and the report says that this was no measurement.
    let mut arguments = SMALL.to_vec();
    arguments.push("--only=publish");
    let again = measured(&gateway.url(), cache.path(), &arguments).await;
    assert_eq!(again["publish"]["duplicates"], 300, "{again}");
    assert!(has_note(&again, "--seed"), "{again}");
    assert!(again["query"].is_null() && again["idle"].is_null(), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_says_in_one_line_what_is_wrong() {
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    let nothing = format!("ws://127.0.0.1:{}", free_port());
    fails(bench(&nothing, cache, SMALL), 1, &[&nothing, "nothing answers"]).await;
    fails(bench("http://127.0.0.1", cache, SMALL), 1, &["http://127.0.0.1", "ws://"]).await;
    // Nothing is sent there: the address is one for examples.
    let elsewhere = "ws://192.0.2.1:1";
    fails(bench(elsewhere, cache, SMALL), 1, &[elsewhere, "--yes"]).await;
    fails(bench(&nothing, cache, &["--pid=4294967295"]), 1, &["--pid 4294967295", "running"]).await;
    fails(bench(&nothing, cache, &["--only=everything"]), 2, &["'everything'"]).await;
    fails(bench(&nothing, cache, &["--data-dir=/nowhere"]), 1, &["--data-dir /nowhere"]).await;
    fails(bench(&nothing, cache, &["--json=/nowhere/x"]), 1, &["--json /nowhere/x"]).await;
    assert_eq!(fs::read_dir(cache).unwrap().count(), 0, "nothing was signed in vain");

    // A path where there is no relay.
    let gateway = GatewayBuilder::new(GATEWAY, "bench refused")
        .set("limits", "max_past_s", "60")
        .start()
        .await;
    let wrong_path = format!("{}nowhere", gateway.url());
    fails(bench(&wrong_path, cache, SMALL), 1, &[&wrong_path, "404"]).await;
    let tls = gateway.url().replace("ws://", "wss://");
    fails(bench(&tls, cache, SMALL), 1, &[&tls, "TLS"]).await;
    // A relay that takes nothing old refuses the set, which reaches back a month.
    fails(bench(&gateway.url(), cache, SMALL), 1, &[&gateway.url(), "in the past"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_notices_that_the_relay_is_gone() {
    let _alone = alone().await;
    let mut gateway = GatewayBuilder::new(GATEWAY, "bench killed").start().await;
    let cache = tempfile::tempdir().unwrap();
    let url = gateway.url();
    let child = bench(&url, cache.path(), &["--only=publish", "--events=20000", "--authors=5"]);
    child.stderr_line(DEADLINE, |line| line == "publishing 20000").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.kill9().await;
    fails(child, 1, &[&url, "during publish"]).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn bench_ends_at_once_when_it_is_interrupted() {
    let cache = tempfile::tempdir().unwrap();
    let gateway = GatewayBuilder::new(GATEWAY, "bench interrupted").start().await;
    let arguments = ["--only=publish", "--events=1000000", "--authors=5"];
    let mut child = bench(&gateway.url(), cache.path(), &arguments);
    child.stderr_line(DEADLINE, |line| line == "signing 1000000 events").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    child.signal("INT");
    assert_eq!(child.exit(Duration::from_secs(5)).await.code(), Some(130));
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "what was begun is gone");
}

/// Not the figures: that each row of `topic-bench` can be measured. One of them is none of time, and
/// holds here as well.
#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_of_topics_measures_every_row() {
    let scenario = "the_benchmark_of_topics_measures_every_row";
    if Network::available(scenario).is_none() {
        return;
    }
    let _alone = alone().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_topic-bench"));
    command.args(["--gateway", GATEWAY, "--dht-testnet", DHT_TESTNET, "--quick", "--json", "-"]);
    let mut bench = Child::spawn("topic-bench", command);
    let status = bench.exit(Duration::from_secs(300)).await;
    assert!(status.success(), "{:#?}", bench.stderr());
    let figures: Value = serde_json::from_str(&bench.stdout().join("\n")).unwrap();
    assert_eq!(figures["quick"], true);
    let rows = figures["rows"].as_array().unwrap();
    for start in ["2 gateways", "3 gateways", "6 gateways", "5 gateways, 500/s", "late joiner"]
        .into_iter()
        .chain(["partition", "5 gateways, one frozen", "5 topics, idle"])
    {
        let of_it = |row: &&Value| row["name"].as_str().unwrap().starts_with(start);
        let row = rows.iter().find(of_it).unwrap_or_else(|| panic!("{start}: {figures}"));
        assert!(row["failure"].is_null() && row["met"].is_null(), "{row}");
        assert!(row["figures"].as_object().is_some_and(|figures| !figures.is_empty()), "{row}");
        assert_eq!(row["figures"]["missing"].as_f64().unwrap_or_default(), 0.0, "{row}");
    }
    let late = rows.iter().find(|row| row["name"].as_str().unwrap().starts_with("late")).unwrap();
    let wire = late["figures"]["wire_×_events"].as_f64().unwrap();
    report(&format!("a late joiner needs {wire:.2} × the bytes of its events on the wire"));
    assert!((1.0..=1.3).contains(&wire), "{late}");
}

/// The same of `upstream-bench`.
#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_of_bridges_measures_every_row() {
    let _alone = alone().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_upstream-bench"));
    command.args(["--gateway", GATEWAY, "--quick", "--json", "-"]);
    let mut bench = Child::spawn("upstream-bench", command);
    let status = bench.exit(Duration::from_secs(300)).await;
    assert!(status.success(), "{:#?}", bench.stderr());
    let figures: Value = serde_json::from_str(&bench.stdout().join("\n")).unwrap();
    let rows = figures["rows"].as_array().unwrap();
    // From two relays each for the first two, and two lines of following.
    assert_eq!(rows.len(), 8, "{figures}");
    for row in rows {
        assert!(row["failure"].is_null() && row["met"].is_null(), "{row}");
        assert_eq!(row["figures"]["missing"].as_f64().unwrap_or_default(), 0.0, "{row}");
    }
    // These are none of time.
    for row in rows.iter().filter(|row| row["name"].as_str().unwrap().contains("missing")) {
        let share = row["figures"]["of_the_goal's_bytes_%"].as_f64().unwrap();
        assert!((1.0..=100.0).contains(&share), "{row}");
    }
}
