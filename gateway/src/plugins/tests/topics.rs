//! The world `topic-policy`.

use super::*;

#[test]
fn its_topics_are_a_route() {
    let mut plugins = Plugins::new()
        .topics_fixture("a", "order = 1")
        .fixture("b", "order = 2\n[applies_to]\ntopics = [\"guarded\"]\n[config]\nguard = true")
        .load();
    assert_eq!(plugins.ask("hello"), Decision::Accept);
    assert_eq!(plugins.ask("to:x,y"), Decision::Route(vec![topic("x"), topic("y")]));
    assert_eq!(plugins.ask("to:"), Decision::Route(vec![]));
    assert_eq!(plugins.answer("to:guarded"), "blocked: guarded: Client \"\" [\"guarded\"]");
    assert_eq!(plugins.answer(&format!("to:{}", "x".repeat(300))), "error: plugin a failed");
}

#[test]
fn it_says_which_topics_may_be_visited() {
    let plugins = Plugins::new().topics_fixture("a", "").load();
    assert!(plugins.chain.may_visit(&topic("open house")));
    assert!(!plugins.chain.may_visit(&topic("closed")));
    // One that fails does not let anybody in.
    assert!(!plugins.chain.may_visit(&topic("panic")));
    assert_eq!(plugins.traps(), 1);
    // All in whose scope the topic is have to agree.
    let listed = "[applies_to]\ntopics = [\"closed\"]";
    let plugins = Plugins::new().topics_fixture("a", listed).load();
    assert!(plugins.chain.may_visit(&topic("another")));
    assert!(!plugins.chain.may_visit(&topic("closed")));
    let passes = "on_failure = \"pass\"";
    assert!(Plugins::new().topics_fixture("a", passes).load().chain.may_visit(&topic("panic")));
    // Without such a plugin, everything may.
    assert!(Plugins::new().fixture("a", "").load().chain.may_visit(&topic("closed")));
}

#[test]
fn one_that_does_not_run_lets_nobody_visit() {
    let manifest = "id = \"bad\"\nversion = \"1.0.0\"\nworld = \"topic-policy\"\n\
                    file = \"absent.wasm\"";
    let plugins = Plugins::new().folder("bad", manifest, b"").load();
    assert!(!plugins.chain.may_visit(&topic("open house")));
    // An event filter is no topic policy.
    let manifest = "id = \"a\"\nversion = \"1.0.0\"\nworld = \"topic-policy\"\n\
                    file = \"plugin.wasm\"\ncapabilities = [\"log\", \"config\", \"clock\"]";
    let plugins = Plugins::new().folder("a", manifest, FIXTURES).load();
    let cause = plugins.cause("a");
    assert!(cause.starts_with("plugin.wasm: it does not fit the world topic-policy: "), "{cause}");
}
