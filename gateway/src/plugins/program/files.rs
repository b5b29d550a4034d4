//! The files of a program: whether they changed, and what is copied when it is installed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::plugins::manifest;

/// The most files that are copied, how many bytes they may have in all, and how deep folders may lie.
const MAX_FILES: usize = 2_000;
const MAX_BYTES: u64 = 64 * 1024 * 1024;
const MAX_DEPTH: usize = 16;

/// The most files beside the manifest whose change is noticed.
const MAX_WATCHED: usize = 256;

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Feeds a hash with what tells that a file of the folder was changed: of each its name, size, time
/// and mode. The manifest, hidden files and folders do not count.
pub fn hash(folder: &Path, mut feed: impl FnMut(&[u8])) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| !is_hidden(path) && !path.ends_with(manifest::FILE_NAME));
    paths.sort();
    for path in paths.iter().take(MAX_WATCHED) {
        let Ok(metadata) = fs::metadata(path) else { continue };
        if !metadata.is_file() {
            continue;
        }
        let modified = metadata.modified().ok();
        let age = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        feed(path.file_name().unwrap_or_default().as_encoded_bytes());
        feed(&metadata.len().to_be_bytes());
        feed(&age.unwrap_or_default().as_nanos().to_be_bytes());
        feed(&mode(&metadata).to_be_bytes());
    }
}

fn mode(metadata: &fs::Metadata) -> u32 {
    #[cfg(unix)]
    return std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    #[cfg(not(unix))]
    return u32::from(metadata.permissions().readonly());
}

/// A file to be copied.
pub struct Packed {
    /// From the plugin's folder.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    pub mode: u32,
}

impl Packed {
    /// Writes it into another folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        let path = folder.join(&self.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &self.bytes)?;
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(self.mode))?;
        Ok(path)
    }
}

/// All files of a folder and those in it, but the manifest and what is hidden.
///
/// # Errors
/// When they cannot be read, are too many or too large, or are something else than files.
pub fn pack(folder: &Path) -> io::Result<Vec<Packed>> {
    let mut files = Vec::new();
    let mut left = MAX_BYTES;
    pack_into(folder, Path::new(""), MAX_DEPTH, &mut left, &mut files)?;
    Ok(files)
}

fn pack_into(
    folder: &Path,
    under: &Path,
    depth: usize,
    left: &mut u64,
    files: &mut Vec<Packed>,
) -> io::Result<()> {
    let wrong = |what: String| Err(io::Error::other(what));
    for entry in fs::read_dir(folder.join(under))? {
        let entry = entry?;
        let path = under.join(entry.file_name());
        if is_hidden(&path) || path == Path::new(manifest::FILE_NAME) {
            continue;
        }
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            if depth == 0 {
                return wrong(format!("{}: folders lie too deep", path.display()));
            }
            pack_into(folder, &path, depth - 1, left, files)?;
            continue;
        }
        if !metadata.is_file() {
            return wrong(format!("{}: that is neither a file nor a folder", path.display()));
        }
        let bytes = manifest::read_bounded(&folder.join(&path), *left)?;
        let Some(bytes) = bytes.filter(|_| files.len() < MAX_FILES) else {
            return wrong(format!(
                "more than {MAX_FILES} files or {} MiB are not copied; put the folder into the \
                 plugins folder yourself",
                MAX_BYTES >> 20
            ));
        };
        *left -= bytes.len() as u64;
        files.push(Packed { path, bytes, mode: mode(&metadata) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_copied_but_what_is_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(from.join("lib/.git")).unwrap();
        for (name, text) in [
            ("policy.sh", "1"),
            ("plugin.toml", "2"),
            (".state", "3"),
            ("lib/x.py", "4"),
            ("lib/.git/y", "5"),
        ] {
            fs::write(from.join(name), text).unwrap();
        }
        #[cfg(unix)]
        fs::set_permissions(
            from.join("policy.sh"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let packed = pack(&from).unwrap();
        for file in &packed {
            file.write(&to).unwrap();
        }
        assert_eq!(packed.len(), 2);
        assert_eq!(fs::read_to_string(to.join("lib/x.py")).unwrap(), "4");
        #[cfg(unix)]
        {
            assert_eq!(mode(&fs::metadata(to.join("policy.sh")).unwrap()), 0o755);
            std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
            let error = pack(&from).err().unwrap().to_string();
            assert!(error.starts_with("link: that is neither"), "{error}");
        }
    }

    #[test]
    fn a_change_is_seen_without_reading() {
        let dir = tempfile::tempdir().unwrap();
        let seen = || {
            let mut seen = Vec::new();
            hash(dir.path(), |bytes| seen.extend_from_slice(bytes));
            seen
        };
        fs::write(dir.path().join("policy.py"), "one").unwrap();
        let first = seen();
        fs::write(dir.path().join(".state"), "x").unwrap();
        fs::create_dir(dir.path().join("__pycache__")).unwrap();
        assert_eq!(seen(), first);
        fs::write(dir.path().join("policy.py"), "three").unwrap();
        assert_ne!(seen(), first);
    }
}
