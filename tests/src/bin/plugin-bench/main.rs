//! Measures plugins in a gateway that is a process of its own, over real sockets.
//! `docs/benchmarks.md` says what each row does.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure ends its row, loudly"
)]

mod alone;
mod hostile;
mod load;
mod rows;
mod setup;
mod swap;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use nostr_gateway_tests::figures::{measure, program};

use crate::setup::Setup;

/// Measures plugins in the running gateway
#[derive(Parser)]
struct Arguments {
    /// The gateway's program; without it, the one beside this program
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Rows to run
    #[arg(long, value_delimiter = ',')]
    only: Vec<rows::Name>,
    /// A folder with a plugin to measure in the row `call`, in place of the built-in choice
    #[arg(long)]
    plugin: Option<PathBuf>,
    /// A few seconds and events for each: says that everything works, and no more
    #[arg(long)]
    quick: bool,
    /// Writes the figures as JSON; - prints them in place of the table
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let setup = Setup {
        gateway: program(arguments.gateway, &["nostr-gateway-under-test", "nostr-gateway"])?,
        plugin: arguments.plugin,
        quick: arguments.quick,
    };
    let names = match arguments.only.as_slice() {
        [] => rows::Name::all(),
        only => only.to_vec(),
    };
    let run = async |name| rows::run(name, setup.clone()).await;
    measure(names, rows::Name::title, run, setup.quick, arguments.json).await
}
