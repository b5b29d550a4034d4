//! Events on their way out.

use super::*;
use crate::{metrics::PluginLabels, protocol::Reason};

const OUT: &str = "[applies_to]\ndirections = [\"to-topics\", \"to-upstream\"]\n";

fn names(names: &[&str]) -> Left {
    Ok(names.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn a_plugin_is_asked_in_its_directions_only() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    assert!(plugins.worker.judges(Direction::In) && !plugins.worker.judges(Direction::ToTopics));
    assert_eq!(plugins.leave("out:reject:no", Direction::ToTopics, &["x"]), names(&["x"]));
    let mut plugins = Plugins::new().fixture("a", OUT).load();
    assert!(!plugins.worker.judges(Direction::In));
    assert!(plugins.worker.judges(Direction::ToUpstream("s")));
    assert_eq!(plugins.ask("reject:no"), Decision::Accept);
    assert_eq!(plugins.leave("reject:no", Direction::ToTopics, &["x"]), names(&["x"]));
    let refused = Stays::Because(Reason::blocked("topics [\"x\", \"y\"] no"));
    assert_eq!(plugins.leave("out:reject:no", Direction::ToTopics, &["x", "y"]), Err(refused));
    let both = "[applies_to]\ndirections = [\"in\", \"to-topics\"]\n";
    let mut plugins = Plugins::new().fixture("a", both).load();
    assert_eq!(plugins.answer("reject:no"), "blocked: no");
    assert!(plugins.leave("out:reject:no", Direction::ToTopics, &["x"]).is_err());
    assert_eq!(plugins.leave("out:reject:no", Direction::ToUpstream("s"), &["x"]), names(&["x"]));
}

#[test]
fn each_verdict_keeps_or_lets_go() {
    let mut plugins = Plugins::new().fixture("a", OUT).load();
    let mut leave = |content: &str| plugins.leave(content, Direction::ToTopics, &["x", "y"]);
    assert_eq!(leave("out:"), names(&["x", "y"]));
    assert_eq!(leave("out:route:y,z"), names(&["y"]));
    let elsewhere = Reason::restricted("plugin a sends it elsewhere");
    assert_eq!(leave("out:route:z"), Err(Stays::Because(elsewhere)));
    assert_eq!(leave("out:shadow"), Err(Stays::Silently));
    let failed = Stays::Because(Reason::error("plugin a failed"));
    assert_eq!(leave("out:panic"), Err(failed), "fail closed");
    let mut leave = |content: &str| plugins.leave(content, Direction::ToUpstream("s"), &["x"]);
    assert_eq!(leave("out:"), names(&["x"]));
    assert_eq!(leave("out:route:z"), names(&["x"]), "topics are no matter to another relay");
    let refused = Stays::Because(Reason::blocked("upstream s [\"x\"] no"));
    assert_eq!(leave("out:reject:no"), Err(refused));
}

#[test]
fn only_topics_in_its_scope_are_a_plugins_business() {
    let scoped = |topic: &str| format!("{OUT}topics = [\"{topic}\"]\n");
    let mut plugins = Plugins::new().fixture("a", &scoped("x")).fixture("b", &scoped("y")).load();
    let mut leave = |topics: &[&str]| plugins.leave("out:reject:no", Direction::ToTopics, topics);
    assert_eq!(leave(&["x", "z"]), names(&["z"]));
    assert_eq!(leave(&["x", "y", "z"]), names(&["z"]));
    assert_eq!(leave(&["z"]), names(&["z"]));
    // The first one that leaves nothing over is the last one that is asked.
    let refused = Stays::Because(Reason::blocked("topics [\"x\"] no"));
    assert_eq!(leave(&["x"]), Err(refused));
    let text = plugins.metrics.render();
    assert!(text.contains(r#"plugin_calls_total{plugin="b",verdict="reject"} 1"#), "{text}");
}

#[test]
fn a_broken_plugin_keeps_everything_in_its_scope_in() {
    let manifest = |more: &str| {
        format!(
            "id = \"bad\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
             file = \"absent.wasm\"\n{more}{OUT}topics = [\"x\"]\n"
        )
    };
    let mut plugins = Plugins::new().folder("bad", &manifest(""), b"").load();
    assert_eq!(plugins.leave("", Direction::ToTopics, &["x", "y"]), names(&["y"]));
    assert!(plugins.leave("", Direction::ToTopics, &["x"]).is_err());
    let passes = manifest("on_failure = \"pass\"\n");
    let mut plugins = Plugins::new().folder("bad", &passes, b"").load();
    assert_eq!(plugins.leave("", Direction::ToTopics, &["x"]), names(&["x"]));
}

#[test]
fn only_the_plugins_of_a_stream_judge_its_events() {
    let both = "[applies_to]\ndirections = [\"in\", \"to-upstream\"]\n";
    let mut plugins = Plugins::new().fixture("a", both).fixture("b", both).load();
    let stream: Arc<str> = "s".into();
    let scopes = plugins.chain.scopes().clone();
    let upstream = Origin::Upstream { stream: stream.clone(), url: "wss://a".into() };
    let calls = |plugins: &Loaded| {
        ["a", "b"].map(|id| {
            let labels = PluginLabels { plugin: id.to_owned(), verdict: "accept" };
            plugins.metrics.plugin_calls.get(&labels).map_or(0, |calls| calls.get())
        })
    };
    scopes.set(&stream, Some(&["b".to_owned()]));
    assert_eq!(plugins.ask_with(&event(1, "x"), &upstream, &[]), Decision::Accept);
    assert_eq!(calls(&plugins), [0, 1]);
    assert_eq!(plugins.leave("out:", Direction::ToUpstream("s"), &["x"]), names(&["x"]));
    assert_eq!(calls(&plugins), [0, 2]);
    // Other streams and clients are judged by all.
    assert_eq!(plugins.leave("out:", Direction::ToUpstream("t"), &["x"]), names(&["x"]));
    assert_eq!(plugins.ask("x"), Decision::Accept);
    assert_eq!(calls(&plugins), [2, 4]);

    scopes.set(&stream, Some(&["b".to_owned(), "c".to_owned()]));
    let absent = Reason::error("plugin c is not there to judge it");
    let refused = Decision::Reject(absent.clone());
    assert_eq!(plugins.ask_with(&event(1, "x"), &upstream, &[]), refused, "fail closed");
    let stays = Err(Stays::Because(absent));
    assert_eq!(plugins.leave("out:", Direction::ToUpstream("s"), &["x"]), stays);
    assert_eq!(plugins.chain.lacks(&["b".to_owned(), "c".to_owned()]).as_deref(), Some("c"));
    scopes.set(&stream, None);
    assert_eq!(plugins.ask_with(&event(1, "x"), &upstream, &[]), Decision::Accept);
    assert_eq!(calls(&plugins), [3, 5]);
}
