//! The folders of the shipped plugins: whole, and their schemas fit what they read.

use std::path::PathBuf;

use super::*;
use crate::plugins::install::Package;

const SHIPPED: &[&str] =
    &["blocklist", "rate-limit", "rotate-by-age", "topic-router", "web-of-trust"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(name)
}

/// A plugin with another `[config]`.
fn configured(name: &str, config: &str) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_file() {
            fs::copy(&entry, dir.path().join(entry.file_name().unwrap())).unwrap();
        }
    }
    let path = dir.path().join("plugin.toml");
    let manifest = fs::read_to_string(&path).unwrap();
    let (rest, _) = manifest.split_once("\n[config]\n").unwrap();
    fs::write(&path, format!("{rest}\n[config]\n{config}")).unwrap();
    let package = Package::read(dir.path()).unwrap();
    package.check().map_err(|error| error.to_string())
}

#[test]
fn each_runs_as_it_is_shipped_and_with_nothing_configured() {
    for name in SHIPPED {
        let package = Package::read(&folder(name)).unwrap();
        assert_eq!(package.manifest.id, *name);
        assert!(package.manifest.config_schema.is_some(), "{name}");
        package.check().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(configured(name, ""), Ok(()), "{name}");
    }
}

#[test]
fn each_takes_all_of_its_settings() {
    let keys = format!("[\"{AUTHOR}\"]");
    for (name, config) in [
        (
            "blocklist",
            format!(
                "authors = {keys}\nwords = [\"x\"]\npatterns = ['\\bx\\b']\nmute_lists = {keys}\n\
                 mute_lists_refresh_s = 60\nreason = \"no\""
            ),
        ),
        (
            "rate-limit",
            format!(
                "per_author = {{ per_minute = 0.5, burst = 3 }}\nexempt_kinds = [7]\n\
                 per_address = {{ per_minute = 5, burst = 1 }}\nexempt_authors = {keys}"
            ),
        ),
        ("rotate-by-age", "max_age = 60\ndrop_unseen_after = 50\ngrace = 0".to_owned()),
        (
            "topic-router",
            format!(
                "rules = [{{ tags = {{ t = [\"x\"], e = [] }}, kinds = [1], authors = {keys}, \
                 topics = [\"x\"] }}]\nmatch = \"first\"\nkeep = false\nelse = []\nvisits = [\"x\"]"
            ),
        ),
        (
            "web-of-trust",
            format!(
                "roots = {keys}\nhops = 1\nmin_followers = 2\nunknown = \"proof-of-work\"\n\
                 work_bits = 24\nexempt_kinds = []\non_unready = \"refuse\"\nrefresh_s = 60\n\
                 max_authors = 10\nreason = \"no\""
            ),
        ),
    ] {
        assert_eq!(configured(name, &config), Ok(()), "{name}");
    }
}

#[test]
fn a_mistake_is_told_with_its_place() {
    for (name, config, told) in [
        ("blocklist", "wrods = []", "config.wrods: there is no such setting"),
        ("blocklist", "patterns = ['(x']", "config.patterns[0]: "),
        ("blocklist", "mute_lists = [\"me\"]", "config.mute_lists[0]: want a text like "),
        ("rate-limit", "per_author = { per_minute = 1 }", "config.per_author.burst: it is missing"),
        ("rate-limit", "per_author.per_minute = 0\nper_author.burst = 1", "want 0.0007 or more"),
        ("rotate-by-age", "max_age = 0", "config.max_age: want 1 or more"),
        ("topic-router", "rules = [{ kinds = [1] }]", "config.rules[0].topics: it is missing"),
        ("topic-router", "rules = [{ topics = [\"x\"] }]", "config.rules[0]: want tags, kinds or"),
        ("topic-router", "else = [\" x\"]", "config.else[0]: want the name of a topic"),
        ("web-of-trust", "hops = 3", "config.hops: want 2 or less"),
        ("web-of-trust", "unknown = \"ban\"", "config.unknown: want one of \"reject\", "),
    ] {
        let error = configured(name, config).unwrap_err();
        assert!(error.contains(told), "{name}: {error}");
    }
}

