//! Why a measurement ended early. Each text is one line that says what to do.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{url:?} is no relay's address ({why}); write it like ws://127.0.0.1:4869")]
    Url { url: String, why: String },
    #[error(
        "{url}: nothing answers there ({why}); start the relay, or give the URL of a running one"
    )]
    Unreachable { url: String, why: String },
    #[error("{url}: the relay refused the websocket ({why})")]
    Refused { url: String, why: String },
    #[error("{url}: the relay closed the connection during {phase} ({why}); its log may say why")]
    Closed { url: String, phase: &'static str, why: String },
    #[error("{url}: no answer for {seconds} s during {phase}{notice}; is the relay overloaded?")]
    Silent { url: String, phase: &'static str, seconds: u64, notice: String },
    #[error("{url}: the relay refuses what is published ({reason}); {advice}")]
    EventsRefused { url: String, reason: String, advice: &'static str },
    #[error("{url}: the relay refuses a query during {phase} ({reason}); {advice}")]
    QueryRefused { url: String, phase: &'static str, reason: String, advice: &'static str },
    #[error(
        "{0}: not on this machine; publishing thousands of meaningless events there needs --yes \
         (--only query,clients,search publishes nothing)"
    )]
    NotLoopback(String),
    #[error(
        "{wanted} connections need more open files than the limit of {limit}; raise it \
         (ulimit -n), or lower --idle-connections"
    )]
    OpenFiles { wanted: u64, limit: u64 },
    #[error("--pid {pid}: {why}")]
    Process { pid: u32, why: String },
    #[error("{}: {source}; --cache DIR keeps the events elsewhere", path.display())]
    Cache { path: PathBuf, source: io::Error },
    #[error("--data-dir {}: {source}", path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error("--json {}: {source}", path.display())]
    Output { path: PathBuf, source: io::Error },
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// What to do about a refusal, by the prefix that NIP-01 gives it.
pub fn advice(reason: &str) -> &'static str {
    match reason.split(':').next().unwrap_or_default() {
        "auth-required" => "let this address in without authentication, bench has no account there",
        "pow" => "turn the demanded proof of work off, bench does none",
        "rate-limited" => "raise the relay's limits for this address",
        "blocked" | "restricted" => "let everybody publish and read while you measure",
        "invalid" => "the relay's own limits are in the way, see its configuration",
        _ => "see the relay's configuration and log",
    }
}
