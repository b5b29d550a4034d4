//! Small files that are there whole or not at all, and that their owner alone can read.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use zeroize::Zeroizing;

use super::SecretsError;

/// The largest file that is read: thousands of secrets fit.
const MAX_BYTES: u64 = 16 << 20;

/// The content, or `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, SecretsError> {
    let failed = |source| SecretsError::Io { path: path.to_owned(), action: "read", source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        // A link to a place that is away is no first start: what rests there would be lost.
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_there(path)? => {
            return Err(SecretsError::Dangling(path.to_owned()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let length = file.metadata().map_err(failed)?.len().min(MAX_BYTES);
    // Room for all at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(io::Error::other(format!("it has more than {MAX_BYTES} bytes"))));
    }
    Ok(Some(bytes))
}

/// Whether there is anything of this name, be it a link to what is not there.
pub(super) fn is_there(path: &Path) -> Result<bool, SecretsError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(SecretsError::Io { path: path.to_owned(), action: "look at", source }),
    }
}

/// Puts the file in place of another. It survives a power failure when this returns; before, the
/// earlier one does.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), SecretsError> {
    write(path, bytes).map_err(|source| SecretsError::Io {
        path: path.to_owned(),
        action: "write",
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    remove_if_there(draft)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(draft, path)?;
    sync_directory(path)
}

/// Removes the file for good. That there is none is no error.
pub(super) fn remove(path: &Path) -> Result<(), SecretsError> {
    remove_if_there(path).and_then(|()| sync_directory(path)).map_err(|source| SecretsError::Io {
        path: path.to_owned(),
        action: "remove",
        source,
    })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Without this a name may be there or gone again after a power failure.
fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Warns when others can read the file.
pub(super) fn warn_if_open(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let Ok(metadata) = fs::metadata(path) else { return };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let file = path.display();
            tracing::warn!(
                "{file} can be read by other users (mode {mode:03o}), and with it the secrets of \
                 this gateway. To fix it: chmod 600 {file}"
            );
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}
