//! The gateway's place in the swarms: endpoint, discovery, topics, and fetches between gateways.
//!
//! For each topic there are four tasks — the topic itself, discovery, the
//! fetching of announced events, and the comparing with neighbors — in a group of their own, and one
//! publisher carries the store's log into all of them. A private topic has a swarm and a discovery for
//! each epoch that is read (`private/`). Topics are joined and left while the gateway
//! runs (`membership.rs`).

mod addresses;
mod asking;
mod budget;
pub mod check;
pub mod config;
mod dht;
mod discovery;
mod door;
mod earlier;
mod endpoint;
mod error;
mod failed;
mod fetch;
mod identity;
mod joiner;
mod ladder;
mod left;
mod links;
mod local;
mod membership;
mod net;
mod outbound;
mod pace;
mod peers;
mod phase;
mod private;
mod publisher;
mod record;
mod remembered;
mod retell;
#[cfg(test)]
mod sim;
mod state;
mod swarms;
mod sync;
#[cfg(test)]
mod tests;
mod topic;
mod watch;

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use futures_util::future::join_all;
use iroh::{EndpointId, SecretKey, Watcher as _, address_lookup::memory::MemoryLookup};
use serde::Serialize;
use tokio::{sync::mpsc, time::timeout};
use tracing::Instrument;

pub use error::GossipError;
pub use ladder::{FoundBy, Step, StepResult};
pub use links::Path as PeerPath;
pub use membership::{Joining, Membership, TopicError, VisitRules};
pub use phase::TopicPhase;
pub use private::PrivateStatus;
pub use state::{NeighborStatus, TopicStatus};
pub use sync::SyncProgress;

use self::{
    budget::Budgets,
    config::{DiscoveryConfig, EndpointConfig, SyncConfig},
    dht::SharedDht,
    discovery::Discovery,
    earlier::Earlier,
    failed::FailedTopics,
    fetch::{Connections, Puller, SyncServer, trust::Trust},
    joiner::{Knocker, Unanswered},
    left::LeftTopics,
    links::Links,
    local::LocalPeers,
    net::{Keeper, Net, Plan},
    outbound::{Outbound, Outgoing},
    private::{Circle, Circles, Parts, Tender, Voice},
    publisher::Publisher,
    record::RecordKeys,
    remembered::Remembered,
    retell::Retell,
    state::TopicState,
    swarms::{Swarm, Swarms},
    sync::{Library, StartLibrary, TopicSync},
    topic::Topic,
    watch::Health,
};
use crate::{
    metrics::{Metrics, PhaseLabels},
    pipeline::{
        EventReader, EventWriter, HowJoined, Ingest, JoinedTopics, PeerId, PeerStore,
        PrivateTopics, RotationPolicy, SecretStore, TopicStore, VisitPolicy,
    },
    protocol::{TopicName, limits::Limits, private::MemberId},
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
    pub sync: &'a SyncConfig,
    /// Where the endpoint's key is.
    pub secrets: Arc<dyn SecretStore>,
    /// Where an earlier version may have left `endpoint.key`.
    pub data_dir: &'a Path,
    /// The topics of the configuration. It is kept up to date as topics are joined and left.
    pub joined: JoinedTopics,
    pub private: PrivateTopics,
    /// Where topics that are joined by command or visit are kept.
    pub kept: Arc<dyn TopicStore>,
    /// Where gateways are kept that were reached before.
    pub peers: Arc<dyn PeerStore>,
    pub visits: VisitRules,
    /// Says which topics may be joined by a visit.
    pub visit_policy: Arc<dyn VisitPolicy>,
    pub limits: &'a Limits,
    pub ingest: Ingest,
    pub reader: Arc<dyn EventReader>,
    pub writer: Arc<dyn EventWriter>,
    /// Decides when private topics get new secrets, and how often it is asked.
    pub rotation: Option<(Arc<dyn RotationPolicy>, Duration)>,
    pub metrics: Arc<Metrics>,
    /// The group that this part's own group of tasks is a child of.
    pub tasks: &'a Tasks,
}

