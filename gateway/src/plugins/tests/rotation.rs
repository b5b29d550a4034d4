//! The world `secret-rotation`, with the shipped component.

use super::*;
use crate::pipeline::{RotationAnswer, RotationMember, RotationPolicy, RotationQuestion};

const ROTATE_BY_AGE: &[u8] = include_bytes!("../../../../plugins/rotate-by-age/rotate-by-age.wasm");

fn manifest(id: &str, world: &str, more: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"{world}\"\nfile = \"plugin.wasm\"\n\
         capabilities = [\"log\", \"config\"]\n{more}"
    )
}

fn question(name: &str, since: u64) -> RotationQuestion {
    let member = |id: &str, is_self, last_seen| RotationMember {
        id: id.to_owned(),
        is_self,
        since: Some(10),
        last_seen,
    };
    RotationQuestion {
        name: TopicName::new(name).unwrap(),
        epoch: 4,
        since,
        now: 100_000,
        members: vec![
            member("aa", true, None),
            member("bb", false, Some(99_990)),
            member("cc", false, Some(50_000)),
        ],
    }
}

#[test]
fn the_shipped_policy_rotates_old_secrets_and_drops_who_was_not_seen() {
    let config = "[config]\nmax_age = 1000\ndrop_unseen_after = 600\ngrace = 30";
    let plugins = Plugins::new().folder(
        "rotate",
        &manifest("rotate", "secret-rotation", config),
        ROTATE_BY_AGE,
    );
    let mut loaded = plugins.load();
    assert!(!RotationPolicy::is_empty(&loaded.chain));
    assert_eq!(loaded.chain.decide(&question("t", 99_500)), RotationAnswer::Keep);
    let rotate = RotationAnswer::Rotate { grace: 30, exclude: vec!["cc".to_owned()] };
    assert_eq!(loaded.chain.decide(&question("t", 99_000)), rotate);
    // It judges no events.
    assert!(matches!(loaded.ask("anything"), Decision::Accept));
}

#[test]
fn only_listed_topics_are_asked_about_and_what_is_broken_rotates_nothing() {
    let listed = "[applies_to]\ntopics = [\"listed\"]\n[config]\nmax_age = 1\n";
    let plugins = Plugins::new()
        .folder("a", &manifest("a", "secret-rotation", "[config]\nmax_age = 0"), ROTATE_BY_AGE)
        .folder("b", &manifest("b", "secret-rotation", ""), TOPICS_FIXTURE)
        .folder("c", &manifest("c", "secret-rotation", listed), ROTATE_BY_AGE);
    let mut loaded = plugins.load();
    let summary = loaded.chain.summary();
    let broken = |cause: &str| {
        summary.iter().any(|plugin| match &plugin.state {
            PluginState::Broken { cause: text } => text.contains(cause),
            _ => false,
        })
    };
    assert!(broken("max_age") && broken("world secret-rotation"), "{summary:?}");
    assert_eq!(loaded.chain.decide(&question("other", 1)), RotationAnswer::Keep);
    let rotate = RotationAnswer::Rotate { grace: 600, exclude: Vec::new() };
    assert_eq!(loaded.chain.decide(&question("listed", 1)), rotate);
    // Neither holds up an event.
    assert!(matches!(loaded.ask("anything"), Decision::Accept));
    // The other way round: an event filter that is none refuses.
    let plugins = Plugins::new().folder("d", &manifest("d", "event-filter", ""), ROTATE_BY_AGE);
    let mut loaded = plugins.load();
    assert!(RotationPolicy::is_empty(&loaded.chain));
    assert!(matches!(loaded.ask("anything"), Decision::Reject(_)));
}
