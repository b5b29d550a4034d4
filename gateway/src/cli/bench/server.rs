//! What a process on this machine uses, read from `/proc` (Linux).

use std::{fs, path::Path};

use serde::Serialize;

use super::error::BenchError;

/// A process that is watched.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

/// Processor time so far, user and system, of all threads, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuSeconds(pub f64);

/// What the relay used during a phase.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Used {
    pub cpu_s: f64,
    /// At the end of the phase.
    pub private_bytes: u64,
}

impl Process {
    /// # Errors
    /// When there is no such process or the system has no `/proc`.
    pub fn watch(pid: u32) -> Result<Self, BenchError> {
        let process = Self(pid);
        process.cpu()?;
        process.private_bytes()?;
        Ok(process)
    }

    /// The process that measures.
    pub fn own() -> Self {
        Self(std::process::id())
    }

    pub fn cpu(self) -> Result<CpuSeconds, BenchError> {
        let text = self.read("stat")?;
        let ticks = stat_ticks(&text).ok_or_else(|| self.error("its stat cannot be understood"))?;
        Ok(CpuSeconds(ticks as f64 / ticks_per_second()))
    }

    /// Memory that nobody else shares, in bytes: `Private_Clean` and `Private_Dirty`.
    pub fn private_bytes(self) -> Result<u64, BenchError> {
        let text = self.read("smaps_rollup")?;
        rollup_private(&text).ok_or_else(|| self.error("its smaps_rollup cannot be understood"))
    }

    /// What was used since `before`.
    pub fn used_since(self, before: CpuSeconds) -> Result<Used, BenchError> {
        let cpu_s = ((self.cpu()?.0 - before.0) * 100.0).round() / 100.0;
        Ok(Used { cpu_s, private_bytes: self.private_bytes()? })
    }

    fn read(self, file: &str) -> Result<String, BenchError> {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).map_err(|error| {
            self.error(&format!(
                "cannot read /proc/{}/{file} ({error}); is it running, and yours?",
                self.0
            ))
        })
    }

    fn error(self, why: &str) -> BenchError {
        BenchError::Process { pid: self.0, why: why.to_owned() }
    }
}

/// `utime` and `stime`. The command's name before them may contain spaces and brackets.
fn stat_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    // The state is field 3, utime field 14.
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rollup_private(rollup: &str) -> Option<u64> {
    let mut sum = None;
    for line in rollup.lines() {
        if line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:") {
            let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            sum = Some(sum.unwrap_or(0) + kilobytes * 1024);
        }
    }
    sum
}

#[cfg(unix)]
fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

#[cfg(not(unix))]
fn ticks_per_second() -> f64 {
    100.0
}

/// The size of all files in a directory, in bytes; what cannot be read counts nothing.
pub fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => directory_bytes(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |found| found.len()),
            _ => 0,
        })
        .sum()
}

/// Makes room for so many open files.
///
/// # Errors
/// When the system does not allow as many.
#[cfg(unix)]
pub fn allow_open_files(wanted: u64) -> Result<(), BenchError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    // Root may raise the maximum as well.
    let raised = [maximum, Some(wanted)].into_iter().any(|limit| {
        limit.is_none_or(|limit| limit >= wanted)
            && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit }).is_ok()
    });
    let limit = maximum.or(current).unwrap_or(u64::MAX);
    if raised { Ok(()) } else { Err(BenchError::OpenFiles { wanted, limit }) }
}

#[cfg(not(unix))]
pub fn allow_open_files(_wanted: u64) -> Result<(), BenchError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_proc_are_understood() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 25 7 8 20 0 4";
        assert_eq!(stat_ticks(stat), Some(175));
        assert_eq!(stat_ticks("42 (a"), None);
        let rollup = "Rss: 90 kB\nPrivate_Clean:       4 kB\nPrivate_Dirty:      16 kB\n";
        assert_eq!(rollup_private(rollup), Some(20 * 1024));
        assert_eq!(rollup_private("Rss: 90 kB"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_own_process_can_be_watched_and_a_missing_one_cannot() {
        let own = Process::watch(std::process::id()).unwrap();
        assert!(own.private_bytes().unwrap() > 100_000);
        let error = Process::watch(u32::MAX).unwrap_err().to_string();
        assert!(
            error.starts_with("--pid 4294967295: cannot read /proc/4294967295/stat"),
            "{error}"
        );
    }

    #[test]
    fn a_directory_counts_with_all_its_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), [0; 10]).unwrap();
        fs::create_dir(directory.path().join("b")).unwrap();
        fs::write(directory.path().join("b/c"), [0; 5]).unwrap();
        assert_eq!(directory_bytes(directory.path()), 15);
        assert_eq!(directory_bytes(&directory.path().join("none")), 0);
    }
}
