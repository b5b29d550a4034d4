//! Nodes that are no gateways: they speak the protocol by themselves, from `docs/private-topics.md`, and
//! write down all that they were sent.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures_util::StreamExt;
use iroh::{
    Endpoint, EndpointAddr, RelayMode,
    address_lookup::memory::MemoryLookup,
    endpoint::{Connection, RecvStream, SendStream, presets},
    protocol::{Router, RouterBuilder},
};
use iroh_gossip::{TopicId, api::Event as GossipEvent, net::Gossip};
use nostr_gateway::protocol::{
    frame::SYNC_ALPN,
    private::{
        MemberId,
        epochs::{Epochs, Input, Moment, Output},
        invite::Invite,
        message::{Handover, Message, Position},
        proof::{Binding, EXPORTER_LABEL, Role},
    },
};
use nostr_gateway_tests::{Gateway, events};
use nostr_sdk::{Event, Keys};

const SOON: Duration = Duration::from_secs(20);
/// How long nothing has to come.
pub const NOTHING: Duration = Duration::from_secs(3);

/// A node that is no gateway.
pub struct Node {
    pub endpoint: Endpoint,
    pub gossip: Gossip,
    _router: Router,
}

impl Node {
    pub async fn new(known: &[&Gateway]) -> Self {
        Self::with(known, |router| router).await
    }

    /// One that answers more than gossip.
    pub async fn with(
        known: &[&Gateway],
        answers: impl FnOnce(RouterBuilder) -> RouterBuilder,
    ) -> Self {
        let lookup = MemoryLookup::new();
        for gateway in known {
            lookup.add_endpoint_info(address(gateway).await);
        }
        let endpoint = Endpoint::builder(presets::Minimal)
            .relay_mode(RelayMode::Disabled)
            .clear_ip_transports()
            .bind_addr("127.0.0.1:0")
            .unwrap()
            .address_lookup(lookup)
            .bind()
            .await
            .unwrap();
        let gossip = Gossip::builder().spawn(endpoint.clone());
        let router = Router::builder(endpoint.clone()).accept(iroh_gossip::ALPN, gossip.clone());
        let router = answers(router).spawn();
        Self { endpoint, gossip, _router: router }
    }

    pub fn id(&self) -> MemberId {
        MemberId(*self.endpoint.id().as_bytes())
    }

    pub async fn connect(&self, gateway: &Gateway) -> Connection {
        self.endpoint.connect(address(gateway).await, SYNC_ALPN).await.unwrap()
    }

    /// All that comes of joining these gossip topics, until nothing has come for a while.
    pub async fn listens(&self, gateway: &Gateway, ids: &[[u8; 32]]) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        let bootstrap = vec![gateway.endpoint.parse().unwrap()];
        let mut topics = futures_util::stream::SelectAll::new();
        for id in ids {
            let topic = self.gossip.subscribe(TopicId::from_bytes(*id), bootstrap.clone()).await;
            topics.push(topic.unwrap().split().1);
        }
        while let Ok(Some(event)) = tokio::time::timeout(NOTHING, topics.next()).await {
            match event.unwrap() {
                GossipEvent::Received(message) => heard.push(message.content.to_vec()),
                GossipEvent::NeighborUp(peer) => heard.push(peer.as_bytes().to_vec()),
                _ => {}
            }
        }
        heard
    }

    pub fn binding(&self, connection: &Connection) -> Binding {
        let material = keying_material(connection).into();
        let responder = MemberId(*connection.remote_id().as_bytes());
        Binding { material, initiator: self.id(), responder }
    }
}

pub fn keying_material(connection: &Connection) -> [u8; 32] {
    let mut material = [0; 32];
    connection.export_keying_material(&mut material, EXPORTER_LABEL, &[]).unwrap();
    material
}

/// A step of a member's state, with the time and the chance of now.
pub fn step(epochs: &mut Epochs, input: Input) -> Vec<Output> {
    let mut random = || Keys::generate().secret_key().to_secret_bytes();
    epochs.step(input, &mut Moment { now: events::now(), random: &mut random })
}

pub async fn address(gateway: &Gateway) -> EndpointAddr {
    let status = gateway.status().await;
    let addresses = status["addresses"].as_array().unwrap().iter();
    addresses
        .map(|address| address.as_str().unwrap().parse::<SocketAddr>().unwrap())
        .fold(EndpointAddr::new(gateway.endpoint.parse().unwrap()), EndpointAddr::with_ip_addr)
}

/// What came back: all bytes, and how the stream ended.
pub type Answer = (Vec<u8>, String);

