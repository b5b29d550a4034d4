//! The private DHT, as a process of its own.

use std::{path::Path, process::Command, time::Duration};

use crate::{Child, Namespace};

/// A running `dht-testnet`.
pub struct Testnet {
    /// `IP:PORT` of every node.
    pub bootstrap: Vec<String>,
    _child: Child,
}

impl Testnet {
    /// On loopback, on free ports.
    pub async fn on_loopback(binary: &str) -> Self {
        let mut command = Command::new(binary);
        command.arg("--any-port");
        Self::start(command).await
    }

    /// In a namespace, on the ports that programs with built-in bootstrap nodes ask.
    pub async fn in_namespace(binary: &str, namespace: &Namespace) -> Self {
        let mut command = namespace.command(Path::new(binary));
        command.args(["--bind", &namespace.address().to_string()]);
        Self::start(command).await
    }

    async fn start(command: Command) -> Self {
        let child = Child::spawn("dht-testnet", command);
        child.stdout_line(Duration::from_secs(20), |line| line == "ready").await;
        let line = child.stdout_line(Duration::ZERO, |line| line.starts_with("bootstrap ")).await;
        let bootstrap = line["bootstrap ".len()..].split(',').map(str::to_owned).collect();
        Self { bootstrap, _child: child }
    }
}
