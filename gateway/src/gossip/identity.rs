//! The endpoint's identity: an ed25519 key in a file of its own.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use iroh::SecretKey;

use super::GossipError;
use crate::protocol::hex;

/// The file's name in the data directory.
pub const FILE: &str = "endpoint.key";

/// Reads `endpoint.key` from the data directory, or makes one at the first start: the 32 bytes of
/// the secret key as lowercase hexadecimal and a line feed, readable by the owner alone.
///
/// A key that others can read still works, with a warning: refusing it would keep a gateway down
/// after a restored backup.
///
/// # Errors
/// When the file cannot be read or written, or holds something else. It is never overwritten: a new
/// key is a new endpoint id, and whoever has this one in a configuration would lose us.
pub fn load_or_create(data_dir: &Path) -> Result<SecretKey, GossipError> {
    let path = data_dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return create(path),
        Err(source) => return Err(GossipError::KeyFile { path, action: "read", source }),
    };
    warn_if_open(&path);
    let digits = str::from_utf8(&text).ok().map(|text| text.strip_suffix('\n').unwrap_or(text));
    match digits.and_then(hex::decode::<32>) {
        Some(bytes) => Ok(SecretKey::from_bytes(&bytes)),
        None => Err(GossipError::KeyFormat { path }),
    }
}

fn create(path: PathBuf) -> Result<SecretKey, GossipError> {
    let key = SecretKey::generate();
    match write(&path, &format!("{}\n", hex::encode(&key.to_bytes()))) {
        Ok(()) => Ok(key),
        Err(source) => Err(GossipError::KeyFile { path, action: "write", source }),
    }
}

/// Writes a new file whole or not at all: a half-written key would stop every later start.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("key.new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    // Without this the name may be gone after a power failure, and with it the identity.
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(unix)]
fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = fs::metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let file = path.display();
        tracing::warn!(
            "{file} can be read by other users (mode {mode:03o}); whoever has it can pose as this \
             gateway. To fix it: chmod 600 {file}"
        );
    }
}

#[cfg(not(unix))]
fn warn_if_open(_path: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text.len(), 65);
        assert!(text.ends_with('\n'));
        assert_eq!(load_or_create(dir.path()).unwrap().to_bytes(), first.to_bytes());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left over");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "abcd\n", &"0".repeat(63), &"G".repeat(64), &"0".repeat(66)] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            let error = load_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains(FILE), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "the content is not repeated");
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), bad);
        }
    }
}
