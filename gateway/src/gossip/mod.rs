//! The gateway's place in the swarms: endpoint, discovery, topics, and fetches between gateways.
//!
//! Public topics only so far. For each topic there are three tasks — the topic itself, discovery, and
//! the fetching of announced events — and one publisher carries the store's log into all of them.

mod addresses;
pub mod config;
mod dht;
mod discovery;
mod door;
mod endpoint;
mod error;
mod fetch;
mod identity;
mod joiner;
mod local;
mod outbound;
mod pace;
mod peers;
mod publisher;
mod record;
#[cfg(test)]
mod sim;
mod state;
#[cfg(test)]
mod tests;
mod topic;
mod watch;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use iroh::{Endpoint, EndpointId, SecretKey, protocol::Router};
use tokio::{sync::mpsc, time::timeout};
use tracing::Instrument;

pub use error::GossipError;
pub use state::{FoundBy, NeighborStatus, Step, StepResult, TopicPhase, TopicStatus};

use self::{
    config::{DiscoveryConfig, EndpointConfig},
    dht::SharedDht,
    discovery::Discovery,
    door::GossipDoor,
    fetch::{Connections, FetchServer, Puller},
    joiner::{Knocker, TopicEntrance},
    local::LocalPeers,
    outbound::{Outbound, Outgoing},
    publisher::Publisher,
    record::RecordKeys,
    state::TopicState,
    topic::Topic,
    watch::Health,
};
use crate::{
    metrics::Metrics,
    pipeline::{EventReader, Ingest, JoinedTopics, PeerId},
    protocol::{TopicName, frame::SYNC_ALPN, limits::Limits},
    tasks::Tasks,
};

/// The largest gossip message, header included. Every member must use the same: a larger one on one
/// side breaks the other.
const GOSSIP_MESSAGE: usize = 4_096;

/// Bounds of the queues within a topic. Discovery repeats itself and drops what does not fit; of
/// announcements what does not fit is counted and dropped.
const JOIN_QUEUE: usize = 16;
const ANNOUNCED_QUEUE: usize = 256;

/// What a fetched event may be longer than `limits.max_event_bytes`: a peer's JSON may hold fields
/// that our canonical form drops.
const SLACK: usize = 1_024;

/// Deadlines at shutdown: for our tasks, for leaving the topics, for closing the endpoint.
const STOP_TASKS: Duration = Duration::from_secs(2);
const LEAVE: Duration = Duration::from_secs(2);
const CLOSE: Duration = Duration::from_secs(3);

/// What [`Gossip::start`] needs.
pub struct StartGossip<'a> {
    pub endpoint: &'a EndpointConfig,
    pub discovery: &'a DiscoveryConfig,
    /// Where `endpoint.key` is.
    pub data_dir: &'a Path,
    /// The public topics to be in.
    pub joined: JoinedTopics,
    pub limits: &'a Limits,
    pub ingest: Ingest,
    pub reader: Arc<dyn EventReader>,
    pub metrics: Arc<Metrics>,
    /// The group that this part's own group of tasks is a child of.
    pub tasks: &'a Tasks,
}

/// The running gossip part.
pub struct Gossip {
    endpoint: Endpoint,
    gossip: iroh_gossip::net::Gossip,
    router: Router,
    topics: Vec<Arc<TopicState>>,
    health: Arc<Health>,
    tasks: Tasks,
}

impl Gossip {
    /// Opens the endpoint and joins all topics. Returns once the endpoint's sockets are open; names
    /// are resolved and neighbors are found in the background, and a network that is away is waited
    /// for.
    ///
    /// # Errors
    /// When the key file is damaged, the UDP address cannot be bound, or a setting is malformed.
    pub async fn start(start: StartGossip<'_>) -> Result<Self, GossipError> {
        let key = identity::load_or_create(start.data_dir)?;
        let (configured, addresses) = peers::parse_all(&start.discovery.peers)?;
        let endpoint =
            endpoint::bind(start.endpoint, start.discovery, key.clone(), addresses).await?;
        let tasks = start.tasks.child();
        let gossip = iroh_gossip::net::Gossip::builder()
            .max_message_size(GOSSIP_MESSAGE)
            .spawn(endpoint.clone());
        let server =
            FetchServer::new(start.joined.clone(), start.reader.clone(), start.metrics.clone());
        let router = Router::builder(endpoint.clone())
            .accept(iroh_gossip::ALPN, GossipDoor::new(gossip.clone()))
            .accept(SYNC_ALPN, server)
            .spawn();
        tracing::info!(id = %endpoint.id(), addresses = ?endpoint.bound_sockets(), "endpoint open");

        let local = (start.discovery.mdns)
            .then(|| endpoint::add_mdns(&endpoint, &start.discovery.mdns_service))
            .flatten()
            .map(|mdns| local::follow(mdns, &tasks));
        let dht = (start.discovery.dht)
            .then(|| SharedDht::start(start.discovery, endpoint.clone(), &tasks));
        let (knock, knocks) = mpsc::channel(joiner::QUEUE);
        let shared = Shared {
            gossip: gossip.clone(),
            connections: Arc::new(Connections::new(endpoint.clone())),
            me: signing_key(&key),
            id: endpoint.id(),
            config: Arc::new(start.discovery.clone()),
            configured: configured.into(),
            dht,
            local,
            max_event_bytes: start.limits.max_event_bytes + SLACK,
            ingest: start.ingest.clone(),
            reader: start.reader.clone(),
            metrics: start.metrics.clone(),
            knock,
            health: Arc::default(),
            tasks: tasks.clone(),
        };
        let health = shared.health.clone();
        let watch = watch::watch(router.clone(), health.clone(), tasks.token().clone());
        tasks.spawn("watch", watch);
        let (mut entrances, mut lanes) = (Vec::new(), Vec::new());
        for name in start.joined.all().iter() {
            let (entrance, queue) = shared.join(name);
            entrances.push(entrance);
            lanes.push((name.clone(), queue));
        }
        let topics = entrances.iter().map(|(state, _)| state.clone()).collect();
        let knocker = Knocker { endpoint: endpoint.clone(), topics: entrances };
        tasks.spawn("knocker", knocker.run(knocks, tasks.token().clone()));
        let publisher = Publisher::new(start.reader, start.ingest.passing(), lanes, start.metrics);
        tasks.spawn("publisher", publisher.run(tasks.token().clone()));
        Ok(Self { endpoint, gossip, router, topics, health, tasks })
    }

