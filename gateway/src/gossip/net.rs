//! The iroh stack that all topics stand on — endpoint, gossip, router — and another one in its place
//! when it has died or takes nothing any more.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use iroh::{Endpoint, SecretKey, address_lookup::memory::MemoryLookup, protocol::Router};
use iroh_gossip::net::Gossip;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    GOSSIP_MESSAGE, GossipError,
    config::{DiscoveryConfig, EndpointConfig},
    door::GossipDoor,
    endpoint,
    fetch::SyncServer,
    links::Links,
    swarms::Swarms,
    watch::Health,
};
use crate::{
    metrics::{CauseLabels, Metrics},
    protocol::frame::SYNC_ALPN,
};

/// What is said of an endpoint that could not be opened again where it belongs.
const DISPLACED: &str = "the endpoint is not at endpoint.bind";

const LOOK: Duration = Duration::from_secs(1);
/// Pauses between two attempts; each is twice as long as the one before, until all went well for
/// [`CALM`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const CALM: Duration = Duration::from_secs(600);
/// What the old stack gets to end.
const END: Duration = Duration::from_secs(8);

/// What is replaced together.
#[derive(Clone)]
pub struct Stack {
    pub endpoint: Endpoint,
    pub gossip: Gossip,
    /// Where it was opened; a closed endpoint does not know any more.
    at: Option<SocketAddr>,
}

/// The stack of now, for all that opens connections or joins topics.
pub struct Net(watch::Sender<Stack>);

impl Net {
    pub fn new(stack: Stack) -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(stack)))
    }

    pub fn endpoint(&self) -> Endpoint {
        self.0.borrow().endpoint.clone()
    }

    pub fn gossip(&self) -> Gossip {
        self.0.borrow().gossip.clone()
    }

    /// Changes when there is another one.
    pub fn follow(&self) -> watch::Receiver<Stack> {
        self.0.subscribe()
    }
}

/// What a stack is built from.
pub struct Plan {
    pub endpoint: EndpointConfig,
    pub discovery: DiscoveryConfig,
    pub key: SecretKey,
    pub configured: MemoryLookup,
    /// Addresses of earlier neighbors, which change.
    pub remembered: MemoryLookup,
    pub links: Links,
}

impl Plan {
    /// Opens an endpoint, on `at` if that is to be had, else on any port.
    ///
    /// # Errors
    /// As [`endpoint::bind`].
    async fn build_again(&self, at: Option<SocketAddr>) -> Result<Stack, GossipError> {
        if let Some(bind) = at
            && let Ok(stack) = self.build_on(bind).await
        {
            return Ok(stack);
        }
        let ip = self.endpoint.bind.ip();
        self.build_on(SocketAddr::new(ip, 0)).await
    }

    /// Opens the endpoint as it is configured.
    ///
    /// # Errors
    /// As [`endpoint::bind`].
    pub async fn build(&self) -> Result<Stack, GossipError> {
        self.build_on(self.endpoint.bind).await
    }

    async fn build_on(&self, bind: SocketAddr) -> Result<Stack, GossipError> {
        let config = EndpointConfig { bind, ..self.endpoint.clone() };
        let endpoint = self.open(&config).await?;
        let gossip = Gossip::builder().max_message_size(GOSSIP_MESSAGE).spawn(endpoint.clone());
        let at = endpoint.bound_sockets().first().copied();
        Ok(Stack { endpoint, gossip, at })
    }

    async fn open(&self, config: &EndpointConfig) -> Result<Endpoint, GossipError> {
        let (key, configured) = (self.key.clone(), self.configured.clone());
        let endpoint =
            endpoint::bind(config, &self.discovery, key, configured, self.links.clone()).await?;
        endpoint::add_hints(&endpoint, self.remembered.clone());
        Ok(endpoint)
    }
}

/// Watches over the stack, and replaces it.
pub struct Keeper {
    pub plan: Plan,
    pub net: Arc<Net>,
    pub server: SyncServer,
    /// Whose neighbors keep their connections.
    pub swarms: Arc<Swarms>,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
    router: Mutex<Router>,
}

impl Keeper {
    /// Lets others connect to the stack.
    pub fn new(
        plan: Plan,
        net: Arc<Net>,
        server: SyncServer,
        swarms: Arc<Swarms>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let stack = net.0.borrow().clone();
        let router = Mutex::new(route(&stack, &server, &swarms));
        Arc::new(Self { plan, net, server, swarms, health, metrics, router })
    }

    /// The router of now.
    pub fn router(&self) -> Router {
        self.lock().clone()
    }

    /// Looks until shutdown.
    pub async fn run(self: Arc<Self>, token: CancellationToken) {
        token.run_until_cancelled(self.watch()).await;
    }

    async fn watch(&self) {
        let mut pause = FIRST_PAUSE;
        let mut tried: Option<Instant> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            if self.router().is_shutdown() || self.net.endpoint().is_closed() {
                self.health.router_ended();
            }
            let Some(trouble) = self.health.trouble().or_else(|| self.displaced()) else {
                if tried.is_some_and(|at| at.elapsed() > CALM) {
                    (pause, tried) = (FIRST_PAUSE, None);
                }
                continue;
            };
            if let Some(at) = tried {
                if at.elapsed() < pause {
                    continue;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            tried = Some(Instant::now());
            tracing::error!("{trouble}; building the endpoint anew");
            self.metrics.rebuilds.get_or_create(&CauseLabels { cause: trouble }).inc();
            match self.rebuild().await {
                Ok(()) => tracing::info!("the endpoint is open again; joining all topics anew"),
                Err(error) => tracing::error!(%error, "the endpoint cannot be opened again yet"),
            }
        }
    }

    /// The old socket goes with its last user, so that the fixed port may have been taken still.
    fn displaced(&self) -> Option<&'static str> {
        let wanted = self.plan.endpoint.bind.port();
        let at = self.net.0.borrow().at.map(|at| at.port());
        (wanted != 0 && at.is_some_and(|at| at != wanted)).then_some(DISPLACED)
    }

    async fn rebuild(&self) -> Result<(), GossipError> {
        let old = self.net.0.borrow().clone();
        // Not by the router: it asks gossip to end first, which may not answer any more. With the
        // endpoint gone, the router ends by itself.
        let _ = timeout(END, old.endpoint.close()).await;
        let fixed = Some(self.plan.endpoint.bind).filter(|bind| bind.port() != 0);
        let at = fixed.or(old.at);
        drop(old);
        let stack = self.plan.build_again(at).await?;
        *self.lock() = route(&stack, &self.server, &self.swarms);
        self.health.rebuilt();
        self.net.0.send_replace(stack);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn route(stack: &Stack, server: &SyncServer, swarms: &Arc<Swarms>) -> Router {
    Router::builder(stack.endpoint.clone())
        .accept(iroh_gossip::ALPN, GossipDoor::new(stack.gossip.clone(), swarms.clone()))
        .accept(SYNC_ALPN, server.clone())
        .spawn()
}
