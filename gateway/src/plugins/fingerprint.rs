//! Whether the plugins are those of the last start.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

/// Stands for all files in the folders of a plugin directory, names and contents. What cannot be read
/// counts as not there.
pub fn fingerprint(dir: &Path) -> u64 {
    let entries = |dir: &Path| -> BTreeMap<_, _> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| (entry.file_name(), entry.path())).collect()
    };
    let mut hash = DefaultHasher::new();
    for (folder, path) in entries(dir) {
        for (name, file) in entries(&path) {
            (&folder, name, fs::read(file).unwrap_or_default()).hash(&mut hash);
        }
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_changes_it() {
        let dir = tempfile::tempdir().unwrap();
        let none = fingerprint(dir.path());
        assert_eq!(none, fingerprint(Path::new("/nonexistent")));
        let folder = dir.path().join("one");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("plugin.toml"), "order = 1").unwrap();
        let one = fingerprint(dir.path());
        fs::write(folder.join("plugin.toml"), "order = 2").unwrap();
        let two = fingerprint(dir.path());
        assert!(none != one && one != two);
        fs::write(folder.join("plugin.toml"), "order = 1").unwrap();
        assert_eq!(one, fingerprint(dir.path()));
    }
}
