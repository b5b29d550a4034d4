//! An iroh relay of one's own, in plain HTTP: built together with the scenarios.

use std::net::SocketAddr;

use clap::Parser;
use iroh_relay::server::{RelayConfig, Server, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
struct Arguments {
    /// IP:PORT of the HTTP listener
    #[arg(long)]
    bind: SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let mut config = ServerConfig::default();
    config.relay = Some(RelayConfig::new(arguments.bind));
    let relay = Server::spawn(config).await?;
    println!("ready");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    relay.shutdown().await?;
    Ok(())
}
