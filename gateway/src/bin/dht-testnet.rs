//! A private Mainline DHT on one machine, for tests and for `docker compose up`: nothing in it ever
//! talks to the public network.
//!
//! Prints `bootstrap IP:PORT,IP:PORT…` and `ready`, and runs until SIGINT or SIGTERM.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::Parser;
use mainline::Dht;
use tokio::signal::unix::{SignalKind, signal};

/// Programs that cannot be told bootstrap nodes have four public host names built in, one of them
/// with the second of these ports. Where those names resolve to us, such programs find us.
const WELL_KNOWN_PORTS: [u16; 2] = [6881, 25401];

/// The ports of the other nodes count up from here.
const FIRST_PORT: u16 = 30_002;

/// How often free ports are looked for again when somebody took one in between.
const ATTEMPTS: usize = 5;

#[derive(Parser)]
#[command(version, about = "Runs a private Mainline DHT")]
struct Arguments {
    /// The address that all nodes listen on, and that they tell others
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    bind: Ipv4Addr,
    /// How many nodes
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(2..=1000))]
    nodes: u16,
    /// Take any free ports instead of 6881, 25401, 30002, 30003…
    #[arg(long)]
    any_port: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dht-testnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _guard = runtime.enter();
    // Before the first line, so that whoever reads it can already end us.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let nodes = start(arguments)?;
    let addresses: Vec<_> = nodes.iter().map(|(address, _)| address.as_str()).collect();
    println!("bootstrap {}", addresses.join(","));
    println!("ready");

    runtime.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    Ok(())
}

fn start(arguments: &Arguments) -> anyhow::Result<Vec<(String, Dht)>> {
    if !arguments.any_port {
        let ports = fixed_ports(arguments.nodes);
        return build(arguments.bind, &ports)
            .with_context(|| format!("cannot listen on {}", arguments.bind));
    }
    let mut failure = None;
    for _ in 0..ATTEMPTS {
        let ports = free_ports(arguments.bind, arguments.nodes)
            .with_context(|| format!("cannot listen on {}", arguments.bind))?;
        match build(arguments.bind, &ports) {
            Ok(nodes) => return Ok(nodes),
            Err(error) => failure = Some(error),
        }
    }
    ensure!(failure.is_none(), "found no free ports: {failure:?}");
    Ok(Vec::new())
}

/// Every node knows all others from the start. A node without bootstrap nodes would take each
/// short-lived client for a peer, and every later query would wait for the dead ones.
fn build(bind: Ipv4Addr, ports: &[u16]) -> io::Result<Vec<(String, Dht)>> {
    let addresses: Vec<String> = ports.iter().map(|port| format!("{bind}:{port}")).collect();
    let mut nodes = Vec::with_capacity(ports.len());
    for (port, address) in ports.iter().zip(&addresses) {
        let others: Vec<&String> = addresses.iter().filter(|other| *other != address).collect();
        let node = Dht::builder()
            .server_mode()
            .bootstrap(&others)
            .bind_address(bind)
            .public_ip(bind)
            .port(*port)
            .build()?;
        nodes.push((address.clone(), node));
    }
    Ok(nodes)
}

fn fixed_ports(count: u16) -> Vec<u16> {
    WELL_KNOWN_PORTS.into_iter().chain(FIRST_PORT..).take(usize::from(count)).collect()
}

/// Ports that are free now: all are held until the last is known, so that they differ.
fn free_ports(bind: Ipv4Addr, count: u16) -> io::Result<Vec<u16>> {
    let sockets =
        (0..count).map(|_| UdpSocket::bind((bind, 0))).collect::<io::Result<Vec<UdpSocket>>>()?;
    sockets.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
}
