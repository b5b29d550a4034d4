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
