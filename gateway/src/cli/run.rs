//! `nostr-gateway run`.

use std::process::ExitCode;

use crate::config::Loaded;

/// Runs the gateway until it is told to stop.
pub fn run(_loaded: Loaded) -> ExitCode {
    eprintln!("not wired yet");
    ExitCode::FAILURE
}
