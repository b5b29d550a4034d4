//! What a verdict does, and who is asked.

use super::*;
use crate::protocol::Reason;

#[test]
fn each_verdict_becomes_a_decision() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    assert_eq!(plugins.ask("hello"), Decision::Accept);
    assert_eq!(plugins.ask("shadow"), Decision::ShadowReject);
    assert_eq!(plugins.ask("reject:spam"), Decision::Reject(Reason::blocked("spam")));
    assert_eq!(
        plugins.ask("reject:restricted: members only"),
        Decision::Reject(Reason::restricted("members only"))
    );
    assert_eq!(plugins.ask("route:one,two,one"), Decision::Route(vec![topic("one"), topic("two")]));
    assert_eq!(plugins.ask("route:"), Decision::Route(vec![]));
    let text = plugins.metrics.render();
    for line in [
        r#"plugin_calls_total{plugin="a",verdict="accept"} 1"#,
        r#"plugin_calls_total{plugin="a",verdict="reject"} 2"#,
        r#"plugin_calls_total{plugin="a",verdict="shadow-reject"} 1"#,
        r#"plugin_calls_total{plugin="a",verdict="route"} 2"#,
        r#"plugin_calls_total{plugin="a",verdict="failed"} 0"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_plugin_sees_the_event() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    let text = plugins.answer("echo");
    assert!(text.starts_with(&format!("blocked: Event {{ id: \"{}\"", "11".repeat(32))), "{text}");
    assert!(text.contains(AUTHOR), "{text}");
}

#[test]
fn a_plugin_sees_the_rest_and_where_it_came_from() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    let mut seen = |origin| match plugins.ask_with(&event(7, "context"), &origin, &["x", "y"]) {
        Decision::Reject(reason) => reason.text.into_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        seen(client()),
        "7 1700000000 [[\"t\", \"a\", \"b\"], [], [\"e\"]] Client \"\" [\"x\", \"y\"] 1700000001"
    );
    assert!(seen(gossip("x")).contains("Gossip \"x\""));
    let fetch = Origin::Fetch { topic: topic("y"), peer: PeerId([7; 32]) };
    assert!(seen(fetch).contains("Fetch \"y\""));
    let upstream = Origin::Upstream { stream: "damus".into(), url: "wss://example.com".into() };
    assert!(seen(upstream).contains("Upstream \"damus\""));
}

#[test]
fn a_plugin_sees_the_keys_that_the_client_has_proved() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    assert_eq!(plugins.answer("keys"), "blocked: []");
    let keys = [PublicKey([0xab; 32]), PublicKey([1; 32])].into();
    let viewer = Arc::new(Viewer::new(keys, false, &Default::default()));
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let origin = Origin::Client { connection: 1, address, viewer };
    let expected = format!("[\"{}\", \"{}\"]", "01".repeat(32), "ab".repeat(32));
    assert_eq!(
        plugins.ask_with(&event(1, "keys"), &origin, &[]),
        Decision::Reject(Reason::blocked(expected))
    );
}

#[test]
fn a_plugin_sees_where_the_client_is() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    let mut seen = |origin| match plugins.ask_with(&event(1, "address"), &origin, &[]) {
        Decision::Reject(reason) => reason.text.into_owned(),
        other => panic!("{other:?}"),
    };
    let at = |address: &str| Origin::Client {
        connection: 1,
        address: address.parse().unwrap(),
        viewer: Arc::default(),
    };
    for (address, written) in [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:0::1", "2001:db8::1"),
    ] {
        assert_eq!(seen(at(address)), format!("Some(\"{written}\")"));
    }
    assert_eq!(seen(gossip("x")), "None");
}

#[test]
fn the_clock_is_ours() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    let before = crate::clock::unix_now();
    let said: u64 = plugins.answer("now").trim_start_matches("blocked: ").parse().unwrap();
    assert!((before..=before + 60).contains(&said));
}

