//! Holds the direction of dependencies that `ARCHITECTURE.md` draws.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Which of the crate's own modules each module may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("tasks", &[]),
    ("clock", &[]),
    ("metrics", &["clock"]),
    ("pipeline", &["protocol", "metrics", "tasks", "clock"]),
    ("store", &["pipeline", "protocol", "metrics", "tasks", "clock"]),
    ("subscriptions", &["pipeline", "protocol", "metrics", "tasks", "clock"]),
    // The one edge between siblings: a session is the only user of the live subscriptions.
    ("relay", &["pipeline", "protocol", "metrics", "tasks", "clock", "subscriptions"]),
    ("gossip", &["pipeline", "protocol", "metrics", "tasks", "clock"]),
    ("secrets", &["pipeline", "protocol", "tasks"]),
    ("upstream", &["pipeline", "protocol", "metrics", "tasks", "clock"]),
    ("plugins", &["pipeline", "protocol", "metrics", "tasks", "clock"]),
    ("admin", &["pipeline", "protocol", "metrics", "tasks", "clock"]),
];

/// Crates that the pure core must not know.
const IMPURE: &[&str] = &["tokio", "sqlx", "rusqlite", "iroh", "iroh_gossip", "hyper", "wasmtime"];

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| sources(&entry)).collect()
}

/// The first path segments after each `marker`, also within `{…}` groups.
fn named(text: &str, marker: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (start, _) in text.match_indices(marker) {
        let rest = &text[start + marker.len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            None => {
                found.insert(word(rest));
            }
            Some(group) => {
                let (mut depth, mut item) = (0, String::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            found.insert(word(std::mem::take(&mut item).trim()));
                        }
                        _ if depth == 0 => item.push(c),
                        _ => {}
                    }
                }
                found.insert(word(item.trim()));
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn modules_only_name_what_lies_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (module, allowed) in ALLOWED {
        let place = match src.join(module) {
            folder if folder.is_dir() => folder,
            _ => src.join(format!("{module}.rs")),
        };
        for file in sources(&place) {
            let text = fs::read_to_string(&file).unwrap();
            for name in named(&text, "crate::") {
                if name != *module && !allowed.contains(&name.as_str()) {
                    wrong.push(format!("{} names crate::{name}", file.display()));
                }
            }
            for name in IMPURE.iter().filter(|_| *module == "protocol") {
                if text.contains(&format!("{name}::")) || text.contains(&format!("use {name}")) {
                    wrong.push(format!("{} names {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_search_for_names_finds_them() {
    let text = "use crate::{\n    a::{b, c},\n    d,\n};\nlet x = crate::e::F;";
    assert_eq!(named(text, "crate::").into_iter().collect::<Vec<_>>(), ["a", "d", "e"]);
}
