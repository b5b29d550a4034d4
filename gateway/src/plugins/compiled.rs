//! Compiled components on disk, so that a start need not compile them again.
//!
//! A compiled component is machine code that runs with the gateway's own rights. So nothing is loaded
//! that was not written by this gateway: each file is its owner's alone and carries a keyed hash, over
//! its name too, with a key that never leaves the directory.

#![allow(unsafe_code, reason = "only what this gateway compiled itself is deserialized")]

use std::{
    fs, hash,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use wasmtime::{Engine, component::Component};

/// The directory in the data directory.
const DIR: &str = "plugin-cache";
const KEY: &str = "key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;
const ENDING: &str = "cwasm";

/// The most files and bytes that are kept; those used last stay.
const MAX_FILES: usize = 32;
const MAX_BYTES: u64 = 1 << 30;
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// The directory with compiled components.
pub struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
}

impl Cache {
    /// Opens the cache of a data directory, and makes it where there is none.
    ///
    /// # Errors
    /// When it cannot be written, or is somebody else's.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join(DIR);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&dir)?;
        // A link could lead to where others write.
        require_own(&fs::symlink_metadata(&dir)?)?;
        let path = dir.join(KEY);
        if let Some(Ok(key)) = read_own(&path, KEY_BYTES as u64)?.map(TryInto::try_into) {
            return Ok(Self { dir, key });
        }
        let key: [u8; KEY_BYTES] = rand::random();
        write(&dir, KEY, &[&key])?;
        Ok(Self { dir, key })
    }

    /// The component with these bytes, from the cache, or compiled and put there. A cache that does
    /// not work is logged and costs time only.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn component(
        &self,
        engine: &Engine,
        compiler: &Engine,
        bytes: &[u8],
    ) -> wasmtime::Result<Component> {
        let name = name(engine, bytes);
        match self.read(&name) {
            Ok(Some(compiled)) => {
                // SAFETY: the tag says that `write` below, with our key, wrote this text under this
                // name. wasmtime checks version and settings once more.
                match unsafe { Component::deserialize(engine, &compiled) } {
                    Ok(component) => return Ok(component),
                    Err(error) => tracing::warn!("a compiled plugin cannot be used: {error:#}"),
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("a compiled plugin cannot be read: {error}"),
        }
        let compiled = compiler.precompile_component(bytes)?;
        if let Err(error) = self.write(&name, &compiled) {
            tracing::warn!("a compiled plugin cannot be kept in {}: {error}", self.dir.display());
        }
        // SAFETY: compiled one line above, by an engine with the same settings.
        unsafe { Component::deserialize(engine, &compiled) }
    }

    /// What was compiled, if it is there and ours.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.dir.join(name);
        let Some(mut bytes) = read_own(&path, MAX_FILE_BYTES)? else { return Ok(None) };
        let Some((tag, compiled)) = bytes.split_first_chunk::<TAG_BYTES>() else {
            return Err(io::Error::other(format!("{name} is too short")));
        };
        if self.mac(name, compiled).verify_slice(tag).is_err() {
            return Err(io::Error::other(format!("{name} is not what this gateway wrote")));
        }
        bytes.drain(..TAG_BYTES);
        // Used now: others go first. One that cannot be touched is forgotten early, no more.
        let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, compiled: &[u8]) -> io::Result<()> {
        let tag = self.mac(name, compiled).finalize().into_bytes();
        write(&self.dir, name, &[&tag, compiled])?;
        self.prune()
    }

    /// Removes what was not used for longest, and what a killed gateway left half written.
    fn prune(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => {
                    let metadata = entry.metadata()?;
                    files.push((metadata.modified()?, metadata.len(), path));
                }
                Some("new") => fs::remove_file(path)?,
                _ => {}
            }
        }
        files.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut sum = 0;
        for (at, (_, bytes, path)) in files.into_iter().enumerate() {
            sum += bytes;
            if at >= MAX_FILES || (sum > MAX_BYTES && at > 0) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn mac(&self, name: &str, compiled: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.key);
        let mut mac = mac.expect("HMAC takes keys of any length");
        mac.update(name.as_bytes());
        mac.update(compiled);
        mac
    }
}