/// The running gossip part.
pub struct Gossip {
    id: EndpointId,
    net: Arc<Net>,
    keeper: Arc<Keeper>,
    membership: Arc<Membership>,
    links: Links,
    dht: Option<SharedDht>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

/// Another gateway that is a neighbor in at least one topic.
#[derive(Debug, Clone, Serialize)]
pub struct PeerStatus {
    /// Its endpoint id, hexadecimal.
    pub id: String,
    /// The topics in which it is a neighbor, each with who found it.
    pub topics: BTreeMap<TopicName, FoundBy>,
    /// How it is reached; `null` in the moment in which a connection is made or lost.
    #[serde(flatten)]
    pub path: Option<PeerPath>,
}

impl Gossip {
    /// Opens the endpoint and joins all topics, those of the last run too. Returns once the endpoint's sockets are open; names
    /// are resolved and neighbors are found in the background, and a network that is away is waited
    /// for.
    ///
    /// # Errors
    /// When the endpoint's key is not to be had, the UDP address cannot be bound, a setting is
    /// malformed, or the topics of the last run cannot be read.
    pub async fn start(start: StartGossip<'_>) -> Result<Self, GossipError> {
        let key = identity::load_or_create(&*start.secrets, start.data_dir).await?;
        let (configured, addresses) = peers::parse_all(&start.discovery.peers)?;
        let circles = Circles::new(MemberId(*key.public().as_bytes()));
        let known = addresses.clone();
        let links = Links::default();
        let hints = MemoryLookup::with_provenance("remembered");
        let plan = Plan {
            endpoint: start.endpoint.clone(),
            discovery: start.discovery.clone(),
            key: key.clone(),
            configured: addresses,
            remembered: hints.clone(),
            links: links.clone(),
        };
        let net = Net::new(plan.build().await?);
        let id = net.endpoint().id();
        let tasks = start.tasks.child();
        let trust = Arc::new(Trust::new(start.sync.max_bytes_per_minute, start.metrics.clone()));
        let (connections, opened) = Connections::new(net.clone());
        let connections = Arc::new(connections);
        let max_event_bytes = start.limits.max_event_bytes + SLACK;
        let library = Library::new(StartLibrary {
            me: id,
            reader: start.reader.clone(),
            writer: start.writer,
            ingest: start.ingest.clone(),
            connections: connections.clone(),
            trust: trust.clone(),
            max_event_bytes,
            max_future_s: start.limits.max_future_s,
            max_past_s: start.limits.max_past_s,
            interval: Duration::from_secs(start.sync.interval_s),
            metrics: start.metrics.clone(),
        });
        let server = SyncServer::new(
            start.joined.clone(),
            circles.clone(),
            start.reader.clone(),
            library.clone(),
            trust.clone(),
            start.metrics.clone(),
        );
        let swarms: Arc<Swarms> = Arc::default();
        let health: Arc<Health> = Arc::default();
        let metrics = start.metrics.clone();
        tasks.spawn("connections", server.clone().listen(opened, tasks.clone()));
        let keeper =
            Keeper::new(plan, net.clone(), server, swarms.clone(), health.clone(), metrics);
        tracing::info!(%id, addresses = ?net.endpoint().bound_sockets(), "endpoint open");

        let local = (start.discovery.mdns)
            .then(|| local::follow(net.clone(), &start.discovery.mdns_service, &tasks))
            .flatten();
        let dht =
            (start.discovery.dht).then(|| SharedDht::start(start.discovery, net.clone(), &tasks));
        let (knock, knocks) = mpsc::channel(joiner::QUEUE);
        let shared = Shared {
            net: net.clone(),
            connections,
            trust,
            library: library.clone(),
            me: signing_key(&key),
            id,
            config: Arc::new(start.discovery.clone()),
            configured: configured.into(),
            dht: dht.clone(),
            local,
            peers: start.peers,
            links: links.clone(),
            hints,
            max_event_bytes,
            ingest: start.ingest.clone(),
            reader: start.reader.clone(),
            metrics: start.metrics.clone(),
            knock,
            budgets: Arc::default(),
            health,
            tasks: tasks.clone(),
        };
        let health = shared.health.clone();
        tasks.spawn("watch", keeper.clone().run(tasks.token().clone()));
        let (publisher, lanes) =
            Publisher::new(start.reader, start.ingest.passing(), start.metrics.clone());
        tasks.spawn("publisher", publisher.run(tasks.token().clone()));
        let knocker = Knocker { net: net.clone(), swarms: swarms.clone() };
        tasks.spawn("knocker", knocker.run(knocks, tasks.token().clone()));
        let membership = Arc::new(Membership {
            shared,
            circles,
            known,
            net: net.clone(),
            links: links.clone(),
            secrets: start.secrets,
            swarms,
            joined: start.joined,
            private: start.private,
            store: start.kept,
            lanes,
            visits: start.visits,
            visit_policy: start.visit_policy,
            asking: tokio::sync::Mutex::default(),
            left: LeftTopics::default(),
            failed: FailedTopics::new(start.metrics.clone()),
            changing: tokio::sync::Mutex::default(),
        });
        membership.start().await?;
        tasks.spawn("idle topics", membership.clone().leave_idle(tasks.token().clone()));
        if let Some((policy, pause)) = start.rotation {
            let swarms = membership.swarms.clone();
            let asking = private::ask_on_and_on(swarms, policy, pause, tasks.token().clone());
            tasks.spawn("rotation policy", asking);
        }
        let metrics = start.metrics;
        Ok(Self { id, net, keeper, membership, links, dht, health, metrics, tasks })
    }

