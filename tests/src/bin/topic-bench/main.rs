//! Measures topics between gateways that are processes of their own, over real sockets.
//! `docs/benchmarks.md` says what each row does.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure ends its row, loudly"
)]

mod rows;
mod swarm;

use std::{panic::AssertUnwindSafe, path::PathBuf, process::ExitCode};

use clap::Parser;
use futures_util::FutureExt;

use nostr_gateway_tests::figures::{self, Row, program};

use crate::swarm::Setup;

/// Measures topics between gateways
#[derive(Parser)]
struct Arguments {
    /// The gateway's program; without it, the one beside this program
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// The program of the private DHT; without it, the one beside this program
    #[arg(long)]
    dht_testnet: Option<PathBuf>,
    /// Rows to run
    #[arg(long, value_delimiter = ',')]
    only: Vec<rows::Name>,
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
        dht_testnet: program(arguments.dht_testnet, &["dht-testnet-under-test", "dht-testnet"])?,
        quick: arguments.quick,
    };
    let names = match arguments.only.as_slice() {
        [] => rows::Name::all(),
        only => only.to_vec(),
    };
    let mut done: Vec<Row> = Vec::new();
    for name in names {
        eprintln!("{} …", name.title());
        // A row that cannot be measured panics; the others go on.
        let measured = AssertUnwindSafe(rows::run(name, setup.clone())).catch_unwind().await;
        let rows = measured.unwrap_or_else(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
            vec![Row::failed(name.title(), text.unwrap_or("see above"))]
        });
        for row in &rows {
            eprint!("{}", row.text());
        }
        done.extend(rows);
    }
    let json = serde_json::to_string_pretty(&figures::json(&done, setup.quick))?;
    match arguments.json {
        Some(path) if path.as_os_str() == "-" => println!("{json}"),
        Some(path) => {
            std::fs::write(path, json)?;
            print!("{}", figures::table(&done));
        }
        None => print!("{}", figures::table(&done)),
    }
    let failed = done.iter().any(|row| row.failure.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
