//! From a directory to a chain.

use std::path::Path;

use super::*;
use crate::protocol::Reason;

/// A failed plugin's answer; it tells nothing of the cause.
fn failed(id: &str) -> Decision {
    Decision::Reject(Reason::error(format!("plugin {id} failed")))
}

#[test]
fn no_directory_is_no_plugins_unless_it_was_asked_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("absent");
    assert!(PluginChain::load(&path, false, services()).unwrap().is_empty());
    let error = PluginChain::load(&path, true, services()).err().unwrap().to_string();
    assert!(
        error.starts_with(&format!("the plugins folder {} cannot be read: ", path.display())),
        "{error}"
    );
}

#[test]
fn what_is_no_plugin_is_ignored() {
    let plugins = Plugins::new();
    fs::write(plugins.0.path().join("README"), "x").unwrap();
    fs::create_dir(plugins.0.path().join("notes")).unwrap();
    fs::create_dir(plugins.0.path().join(".git")).unwrap();
    fs::write(plugins.0.path().join(".git/plugin.toml"), "x").unwrap();
    let mut plugins = plugins.load();
    assert!(plugins.chain.is_empty());
    assert_eq!(plugins.ask("x"), Decision::Accept);
}

#[test]
fn what_looks_like_a_plugin_in_the_wrong_place_is_warned_of() {
    let plugins = Plugins::new();
    let path = |name: &str| plugins.0.path().join(name);
    for name in ["README", "plugin.toml", "loose.wasm"] {
        fs::write(path(name), "x").unwrap();
    }
    for folder in ["notes", "unfinished"] {
        fs::create_dir(path(folder)).unwrap();
    }
    fs::write(path("notes/a.txt"), "x").unwrap();
    fs::write(path("unfinished/a.wasm"), "x").unwrap();
    let log = logged(|| assert!(plugins.load().chain.is_empty()));
    for name in ["plugin.toml", "loose.wasm", "unfinished"] {
        assert!(log.contains(&path(name).display().to_string()), "{name}: {log}");
    }
    assert_eq!(log.matches("WARN").count(), 3, "{log}");
}

#[cfg(unix)]
#[test]
fn a_linked_folder_counts_and_a_dangling_link_is_not_skipped() {
    let elsewhere = Plugins::new().fixture("a", "");
    let plugins = Plugins::new();
    let link = |from: &str, to: &str| {
        std::os::unix::fs::symlink(elsewhere.0.path().join(from), plugins.0.path().join(to))
            .unwrap();
    };
    link("a", "a");
    assert_eq!(plugins.load().answer("calls"), "blocked: 1");
    link("gone", "b");
    let mut plugins = plugins.load();
    assert_eq!(plugins.ask("x"), failed("b"));
    assert!(plugins.cause("b").starts_with("plugin.toml: it cannot be read: "));
}

#[test]
fn a_broken_plugin_is_logged_once_and_refuses_its_scope() {
    let plugins = Plugins::new().fixture("good", "order = 1\n").folder(
        "bad",
        "id = \"bad\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
             file = \"plugin.wasm\"\n[applies_to]\nkinds = [1]",
        b"\0asm\x0d\0\x01\0rubbish",
    );
    let log = logged(|| {
        let mut plugins = plugins.load();
        assert_eq!(plugins.ask("hello"), failed("bad"));
        assert_eq!(plugins.ask_with(&event(2, "x"), &client(), &[]), Decision::Accept);
        assert!(
            plugins.cause("bad").starts_with("plugin.wasm: it is no component that compiles: ")
        );
    });
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("bad/plugin.wasm"), "{log}");
    assert!(lines[0].contains("the plugin does not run, events in its scope are refused"), "{log}");
}

#[test]
fn a_broken_plugin_may_let_events_pass() {
    let manifest = "id = \"bad\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
                    file = \"absent.wasm\"\non_failure = \"pass\"";
    let mut plugins = Plugins::new().folder("bad", manifest, b"").load();
    assert_eq!(plugins.ask("hello"), Decision::Accept);
    assert!(plugins.cause("bad").starts_with("absent.wasm: it cannot be read: "));
}

#[test]
fn an_unreadable_manifest_refuses_everything() {
    let mut plugins = Plugins::new().folder("bad", "id = 3", FIXTURES).load();
    assert_eq!(plugins.ask("hello"), failed("bad"));
    assert_eq!(
        plugins.cause("bad"),
        "plugin.toml: line 1: invalid type: integer `3`, expected a string"
    );
}

