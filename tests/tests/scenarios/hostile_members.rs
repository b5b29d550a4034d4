//! What a private topic's outsiders get, and its former members: each of them writes down all that it
//! was sent. They speak the protocol by themselves, from `docs/private-topics.md`.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures_util::StreamExt;
use iroh::{
    Endpoint, EndpointAddr, RelayMode,
    address_lookup::memory::MemoryLookup,
    endpoint::{Connection, RecvStream, SendStream, presets},
    protocol::Router,
};
use iroh_gossip::{TopicId, api::Event as GossipEvent, net::Gossip};
use nostr_gateway::protocol::{
    frame::SYNC_ALPN,
    private::{
        MemberId,
        admission::Admission,
        epochs::{Epochs, Input, Moment},
        invite::Invite,
        message::Message,
        proof::{Binding, EXPORTER_LABEL, Role},
        seal::Sealer,
    },
};
use nostr_gateway_tests::{Gateway, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    alone,
    circles::{becomes, epoch, held, home, invite, joined, notes, publish, reaches_epoch},
};

const SOON: Duration = Duration::from_secs(20);
/// How long nothing has to come.
const NOTHING: Duration = Duration::from_secs(3);

/// A node that is no gateway.
struct Node {
    endpoint: Endpoint,
    gossip: Gossip,
    _router: Router,
}

impl Node {
    async fn new(known: &[&Gateway]) -> Self {
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
        let router =
            Router::builder(endpoint.clone()).accept(iroh_gossip::ALPN, gossip.clone()).spawn();
        Self { endpoint, gossip, _router: router }
    }

    fn id(&self) -> MemberId {
        MemberId(*self.endpoint.id().as_bytes())
    }

    async fn connect(&self, gateway: &Gateway) -> Connection {
        self.endpoint.connect(address(gateway).await, SYNC_ALPN).await.unwrap()
    }