/// Measures; run it with `--release` and `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_call_costs() {
    let note = "GM nostr, here is a note of the usual length, with a link to \
                https://example.com/x and a word or two about nothing at all. "
        .repeat(2);
    let words: Vec<_> = (0..100).map(|n| format!("\"unwanted{n}\"")).collect();
    let rules: Vec<_> = (0..20)
        .map(|n| format!("{{ tags = {{ t = [\"tag{n}\"] }}, topics = [\"topic{n}\"] }}"))
        .collect();
    let patterns = |count: usize| {
        let one = |n| format!("'(?i)\\bfree\\s+(sats|bitcoin){n}'");
        (0..count).map(one).collect::<Vec<_>>().join(", ")
    };
    let limit = "{ per_minute = 1000000, burst = 1000000 }";
    for (what, name, config) in [
        (
            "blocklist, an author and a word",
            "blocklist",
            format!("authors = [\"{}\"]\nwords = [\"casino\"]", "ee".repeat(32)),
        ),
        ("blocklist, 100 words", "blocklist", format!("words = [{}]", words.join(", "))),
        ("blocklist, a pattern", "blocklist", format!("patterns = [{}]", patterns(1))),
        ("blocklist, 50 patterns", "blocklist", format!("patterns = [{}]", patterns(50))),
        ("blocklist, a bad pattern", "blocklist", "patterns = ['a[ab]{14}[^ab]']".to_owned()),
        ("blocklist, a mute list", "blocklist", format!("mute_lists = [\"{AUTHOR}\"]")),
        ("rate-limit, an author", "rate-limit", format!("per_author = {limit}")),
        ("rate-limit, both", "rate-limit", format!("per_author = {limit}\nper_address = {limit}")),
        ("web-of-trust", "web-of-trust", format!("roots = [\"{AUTHOR}\"]")),
        ("topic-router, 20 rules", "topic-router", format!("rules = [{}]", rules.join(", "))),
    ] {
        let text = fs::read_to_string(folder(name).join("plugin.toml")).unwrap();
        let (rest, _) = text.split_once("\n[config]\n").unwrap();
        let rest = rest.replace("config_schema = \"config.schema.json\"", "");
        let manifest =
            format!("{}\n[config]\n{config}", rest.replace(&format!("{name}.wasm"), "plugin.wasm"));
        let component = fs::read(folder(name).join(format!("{name}.wasm"))).unwrap();
        let folder = Plugins::new().folder(name, &manifest, &component);
        let began = Instant::now();
        let mut plugins = folder.load();
        println!("{what}: compiled and begun in {:?}", began.elapsed());
        // The last is what leads patterns to ever new states.
        let mut seed = 1_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if seed & 1 == 0 { 'a' } else { 'b' }
        };
        let mut bad = || (0..8_192).map(|_| random()).collect::<String>();
        for (length, content) in
            [("250 bytes", note.clone()), ("8 KiB", note.repeat(60)), ("bad", String::new())]
        {
            let origin = client();
            let mut times: Vec<_> = (0..500)
                .map(|n| {
                    // Another one each time.
                    let event = match length {
                        "bad" => event(1, &bad()),
                        _ => event(1, &format!("{}{n}", &content[n % 7..])),
                    };
                    let began = Instant::now();
                    let decision = plugins.ask_with(&event, &origin, &[]);
                    assert!(decision == Decision::Accept || length == "bad");
                    began.elapsed()
                })
                .collect();
            times.sort();
            let [p50, p99] = [times[times.len() / 2], times[times.len() * 99 / 100]];
            println!("  {length}: p50 {p50:?}, p99 {p99:?}");
        }
    }
}
