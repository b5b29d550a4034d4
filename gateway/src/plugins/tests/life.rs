//! What happens to plugins while the gateway runs.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    plugins::{Setup, deadline::thread_time, granted},
    protocol::Reason,
    tasks,
};

const SOON: Duration = Duration::from_secs(20);

/// A directory of plugins that is watched, with a data directory beside it.
pub(super) struct Living {
    plugins: Plugins,
    data: TempDir,
    chain: PluginChain,
    pub(super) worker: Box<dyn PolicyWorker>,
    metrics: Arc<Metrics>,
    swaps: Arc<AtomicU64>,
}

impl Living {
    pub(super) fn new(plugins: Plugins, quarantine_after: u32) -> Self {
        Self::with(plugins, TempDir::new().unwrap(), quarantine_after)
    }

    pub(super) fn with(plugins: Plugins, data: TempDir, quarantine_after: u32) -> Self {
        let setup = Setup {
            dir: plugins.0.path().to_owned(),
            must_exist: false,
            data_dir: Some(data.path().to_owned()),
            quarantine_after,
            launcher: None,
        };
        let services = services();
        let metrics = Arc::clone(&services.metrics);
        let chain = PluginChain::open(setup, services).unwrap();
        let swaps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&swaps);
        chain.watch(move || _ = counted.fetch_add(1, Ordering::Relaxed)).unwrap();
        Self { plugins, data, worker: chain.worker(), chain, metrics, swaps }
    }

    pub(super) fn ask(&mut self, content: &str) -> Decision {
        let origin = client();
        let context = Context {
            direction: Direction::In,
            origin: &origin,
            topics: &[],
            received_at: 1_700_000_001,
        };
        self.worker.evaluate(&event(1, content), &context)
    }

    pub(super) fn answer(&mut self, content: &str) -> String {
        match self.ask(content) {
            Decision::Reject(reason) => reason.to_string(),
            other => panic!("not rejected: {other:?}"),
        }
    }

    /// Writes the fixture's manifest anew, to be taken whenever it is noticed.
    pub(super) fn rewrite(&self, id: &str, more: &str) {
        let path = self.plugins.0.path().join(id).join("plugin.toml");
        fs::write(path, fixture_manifest(id, more)).unwrap();
    }

    /// Takes what changed in this folder now.
    pub(super) fn look(&self, folder: &str) {
        assert!(self.chain.look(Some(folder.to_owned())));
    }

    pub(super) fn state(&self, id: &str) -> PluginState {
        self.summary(id).state
    }

    fn summary(&self, id: &str) -> crate::plugins::PluginSummary {
        let all = self.chain.summary();
        all.into_iter().find(|plugin| plugin.id == id).expect("the plugin is listed")
    }

    pub(super) fn grant(&self, text: &str) {
        fs::write(self.data.path().join(granted::FILE_NAME), text).unwrap();
        assert!(self.chain.look(None));
    }
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_change_is_noticed_and_taken() {
    let say = |word: &str| format!("[config]\nsay = \"{word}\"");
    let mut living = Living::new(Plugins::new().fixture("a", &say("one")), 0);
    assert_eq!(living.answer("say"), "blocked: one");
    living.rewrite("a", &say("two"));
    eventually("the change is taken", || living.answer("say") == "blocked: two");
    assert_eq!(living.swaps.load(Ordering::Relaxed), 1);
    // A new one, in a folder that is filled bit by bit.
    let folder = living.plugins.0.path().join("b");
    fs::create_dir(&folder).unwrap();
    let more = "order = -1\n[config]\nguard = true";
    fs::write(folder.join("plugin.toml"), fixture_manifest("b", more)).unwrap();
    thread::sleep(Duration::from_millis(700));
    assert_eq!(living.chain.summary().len(), 1, "its files may not be complete");
    fs::write(folder.join("plugin.wasm"), FIXTURES).unwrap();
    eventually("the new plugin guards", || living.answer("say").contains("guarded"));
    fs::remove_dir_all(&folder).unwrap();
    eventually("it is gone", || living.answer("say") == "blocked: two");
    // Touched is not changed.
    let swaps = living.swaps.load(Ordering::Relaxed);
    living.rewrite("a", &say("two"));
    living.look("a");
    assert_eq!(living.swaps.load(Ordering::Relaxed), swaps);
}

#[test]
fn the_first_plugin_may_come_later() {
    let mut living = Living::new(Plugins::new(), 0);
    assert_eq!(living.ask("calls"), Decision::Accept);
    let plugins = Plugins(TempDir::new().unwrap()).fixture("a", "");
    fs::rename(plugins.0.path().join("a"), living.plugins.0.path().join("a")).unwrap();
    eventually("it runs", || living.ask("calls") != Decision::Accept);
}

