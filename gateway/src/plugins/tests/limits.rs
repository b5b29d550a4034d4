//! Hostile guests.

use super::*;

/// Where time is not what is tested: the machine that runs the tests may be busy.
const SLOW: &str = "limits.time_ms = 5000\n";

/// The fixture does something bad: it is stopped, the log says why, the client is told nothing of
/// it, and the next event is judged by a fresh instance.
#[track_caller]
fn is_stopped(more: &str, content: &str, cause: &str) {
    let mut plugins = Plugins::new().fixture("bad", more).load();
    assert_eq!(plugins.answer("calls"), "blocked: 1");
    assert_eq!(plugins.answer("calls"), "blocked: 2");
    let started = Instant::now();
    let log = logged(|| {
        assert_eq!(plugins.answer(content), "error: plugin bad failed");
    });
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(log.contains(&format!("the plugin failed: {cause}")), "{log}");
    assert_eq!(plugins.answer("calls"), "blocked: 1");
    assert_eq!(plugins.traps(), 1);
    assert_eq!(plugins.chain.summary()[0].state, PluginState::Ready { failures: 1 });
}

#[test]
fn an_endless_loop_ends() {
    is_stopped("limits.time_ms = 20", "loop", "it ran longer than 20 ms");
}

#[test]
fn a_memory_bomb_stays_small() {
    is_stopped(SLOW, "bomb", "it wanted more memory than 64 MiB");
}

#[test]
fn memory_is_what_the_manifest_says() {
    is_stopped(&format!("{SLOW}limits.memory_mib = 8"), "hold:9", "it wanted more memory than 8");
    let mut plugins = Plugins::new().fixture("big", SLOW).load();
    assert_eq!(plugins.answer("hold:40"), "blocked: held 40");
}

#[test]
fn a_panic_ends_the_call_and_its_message_is_logged() {
    is_stopped(SLOW, "panic", "it trapped: ");
    let log = logged(|| {
        Plugins::new().fixture("p", "").load().ask("panic");
    });
    assert!(log.contains("told to panic"), "{log}");
}

#[test]
fn endless_recursion_ends() {
    is_stopped(SLOW, "recurse", "its stack overflowed");
}

#[test]
fn a_giant_answer_is_not_copied() {
    is_stopped(SLOW, "giant", "it handed over more than 262144 bytes");
}

#[test]
fn a_giant_log_line_is_not_copied() {
    is_stopped(SLOW, &format!("flood:{}", "x".repeat(300_000)), "it handed over more than");
}

#[test]
fn a_route_to_a_thousand_topics_is_a_failure() {
    is_stopped(SLOW, "many", "it routed to 1000 topics, more than 64");
}

#[test]
fn a_flood_of_log_lines_is_cut() {
    let mut plugins = Plugins::new().fixture("loud", SLOW).load();
    let log = logged(|| {
        assert_eq!(plugins.ask("flood:hello\nworld\u{1b}[31m"), Decision::Accept);
    });
    let lines = log.lines().filter(|line| line.contains("hello world[31m")).count();
    // 20 a second, and the call may see several seconds begin.
    assert!((1..=80).contains(&lines), "{lines} lines");
    assert!(log.contains("plugin::loud: hello"), "{log}");
}

#[test]
fn a_flood_of_what_is_remembered_stays_within_its_quota_and_time() {
    let more = "limits.time_ms = 200\nlimits.kv_bytes = 20000\n";
    let services = services();
    let mut plugins = Plugins::new().store_fixture("bad", more).load_with(services.clone());
    let began = Instant::now();
    let log = logged(|| assert_eq!(plugins.answer("flood"), "error: plugin bad failed"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(log.contains("it ran longer than 200 ms"), "{log}");
    services.kv.stop();
    let text = services.metrics.render();
    let bytes = text.lines().find_map(|line| {
        line.strip_prefix("nostr_gateway_plugin_kv_bytes{plugin=\"bad\"} ")?.parse::<u64>().ok()
    });
    assert!(bytes.is_some_and(|bytes| (10_000..=20_000).contains(&bytes)), "{text}");
    // The next call finds a plugin that works.
    assert!(plugins.answer("get 0").starts_with("blocked: "));
}

#[test]
fn endless_questions_end() {
    let more = "limits.time_ms = 50\n";
    let mut plugins = Plugins::new().store_fixture("bad", more).load();
    let began = Instant::now();
    let log = logged(|| {
        assert_eq!(plugins.answer(&format!("asks {AUTHOR}")), "error: plugin bad failed");
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(log.contains("it ran longer than 50 ms"), "{log}");
    assert_eq!(plugins.answer("get 0"), "blocked: None");
}

#[test]
fn a_giant_value_is_not_copied() {
    let mut plugins = Plugins::new().store_fixture("bad", SLOW).load();
    let log = logged(|| assert_eq!(plugins.answer("long 300000"), "error: plugin bad failed"));
    assert!(log.contains("it handed over more than 262144 bytes"), "{log}");
}

#[test]
fn all_plugins_together_have_one_budget() {
    let passes = "order = 1\non_failure = \"pass\"\nlimits.time_ms = 5000\n";
    let plugins = Plugins::new()
        .fixture("a", passes)
        .fixture("b", passes)
        .fixture("c", "order = 2\nlimits.time_ms = 5000\n");
    let budget = Duration::from_millis(60);
    let mut plugins = plugins.load_with(Services { budget, ..services() });
    assert_eq!(plugins.ask("hello"), Decision::Accept);
    let began = Instant::now();
    let log = logged(|| assert_eq!(plugins.answer("loop"), "error: plugin c failed"));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // The first had all the time that it may take, the last hardly any; the one between, half of it.
    let lines: Vec<_> = log.lines().filter(|line| line.contains("the plugin failed: ")).collect();
    let spent = "the plugins together took longer than 60 ms";
    assert!(lines.len() == 3 && lines[0].contains("it ran longer than"), "{log}");
    assert!(lines[2].contains(spent) && lines[2].contains("plugin::c: "), "{log}");
    assert_eq!(plugins.ask("hello"), Decision::Accept);
}

#[test]
fn two_thousand_panics_in_a_row_rest_in_between() {
    let mut plugins = Plugins::new().fixture("bad", "").load();
    for _ in 0..2_000 {
        assert_eq!(plugins.answer("panic"), "error: plugin bad failed");
    }
    // Most were refused without a call: the pause doubles.
    assert!(plugins.traps() < 20, "{}", plugins.traps());
}