/// Sends these bytes on a stream of their own.
pub async fn ask(connection: &Connection, bytes: &[u8], ends: bool) -> Answer {
    let Ok((mut send, mut receive)) = connection.open_bi().await else {
        return (Vec::new(), "closed".to_owned());
    };
    let _ = send.write_all(bytes).await;
    if ends {
        let _ = send.finish();
    }
    let mut all = Vec::new();
    let reading = async {
        let mut piece = [0; 4_096];
        loop {
            match receive.read(&mut piece).await {
                Ok(Some(count)) => all.extend_from_slice(&piece[..count]),
                Ok(None) => return "end".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    };
    let end = tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| "silence".to_owned());
    (all, end)
}

pub fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.encode();
    [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

/// The ordinary requests for an event, by a topic's name.
pub fn requests(topic: &str, event: &Event) -> Vec<Vec<u8>> {
    let opening = |kind: u8| [&[kind, 0, topic.len() as u8], topic.as_bytes()].concat();
    let id = event.id.to_bytes();
    let one = [&[0, 1][..], &id].concat();
    // A greeting: a state, and three spans of all times.
    let mut hello = vec![0, 0, 0, 65, 1];
    hello.extend_from_slice(&[7; 16]);
    (0..3).for_each(|_| hello.extend([0_u64.to_be_bytes(), u64::MAX.to_be_bytes()].concat()));
    vec![
        [opening(1), one.clone()].concat(),
        [opening(4), 1_000_000_u32.to_be_bytes().to_vec(), one].concat(),
        [opening(2), hello].concat(),
        opening(3),
    ]
}

/// A member with code of its own, which keeps all that it ever sent and got.
pub struct Member {
    pub node: Node,
    pub epochs: Epochs,
    pub recorded: Vec<Vec<u8>>,
}

impl Member {
    /// Somebody invited, whom nobody has let in yet. It finds these gateways.
    pub async fn invited(invite: &str, known: &[&Gateway]) -> Self {
        let node = Node::new(known).await;
        let (epochs, _) = Epochs::accept(node.id(), &Invite::parse(invite).unwrap());
        Self { node, epochs, recorded: Vec::new() }
    }

    pub fn step(&mut self, input: Input) -> Vec<Output> {
        step(&mut self.epochs, input)
    }

    pub async fn say(&mut self, send: &mut SendStream, message: &Message) {
        let bytes = framed(message);
        send.write_all(&bytes).await.unwrap();
        self.recorded.push(bytes);
    }

    pub async fn hear(&mut self, receive: &mut RecvStream) -> Message {
        let mut length = [0; 4];
        receive.read_exact(&mut length).await.unwrap();
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        receive.read_exact(&mut bytes).await.unwrap();
        self.recorded.push([&length[..], &bytes].concat());
        Message::decode(&bytes).unwrap()
    }

    /// Opens a stream as a member does, and is let in if it is not yet.
    pub async fn enter(&mut self, connection: &Connection) -> (SendStream, RecvStream) {
        let binding = self.node.binding(connection);
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let tag = binding.tag(self.epochs.topic(), self.epochs.topic_key(), Role::Initiator);
        let admission = self.epochs.admission().copied();
        self.say(&mut send, &Message::Hello { tag, admission }).await;
        let Message::Welcome { tag, position } = self.hear(&mut receive).await else { panic!() };
        let topic = [(self.epochs.topic(), self.epochs.topic_key())];
        assert_eq!(binding.find(&tag, Role::Responder, topic), Some(0));
        self.say(&mut send, &Message::Status(self.epochs.position())).await;
        let peer = binding.responder;
        if self.epochs.is_behind(&position) {
            let Message::Handover(handover) = self.hear(&mut receive).await else { panic!() };
            self.step(Input::Received { peer, handover });
        } else {
            for output in self.step(Input::Met { peer, position }) {
                match output {
                    Output::HandOver { handover, .. } => {
                        self.say(&mut send, &Message::Handover(handover)).await;
                    }
                    Output::Tell { admissions, .. } => {
                        self.say(&mut send, &Message::Admissions(admissions)).await;
                    }
                    _ => {}
                }
            }
        }
        let epoch = self.epochs.publishes_in().unwrap();
        let keys = self.epochs.keys(epoch).unwrap();
        let proof = binding.prove(&keys, epoch.number, Role::Initiator);
        self.say(&mut send, &Message::Proof(proof)).await;
        loop {
            match self.hear(&mut receive).await {
                Message::Proof(proof) => {
                    assert!(binding.verify(&keys, epoch.number, Role::Responder, &proof));
                    return (send, receive);
                }
                Message::Admissions(admissions) => {
                    self.step(Input::Told { peer, admissions });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The hand-over that it was given last, as it came: a rotation.
    pub fn rotation(&self) -> Rotation {
        let is_rotation = |bytes: &&Vec<u8>| bytes.get(4) == Some(&HANDOVER);
        Rotation(self.recorded.iter().rfind(is_rotation).unwrap().clone())
    }

    /// Meets a gateway, and is handed over what it lacks.
    pub async fn meets(&mut self, gateway: &Gateway) {
        let connection = self.node.connect(gateway).await;
        self.enter(&connection).await;
        connection.close(0_u32.into(), b"");
    }

    /// Is handed over what it lacks, and goes away. It may then be ahead of the gateway.
    pub async fn hears(&mut self, gateway: &Gateway) {
        let connection = self.node.connect(gateway).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let greeting = self.greeting(&connection);
        send.write_all(&greeting).await.unwrap();
        let Message::Welcome { position, .. } = self.hear(&mut receive).await else { panic!() };
        self.say(&mut send, &Message::Status(self.epochs.position())).await;
        if self.epochs.is_behind(&position) {
            let Message::Handover(handover) = self.hear(&mut receive).await else { panic!() };
            let peer = self.node.binding(&connection).responder;
            self.step(Input::Received { peer, handover });
        }
        connection.close(0_u32.into(), b"");
    }

    /// Meets a gateway once more, and is served an event.
    pub async fn is_served(&mut self, gateway: &Gateway, event: &Event) {
        let connection = self.node.connect(gateway).await;
        let (mut send, mut receive) = self.enter(&connection).await;
        send.write_all(&requests("den", event)[0]).await.unwrap();
        send.finish().unwrap();
        let answer = receive.read_to_end(100_000).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains(event.content.as_str()));
        connection.close(0_u32.into(), b"");
    }

    /// Says hello as a member does, that it is at this position, and then what was recorded. Returns
    /// what came of it after the welcome, if there was one.
    pub async fn replays(
        &self,
        connection: &Connection,
        position: Position,
        recorded: &[u8],
    ) -> Answer {
        let mut bytes = self.greeting(connection);
        bytes.extend(framed(&Message::Status(position)));
        bytes.extend_from_slice(recorded);
        let (mut all, end) = ask(connection, &bytes, true).await;
        if let Some(length) = all.first_chunk()
            && all.get(4) == Some(&WELCOME)
        {
            let welcome = 4 + u32::from_be_bytes(*length) as usize;
            all.drain(..welcome.min(all.len()));
        }
        (all, end)
    }

    /// Its hello, which names the topic on this connection and no other.
    pub fn greeting(&self, connection: &Connection) -> Vec<u8> {
        let binding = self.node.binding(connection);
        let tag = binding.tag(self.epochs.topic(), self.epochs.topic_key(), Role::Initiator);
        framed(&Message::Hello { tag, admission: self.epochs.admission().copied() })
    }
}

const WELCOME: u8 = 0x11;
const HANDOVER: u8 = 0x13;

/// A hand-over as it stood on a stream, its length first.
#[derive(Clone)]
pub struct Rotation(pub Vec<u8>);

impl Rotation {
    pub fn epoch(&self) -> u64 {
        self.decoded().unwrap().roster.header.place.epoch
    }

    pub fn decoded(&self) -> Option<Box<Handover>> {
        match Message::decode(&self.0[4..]) {
            Ok(Message::Handover(handover)) => Some(handover),
            _ => None,
        }
    }

    /// It with one byte changed, for every byte; without those that nobody would send.
    pub fn changed(&self) -> impl Iterator<Item = Self> {
        let changed = (4..self.0.len()).map(|at| {
            let mut bytes = self.0.clone();
            bytes[at] ^= 1;
            Self(bytes)
        });
        changed.filter(|rotation| rotation.decoded().is_some())
    }
}

/// What somebody got, and by what.
#[derive(Default)]
pub struct Loot(BTreeMap<String, Vec<u8>>);

impl Loot {
    pub fn take(&mut self, how: String, what: Vec<u8>) {
        println!("{how}: {} bytes", what.len());
        self.0.insert(how, what);
    }

    pub fn is_nothing(&self) {
        let something: Vec<_> = self.0.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        assert!(something.is_empty() && !self.0.is_empty(), "{something:?}");
    }
}

/// Asks a gateway by all ordinary requests. What does not differ from the answer for a topic that
/// there is not anywhere is nothing.
pub async fn asks_by_name(
    loot: &mut Loot,
    node: &Node,
    who: &str,
    gateway: &Gateway,
    event: &Event,
) {
    let connection = node.connect(gateway).await;
    let (named, unknown) = (requests("den", event), requests("nowhere", event));
    for (n, (named, unknown)) in named.iter().zip(&unknown).enumerate() {
        let (answer, nothing) =
            (ask(&connection, named, true).await, ask(&connection, unknown, true).await);
        let what = if answer == nothing { Vec::new() } else { [&answer.0[..], b"!"].concat() };
        loot.take(format!("{who}, request {n} by name"), what);
    }
    connection.close(0_u32.into(), b"");
}
