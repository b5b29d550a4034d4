//! The clock, the nodes, and what happens next.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    time::Duration,
};

use iroh::{EndpointId, SecretKey};
use iroh_gossip::{
    TopicId,
    proto::{Command, Config, InEvent, PeerData, State},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_of_gossip::{SeedableRng as _, rngs::StdRng as GossipRandom};
use tokio::time::Instant;

use super::{
    happening::Happening,
    links::{Dht, Links, mix},
    shell::{Conn, Peer},
};
use crate::{
    gossip::{
        GOSSIP_MESSAGE,
        config::{DiscoveryConfig, SyncConfig},
        door::Guests,
        fetch::schedule::Schedule,
        joiner::{Asked, Disturbed},
        outbound::{Lineup, Outgoing},
        record::Sighting,
        sync::{plans::Plans, turns::Turns},
    },
    protocol::{Event, EventId},
};

pub const TOPIC: TopicId = TopicId::from_bytes([7; 32]);
/// Unix time at the begin.
const UNIX: u64 = 1_800_000_000;
/// As `endpoint.rs` has it.
pub const IDLE: Duration = Duration::from_secs(6);

/// What can be switched off, to see what it is good for.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Endpoints that do not answer a join are asked anew.
    pub asks_anew: bool,
    /// We dial them ourselves, and hand the connection to gossip.
    pub hands_over: bool,
    /// The DHT is there.
    pub dht: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { asks_anew: true, hands_over: true, dht: true }
    }
}

/// One gateway in one topic.
pub struct Node {
    pub id: EndpointId,
    /// Counts its starts; what was under way for an earlier one is void.
    pub life: u32,
    pub alive: bool,
    // iroh-gossip's
    pub gossip: State<EndpointId, GossipRandom>,
    pub peers: BTreeMap<usize, Peer>,
    pub dialing: BTreeSet<usize>,
    // ours
    pub guests: Guests,
    /// The connections that the door let in.
    pub inside: BTreeMap<u64, usize>,
    pub neighbors: BTreeSet<EndpointId>,
    pub alone_since: Duration,
    pub asked: Asked,
    pub disturbed: Disturbed,
    /// Connections that gossip was given.
    pub handed: BTreeMap<usize, usize>,
    /// The peers that a user configured.
    pub configured: Vec<EndpointId>,
    /// The look that counts; an earlier one was cut short.
    pub look: u64,
    pub looked: bool,
    /// The same for asking the configured peers.
    pub ask: u64,
    pub published: Option<(u64, Duration)>,
    pub waiting: Vec<Outgoing>,
    pub lineup: Lineup,
    pub sending: bool,
    pub fetches: Schedule,
    pub fetch_at: Option<Duration>,
    pub plans: Plans,
    pub turns: Turns,
    pub compare_at: Option<Duration>,
    // what the store would hold, over all lives
    pub events: BTreeMap<EventId, Event>,
    /// Hops and time of what came by gossip.
    pub heard: Vec<(EventId, u32, Duration)>,
}

struct Planned {
    node: usize,
    life: u32,
    what: Happening,
}

