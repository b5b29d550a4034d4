//! Everything that must be kept, in one file, while the gateway goes on.

use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    admin::api::{Cause, Line, Refusal},
    store::backup::{self, BackupError, Kept},
    tasks,
};

/// What of a data directory goes along with the database. `secrets.age` is encrypted; `keyring.json` says
/// where in the keyring secrets are.
const FILES: [&str; 3] = ["secrets.age", "keyring.json", "grants.toml"];
/// What opens `secrets.age`.
const KEY: &str = "secrets.key";
const PLUGINS: &str = "plugins";
/// Files of plugins, and bytes of all of them together.
const MOST_FILES: usize = 10_000;
const MOST_BYTES: u64 = 1 << 30;

/// Writes the backup and tells how far it is.
pub(super) fn backup(
    data_dir: PathBuf,
    file: PathBuf,
    with_key: bool,
) -> stream::BoxStream<'static, Line> {
    let (tell, told) = mpsc::channel(16);
    let job = tasks::blocking(move || {
        write(&data_dir, &file, with_key, |done, of| {
            let step = json!({ "bytes": done, "of": of });
            // Whoever does not read is passed over; whoever has gone wants no backup.
            match tell.try_send(Line::Progress(step)) {
                Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
    });
    let state = Some((told, job.boxed()));
    stream::unfold(state, |state| async move {
        let (mut told, mut job) = state?;
        tokio::select! {
            biased;
            Some(line) = told.recv() => Some((line, Some((told, job)))),
            written = &mut job => Some((match written {
                Ok(Ok(done)) => Line::Done(done),
                Ok(Err(error)) => Line::Refused(Refusal::new(cause(&error), error)),
                Err(error) => Line::Refused(Refusal::new(Cause::Failed, error)),
            }, None)),
        }
    })
    .boxed()
}

fn cause(error: &BackupError) -> Cause {
    match error {
        BackupError::Exists(_) => Cause::Refused,
        _ => Cause::Failed,
    }
}

fn write(
    data_dir: &Path,
    file: &Path,
    with_key: bool,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Value, BackupError> {
    // After the database: a private topic saves its secret first, so what the database tells of is there.
    let others = || -> Result<(Vec<Kept>, Vec<String>), BackupError> {
        let mut kept = Vec::new();
        let failed = |path: &Path, error| BackupError::Read { path: path.to_owned(), error };
        for name in FILES.into_iter().chain(with_key.then_some(KEY)) {
            kept.extend(read(data_dir, name).map_err(|error| failed(&data_dir.join(name), error))?);
        }
        let mut bytes = 0;
        collect(data_dir, Path::new(PLUGINS), &mut kept, &mut bytes)
            .map_err(|error| failed(&data_dir.join(PLUGINS), error))?;
        let names = kept.iter().map(|kept| kept.name.clone()).collect();
        Ok((kept, names))
    };
    let (copied, names) = backup::write(data_dir, file, others, progress)?;
    let holds = |name: &str| names.iter().any(|held| held == name);
    let key_is_here = data_dir.join(KEY).exists();
    let plugins = names.iter().filter(|name| name.starts_with(PLUGINS)).count();
    Ok(json!({
        "file": file.display().to_string(),
        "bytes": copied.bytes,
        "events": copied.events,
        "holds": names.iter().filter(|name| !name.starts_with(PLUGINS)).collect::<Vec<_>>(),
        "plugin_files": plugins,
        "secrets": match () {
            () if holds("secrets.age") && holds(KEY) => "with their key",
            () if holds("secrets.age") && key_is_here => "without their key",
            () if holds("secrets.age") => "encrypted with a key that is elsewhere",
            () if holds("keyring.json") => "in the keyring",
            () => "none",
        },
    }))
}

/// A file of the data directory; nothing when there is none.
fn read(data_dir: &Path, name: &str) -> io::Result<Option<Kept>> {
    let path = data_dir.join(name);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(found) => {
            Ok(Some(Kept { name: name.to_owned(), mode: mode(&found), content: fs::read(&path)? }))
        }
    }
}

/// The files of a folder, those in its folders too. Links and what is neither are left out.
fn collect(
    data_dir: &Path,
    folder: &Path,
    kept: &mut Vec<Kept>,
    bytes: &mut u64,
) -> io::Result<()> {
    let entries = match fs::read_dir(data_dir.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(data_dir, &name, kept, bytes)?;
            continue;
        }
        let Some(text) = name.to_str().filter(|_| kind.is_file()) else { continue };
        *bytes += entry.metadata()?.len();
        if kept.len() >= MOST_FILES || *bytes > MOST_BYTES {
            let why = "more than 10,000 files or 1 GiB; keep them elsewhere (plugins.dir)";
            return Err(io::Error::other(why));
        }
        kept.extend(read(data_dir, text)?);
    }
    Ok(())
}

#[cfg(unix)]
fn mode(found: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
}

#[cfg(not(unix))]
fn mode(_: &fs::Metadata) -> u32 {
    0o600
}