#[test]
fn the_second_plugin_with_an_id_does_not_run() {
    let twin = "id = \"a\"\nversion = \"2.0.0\"\nworld = \"event-filter\"\n\
                file = \"plugin.wasm\"\norder = 9\n[applies_to]\nkinds = [1]";
    let mut plugins = Plugins::new().fixture("a", "").folder("twin", twin, FIXTURES).load();
    assert_eq!(plugins.ask("hello"), failed("a"));
    assert_eq!(plugins.ask_with(&event(2, "x"), &client(), &[]), Decision::Accept);
    let second = plugins.chain.summary().remove(1);
    assert_eq!((second.id.as_str(), second.version.as_str()), ("a", "2.0.0"));
    let cause = "another plugin has the id \"a\" already".to_owned();
    assert_eq!(second.state, PluginState::Broken { cause });
}

#[test]
fn a_capability_that_is_not_listed_is_not_there() {
    let manifest = |listed: &str| {
        format!(
            "id = \"a\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
             file = \"plugin.wasm\"\ncapabilities = [{listed}]"
        )
    };
    let cause = |listed| Plugins::new().folder("a", &manifest(listed), FIXTURES).load().cause("a");
    for (listed, missing) in [("\"log\", \"config\"", "clock"), ("\"clock\", \"config\"", "log")] {
        assert_eq!(
            cause(listed),
            format!(
                "plugin.wasm: it wants the interface `{missing}`: add \"{missing}\" to \
                 capabilities to allow it"
            )
        );
    }
}

#[test]
fn a_core_module_is_told_apart() {
    let manifest = "id = \"a\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
                    file = \"plugin.wasm\"";
    let cause = |bytes: &[u8]| Plugins::new().folder("a", manifest, bytes).load().cause("a");
    assert_eq!(
        cause(b"\0asm\x01\0\0\0"),
        "plugin.wasm: it is a core module, not a component: docs/writing-plugins.md tells how to make one"
    );
    // A valid component that exports nothing.
    assert!(
        cause(b"\0asm\x0d\0\x01\0")
            .starts_with("plugin.wasm: it does not fit the world event-filter: "),
        "{}",
        cause(b"\0asm\x0d\0\x01\0")
    );
}

#[test]
fn an_init_that_fails_hangs_or_panics_breaks_only_its_plugin() {
    for (init, cause) in [
        ("fail", "plugin.wasm: it did not start: its init failed: told to fail in init"),
        ("loop", "plugin.wasm: it did not start: it ran longer than 2000 ms"),
        ("panic", "plugin.wasm: it did not start: it trapped: "),
    ] {
        let more = format!("[config]\ninit = \"{init}\"");
        let mut plugins = Plugins::new().fixture("a", &more).load();
        assert!(plugins.cause("a").starts_with(cause), "{}", plugins.cause("a"));
        assert_eq!(plugins.ask("hello"), failed("a"));
    }
}