    /// All that comes of joining these gossip topics, until nothing has come for a while.
    async fn listens(&self, gateway: &Gateway, ids: &[[u8; 32]]) -> Vec<Vec<u8>> {
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

    fn binding(&self, connection: &Connection) -> Binding {
        let mut material = [0; 32];
        connection.export_keying_material(&mut material, EXPORTER_LABEL, &[]).unwrap();
        let responder = MemberId(*connection.remote_id().as_bytes());
        Binding { material: material.into(), initiator: self.id(), responder }
    }
}

async fn address(gateway: &Gateway) -> EndpointAddr {
    let status = gateway.status().await;
    let addresses = status["addresses"].as_array().unwrap().iter();
    addresses
        .map(|address| address.as_str().unwrap().parse::<SocketAddr>().unwrap())
        .fold(EndpointAddr::new(gateway.endpoint.parse().unwrap()), EndpointAddr::with_ip_addr)
}

/// What came back: all bytes, and how the stream ended.
type Answer = (Vec<u8>, String);

/// Sends these bytes on a stream of their own.
async fn ask(connection: &Connection, bytes: &[u8], ends: bool) -> Answer {
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

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.encode();
    [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

/// The ordinary requests for an event, by a topic's name.
fn requests(topic: &str, event: &Event) -> Vec<Vec<u8>> {
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
struct Member {
    node: Node,
    epochs: Epochs,
    recorded: Vec<Vec<u8>>,
}

impl Member {
    fn step(&mut self, input: Input) {
        let mut random = || [7; 32];
        let mut moment = Moment { now: events::now(), random: &mut random };
        self.epochs.step(input, &mut moment);
    }

    async fn say(&mut self, send: &mut SendStream, message: &Message) {
        let bytes = framed(message);
        send.write_all(&bytes).await.unwrap();
        self.recorded.push(bytes);
    }

    async fn hear(&mut self, receive: &mut RecvStream) -> Message {
        let mut length = [0; 4];
        receive.read_exact(&mut length).await.unwrap();
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        receive.read_exact(&mut bytes).await.unwrap();
        self.recorded.push([&length[..], &bytes].concat());
        Message::decode(&bytes).unwrap()
    }

    /// Opens a stream as a member does, and is let in if it is not yet.
    async fn enter(&mut self, connection: &Connection) -> (SendStream, RecvStream) {
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
                Message::Admissions(admissions) => self.step(Input::Told { peer, admissions }),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// What somebody got, and by what.
#[derive(Default)]
struct Loot(BTreeMap<String, Vec<u8>>);

impl Loot {
    fn take(&mut self, how: String, what: Vec<u8>) {
        println!("{how}: {} bytes", what.len());
        self.0.insert(how, what);
    }

    fn is_nothing(&self) {
        let something: Vec<_> = self.0.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        assert!(something.is_empty() && self.0.len() > 5, "{something:?}");
    }
}

/// Asks a gateway by all ordinary requests. What does not differ from the answer for a topic that
/// there is not anywhere is nothing.
async fn asks_by_name(loot: &mut Loot, node: &Node, who: &str, gateway: &Gateway, event: &Event) {
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

#[tokio::test(flavor = "multi_thread")]
async fn outsiders_and_former_members_get_nothing() {
    let _alone = alone().await;
    let a = home(None).await;
    let text = invite(&a, false).await;
    let b = joined("B", None, &text).await;
    let before = notes(3, "before");
    publish(&a, &before).await;
    becomes(&b, &before).await;

    // A member like any other, for now. It gets what members get: the attempts below would too.
    let node = Node::new(&[&a, &b]).await;
    let (epochs, _) = Epochs::accept(node.id(), &Invite::parse(&text).unwrap());
    let mut member = Member { node, epochs, recorded: Vec::new() };
    let connection = member.node.connect(&a).await;
    let (mut send, mut receive) = member.enter(&connection).await;
    send.write_all(&requests("den", &before[0])[0]).await.unwrap();
    send.finish().unwrap();
    let answer = receive.read_to_end(100_000).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("before 0"), "a member is served");

    // It is in the swarm, too, and records. What it says there counts only if it is sealed.
    let old = member.epochs.publishes_in().unwrap();
    let old_keys = member.epochs.keys(old).unwrap();
    let seal = Sealer::new(member.epochs.topic(), old.number, &old_keys);
    let swarm = TopicId::from_bytes(old_keys.gossip_topic);
    let bootstrap = vec![a.endpoint.parse().unwrap()];
    let joining = member.node.gossip.subscribe_and_join(swarm, bootstrap);
    let (sender, mut receiver) =
        tokio::time::timeout(SOON, joining).await.expect("a member joins").unwrap().split();
    let sealed = notes(1, "sealed by the member");
    let open = notes(2, "not sealed");
    sender.broadcast(events::json(&open[0]).into()).await.unwrap();
    let other = Sealer::new(member.epochs.topic(), 7, &old_keys);
    let wrong = other.seal(events::json(&open[1]).as_bytes()).unwrap();
    sender.broadcast(wrong.into()).await.unwrap();
    let good = seal.seal(events::json(&sealed[0]).as_bytes()).unwrap();
    sender.broadcast(good.into()).await.unwrap();
    becomes(&a, &[&before[..], &sealed].concat()).await;
    let unsealed = r#"nostr_gateway_frames_dropped_total{cause="not sealed for this epoch""#;
    a.wait_for_metric(unsealed, 2, SOON).await;
    let live = notes(1, "live");
    publish(&a, &live).await;
    let mut frames = Vec::new();
    while frames.is_empty() {
        let event = tokio::time::timeout(SOON, receiver.next()).await.expect("a frame comes");
        if let GossipEvent::Received(message) = event.unwrap().unwrap()
            && let Ok(frame) = seal.open(&message.content)
        {
            assert_eq!(frame, events::json(&live[0]).as_bytes());
            frames.push(message.content.to_vec());
        }
    }

    // It is left out.
    let left_out = member.node.endpoint.id().to_string();
    let rotate = ["topic", "rotate", "den", "--exclude", &left_out, "--grace", "0s"];
    a.command(&rotate).await.succeeded();
    reaches_epoch(&b, 2).await;
    let secret = notes(2, "for those who are left");
    publish(&a, &secret).await;
    let all = [&before[..], &sealed, &live, &secret].concat();
    becomes(&b, &all).await;

    let mut loot = Loot::default();
    let outsider = Node::new(&[&a, &b]).await;
    let fresh = Node::new(&[&a, &b]).await;
    let mut guesses = vec![
        old_keys.gossip_topic,
        old_keys.discovery_topic,
        Sha256::digest(Sha256::digest("den")).into(),
        Sha256::digest("den").into(),
        distributed_topic_tracker::TopicId::new("den".to_owned()).hash(),
    ];
    // The old secret, and the number of the new epoch.
    let next = old.number + 1;
    let stale = Invite::parse(&text).unwrap();
    let derived = nostr_gateway::protocol::private::derive::EpochKeys::derive(
        &stale.topic,
        next,
        &stale.secret,
    );
    guesses.push(derived.gossip_topic);
    let again = notes(1, "while they listen");
    for gateway in [&a, &b] {
        for (who, node) in
            [("outsider", &outsider), ("former member", &member.node), ("fresh id", &fresh)]
        {
            asks_by_name(&mut loot, node, who, gateway, &secret[0]).await;
            let connection = node.connect(gateway).await;
            // What anybody gets who makes a tag up.
            let nobody = Message::Hello { tag: [9; 16], admission: None };
            let unknown = ask(&connection, &framed(&nobody), false).await;
            let binding = node.binding(&connection);
            let tag =
                binding.tag(member.epochs.topic(), member.epochs.topic_key(), Role::Initiator);
            let own = Admission::sign(&stale.topic, &stale.key, node.id());
            let stolen = member.epochs.admission().copied();
            for (what, admission) in [("none", None), ("a new", Some(own)), ("the old", stolen)] {
                let hello = framed(&Message::Hello { tag, admission });
                let answer = ask(&connection, &hello, false).await;
                let taken =
                    if answer == unknown { Vec::new() } else { [&answer.0[..], b"!"].concat() };
                loot.take(format!("{who}, tag and {what} admission"), taken);
            }
            // Everything that was ever said, again, piece by piece and at once.
            let recorded = member.recorded.clone();
            for (n, bytes) in recorded.iter().chain([&recorded.concat()]).enumerate() {
                let answer = ask(&connection, bytes, false).await;
                loot.take(format!("{who}, replay {n}"), answer.0);
            }
            connection.close(0_u32.into(), b"");
        }
    }
    let listening = async {
        for (who, node) in [("outsider", &outsider), ("fresh id", &fresh)] {
            let heard = node.listens(&a, &guesses).await.concat();
            loot.take(format!("{who}, in guessed swarms"), heard);
        }
    };
    let talking = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        publish(&a, &again).await;
        // Frames of old, in the swarm that is no more.
        for frame in &frames {
            let _ = sender.broadcast(frame.clone().into()).await;
        }
        let late = seal.seal(events::json(&open[0]).as_bytes()).unwrap();
        let _ = sender.broadcast(late.into()).await;
    };
    tokio::join!(listening, talking);
    let mut last = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(NOTHING, receiver.next()).await {
        if let Ok(GossipEvent::Received(message)) = event {
            last.extend_from_slice(&message.content);
        }
    }
    loot.take("former member, in the old swarm".to_owned(), last);
    loot.is_nothing();

    // And what they said had no effect.
    let all = [all, again].concat();
    for gateway in [&a, &b] {
        becomes(gateway, &all).await;
        assert_eq!((epoch(gateway).await, held(gateway).await), (2, events::ids(&all)));
    }
    let mut client = RawClient::connect(&a.topic_url("den")).await;
    let more = events::note(&Keys::generate(), "it goes on");
    client.accept(&more).await;
    becomes(&b, &[all, vec![more]].concat()).await;
    let mut page = RawClient::connect_from_page(&a.url(), "https://evil.example").await;
    assert!(page.stored_ids(&[json!({"kinds": [1]})]).await.is_empty());
}