pub struct World {
    start: Instant,
    /// Since the begin.
    pub now: Duration,
    pub random: StdRng,
    pub nodes: Vec<Node>,
    pub index: HashMap<EndpointId, usize>,
    pub links: Links,
    pub conns: Vec<Conn>,
    pub dht: Dht,
    pub rules: Rules,
    pub discovery: DiscoveryConfig,
    /// When, in which order, and where in `planned`.
    queue: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    planned: Vec<Option<Planned>>,
    free: Vec<usize>,
    number: u64,
    /// Everything that happened, in order.
    pub trace: u64,
    pub happened: u64,
    /// Messages that a closed connection swallowed; joins that wait for a dial that nobody makes.
    pub swallowed: u64,
    pub stuck: u64,
    /// Connections that the door did not let in.
    pub refused: u64,
    /// Comparisons, and events that came by them.
    pub compared: u64,
    pub pulled: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            start: Instant::now(),
            now: Duration::ZERO,
            random: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            index: HashMap::new(),
            links: Links::new(mix(seed)),
            conns: Vec::new(),
            dht: Dht::default(),
            rules: Rules::default(),
            discovery: DiscoveryConfig::default(),
            queue: BinaryHeap::new(),
            planned: Vec::new(),
            free: Vec::new(),
            number: 0,
            trace: 0,
            happened: 0,
            swallowed: 0,
            stuck: 0,
            refused: 0,
            compared: 0,
            pulled: 0,
        }
    }

    pub fn instant(&self) -> Instant {
        self.start + self.now
    }

    pub fn unix(&self) -> u64 {
        UNIX + self.now.as_secs()
    }

    /// A gateway starts that knows these others from its configuration.
    pub fn add(&mut self, configured: &[usize]) -> usize {
        let node = self.nodes.len();
        let mut key = [0; 32];
        self.random.fill(&mut key);
        let id = SecretKey::from_bytes(&key).public();
        let configured = configured.iter().map(|other| self.nodes[*other].id).collect();
        let new = self.fresh(id, configured);
        self.nodes.push(new);
        self.index.insert(id, node);
        self.begin(node);
        node
    }

    fn fresh(&mut self, id: EndpointId, configured: Vec<EndpointId>) -> Node {
        let config = Config { max_message_size: GOSSIP_MESSAGE, ..Config::default() };
        let random = GossipRandom::seed_from_u64(self.random.random());
        Node {
            id,
            life: 0,
            alive: true,
            gossip: State::new(id, PeerData::default(), config, random),
            peers: BTreeMap::new(),
            dialing: BTreeSet::new(),
            guests: Guests::default(),
            inside: BTreeMap::new(),
            neighbors: BTreeSet::new(),
            alone_since: self.now,
            asked: Asked::new(id),
            disturbed: Disturbed::default(),
            handed: BTreeMap::new(),
            configured,
            look: 0,
            looked: false,
            ask: 0,
            published: None,
            waiting: Vec::new(),
            lineup: Lineup::new(self.instant()),
            sending: false,
            fetches: Schedule::new(std::sync::Arc::default()),
            fetch_at: None,
            plans: Plans::new(id, Duration::from_secs(SyncConfig::default().interval_s)),
            turns: Turns::default(),
            compare_at: None,
            events: BTreeMap::new(),
            heard: Vec::new(),
        }
    }

    fn begin(&mut self, node: usize) {
        self.gossip(node, InEvent::Command(TOPIC, Command::Join(Vec::new())));
        let phase = Duration::from_micros(self.random.random_range(0..1_000_000));
        self.plan(node, phase, Happening::Tick);
        self.ask_configured_after(node, Duration::ZERO);
        self.look_after(node, Duration::ZERO);
    }

    /// `kill -9`: nobody is told.
    pub fn kill(&mut self, node: usize) {
        let killed = &mut self.nodes[node];
        killed.alive = false;
        killed.life += 1;
        let of_it = |conn: &Conn| conn.ends.iter().any(|end| end.node == node);
        let broken: Vec<_> = (0..self.conns.len()).filter(|n| of_it(&self.conns[*n])).collect();
        for conn in broken {
            self.goes_idle(conn);
        }
    }

    /// Starts again what was killed, with the same key and the same store.
    pub fn restart(&mut self, node: usize) {
        let old = &self.nodes[node];
        let (id, life, configured) = (old.id, old.life, old.configured.clone());
        let mut new = self.fresh(id, configured);
        new.life = life;
        let old = &mut self.nodes[node];
        new.events = std::mem::take(&mut old.events);
        new.heard = std::mem::take(&mut old.heard);
        self.nodes[node] = new;
        self.begin(node);
    }

    /// Puts nodes on a side of their own; side 0 is where all are at first.
    pub fn part(&mut self, nodes: impl IntoIterator<Item = usize>, side: u8) {
        nodes.into_iter().for_each(|node| self.links.put(node, side));
        for conn in 0..self.conns.len() {
            let [a, b] = self.conns[conn].ends.each_ref().map(|end| end.node);
            if !self.links.connects(a, b) {
                self.goes_idle(conn);
            }
        }
    }

    fn goes_idle(&mut self, conn: usize) {
        for node in self.conns[conn].ends.each_ref().map(|end| end.node) {
            self.plan(node, IDLE, Happening::Idle { conn });
        }
    }

    /// Plans something for the present life of a node.
    pub fn plan(&mut self, node: usize, after: Duration, what: Happening) {
        self.number += 1;
        let planned = Some(Planned { node, life: self.nodes[node].life, what });
        let place = match self.free.pop() {
            Some(place) => {
                self.planned[place] = planned;
                place
            }
            None => {
                self.planned.push(planned);
                self.planned.len() - 1
            }
        };
        self.queue.push(Reverse((self.now + after, self.number, place)));
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Runs until something holds, which is asked every tenth of a second. Returns whether it did.
    pub fn run_until(&mut self, end: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let mut ask = self.now;
        loop {
            if self.now >= ask {
                if holds(self) {
                    return true;
                }
                ask = self.now + Duration::from_millis(100);
            }
            match self.queue.peek() {
                Some(Reverse((at, ..))) if *at <= end => {}
                _ => break,
            }
            if let Some(Reverse((at, _, place))) = self.queue.pop()
                && let Some(planned) = self.planned[place].take()
            {
                self.free.push(place);
                self.now = at;
                self.happens(planned);
            }
        }
        self.now = end;
        holds(self)
    }

    fn happens(&mut self, Planned { node, life, what }: Planned) {
        let at = &self.nodes[node];
        if !at.alive || at.life != life {
            return;
        }
        self.happened += 1;
        self.note(self.now.as_nanos() as u64);
        self.note(node as u64);
        self.note(what.number());
        match what {
            Happening::Dial { peer, since } => self.dial(node, peer, since),
            Happening::Dialed { peer, conn } => self.dialed(node, peer, conn),
            Happening::Accepted { peer, conn } => self.accepts(node, peer, conn),
            Happening::Closed { conn } => self.closed(node, conn),
            Happening::Idle { conn } => self.idle(node, conn),
            Happening::Message { from, conn, message } => {
                self.note(from as u64);
                self.receives(node, from, conn, message);
            }
            Happening::Timer(timer) => self.gossip(node, InEvent::TimerExpired(timer)),
            Happening::Tick => self.tick(node),
            Happening::Configured { number } => self.ask_configured(node, number),
            Happening::Look { number } => self.look(node, number),
            Happening::Looked { number, minute } => self.looked(node, number, minute),
            Happening::Publish { minute } => self.put_record(node, minute),
            Happening::Knock { peer, forget, since } => self.knock(node, peer, forget, since),
            Happening::HandOver { peer, conn } => self.hand_over(node, peer, conn),
            Happening::Send => {
                self.nodes[node].sending = false;
                self.send(node);
            }
            Happening::Answered { job, wanted } => self.answered(node, *job, &wanted),
            Happening::Fetch => self.fetch(node),
            Happening::Compare => self.compare(node),
            Happening::Greets { peer } => self.greets(node, peer),
            Happening::Led { peer, need } => self.led(node, peer, need),
            Happening::Followed { by, need } => self.followed(node, by, &need),
            Happening::Hinted { by } => self.hinted(node, by),
        }
    }

    pub const fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ what);
    }

    /// The record that a node would write now.
    pub fn record(&self, node: usize) -> Sighting {
        let Node { id, neighbors, .. } = &self.nodes[node];
        let named = neighbors.iter().take(distributed_topic_tracker::MAX_RECORD_PEERS);
        Sighting { publisher: *id, neighbors: named.copied().collect() }
    }
}
