//! Whether the data directory can be written, and for how long.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    cli::table::size,
    gossip::check::{Check, Verdict},
};

const SPACE: &str = "disk space";
const WRITE: &str = "data directory";

/// Less free space than this is worth a word; less than the other, and the next events may fail.
const LITTLE: u64 = 1_000_000_000;
const TOO_LITTLE: u64 = 100_000_000;

/// What a commit waits for: with a slower disk publishing is slow.
const SLOW: Duration = Duration::from_millis(100);

pub(super) fn check(data_dir: &Path) -> Vec<Check> {
    // One that is not there yet is made beside what is there.
    let existing = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    vec![space(existing), write(data_dir)]
}

#[cfg(unix)]
fn free(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free(_path: &Path) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

fn space(path: &Path) -> Check {
    let advice = "make room, or bound what is kept with storage.max_bytes and [[retention]]";
    match free(path) {
        Ok(free) => {
            let found = format!("{} free in {}", size(free), path.display());
            match free {
                ..TOO_LITTLE => Check::new(SPACE, Verdict::Failed, found).advise(advice),
                TOO_LITTLE..LITTLE => Check::new(SPACE, Verdict::Warning, found).advise(advice),
                _ => Check::new(SPACE, Verdict::Ok, found),
            }
        }
        Err(error) => Check::new(SPACE, Verdict::NotChecked, error.to_string()),
    }
}

fn write(data_dir: &Path) -> Check {
    if !data_dir.exists() {
        let found = format!("{} is made at the first start", data_dir.display());
        return Check::new(WRITE, Verdict::NotChecked, found);
    }
    match try_write(data_dir) {
        Ok(took) if took < SLOW => {
            let found = format!("written and synced in {:.1} ms", took.as_secs_f64() * 1_000.0);
            Check::new(WRITE, Verdict::Ok, found)
        }
        Ok(took) => {
            let advice = "publishing waits for the disk: use a faster one for the data directory, or \
                          storage.durability = \"normal\"";
            let found = format!("a write takes {} ms to reach the disk", took.as_millis());
            Check::new(WRITE, Verdict::Warning, found).advise(advice)
        }
        Err(error) => {
            let advice = "the data directory must be writable for the user who runs the gateway; or \
                          choose another one with --data-dir";
            let found = format!("cannot write in {}: {error}", data_dir.display());
            Check::new(WRITE, Verdict::Failed, found).advise(advice)
        }
    }
}

fn try_write(data_dir: &Path) -> io::Result<Duration> {
    let path = data_dir.join("doctor.tmp");
    let written = (|| {
        let mut file = File::create(&path)?;
        let began = Instant::now();
        file.write_all(&[0x5a; 4_096])?;
        file.sync_all()?;
        Ok(began.elapsed())
    })();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let data = tempfile::tempdir().unwrap();
        let checks = check(data.path());
        assert!(checks.iter().all(|check| check.verdict != Verdict::NotChecked), "{checks:?}");
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
        let absent = check(&data.path().join("a/b"));
        assert_eq!(absent[1].verdict, Verdict::NotChecked);
        assert!(!data.path().join("a").exists());
        let file = data.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(check(&file)[1].verdict, Verdict::Failed);
    }
}
