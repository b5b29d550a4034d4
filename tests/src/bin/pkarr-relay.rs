//! The pkarr-relay crate with a configuration file: the same program as its own binary, built
//! together with the scenarios.

use std::path::PathBuf;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    #[allow(
        unsafe_code,
        reason = "LMDB maps its file; nobody else writes to the cache of a fresh directory"
    )]
    // SAFETY: the cache directory belongs to this process alone.
    let relay = unsafe { pkarr_relay::Relay::run_with_config_file(arguments.config).await? };
    println!("ready");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    relay.shutdown();
    Ok(())
}