    /// Joins and leaves topics.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Our endpoint id.
    pub fn endpoint_id(&self) -> PeerId {
        peer_id(&self.id)
    }

    /// Addresses under which we can be reached, as far as known: those of the local interfaces, and
    /// those seen from outside or configured.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.net.endpoint().addr().ip_addrs().copied().collect()
    }

    /// The iroh relays that we are connected to.
    pub fn iroh_relays(&self) -> Vec<String> {
        let mut relays = self.net.endpoint().home_relay_status();
        let relays = relays.get();
        let connected = relays.iter().filter(|relay| relay.is_connected());
        connected.map(|relay| relay.url().to_string()).collect()
    }

    /// How each topic is doing, in alphabetical order. Those that could not be joined again are among
    /// them.
    pub fn status(&self) -> Vec<TopicStatus> {
        let mut topics: Vec<_> = self.membership.swarms.all().iter().map(Swarm::status).collect();
        topics.extend(self.membership.failed.all());
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// How one topic is doing that we are in.
    pub fn topic(&self, name: &TopicName) -> Option<TopicStatus> {
        self.membership.swarms.get(name).map(|swarm| swarm.status())
    }

    /// The same of one that could not be joined again.
    pub fn failed_topic(&self, name: &TopicName) -> Option<TopicStatus> {
        self.membership.failed.get(name)
    }

    /// The neighbors in all topics, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut peers: BTreeMap<EndpointId, BTreeMap<TopicName, FoundBy>> = BTreeMap::new();
        for swarm in self.membership.swarms.all() {
            for (id, found_by) in swarm.state.sources() {
                peers.entry(id).or_default().insert(swarm.state.name().clone(), found_by);
            }
        }
        let status = |(id, topics): (EndpointId, _)| PeerStatus {
            id: id.to_string(),
            topics,
            path: self.links.path(&id),
        };
        peers.into_iter().map(status).collect()
    }

    /// Brings the figures up to date that nobody counts as they change.
    pub fn measure(&self) {
        // In one go with the list: a topic that is left meanwhile is forgotten after it.
        self.membership.swarms.each(|swarm| {
            let now = swarm.state.phase();
            for phase in TopicPhase::ALL {
                let labels =
                    PhaseLabels { topic: swarm.state.name().to_string(), state: phase.name() };
                let gauge = self.metrics.topic_state.get_or_create_owned(&labels);
                gauge.set(i64::from(phase == now));
            }
        });
        self.membership.failed.measure();
    }

    /// What does not work at the moment and is being replaced, if anything. For health checks.
    pub fn trouble(&self) -> Option<&'static str> {
        self.health.trouble()
    }

    /// Leaves the topics, tells the neighbors so, and closes the endpoint. Takes at most nine
    /// seconds.
    pub async fn shutdown(&self) {
        // First the token that all topics hear of, so that they end together.
        let ended = self.tasks.stop(STOP_TASKS).await;
        let topics = self.membership.swarms.all();
        let topics = join_all(topics.iter().map(|swarm| swarm.tasks.stop(STOP_TASKS))).await;
        if !ended || topics.contains(&false) {
            tracing::warn!("some tasks of the topics did not end in time");
        }
        // Before the endpoint closes: the neighbors then need not wait for a time-out.
        match timeout(LEAVE, self.net.gossip().shutdown()).await {
            Ok(Ok(())) => tracing::info!("left all topics"),
            _ => tracing::warn!("could not take leave of the neighbors"),
        }
        if timeout(CLOSE, self.keeper.router().shutdown()).await.is_err() {
            tracing::warn!("the endpoint did not close in time");
        }
    }
}

/// What the topics have in common.
struct Shared {
    net: Arc<Net>,
    connections: Arc<Connections>,
    trust: Arc<Trust>,
    library: Arc<Library>,
    me: SigningKey,
    id: EndpointId,
    config: Arc<DiscoveryConfig>,
    configured: Arc<[EndpointId]>,
    dht: Option<SharedDht>,
    local: Option<LocalPeers>,
    peers: Arc<dyn PeerStore>,
    links: Links,
    /// Addresses of remembered peers, for iroh.
    hints: MemoryLookup,
    max_event_bytes: usize,
    ingest: Ingest,
    reader: Arc<dyn EventReader>,
    metrics: Arc<Metrics>,
    knock: mpsc::Sender<Unanswered>,
    budgets: Arc<Budgets>,
    health: Arc<Health>,
    tasks: Tasks,
}

