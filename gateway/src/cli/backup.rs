//! `nostr-gateway backup` and `restore`.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Output, Places, USAGE, control, print,
    progress::Progress,
    reach::{self, Missing, Reached},
    table::size,
    text::{joined, list, number, text},
};
use crate::{
    admin::api::Command,
    app::{Needs, restore},
};

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write; there must be none of this name
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The key of secrets.age too, if it is in the data directory: whoever has the backup has all secrets
    /// then
    #[arg(long)]
    pub with_key: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What backup wrote, or the gateway.db of another data directory
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Put what is in the data directory aside, into a folder there
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub output: Output,
}

pub fn backup(args: BackupArgs, places: &Places) -> ExitCode {
    let BackupArgs { file, with_key, output } = args;
    // The gateway has another working directory.
    let file = match std::path::absolute(&file) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            return ExitCode::from(USAGE);
        }
    };
    let reached = match Reached::open(places, Needs::Store, Missing::Refuse) {
        Ok(reached) => reached,
        Err(code) => return code,
    };
    let progress = Bar::new("backing up", output);
    let answer = reached.ask(Command::Backup { file, with_key }, |step| {
        progress.set(number(&step["bytes"]), number(&step["of"]));
    });
    drop(progress);
    let code = match answer {
        Ok(answer) if output.json => print(&format!("{answer}\n")),
        Ok(answer) => print(&said(&answer)),
        Err(failure) => failure.report(),
    };
    reached.close();
    code
}

fn said(answer: &Value) -> String {
    let mut lines = format!(
        "{}: {} events, {}\n",
        text(&answer["file"]),
        number(&answer["events"]),
        size(number(&answer["bytes"]))
    );
    if !list(&answer["holds"]).is_empty() {
        lines.push_str(&format!("with {}\n", joined(&answer["holds"])));
    }
    match number(&answer["plugin_files"]) {
        0 => {}
        files => lines.push_str(&format!("with {files} files of plugins\n")),
    }
    lines.push_str(match answer["secrets"].as_str() {
        Some("with their key") => {
            "Keep it to yourself: it has the secrets of this gateway and their key.\n"
        }
        Some("without their key") => {
            "The key of the secrets is not in it: keep a copy of secrets.key elsewhere (or back up \
             --with-key).\n"
        }
        Some("encrypted with a key that is elsewhere") => {
            "The key of the secrets is not in it (secrets.key_file, or a credential).\n"
        }
        Some("in the keyring") => {
            "The secrets are not in it: they rest in the keyring. Back that up by its own means, or set \
             secrets.store = \"file\".\n"
        }
        _ => "There are no secrets in it.\n",
    });
    lines
}

pub fn restore(args: RestoreArgs, places: &Places) -> ExitCode {
    let RestoreArgs { file, force, output } = args;
    let data_dir = match control::data_dir(places.clone()) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    if !file.is_file() {
        eprintln!("{} is no file", file.display());
        return ExitCode::from(USAGE);
    }
    if is_running(&data_dir) {
        eprintln!(
            "a gateway runs in {}; stop it first: nobody can go on with a database that is replaced",
            data_dir.display()
        );
        return ExitCode::FAILURE;
    }
    let locked = match reach::lock(&data_dir) {
        Ok(locked) => locked,
        Err(code) => return code,
    };
    eprintln!("no gateway is running in {}: working on its files", data_dir.display());
    let progress = Bar::new("restoring", output);
    let restored = restore::restore(&locked, &file, force, |done, of| progress.set(done, of));
    drop(progress);
    match restored {
        Ok(restored) if output.json => print(&format!("{}\n", json!(restored))),
        Ok(restored) => {
            let mut lines = format!("restored {} events", restored.events);
            let plugins = restored.files.iter().filter(|name| name.starts_with("plugins")).count();
            let others = restored.files.iter().filter(|name| !name.starts_with("plugins"));
            others.for_each(|name| lines.push_str(&format!(", {name}")));
            if plugins > 0 {
                lines.push_str(&format!(", {plugins} files of plugins"));
            }
            lines.push('\n');
            if let Some(before) = &restored.before {
                lines.push_str(&format!(
                    "what was there before is in {}; remove it when nothing is missed\n",
                    before.display()
                ));
            }
            if !restored.files.iter().any(|name| name == "secrets.age" || name == "keyring.json") {
                lines.push_str(
                    "there are no secrets in the backup: the gateway begins with new ones\n",
                );
            }
            print(&lines)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn is_running(data_dir: &std::path::Path) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.is_ok_and(|runtime| runtime.block_on(control::is_answering(data_dir)))
}

/// A bar of bytes whose length is known when the first of them are done.
struct Bar {
    what: &'static str,
    shows: bool,
    bar: std::cell::RefCell<Option<(Progress, u64)>>,
}

impl Bar {
    fn new(what: &'static str, output: Output) -> Self {
        let shows = !output.json && io::stderr().is_terminal();
        Self { what, shows, bar: std::cell::RefCell::default() }
    }

    fn set(&self, done: u64, of: u64) {
        if !self.shows {
            return;
        }
        let mut bar = self.bar.borrow_mut();
        let (progress, before) = bar.get_or_insert_with(|| (Progress::bytes(self.what, of), 0));
        progress.add(done.saturating_sub(*before));
        *before = done.max(*before);
    }
}
