//! `nostr-gateway config`.

use crate::config::Sources;

/// The path of the file that `run` would read, with a word when there is none.
pub(super) fn path(sources: &Sources) -> String {
    match sources.path() {
        Some(path) if path.exists() => format!("{}\n", path.display()),
        Some(path) => format!("{} (there is no such file)\n", path.display()),
        None => "none: this user has no home directory\n".to_owned(),
    }
}