/// Compiles a component without keeping it.
///
/// # Errors
/// When it does not compile.
pub fn compile(engine: &Engine, compiler: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
    let compiled = compiler.precompile_component(bytes)?;
    // SAFETY: compiled one line above, by an engine with the same settings.
    unsafe { Component::deserialize(engine, &compiled) }
}

/// Names what is compiled: the component, and everything of the engine that matters for the code.
fn name(engine: &Engine, bytes: &[u8]) -> String {
    struct Hashed(Sha256);
    impl hash::Hasher for Hashed {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hashed = Hashed(Sha256::new());
    hashed.0.update(Sha256::digest(bytes));
    hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hashed);
    let digest: [u8; 32] = hashed.0.finalize().into();
    format!("{}.{ENDING}", crate::protocol::hex::encode(&digest))
}

/// Writes a file that is ours alone, whole or not at all.
fn write(dir: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let draft = dir.join(format!("{name}.{}.new", std::process::id()));
    let _ = fs::remove_file(&draft);
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    for part in parts {
        file.write_all(part)?;
    }
    drop(file);
    fs::rename(draft, dir.join(name))
}

/// A file that is ours alone; nothing when there is none.
fn read_own(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut options = fs::File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed());
    }
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    require_own(&metadata)?;
    if !metadata.is_file() || metadata.len() > max {
        return Err(io::Error::other(format!("{} is not what was put there", path.display())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    file.take(max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// # Errors
/// When somebody else owns or may write it.
#[cfg(unix)]
fn require_own(metadata: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !is_ours || metadata.mode() & 0o022 != 0 || metadata.file_type().is_symlink() {
        return Err(io::Error::other("others than this user can write there"));
    }
    Ok(())
}

#[cfg(not(unix))]
fn require_own(_: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::engine;

    const FIXTURES: &[u8] = include_bytes!("../../../plugins/fixtures/fixtures.wasm");
    /// A component without anything in it.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn files(cache: &Cache) -> Vec<PathBuf> {
        let entries = fs::read_dir(&cache.dir).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|ending| ending == ENDING)).collect()
    }

    #[test]
    fn what_was_compiled_is_found_again_and_what_others_wrote_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let run = engine::start().unwrap();
        let quiet = engine::quiet_compiler().unwrap();
        cache.component(&run, &quiet, FIXTURES).unwrap();
        let [file] = files(&cache).try_into().unwrap();
        let own = fs::read(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        // The same from another start.
        let again = Cache::open(dir.path()).unwrap();
        assert_eq!(again.read(&name).unwrap().unwrap(), own[TAG_BYTES..]);
        cache.component(&run, &quiet, FIXTURES).unwrap();
        assert_eq!(files(&cache).len(), 1);

        // One bit of the code, another gateway's file, ours under another name.
        let mut changed = own.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(&file, &changed).unwrap();
        assert!(cache.read(&name).is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Cache::open(elsewhere.path()).unwrap();
        other.component(&run, &run, FIXTURES).unwrap();
        fs::copy(&files(&other)[0], &file).unwrap();
        assert!(cache.read(&name).is_err());
        fs::write(&file, &own).unwrap();
        fs::copy(&file, cache.dir.join("other.cwasm")).unwrap();
        assert!(cache.read("other.cwasm").is_err());
        assert!(cache.read(&name).unwrap().is_some());
        // It is compiled anew then.
        fs::write(&file, changed).unwrap();
        cache.component(&run, &quiet, FIXTURES).unwrap();
        assert!(cache.read(&name).unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn files_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let run = engine::start().unwrap();
        cache.component(&run, &run, EMPTY).unwrap();
        let file = files(&cache).remove(0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&cache.dir)), (0o600, 0o700));
        assert_eq!(mode(&cache.dir.join(KEY)), 0o600);
        let name = file.file_name().unwrap().to_str().unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(cache.read(name).is_err());
        fs::set_permissions(&cache.dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(dir.path()).is_err());
    }

    #[test]
    fn there_are_never_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        for n in 0..MAX_FILES + 5 {
            cache.write(&format!("{n}.{ENDING}"), b"x").unwrap();
        }
        assert_eq!(files(&cache).len(), MAX_FILES);
    }
}