impl Shared {
    /// Starts the tasks of one topic. Returns with the way of its events out.
    fn join(
        &self,
        name: &TopicName,
        how: HowJoined,
        joined_at: u64,
    ) -> (Swarm, mpsc::Sender<Outgoing>) {
        let keys = RecordKeys::public(name);
        let state = Arc::new(TopicState::new(name.clone(), self.metrics.clone()));
        let (queue, outgoing) = mpsc::channel(outbound::QUEUE);
        let (join, found) = mpsc::channel(JOIN_QUEUE);
        let (announced, announcements) = mpsc::channel(ANNOUNCED_QUEUE);
        let (retell, retold) = Retell::new(state.clone());
        let topic = Topic {
            me: self.id,
            id: keys.gossip_id(),
            net: self.net.clone(),
            state: state.clone(),
            ingest: self.ingest.clone(),
            voice: Voice::Own(Box::new(Outbound::new(
                outgoing,
                retold,
                state.clone(),
                self.metrics.clone(),
            ))),
            seal: None,
            join: found,
            knock: self.knock.clone(),
            announced,
            budgets: self.budgets.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
        };
        let puller = Puller {
            state: state.clone(),
            reader: self.reader.clone(),
            ingest: self.ingest.clone(),
            connections: self.connections.clone(),
            trust: self.trust.clone(),
            retell: retell.clone(),
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
        let earlier = self.earlier(&state, &join);
        let (desk, calls) = self.library.open(state.clone(), retell);
        let sync = TopicSync { library: self.library.clone(), desk };
        let tasks = self.tasks.child();
        let token = || tasks.token().clone();
        let span = tracing::info_span!("topic", %name);
        tasks.spawn("topic", topic.run(token()).instrument(span.clone()));
        tasks.spawn("fetch", puller.run(announcements, token()).instrument(span.clone()));
        tasks.spawn("sync", sync.run(calls, token()).instrument(span.clone()));
        tasks.spawn("discovery", discovery.run(token()).instrument(span.clone()));
        tasks.spawn("remembered", earlier.run(token()).instrument(span));
        (Swarm { state, join, how, joined_at, tasks }, queue)
    }

    /// What asks the neighbors of earlier runs, and remembers those of now.
    fn earlier(&self, state: &Arc<TopicState>, join: &mpsc::Sender<Vec<EndpointId>>) -> Earlier {
        let (peers, links, hints) = (self.peers.clone(), self.links.clone(), self.hints.clone());
        Earlier {
            id: self.id,
            config: self.config.clone(),
            remembered: Remembered::new(peers, state.clone(), links, hints),
            state: state.clone(),
            join: join.clone(),
        }
    }

    /// Starts the tasks of a private topic. `first` is where the holder of an invite begins.
    fn join_private(
        &self,
        circle: &Arc<Circle>,
        first: Vec<EndpointId>,
    ) -> (Swarm, mpsc::Sender<Outgoing>) {
        let state = Arc::new(TopicState::private(circle.clone(), self.metrics.clone()));
        let (queue, outgoing) = mpsc::channel(outbound::QUEUE);
        let (meet, found) = mpsc::channel(JOIN_QUEUE);
        let (announced, announcements) = mpsc::channel(ANNOUNCED_QUEUE);
        let retell = Retell::off(state.clone());
        let tasks = self.tasks.child();
        let puller = Puller {
            state: state.clone(),
            reader: self.reader.clone(),
            ingest: self.ingest.clone(),
            connections: self.connections.clone(),
            trust: self.trust.clone(),
            retell: retell.clone(),
            max_event_bytes: self.max_event_bytes,
            metrics: self.metrics.clone(),
        };
        let parts = Parts {
            me: self.me.clone(),
            id: self.id,
            net: self.net.clone(),
            config: self.config.clone(),
            dht: self.dht.clone(),
            ingest: self.ingest.clone(),
            knock: self.knock.clone(),
            announced,
            budgets: self.budgets.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            state: state.clone(),
            meet: meet.clone(),
            tasks: tasks.clone(),
        };
        let tender = Tender {
            circle: circle.clone(),
            parts,
            connections: self.connections.clone(),
            outbound: Outbound::new(
                outgoing,
                mpsc::channel(1).1,
                state.clone(),
                self.metrics.clone(),
            ),
            found,
            first,
        };
        let (desk, calls) = self.library.open(state.clone(), retell);
        let sync = TopicSync { library: self.library.clone(), desk };
        let token = || tasks.token().clone();
        let span = tracing::info_span!("topic", name = %state.name());
        tasks.spawn("private topic", tender.run(token()).instrument(span.clone()));
        tasks.spawn("fetch", puller.run(announcements, token()).instrument(span.clone()));
        tasks.spawn("sync", sync.run(calls, token()).instrument(span.clone()));
        let earlier = self.earlier(&state, &meet);
        tasks.spawn("remembered", earlier.run(token()).instrument(span));
        let (how, joined_at) = (HowJoined::Command, circle.keep().joined_at());
        (Swarm { state, join: meet, how, joined_at, tasks }, queue)
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
