//! What may stand in a manifest.

use super::{scope::*, *};
use crate::pipeline::{Direction, Origin};

const MINIMAL: &str = r#"
id = "a-1"
version = "1.0.0"
world = "event-filter"
file = "a.wasm"
"#;

fn error(text: &str) -> String {
    Manifest::parse(text).unwrap_err().to_string()
}

#[test]
fn what_is_left_out_has_a_default() {
    let manifest = Manifest::parse(MINIMAL).unwrap();
    assert_eq!(manifest.order, 0);
    assert_eq!(manifest.on_failure, OnFailure::Stop);
    assert_eq!(manifest.limits, LimitsOfCall::default());
    assert!(manifest.capabilities.is_empty());
    let origin = Origin::Upstream { stream: "s".into(), url: "wss://example.com".into() };
    assert!(manifest.applies_to.covers(Direction::In, 1, &origin, &[]));
    assert!(!manifest.applies_to.covers(Direction::ToTopics, 1, &origin, &[]));
}

#[test]
fn the_shipped_manifest_is_right() {
    let text = include_str!("../../../../plugins/blocklist/plugin.toml");
    let manifest = Manifest::parse(text).unwrap();
    assert_eq!(manifest.id, "blocklist");
    assert_eq!(manifest.limits, LimitsOfCall::default());
}

#[test]
fn an_error_names_line_or_key_and_what_is_allowed() {
    let with = |more: &str| error(&format!("{MINIMAL}{more}"));
    assert_eq!(error(""), "missing field `id`");
    assert_eq!(
        with("colour = 1"),
        "line 6: unknown field `colour`, expected one of `id`, `version`, `world`, `file`, `program`, \
         `order`, `applies_to`, `capabilities`, `optional_capabilities`, `limits`, `on_failure`, \
         `config_schema`, `config`"
    );
    assert_eq!(
        with("capabilities = [\"log\", \"net\"]"),
        "line 6: unknown variant `net`, expected one of `log`, `config`, `clock`, `kv`, \
             `lookup`, `program`"
    );
    assert_eq!(
        with("on_failure = \"ignore\""),
        "line 6: unknown variant `ignore`, expected `stop` or `pass`"
    );
    assert_eq!(
        with("[applies_to]\norigins = [\"relay\"]"),
        "line 7: unknown variant `relay`, expected one of `client`, `gossip`, `fetch`, \
         `import`, `upstream`"
    );
    assert_eq!(
        with("[applies_to]\nkinds = [70000]"),
        "line 7: invalid value: integer `70000`, expected u16"
    );
    assert_eq!(with("[applies_to]\ntopics = [\"\"]"), "line 7: a topic name must not be empty");
    assert_eq!(with("[limits]\ntime_ms = 0"), "limits.time_ms: 0 is not between 1 and 5000");
    assert_eq!(
        with("[limits]\nfuel = 3"),
        "line 7: unknown field `fuel`, expected one of `time_ms`, `memory_mib`, `output_bytes`, \
             `kv_bytes`, `kv_keys`"
    );
    assert_eq!(
        with("[applies_to]\ndirections = [\"out\"]"),
        "line 7: unknown variant `out`, expected one of `in`, `to-topics`, `to-upstream`"
    );
    assert_eq!(
        with("[applies_to]\ndirections = []"),
        "applies_to.directions: want at least one of \"in\", \"to-topics\", \"to-upstream\""
    );
    assert_eq!(
        with("[limits]\nkv_bytes = 3"),
        "limits.kv_bytes: 3 is not between 1024 and 67108864"
    );
    assert_eq!(
        with("[config]\nx = 1"),
        "config: the plugin cannot see this without \"config\" in capabilities"
    );
}

#[test]
fn names_are_checked() {
    let replaced = |from: &str, to: &str| error(&MINIMAL.replace(from, to));
    assert_eq!(
        replaced("a-1", "../x"),
        "id: want 1 to 64 lowercase letters, digits and hyphens, and a letter first"
    );
    assert_eq!(
        replaced("a.wasm", "../a.wasm"),
        "file: want the name of a file in the plugin's own folder"
    );
    assert_eq!(replaced("1.0.0", "one"), "version: want a semantic version such as 1.0.0");
    assert_eq!(
        replaced("event-filter", "event-sink"),
        "line 4: unknown variant `event-sink`, expected one of `event-filter`, `topic-policy`, \
             `secret-rotation`"
    );
    let topics = "topic-policy\"\napplies_to.directions = [\"to-topics\"]\n#";
    assert_eq!(
        replaced("event-filter", topics),
        "applies_to.directions: a plugin of the world topic-policy judges nothing on its way out"
    );
    assert_eq!(
        replaced("event-filter", "secret-rotation\"\ncapabilities = [\"clock\"]\n#"),
        "capabilities: a plugin of the world secret-rotation may have \"log\" and \"config\" only"
    );
}

#[test]
fn config_values_become_json() {
    let manifest = Manifest::parse(&format!(
        "{MINIMAL}capabilities = [\"config\"]\n[config]\nwords = [\"a\"]\nsince = 2026-01-02\n\
             nested.deep = 1.5"
    ))
    .unwrap();
    let json = manifest.config_json();
    assert_eq!(json["words"], r#"["a"]"#);
    assert_eq!(json["since"], r#""2026-01-02""#);
    assert_eq!(json["nested"], r#"{"deep":1.5}"#);
}

const PROGRAM: &str = r#"
id = "a-1"
version = "1.0.0"
world = "event-filter"
program = ["./policy.py", "--strict"]
"#;

#[test]
fn a_program_stands_in_the_place_of_a_component() {
    let manifest = Manifest::parse(PROGRAM).unwrap();
    assert!(manifest.is_program());
    assert_eq!(manifest.limits.time_ms, 10_000);
    assert_eq!(manifest.capabilities, [Capability::Program]);
    let with = |more: &str| Manifest::parse(&format!("{PROGRAM}{more}"));
    assert_eq!(with("limits.time_ms = 300").unwrap().limits.time_ms, 300);
    assert_eq!(with("limits.output_bytes = 5000").unwrap().limits.time_ms, 10_000);
    for (more, why) in [
        ("file = \"a.wasm\"", "program: want either this or file, a component"),
        (
            "config.x = 1",
            "config: a program is not told this; give it arguments, or a file in its folder",
        ),
        (
            "capabilities = [\"kv\"]",
            "capabilities: a program has none of the sandbox's; it may do anything",
        ),
        (
            "applies_to.directions = [\"in\", \"to-topics\"]",
            "applies_to.directions: a program judges nothing on its way out",
        ),
        ("limits.time_ms = 10001", "limits.time_ms: 10001 is not between 1 and 10000"),
        ("limits.memory_mib = 5", "limits: of a program only time_ms and output_bytes are bounded"),
    ] {
        assert_eq!(with(more).unwrap_err().to_string(), why);
    }
    let replaced = |from: &str, to: &str| error(&PROGRAM.replace(from, to));
    assert_eq!(replaced("event-filter", "topic-policy"), "world: a program is an event-filter");
    assert!(replaced("./policy.py", "").starts_with("program: want a program and its arguments"));
    assert_eq!(
        error(&format!("{MINIMAL}capabilities = [\"program\"]")),
        "capabilities: \"program\" is what only a program has"
    );
    assert_eq!(
        replaced("program = [\"./policy.py\", \"--strict\"]", ""),
        "file: want the name of a file in the plugin's own folder"
    );
}
