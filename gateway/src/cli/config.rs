//! `nostr-gateway config`.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Output, Places, control, print,
    text::{joined, list, text},
};
use crate::{admin::api::Command, config::Sources};

/// The path of the file that `run` would read, with a word when there is none.
pub(super) fn path(sources: &Sources) -> String {
    match sources.path() {
        Some(path) if path.exists() => format!("{}\n", path.display()),
        Some(path) => format!("{} (there is no such file)\n", path.display()),
        None => "none: this user has no home directory\n".to_owned(),
    }
}

/// Lets the running gateway read its configuration again.
pub(super) fn reload(output: Output, places: Places) -> ExitCode {
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    match control::ask(&data_dir, &Command::ConfigReload, drop) {
        Ok(answer) if output.json => print(&format!("{answer}\n")),
        Ok(answer) => print(&said(&answer)),
        Err(failure) => failure.report(),
    }
}

fn said(answer: &Value) -> String {
    let mut lines = format!("read {}\n", text(&answer["file"]));
    for (what, name) in [("new", "added"), ("changed", "changed"), ("gone", "removed")] {
        if !list(&answer[name]).is_empty() {
            lines.push_str(&format!("{what} streams: {}\n", joined(&answer[name])));
        }
    }
    if !list(&answer["needs_restart"]).is_empty() {
        lines.push_str(&format!("counts after a restart: {}\n", joined(&answer["needs_restart"])));
    }
    lines
}