    /// Our endpoint id.
    pub fn endpoint_id(&self) -> PeerId {
        peer_id(&self.endpoint.id())
    }

    /// Addresses under which we can be reached, as far as known: those of the local interfaces, and
    /// those seen from outside or configured.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoint.addr().ip_addrs().copied().collect()
    }

    /// How each topic is doing, in alphabetical order.
    pub fn status(&self) -> Vec<TopicStatus> {
        self.topics.iter().map(|topic| topic.status()).collect()
    }

    /// What has died and needs a restart, if anything. For health checks.
    pub fn trouble(&self) -> Option<&'static str> {
        self.health.trouble()
    }

    /// Leaves the topics, tells the neighbors so, and closes the endpoint. Takes at most seven
    /// seconds.
    pub async fn shutdown(&self) {
        if !self.tasks.stop(STOP_TASKS).await {
            tracing::warn!("some tasks of the topics did not end in time");
        }
        // Before the endpoint closes: the neighbors then need not wait for a time-out.
        match timeout(LEAVE, self.gossip.shutdown()).await {
            Ok(Ok(())) => tracing::info!("left all topics"),
            _ => tracing::warn!("could not take leave of the neighbors"),
        }
        if timeout(CLOSE, self.router.shutdown()).await.is_err() {
            tracing::warn!("the endpoint did not close in time");
        }
    }
}

/// What the topics have in common.
struct Shared {
    gossip: iroh_gossip::net::Gossip,
    connections: Arc<Connections>,
    me: SigningKey,
    id: EndpointId,
    config: Arc<DiscoveryConfig>,
    configured: Arc<[EndpointId]>,
    dht: Option<SharedDht>,
    local: Option<LocalPeers>,
    max_event_bytes: usize,
    ingest: Ingest,
    reader: Arc<dyn EventReader>,
    metrics: Arc<Metrics>,
    knock: mpsc::Sender<EndpointId>,
    health: Arc<Health>,
    tasks: Tasks,
}

impl Shared {
    /// Starts the tasks of one topic.
    fn join(&self, name: &TopicName) -> (TopicEntrance, mpsc::Sender<Outgoing>) {
        let keys = RecordKeys::public(name);
        let state = Arc::new(TopicState::new(name.clone(), self.metrics.clone()));
        let (queue, outgoing) = mpsc::channel(outbound::QUEUE);
        let (join, found) = mpsc::channel(JOIN_QUEUE);
        let (announced, announcements) = mpsc::channel(ANNOUNCED_QUEUE);
        let topic = Topic {
            me: self.id,
            id: keys.gossip_id(),
            gossip: self.gossip.clone(),
            state: state.clone(),
            ingest: self.ingest.clone(),
            outbound: Outbound::new(outgoing, state.clone(), self.metrics.clone()),
            join: found,
            knock: self.knock.clone(),
            announced,
            health: self.health.clone(),
            metrics: self.metrics.clone(),
        };
        let puller = Puller {
            state: state.clone(),
            reader: self.reader.clone(),
            ingest: self.ingest.clone(),
            connections: self.connections.clone(),
            max_event_bytes: self.max_event_bytes,
            metrics: self.metrics.clone(),
        };
        let discovery = Discovery {
            keys,
            me: self.me.clone(),
            id: self.id,
            config: self.config.clone(),
            dht: self.dht.clone(),
            configured: self.configured.clone(),
            local: self.local.clone(),
            state: state.clone(),
            join: join.clone(),
            metrics: self.metrics.clone(),
        };
        let token = || self.tasks.token().clone();
        let span = tracing::info_span!("topic", %name);
        self.tasks.spawn("topic", topic.run(token()).instrument(span.clone()));
        self.tasks.spawn("fetch", puller.run(announcements, token()).instrument(span.clone()));
        self.tasks.spawn("discovery", discovery.run(token()).instrument(span));
        ((state, join), queue)
    }
}

/// An endpoint id as the pipeline names it.
fn peer_id(id: &EndpointId) -> PeerId {
    PeerId(*id.as_bytes())
}

/// Discovery records are signed with the endpoint's own key: they prove who left them.
fn signing_key(key: &SecretKey) -> SigningKey {
    SigningKey::from_bytes(&key.to_bytes())
}
