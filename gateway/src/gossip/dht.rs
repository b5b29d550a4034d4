//! One Mainline client for all topics.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use mainline::{DEFAULT_BOOTSTRAP_NODES, Dht, async_dht::AsyncDht};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{config::DiscoveryConfig, endpoint, net::Net};
use crate::tasks::{self, Tasks};

/// Pauses between attempts to resolve the bootstrap nodes.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The client, once it is there. Cheap to clone.
#[derive(Clone)]
pub struct SharedDht(watch::Receiver<Option<AsyncDht>>);

impl SharedDht {
    /// Starts to build the client in the background: names are resolved synchronously, and without
    /// a working DNS that takes many seconds. Returns at once; tries for ever.
    ///
    /// As soon as the names are known, the endpoint's address lookup in the DHT is added too, and
    /// again to an endpoint that replaces it.
    pub fn start(config: &DiscoveryConfig, net: Arc<Net>, tasks: &Tasks) -> Self {
        let (ready, client) = watch::channel(None);
        let names = names(config);
        let private_too = config.dht_private_addresses;
        let token = tasks.token().clone();
        tasks.spawn("dht", async move {
            let building = build(names, &net, private_too, &ready);
            token.run_until_cancelled(building).await;
        });
        Self(client)
    }

    /// The client, if it is there already.
    pub fn now(&self) -> Option<AsyncDht> {
        self.0.borrow().clone()
    }

    /// Waits for the client. `None` at shutdown.
    pub async fn ready(&mut self, token: &CancellationToken) -> Option<AsyncDht> {
        let waiting = self.0.wait_for(Option::is_some);
        token.run_until_cancelled(waiting).await?.ok().and_then(|found| found.clone())
    }
}

/// The nodes to start from.
pub fn names(config: &DiscoveryConfig) -> Vec<String> {
    match config.dht_bootstrap.as_slice() {
        [] => DEFAULT_BOOTSTRAP_NODES.map(str::to_owned).to_vec(),
        names => names.to_vec(),
    }
}

async fn build(
    names: Vec<String>,
    net: &Net,
    private_too: bool,
    ready: &watch::Sender<Option<AsyncDht>>,
) {
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        match attempt(names.clone()).await {
            Ok((client, bootstrap)) => {
                tracing::info!(bootstrap = bootstrap.len(), "the Mainline DHT client is ready");
                ready.send_replace(Some(client));
                let mut stacks = net.follow();
                loop {
                    {
                        // Not held while waiting: the old one is to go.
                        let endpoint = stacks.borrow_and_update().endpoint.clone();
                        endpoint::add_dht(&endpoint, &bootstrap, private_too);
                    }
                    if stacks.changed().await.is_err() {
                        return;
                    }
                }
            }
            Err(reason) if !told => {
                told = true;
                tracing::warn!(reason, "the Mainline DHT cannot be used yet; trying again");
            }
            Err(reason) => tracing::debug!(reason, "the Mainline DHT cannot be used yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Resolves the names and opens the client's socket.
pub async fn attempt(names: Vec<String>) -> Result<(AsyncDht, Vec<SocketAddr>), String> {
    let done = tasks::blocking(move || {
        let bootstrap = resolve(&names);
        if bootstrap.is_empty() {
            // A client without any would never find the DHT, not even when DNS works again.
            return Err("none of the bootstrap nodes has an IPv4 address".to_owned());
        }
        let mut builder = Dht::builder();
        builder.bootstrap(&bootstrap);
        let dht = builder.build().map_err(|error| error.to_string())?;
        Ok((dht.as_async(), bootstrap))
    });
    done.await.map_err(|error| error.to_string())?
}

/// Blocks. Mainline speaks IPv4 only.
fn resolve(names: &[String]) -> Vec<SocketAddr> {
    let resolved = names.iter().filter_map(|name| name.to_socket_addrs().ok()).flatten();
    resolved.filter(SocketAddr::is_ipv4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_do_not_resolve_are_a_reason_to_wait() {
        let reason = attempt(vec!["no-port".into(), "[::1]:6881".into()]).await.map(drop);
        assert!(reason.unwrap_err().contains("bootstrap"));
    }
}