#[test]
fn an_instance_is_kept_from_call_to_call_and_belongs_to_one_worker() {
    let mut plugins = Plugins::new().fixture("a", "").load();
    assert_eq!(plugins.answer("calls"), "blocked: 1");
    assert_eq!(plugins.answer("calls"), "blocked: 2");
    plugins.worker = plugins.chain.worker();
    assert_eq!(plugins.answer("calls"), "blocked: 1");
}

#[test]
fn outside_its_scope_a_plugin_is_not_asked() {
    let mut plugins = Plugins::new()
        .fixture(
            "a",
            "[applies_to]\norigins = [\"gossip\", \"upstream\"]\nkinds = [1, 7]\n\
             topics = [\"x\"]",
        )
        .load();
    let mut refused = |kind, origin: Origin, topics: &[&str]| {
        plugins.ask_with(&event(kind, "reject:no"), &origin, topics) != Decision::Accept
    };
    assert!(refused(1, gossip("x"), &["x"]));
    assert!(refused(7, gossip("x"), &["y", "x"]));
    assert!(!refused(1, client(), &["x"]));
    assert!(!refused(2, gossip("x"), &["x"]));
    assert!(!refused(1, gossip("y"), &["y"]));
    assert!(!refused(1, gossip("y"), &[]));
}

#[test]
fn the_chain_asks_in_order_and_the_first_rejection_ends_it() {
    let mut plugins = Plugins::new()
        .fixture("b", "order = 5\n[config]\nsay = \"second\"")
        .fixture("c", "order = -1\n[config]\nsay = \"first\"")
        .fixture("a", "order = 5\n[applies_to]\nkinds = [9]")
        .load();
    let ids: Vec<_> = plugins.chain.summary().into_iter().map(|plugin| plugin.id).collect();
    assert_eq!(ids, ["c", "a", "b"]);
    assert_eq!(plugins.answer("say"), "blocked: first");
}

#[test]
fn plugins_after_a_route_see_the_new_topics() {
    let mut plugins = Plugins::new()
        .fixture("a", "order = 1")
        .fixture("b", "order = 2\n[applies_to]\ntopics = [\"guarded\"]\n[config]\nguard = true")
        .load();
    assert_eq!(plugins.ask("route:open"), Decision::Route(vec![topic("open")]));
    assert_eq!(
        plugins.ask("route:guarded"),
        Decision::Reject(Reason::blocked("guarded: Client \"\" [\"guarded\"]"))
    );
}

#[test]
fn a_route_does_not_take_an_event_from_the_topic_it_came_by() {
    let mut plugins = Plugins::new()
        .fixture("a", "order = 1")
        .fixture("b", "order = 2\n[applies_to]\ntopics = [\"guarded\"]\n[config]\nguard = true")
        .load();
    let fetch = |name| Origin::Fetch { topic: topic(name), peer: PeerId([7; 32]) };
    for (origin, word) in [(gossip("guarded"), "Gossip"), (fetch("guarded"), "Fetch")] {
        let decision = plugins.ask_with(&event(1, "route:open"), &origin, &["guarded"]);
        let text = format!("guarded: {word} \"guarded\" [\"open\", \"guarded\"]");
        assert_eq!(decision, Decision::Reject(Reason::blocked(text)));
    }
    let decision = plugins.ask_with(&event(1, "route:open"), &gossip("other"), &["other"]);
    assert_eq!(decision, Decision::Route(vec![topic("open"), topic("other")]));
}

#[test]
fn on_failure_pass_lets_the_next_plugin_decide() {
    let mut plugins = Plugins::new()
        .fixture("a", "order = 1\non_failure = \"pass\"\n")
        .fixture("b", "order = 2\non_failure = \"pass\"\n[config]\nguard = true")
        .load();
    assert_eq!(plugins.ask("panic"), Decision::Reject(Reason::blocked("guarded: Client \"\" []")));
}