/// Whoever built a plugin for a released version need not build it again. The bytes are those of the
/// day of the release, whatever the fixtures become.
#[test]
fn components_of_every_interface_so_far_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/fixtures/interfaces");
    let mut versions = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let version = entry.unwrap().path();
        let component = |name: &str| fs::read(version.join(name)).unwrap();
        let manifest = |id: &str, world: &str, capabilities: &str| {
            format!(
                "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"{world}\"\n\
                 file = \"plugin.wasm\"\ncapabilities = [{capabilities}]\n"
            )
        };
        let (filter, out) = (
            manifest("a", "event-filter", "\"log\", \"config\", \"clock\""),
            "[applies_to]\ndirections = [\"in\", \"to-topics\"]\n",
        );
        let mut plugins =
            Plugins::new().folder("a", &(filter + out), &component("fixtures.wasm")).load();
        assert_eq!(plugins.ask("hello"), Decision::Accept, "{}", version.display());
        assert_eq!(plugins.answer("reject:no"), "blocked: no");
        assert_eq!(plugins.ask("shadow"), Decision::ShadowReject);
        assert_eq!(plugins.ask("route:x"), Decision::Route(vec![topic("x")]));
        assert!(plugins.answer("echo").contains(AUTHOR));
        assert_eq!(plugins.answer("keys"), "blocked: []");
        assert_eq!(plugins.answer("address"), "blocked: Some(\"127.0.0.1\")");
        assert!(plugins.answer("now").starts_with("blocked: 1"));
        assert!(plugins.leave("out:reject:no", Direction::ToTopics, &["x"]).is_err());

        let store = manifest("a", "event-filter", "\"log\", \"kv\", \"lookup\"");
        let mut plugins =
            Plugins::new().folder("a", &store, &component("fixtures-store.wasm")).load();
        for (asked, answer) in [
            ("set x 1", "Ok(())"),
            ("increment x 1 60", "Ok(2)"),
            ("get x", "Some(\"2\")"),
            ("delete x", "true"),
            (
                &format!("author {AUTHOR}"),
                "Ok(Author { events: 0, has-profile: false, has-follows: false })",
            ),
            (&format!("count {AUTHOR} 1 0 9"), "Ok(0)"),
            (&format!("follows {AUTHOR} {AUTHOR}"), "Ok(false)"),
            (&format!("list {AUTHOR} 9"), "Ok([])"),
            (&format!("tags {AUTHOR} 10000 9"), "Ok([])"),
        ] {
            assert_eq!(plugins.answer(asked), format!("blocked: {answer}"), "{asked}");
        }

        let topics = manifest("a", "topic-policy", "\"log\"");
        let mut plugins =
            Plugins::new().folder("a", &topics, &component("fixtures-topics.wasm")).load();
        assert_eq!(plugins.ask("to:x"), Decision::Route(vec![topic("x")]));
        assert!(plugins.chain.may_visit(&topic("open")) && !plugins.chain.may_visit(&topic("no")));

        let rotation = manifest("a", "secret-rotation", "\"log\", \"config\"");
        let plugins =
            Plugins::new().folder("a", &rotation, &component("rotate-by-age.wasm")).load();
        assert!(matches!(plugins.chain.summary()[0].state, PluginState::Ready { .. }));
        versions.push(version.file_name().unwrap().to_str().unwrap().to_owned());
    }
    assert!(versions.contains(&"0.1.0".to_owned()), "{versions:?}");
}

#[test]
fn another_version_of_the_interface_is_named() {
    let manifest = "id = \"a\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
                    file = \"plugin.wasm\"\ncapabilities = [\"log\", \"config\", \"clock\"]";
    // The version stands in the names of imports and exports alone, always in five letters.
    let mut component = FIXTURES.to_vec();
    let (from, to) = (b"@0.1.0", b"@0.7.3");
    let places: Vec<_> =
        (0..component.len() - from.len()).filter(|&n| component[n..].starts_with(from)).collect();
    assert!(places.len() > 3);
    for place in places {
        component[place..place + to.len()].copy_from_slice(to);
    }
    let cause = Plugins::new().folder("a", manifest, &component).load().cause("a");
    assert_eq!(
        cause,
        "plugin.wasm: it was built for version 0.7.3 of the plugin interface; this gateway has 0.1.0"
    );
}

#[test]
fn the_blocklist_blocks_as_configured() {
    let manifest = include_str!("../../../../plugins/blocklist/plugin.toml")
        .replace("blocklist.wasm", "plugin.wasm")
        .replace("config_schema = \"config.schema.json\"\n", "");
    let listing = |authors: &str, words: &str| {
        let manifest = manifest
            .replace("authors = []", &format!("authors = [{authors}]"))
            .replace("words = []", &format!("words = [{words}]"));
        Plugins::new().folder("blocklist", &manifest, BLOCKLIST).load()
    };
    assert_eq!(listing("", "").ask("anything"), Decision::Accept);
    let mut by_word = listing("", "\"ÄRGER\"");
    assert_eq!(by_word.answer("Nur ärger!"), "blocked: a word is on the blocklist");
    assert_eq!(by_word.ask("peace"), Decision::Accept);
    let mut by_author = listing(&format!("\"{AUTHOR}\""), "");
    assert_eq!(by_author.answer("hi"), "blocked: this author is on the blocklist");
    assert_eq!(
        listing("\"alice\"", "").cause("blocklist"),
        "blocklist.wasm: it did not start: its init failed: config.authors[0]: want a public key \
         of 64 hexadecimal digits"
            .replace("blocklist.wasm", "plugin.wasm")
    );
    assert_eq!(
        listing("3", "").cause("blocklist"),
        "plugin.wasm: it did not start: its init failed: config.authors: invalid type: integer \
         `3`, expected a string"
    );
}
