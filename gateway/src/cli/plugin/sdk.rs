//! The SDK for Rust, as this program carries it.
//!
//! A plugin's folder gets the SDK as source: it is on no registry, and this way it always is the one
//! whose interface the gateway at hand has, also without a network and for as long as the folder lives.

/// Where the SDK finds the interface in this repository, and where in a plugin's folder.
const WIT_HERE: &str = "\"../../wit\"";
const WIT_THERE: &str = "\"wit\"";

macro_rules! files {
    ($place:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../", $place, "/", $name)))),*]
    };
}

const SOURCES: &[(&str, &str)] = files!(
    "plugins/sdk":
    "Cargo.toml",
    "src/config.rs",
    "src/config/table.rs",
    "src/export.rs",
    "src/host.rs",
    "src/kv.rs",
    "src/lib.rs",
    "src/log.rs",
    "src/lookup.rs",
    "src/rotation.rs",
    "src/testing.rs",
    "src/testing/events.rs",
    "src/testing/host.rs",
    "src/testing/manifest.rs",
    "src/testing/memory.rs",
    "src/testing/running.rs",
    "src/testing/store.rs",
    "src/testing/tests.rs",
    "src/topics.rs",
);

const INTERFACE: &[(&str, &str)] = files!(
    "wit":
    "event-filter.wit",
    "host.wit",
    "secret-rotation.wit",
    "topic-policy.wit",
    "types.wit",
);

/// The versions with which this repository's own plugins are built. Cargo takes out what a plugin does
/// not use, and puts in the plugin itself.
pub const LOCK: &str = include_str!("../../../../plugins/Cargo.lock");

/// The files of the interface, by their names.
pub fn interface() -> &'static [(&'static str, &'static str)] {
    INTERFACE
}

/// The files of the SDK, by their paths in its folder.
pub fn files() -> impl Iterator<Item = (String, String)> {
    let source =
        |(name, text): &(&str, &str)| ((*name).to_owned(), text.replace(WIT_HERE, WIT_THERE));
    let interface = |(name, text): &(&str, &str)| (format!("wit/{name}"), (*text).to_owned());
    SOURCES.iter().map(source).chain(INTERFACE.iter().map(interface))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    fn below(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let below = |path: PathBuf| if path.is_dir() { below(&path) } else { vec![path] };
        entries.flat_map(below).collect()
    }

    #[test]
    fn nothing_of_the_sdk_is_missing() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (place, listed) in [("plugins/sdk", SOURCES), ("wit", INTERFACE)] {
            let place = root.join(place);
            let there: BTreeSet<_> = below(&place)
                .iter()
                .map(|path| path.strip_prefix(&place).unwrap().to_str().unwrap().to_owned())
                .collect();
            let listed: BTreeSet<_> = listed.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(listed, there, "list all files of {} in sdk.rs", place.display());
        }
        let paths = files().filter(|(_, text)| text.contains("path: \"")).count();
        let moved = files().filter(|(_, text)| text.contains("path: \"wit\"")).count();
        assert_eq!(
            (paths, moved),
            (3, 3),
            "each world finds the interface in the SDK's own folder"
        );
    }
}
