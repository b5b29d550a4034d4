//! Where a command is carried out: by the gateway that runs in the data directory, or by this program on
//! its files when none does. The lock of the directory decides.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{
    Overrides, Places, control, control::Failure, logging, read, run::StopSignal, sources,
};
use crate::{
    admin::api::{Command, Line, Reply},
    app::{Needs, Offline},
    data_dir::{DataDir, DataDirError, swap},
};

/// What to do with a data directory in which there is no database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Refuse,
}

/// Whoever carries commands out.
pub(super) struct Reached {
    pub runtime: Runtime,
    pub data_dir: PathBuf,
    way: Way,
}

enum Way {
    Running,
    Offline(Box<Offline>),
}

impl Reached {
    /// Says on the standard error which of the two it is. What is wrong is said there too.
    pub fn open(places: &Places, needs: Needs, missing: Missing) -> Result<Self, ExitCode> {
        let data_dir = control::data_dir(places.clone())?;
        let fails = |why: String| {
            eprintln!("{why}");
            ExitCode::FAILURE
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| fails(format!("cannot start: {error}")))?;
        if runtime.block_on(control::is_answering(&data_dir)) {
            eprintln!("asking the gateway that runs in {}", data_dir.display());
            return Ok(Self { runtime, data_dir, way: Way::Running });
        }
        let has_database = data_dir.join("gateway.db").exists() || swap::is_begun(&data_dir);
        if missing == Missing::Refuse && !has_database {
            return Err(fails(format!(
                "no gateway is running in {}, and there is no database in it; name another data \
                 directory with --data-dir",
                data_dir.display()
            )));
        }
        let config = read(&sources(places.clone(), Overrides::default()))?.config;
        let locked = lock(&data_dir)?;
        eprintln!("no gateway is running in {}: working on its files", data_dir.display());
        // Nothing to be told of but trouble; that RUST_LOG is wrong, it will hear from `run`.
        let _ = logging::init_quietly();
        let offline = runtime.block_on(Offline::start(&config, locked, needs));
        let offline = offline.map_err(|error| fails(format!("{error:#}")))?;
        Ok(Self { runtime, data_dir, way: Way::Offline(Box::new(offline)) })
    }

    /// Has a command carried out. `progress` is called for each step of one that takes a while.
    ///
    /// # Errors
    /// When it is not done.
    pub async fn give(
        &self,
        command: Command,
        mut progress: impl FnMut(Value),
    ) -> Result<Value, Failure> {
        let offline = match &self.way {
            Way::Running => return control::exchange(&self.data_dir, command, progress).await,
            Way::Offline(offline) => offline,
        };
        let mut lines = match offline.run(command).await {
            Reply::Done(value) => return Ok(value),
            Reply::Refused(refusal) => return Err(Failure::Refused(refusal)),
            Reply::Lines(lines) => lines,
        };
        while let Some(line) = lines.next().await {
            match line {
                Line::Progress(value) => progress(value),
                Line::Done(value) => return Ok(value),
                Line::Refused(refusal) => return Err(Failure::Refused(refusal)),
            }
        }
        let why = "the answer ended too early".to_owned();
        Err(Failure::Broken { path: self.data_dir.clone(), why })
    }

    /// The same, until Ctrl-C.
    ///
    /// # Errors
    /// When it is not done, or not to its end.
    pub fn ask(&self, command: Command, progress: impl FnMut(Value)) -> Result<Value, Failure> {
        self.runtime.block_on(async {
            tokio::select! {
                answer = self.give(command, progress) => answer,
                () = interrupted() => Err(Failure::Interrupted),
            }
        })
    }

    /// Ends it. What was acknowledged is on disk.
    pub fn close(self) {
        if let Way::Offline(offline) = self.way {
            self.runtime.block_on(offline.stop());
        }
        self.runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    }
}

/// Locks a data directory, in which everything that is made from now on is its owner's alone.
pub(super) fn lock(data_dir: &Path) -> Result<DataDir, ExitCode> {
    #[cfg(unix)]
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    DataDir::open(data_dir).map_err(|error| match error {
        DataDirError::InUse(path) => Failure::NotListening(path).report(),
        error => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

/// Ends when this program is to stop.
pub(super) async fn interrupted() {
    match StopSignal::new() {
        Ok(mut signal) => signal.received().await,
        // Then the signal ends the program at once.
        Err(_) => std::future::pending().await,
    }
}