#[test]
fn a_broken_new_version_leaves_the_old_one_running_and_says_why() {
    let mut living = Living::new(Plugins::new().fixture("a", "[config]\nsay = \"old\""), 0);
    let component = living.plugins.0.path().join("a/plugin.wasm");
    for (bytes, cause) in [
        (b"nonsense".as_slice(), "plugin.wasm: it is no component that compiles: "),
        (&FIXTURES[..FIXTURES.len() / 2], "plugin.wasm: it is no component that compiles: "),
    ] {
        fs::write(&component, bytes).unwrap();
        living.look("a");
        assert_eq!(living.answer("say"), "blocked: old");
        let summary = living.summary("a");
        assert_eq!(summary.state, PluginState::Ready { failures: 0 });
        assert!(summary.update.unwrap().starts_with(cause));
    }
    fs::write(&component, FIXTURES).unwrap();
    living.rewrite("a", "[config]\ninit = \"panic\"");
    living.look("a");
    assert_eq!(living.answer("say"), "blocked: old");
    assert!(living.summary("a").update.unwrap().contains("it did not start: it trapped"));
    fs::write(living.plugins.0.path().join("a/plugin.toml"), "id = ").unwrap();
    living.look("a");
    assert_eq!(living.answer("say"), "blocked: old");
    assert!(living.summary("a").update.unwrap().starts_with("plugin.toml: line 1"));
    let text = living.metrics.render();
    assert!(text.contains(r#"plugin_swaps_total{plugin="a",result="refused"} 4"#), "{text}");
    // Mended, or as it was.
    living.rewrite("a", "[config]\nsay = \"old\"");
    living.look("a");
    assert_eq!(living.summary("a").update, None);
    living.rewrite("a", "[config]\nsay = \"new\"");
    living.look("a");
    assert_eq!(living.answer("say"), "blocked: new");
    assert!(living.metrics.render().contains(r#"plugin_swaps_total{plugin="a",result="taken"} 1"#));
}

/// Each event is judged by one version of the chain, and none does the work of a swap.
#[test]
fn events_are_judged_all_the_time() {
    let say = |word: &str| format!("[config]\nsay = \"{word}\"");
    let plugins = Plugins::new()
        .fixture("a", &format!("order = 1\n{}", say("0")))
        .fixture("b", "order = 2\non_failure = \"pass\"");
    let living = Living::new(plugins, 0);
    let (stop, judged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (report, reported) = crossbeam_channel::bounded(1);
    let judging = {
        let (chain, stop, judged) = (living.chain.clone(), stop.clone(), judged.clone());
        tasks::thread("judging", move || {
            let (mut worker, origin) = (chain.worker(), client());
            let (event, direction) = (event(1, "say"), Direction::In);
            let (mut longest, mut busiest) = (Duration::ZERO, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let context = Context { direction, origin: &origin, topics: &[], received_at: 1 };
                let (began, ran) = (Instant::now(), thread_time());
                let decision = worker.evaluate(&event, &context);
                let ran = thread_time().zip(ran).map(|(now, then)| now - then);
                longest = longest.max(began.elapsed());
                busiest = busiest.max(ran.unwrap_or_default());
                assert!(matches!(decision, Decision::Reject(_)), "{decision:?}");
                judged.fetch_add(1, Ordering::Relaxed);
            }
            report.send((longest, busiest)).unwrap();
        })
        .unwrap()
    };
    for n in 1..=10 {
        living.rewrite("a", &format!("order = 1\n{}", say(&n.to_string())));
        // So many between two swaps, however slow the machine is.
        let before = judged.load(Ordering::Relaxed);
        living.look("a");
        while judged.load(Ordering::Relaxed) < before + 100 && !judging.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (longest, busiest) = reported.recv().unwrap();
    let judged = judged.load(Ordering::Relaxed);
    judging.join().unwrap();
    assert_eq!(living.swaps.load(Ordering::Relaxed), 10);
    println!("{judged} events; the longest took {longest:?}, the most work {busiest:?}");
    // How long the thread waited for the machine is not what is tested.
    assert!(judged >= 1_000 && busiest < Duration::from_millis(5), "{judged} events, {busiest:?}");
}

#[test]
fn plugins_that_stay_keep_their_instances() {
    let mut living = Living::new(Plugins::new().fixture("a", "").fixture("b", "order = 9"), 0);
    assert_eq!(living.answer("calls"), "blocked: 1");
    living.rewrite("b", "order = 8");
    living.look("b");
    assert_eq!(living.swaps.load(Ordering::Relaxed), 1);
    assert_eq!(living.answer("calls"), "blocked: 2");
    living.rewrite("a", "[config]\nsay = \"x\"");
    living.look("a");
    assert_eq!(living.answer("calls"), "blocked: 1");
}

#[test]
fn a_plugin_is_switched_off_and_on() {
    let mut living = Living::new(Plugins::new().fixture("a", "[config]\nguard = true"), 0);
    assert!(living.answer("x").contains("guarded"));
    living.grant("[a]\nenabled = false\n");
    assert_eq!(living.ask("x"), Decision::Accept);
    assert_eq!(living.state("a"), PluginState::Disabled {});
    // A mistake in the file changes nothing.
    living.grant("[a]\nenabled = maybe\n");
    assert_eq!(living.state("a"), PluginState::Disabled {});
    living.grant("");
    assert!(living.answer("x").contains("guarded"));
    // So it is from the start, too.
    fs::write(living.data.path().join(granted::FILE_NAME), "[a]\nenabled = false\n").unwrap();
    let Living { plugins, data, .. } = living;
    let mut living = Living::with(plugins, data, 0);
    assert_eq!(living.ask("x"), Decision::Accept);
}

#[test]
fn many_failures_in_a_row_lead_into_quarantine_until_it_is_lifted() {
    let plugins = Plugins::new().fixture("a", "").fixture("b", "on_failure = \"pass\"\norder = 1");
    let mut living = Living::new(plugins, 3);
    let log = logged(|| {
        for _ in 0..3 {
            // The pause after the second one is short.
            eventually("it was asked", || {
                let before = living.chain.summary()[0].clone();
                let answer = living.answer("panic");
                assert_eq!(answer, "error: plugin a failed");
                living.chain.summary()[0] != before
            });
        }
    });
    assert!(log.contains("is in quarantine: events in its scope are refused"), "{log}");
    let PluginState::Quarantined { failures: 3, cause, retry_in_s } = living.state("a") else {
        panic!("{:?}", living.state("a"))
    };
    assert!(cause.starts_with("it trapped") && (8..=10).contains(&retry_in_s), "{cause}");
    assert_eq!(living.ask("hello"), Decision::Reject(Reason::error("plugin a failed")));
    assert_eq!(living.chain.lift("a"), Some(true));
    assert_eq!(living.chain.lift("a"), Some(false));
    assert_eq!(living.chain.lift("x"), None);
    assert_eq!(living.ask("hello"), Decision::Accept);
    assert_eq!(living.state("a"), PluginState::Ready { failures: 3 });
    living.chain.measure();
    let text = living.metrics.render();
    assert!(text.contains(r#"plugin_state{plugin="a",state="ready"} 1"#), "{text}");
    // A new version is not to blame for the old one.
    for _ in 0..1_000 {
        living.ask("panic");
        if matches!(living.state("a"), PluginState::Quarantined { .. }) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(matches!(living.state("a"), PluginState::Quarantined { .. }));
    living.rewrite("a", "[config]\nsay = \"mended\"");
    living.look("a");
    assert_eq!(living.answer("say"), "blocked: mended");
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_traps_leave_memory_flat() {
    fn resident_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
    let mut living = Living::new(Plugins::new().fixture("a", "limits.time_ms = 5000\n"), 0);
    let mut trap = |times: usize| {
        for _ in 0..times {
            assert_eq!(living.answer("panic"), "error: plugin a failed");
            // Never two in a row: there would be a pause.
            assert_eq!(living.answer("hold:2"), "blocked: held 2");
        }
    };
    trap(50);
    let before = resident_kib();
    trap(1_000);
    let grown = resident_kib().saturating_sub(before);
    // Other tests run beside it; a thousand instances left behind would be two gigabytes.
    assert!(grown < 150_000, "{grown} KiB more");
    let labels = PluginIdLabels { plugin: "a".to_owned() };
    let held = living.metrics.plugin_memory.get(&labels).unwrap().get();
    assert!((1 << 20..16 << 20).contains(&held), "one instance holds {held} bytes");
    assert_eq!(living.metrics.plugin_traps.get(&labels).unwrap().get(), 1_050);
}

#[test]
fn the_configuration_is_checked_against_the_schema() {
    let schema = r#"{"properties": {"say": {"type": "string", "maxLength": 5}},
                     "additionalProperties": false}"#;
    let with = |config: &str, schema: &str| {
        let more = format!("config_schema = \"schema.json\"\n[config]\n{config}");
        let plugins = Plugins::new().fixture("a", &more);
        fs::write(plugins.0.path().join("a/schema.json"), schema).unwrap();
        plugins.load()
    };
    assert_eq!(with("say = \"hello\"", schema).answer("say"), "blocked: hello");
    let cause = with("say = \"too long\"", schema).cause("a");
    assert_eq!(cause, "plugin.toml: config.say: want at most 5 characters");
    let cause = with("sya = \"x\"", schema).cause("a");
    assert_eq!(cause, "plugin.toml: config.sya: there is no such setting");
    let cause = with("say = \"x\"", "{\"$ref\": \"file:///etc/passwd\"}").cause("a");
    assert_eq!(cause, "schema.json: #.$ref: this gateway does not know the keyword");
    let plugins = Plugins::new().fixture("a", "config_schema = \"absent.json\"");
    let cause = plugins.load().cause("a");
    assert!(cause.starts_with("absent.json: it cannot be read: "), "{cause}");
}

#[test]
fn what_is_not_granted_does_not_run() {
    let plugins = Plugins::new().store_fixture("a", "[config]\n");
    let manifest = fs::read_to_string(plugins.0.path().join("a/plugin.toml")).unwrap();
    let mut living = Living::new(plugins, 0);
    let PluginState::Broken { cause } = living.state("a") else { panic!("it runs") };
    assert_eq!(
        cause,
        "plugin.toml: it asks for kv,lookup, which is not granted; to allow that: nostr-gateway \
         plugin enable a --grant kv,lookup"
    );
    assert_eq!(living.answer("get x"), "error: plugin a failed");
    living.grant("[a]\ngrant = [\"kv\"]\n");
    assert!(matches!(living.state("a"), PluginState::Broken { cause } if cause.contains("lookup")));
    living.grant("[a]\ngrant = [\"kv\", \"lookup\"]\n");
    assert_eq!(living.answer("get x"), "blocked: None");
    // A new version that asks for no more may run; what is taken back counts at once, too.
    fs::write(living.plugins.0.path().join("a/plugin.toml"), format!("{manifest}# changed"))
        .unwrap();
    living.look("a");
    assert_eq!(living.answer("get x"), "blocked: None");
    living.grant("");
    assert_eq!(living.answer("get x"), "error: plugin a failed");
    living.grant("[a]\ngrant = [\"kv\", \"lookup\"]\n");
    assert_eq!(living.answer("get x"), "blocked: None");
    // Even if somebody keeps writing there.
    let file = living.plugins.0.path().join("a/plugin.toml");
    fs::write(file, format!("{manifest}# changed again")).unwrap();
    living.grant("");
    assert_eq!(living.answer("get x"), "error: plugin a failed");
    // What is given while somebody writes counts when that has ended.
    fs::write(living.plugins.0.path().join("a/notes.txt"), "x").unwrap();
    living.grant("[a]\ngrant = [\"kv\", \"lookup\"]\n");
    eventually("it runs again", || living.answer("get x") == "blocked: None");
}

/// What is optional is there while it is granted, and whoever asks without learns that it is not.
#[test]
fn what_is_optional_and_not_granted_is_not_there() {
    let manifest = "id = \"a\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
                    file = \"plugin.wasm\"\ncapabilities = [\"log\"]\n\
                    optional_capabilities = [\"kv\", \"lookup\"]\n";
    let plugins = Plugins::new().folder("a", manifest, STORE_FIXTURE);
    let mut living = Living::new(plugins, 0);
    let follows = format!("follows {AUTHOR} {AUTHOR}");
    let answers = |living: &mut Living| ["set x 1", "get x", &follows].map(|a| living.answer(a));
    let none = ["Err(\"quota\")", "None", "Err(\"unavailable\")"].map(|a| format!("blocked: {a}"));
    let both = ["Ok(())", "Some(\"1\")", "Ok(false)"].map(|a| format!("blocked: {a}"));
    assert_eq!(answers(&mut living), none);
    living.grant("[a]\ngrant = [\"lookup\"]\n");
    assert_eq!(answers(&mut living), [&none[..2], &both[2..]].concat()[..]);
    living.grant("[a]\ngrant = [\"kv\", \"lookup\"]\n");
    assert_eq!(answers(&mut living), both);
    let swaps = living.swaps.load(Ordering::Relaxed);
    living.grant("[a]\ngrant = [\"lookup\", \"kv\"]\n");
    assert_eq!(living.swaps.load(Ordering::Relaxed), swaps, "nothing is another");
    living.grant("");
    assert_eq!(answers(&mut living), none);
}

/// An update that asks for more leaves the old version running.
#[test]
fn an_update_that_wants_more_waits_for_the_grant() {
    let mut living = Living::new(Plugins::new().fixture("a", "[config]\nsay = \"old\""), 0);
    let plugins = Plugins::new().store_fixture("a", "");
    for file in ["plugin.wasm", "plugin.toml"] {
        let from = plugins.0.path().join("a").join(file);
        fs::copy(from, living.plugins.0.path().join("a").join(file)).unwrap();
    }
    living.look("a");
    assert_eq!(living.answer("say"), "blocked: old");
    assert!(living.summary("a").update.unwrap().contains("--grant kv,lookup"));
    living.grant("[a]\ngrant = [\"kv\", \"lookup\"]\n");
    assert_eq!(living.answer("get x"), "blocked: None");
}
