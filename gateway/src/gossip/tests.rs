//! Whole gossip parts over loopback: real endpoints, gossip, pipeline and DHT; the store alone is a
//! list in memory.

mod absent;
mod leaving;
mod reconciling;
mod strangers;

use std::sync::{Mutex, MutexGuard};

use futures_util::{FutureExt, future::BoxFuture};
use iroh::Endpoint;
use secp256k1::{Keypair, Message, SECP256K1};
use tempfile::TempDir;
use tokio::sync::watch;

use iroh::EndpointAddr;

use super::{config::IrohRelays, *};
use crate::{
    pipeline::{
        Affected, Audience, Candidate, Committed, Context, Count, Decision, Direction, EventWriter,
        Gone, IdSet, KeptPrivate, KeptTopic, LogEntry, MemorySecrets, Origin, Outcome, Policy,
        PolicyWorker, Presence, RememberedPeer, Removal, Routing, Scan, Scope, Seq, Span,
        StartIngest, Stays, StoreError, Target, TopicDoor, TopicIds, Viewer, VisitPolicy, Write,
    },
    protocol::{
        Event, EventId, Filter, VerifiedEvent,
        event::compute_id,
        frame::{MAX_GOSSIP_BYTES, SYNC_ALPN},
        hex,
        kinds::Part,
    },
};

/// A log in memory: enough of a store for the topics.
struct MemoryLog {
    entries: Mutex<Vec<LogEntry>>,
    gone: Mutex<Vec<(TopicName, Part, u64, EventId)>>,
    head: watch::Sender<Seq>,
}

impl MemoryLog {
    fn new() -> Arc<Self> {
        let (entries, gone) = (Mutex::default(), Mutex::default());
        Arc::new(Self { entries, gone, head: watch::Sender::new(0) })
    }

    fn entries(&self) -> MutexGuard<'_, Vec<LogEntry>> {
        self.entries.lock().unwrap()
    }

    fn has(&self, id: &EventId, topic: &TopicName) -> bool {
        self.entries().iter().any(|e| e.event.id == *id && e.topic.as_ref() == Some(topic))
    }

    async fn waits_for(&self, ids: &[EventId], topic: &TopicName) {
        let mut head = self.head.subscribe();
        let all = async {
            while !ids.iter().all(|id| self.has(id, topic)) {
                head.changed().await.unwrap();
            }
        };
        timeout(Duration::from_secs(30), all).await.expect("the events arrive");
    }

    fn origin(&self, id: &EventId) -> String {
        self.entries().iter().find(|e| e.event.id == *id).unwrap().origin.to_string()
    }
}

impl EventWriter for MemoryLog {
    fn presence(&self, event: &Event, topics: &[TopicName]) -> Result<Presence, StoreError> {
        let id = &event.id;
        let known = self.entries().iter().any(|entry| entry.event.id == *id);
        Ok(match known {
            false => Presence::Unknown,
            true if topics.iter().all(|topic| self.has(id, topic)) => Presence::Known,
            true => Presence::KnownElsewhere,
        })
    }

    fn affected(&self, _event: &Event) -> Result<Affected, StoreError> {
        Ok(Affected::default())
    }

    fn write(&self, write: Write) -> Result<(), StoreError> {
        // One writer at a time, as in the store: positions rise, and the head never runs ahead.
        let mut entries = self.entries();
        for topic in write.topics {
            let seq = entries.len() as Seq + 1;
            entries.push(LogEntry {
                seq,
                event: write.event.shared().clone(),
                topic: Some(topic),
                first: true,
                audience: Audience::first(write.private),
                origin: write.origin.log_name().into(),
            });
        }
        let seq = entries.len() as Seq;
        self.head.send_replace(seq);
        drop(entries);
        (write.done)(Ok(Committed::New(seq)));
        Ok(())
    }

    fn remove(&self, _removal: Removal) -> Result<u64, StoreError> {
        unreachable!("topics do not remove")
    }

    fn refused(&self, event: &VerifiedEvent, topics: &[TopicName], _why: Gone) {
        let gone =
            |topic: &TopicName| (topic.clone(), Part::of(event.kind), event.created_at, event.id);
        self.gone.lock().unwrap().extend(topics.iter().map(gone));
    }
}

impl EventReader for MemoryLog {
    fn head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }

    fn log_after(&self, seq: Seq, max: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, StoreError>> {
        let after = self.entries().iter().filter(|e| e.seq > seq).take(max).cloned().collect();
        async { Ok(after) }.boxed()
    }

    fn recent_log_after(&self, seq: Seq) -> Option<Vec<LogEntry>> {
        Some(self.entries().iter().filter(|entry| entry.seq > seq).cloned().collect())
    }

    fn scan(&self, _filters: Vec<Filter>, _scope: Scope, _viewer: Arc<Viewer>) -> Scan {
        unreachable!("topics do not scan")
    }

    fn count(
        &self,
        _filters: Vec<Filter>,
        _scope: Scope,
        _viewer: Arc<Viewer>,
    ) -> BoxFuture<'_, Result<Count, StoreError>> {
        unreachable!("topics do not count")
    }

    fn ids(
        &self,
        _filter: Filter,
        _scope: Scope,
        _viewer: Arc<Viewer>,
        _max: usize,
    ) -> BoxFuture<'_, Result<IdSet, StoreError>> {
        unreachable!("topics do not reconcile with clients")
    }

    fn fetch(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        let entries = self.entries().clone();
        let found = entries
            .into_iter()
            .filter(|e| e.topic.as_ref() == Some(&topic) && ids.contains(&e.event.id))
            .map(|e| e.event.json().clone())
            .collect();
        async { Ok(found) }.boxed()
    }

    fn missing(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        let missing = ids.into_iter().filter(|id| !self.has(id, &topic)).collect();
        async { Ok(missing) }.boxed()
    }

    fn topic_ids(
        &self,
        topic: TopicName,
        part: Part,
        span: Span,
        max: usize,
    ) -> BoxFuture<'_, Result<TopicIds, StoreError>> {
        let held = self.entries().clone().into_iter().filter(|e| e.topic.as_ref() == Some(&topic));
        let mut ids: Vec<_> = held
            .filter(|entry| Part::of(entry.event.kind) == part)
            .map(|entry| (entry.event.created_at, entry.event.id))
            .collect();
        let gone = self.gone.lock().unwrap().clone().into_iter();
        ids.extend(gone.filter(|g| g.0 == topic && g.1 == part).map(|(_, _, at, id)| (at, id)));
        ids.retain(|(at, _)| (span.from..=span.until).contains(at));
        ids.sort_unstable();
        ids.dedup();
        let mut from = span.from;
        if let Some(cut) = ids.len().checked_sub(max + 1).map(|at| ids[at].0) {
            from = cut + 1;
            ids.retain(|(at, _)| *at >= from);
        }
        async move { Ok(TopicIds { ids, from }) }.boxed()
    }

    fn gone(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<(u64, EventId)>, StoreError>> {
        let gone = self.gone.lock().unwrap().clone().into_iter();
        let found = gone.filter(|g| g.0 == topic && ids.contains(&g.3)).map(|g| (g.2, g.3));
        let found = found.collect();
        async { Ok(found) }.boxed()
    }

    fn kept_since(&self, _topic: &TopicName) -> u64 {
        0
    }

    fn version(&self, topic: &TopicName) -> u64 {
        let held = self.entries().iter().filter(|e| e.topic.as_ref() == Some(topic)).count();
        let gone = self.gone.lock().unwrap().iter().filter(|gone| gone.0 == *topic).count();
        (held + gone) as u64
    }
}

/// The topics that were joined, in memory.
#[derive(Default)]
struct MemoryTopics(Mutex<Vec<KeptTopic>>, Mutex<Vec<KeptPrivate>>);

impl TopicStore for MemoryTopics {
    fn private(&self) -> BoxFuture<'_, Result<Vec<KeptPrivate>, StoreError>> {
        let topics = self.1.lock().unwrap().clone();
        async { Ok(topics) }.boxed()
    }

    fn keep_private(&self, topic: KeptPrivate) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut topics = self.1.lock().unwrap();
        topics.retain(|kept| kept.name != topic.name);
        topics.push(topic);
        async { Ok(()) }.boxed()
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<KeptTopic>, StoreError>> {
        let topics = self.0.lock().unwrap().clone();
        async { Ok(topics) }.boxed()
    }

    fn keep(&self, topic: KeptTopic) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut topics = self.0.lock().unwrap();
        topics.retain(|kept| kept.name != topic.name);
        topics.push(topic);
        async { Ok(()) }.boxed()
    }

    fn forget(&self, name: TopicName) -> BoxFuture<'_, Result<bool, StoreError>> {
        let mut topics = self.0.lock().unwrap();
        let before = topics.len();
        topics.retain(|kept| kept.name != name);
        let was_there = topics.len() < before;
        async move { Ok(was_there) }.boxed()
    }
}

/// The gateways that were reached, in memory.
#[derive(Default)]
struct MemoryPeers(Mutex<Vec<RememberedPeer>>);

impl PeerStore for MemoryPeers {
    fn load(&self, topic: TopicName) -> BoxFuture<'_, Result<Vec<RememberedPeer>, StoreError>> {
        let mut peers = self.0.lock().unwrap().clone();
        peers.retain(|peer| peer.topic == topic);
        async { Ok(peers) }.boxed()
    }

    fn reached(&self, peer: RememberedPeer) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut peers = self.0.lock().unwrap();
        peers.retain(|known| (&known.topic, known.peer) != (&peer.topic, peer.peer));
        peers.push(peer);
        async { Ok(()) }.boxed()
    }

    fn missed(
        &self,
        _topic: TopicName,
        _peers: Vec<PeerId>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }
}

/// Lets everything pass.
struct Open;

impl Policy for Open {
    fn worker(&self) -> Box<dyn PolicyWorker> {
        Box::new(Open)
    }
}

impl PolicyWorker for Open {
    fn evaluate(&mut self, _event: &VerifiedEvent, _context: &Context<'_>) -> Decision {
        Decision::Accept
    }

    fn judges(&self, _direction: Direction<'_>) -> bool {
        false
    }

    fn may_leave(
        &mut self,
        _event: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays> {
        Ok(context.topics.to_vec())
    }
}

impl VisitPolicy for Open {
    fn may_visit(&self, topic: &TopicName) -> bool {
        topic.as_str() != "closed"
    }
}

struct Gateway {
    gossip: Gossip,
    log: Arc<MemoryLog>,
    ingest: Ingest,
    metrics: Arc<Metrics>,
    joined: JoinedTopics,
    kept: Arc<MemoryTopics>,
    secrets: Arc<MemorySecrets>,
    _data: TempDir,
}

impl Gateway {
    /// Compares only with neighbors that arrive.
    async fn start(discovery: DiscoveryConfig, topics: &[TopicName]) -> Self {
        Self::with(discovery, topics, Arc::default(), 0).await
    }

    async fn start_with(
        discovery: DiscoveryConfig,
        topics: &[TopicName],
        sync: SyncConfig,
    ) -> Self {
        Self::start_all(discovery, topics, Arc::default(), 0, sync).await
    }

    async fn with(
        discovery: DiscoveryConfig,
        topics: &[TopicName],
        kept: Arc<MemoryTopics>,
        visits: usize,
    ) -> Self {
        let rarely = SyncConfig { interval_s: 3_600, ..SyncConfig::default() };
        Self::start_all(discovery, topics, kept, visits, rarely).await
    }

    async fn start_all(
        discovery: DiscoveryConfig,
        topics: &[TopicName],
        kept: Arc<MemoryTopics>,
        visits: usize,
        sync: SyncConfig,
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let log = MemoryLog::new();
        let metrics = Arc::new(Metrics::default());
        let joined = JoinedTopics::new(topics.iter().cloned());
        let routing = Routing {
            rules: Vec::new(),
            default: topics.to_vec(),
            joined: joined.clone(),
            private: Default::default(),
        };
        let limits = Limits::from(&crate::pipeline::config::LimitsConfig::default());
        let ingest = Ingest::start(StartIngest {
            limits: limits.clone(),
            moderation: Default::default(),
            routing: Arc::new(routing),
            own_urls: Default::default(),
            writer: log.clone(),
            policy: Arc::new(Open),
            metrics: metrics.clone(),
        })
        .unwrap();
        let endpoint = EndpointConfig {
            bind: "127.0.0.1:0".parse().unwrap(),
            iroh_relays: IrohRelays::Disabled,
            ..EndpointConfig::default()
        };
        let secrets = Arc::<MemorySecrets>::default();
        let gossip = Gossip::start(StartGossip {
            endpoint: &endpoint,
            discovery: &discovery,
            sync: &sync,
            secrets: secrets.clone(),
            data_dir: data.path(),
            joined: joined.clone(),
            private: PrivateTopics::new([(name("hidden"), [])]),
            kept: kept.clone(),
            peers: Arc::<MemoryPeers>::default(),
            visits: VisitRules { most: visits, idle: Duration::from_secs(1) },
            visit_policy: Arc::new(Open),
            limits: &limits,
            ingest: ingest.clone(),
            reader: log.clone(),
            writer: log.clone(),
            rotation: None,
            metrics: metrics.clone(),
            tasks: &Tasks::new(),
        })
        .await
        .unwrap();
        Self { gossip, log, ingest, metrics, joined, kept, secrets, _data: data }
    }

    /// For `discovery.peers` of others.
    fn address(&self) -> String {
        let address = self.gossip.net.endpoint().bound_sockets()[0];
        format!("{}@{address}", self.gossip.id)
    }

    async fn publish(&self, event: &Event) -> Outcome {
        let origin = Origin::Client {
            connection: 1,
            address: [127, 0, 0, 1].into(),
            viewer: Arc::default(),
        };
        let candidate = Candidate { event: event.clone(), origin, target: Target::Routed };
        self.ingest.submit(candidate).await
    }

    async fn waits_for_neighbors(&self) {
        let joined = async {
            while !self.gossip.status().iter().all(|t| t.state == TopicPhase::Joined) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), joined).await.expect("the gateways find one another");
    }

    async fn stop(self) {
        self.gossip.shutdown().await;
        self.ingest.stop().await;
    }
}

fn alone() -> DiscoveryConfig {
    DiscoveryConfig { dht: false, mdns: false, jitter_ms: 10, ..DiscoveryConfig::default() }
}

fn name(text: &str) -> TopicName {
    TopicName::new(text).unwrap()
}

fn event(kind: u16, content: &str) -> Event {
    event_at(crate::clock::unix_now(), kind, content)
}

fn event_at(now: u64, kind: u16, content: &str) -> Event {
    let key = Keypair::from_seckey_slice(SECP256K1, &[7; 32]).unwrap();
    let author = hex::encode(&key.x_only_public_key().0.serialize());
    let json = |id: &str, sig: &str| {
        format!(
            r#"{{"id":"{id}","pubkey":"{author}","created_at":{now},"kind":{kind},"tags":[],"content":"{content}","sig":"{sig}"}}"#
        )
    };
    let draft = Event::parse(&json(&"0".repeat(64), &"0".repeat(128))).unwrap();
    let id = compute_id(&draft);
    let sig = SECP256K1.sign_schnorr_no_aux_rand(&Message::from_digest(id.0), &key);
    Event::parse(&json(&id.to_string(), &hex::encode(&sig.serialize()))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_every_size_and_in_any_number_arrive() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    // Published before anybody is there: the log keeps it for the first neighbor.
    let early = event(1, "early");
    assert!(matches!(a.publish(&early).await, Outcome::Stored(_)));
    let peers = vec![a.address()];
    let b =
        Gateway::start(DiscoveryConfig { peers, ..alone() }, std::slice::from_ref(&topic)).await;
    b.waits_for_neighbors().await;
    b.log.waits_for(&[early.id], &topic).await;

    let small = event(1, "small");
    a.publish(&small).await;
    b.log.waits_for(&[small.id], &topic).await;
    assert_eq!(b.log.origin(&small.id), "topic/test");

    let large = event(1, &"x".repeat(MAX_GOSSIP_BYTES));
    a.publish(&large).await;
    b.log.waits_for(&[large.id], &topic).await;

    let back = event(1, "back");
    b.publish(&back).await;
    a.log.waits_for(&[back.id], &topic).await;

    let many: Vec<_> = (0..600).map(|n| event(1, &format!("number {n}"))).collect();
    futures_util::future::join_all(many.iter().map(|event| a.publish(event))).await;
    let ids: Vec<_> = many.iter().map(|event| event.id).collect();
    b.log.waits_for(&ids, &topic).await;

    let mut passing = b.ingest.passing();
    let ephemeral = event(20_001, "now");
    assert_eq!(a.publish(&ephemeral).await, Outcome::Passed);
    let passed = timeout(Duration::from_secs(10), passing.recv()).await.unwrap().unwrap();
    assert_eq!(passed.event.id, ephemeral.id);

    // Nothing that a topic brought goes back into it: B sent its own event and no other.
    let sent = |gateway: &Gateway| {
        let labels = crate::metrics::TopicLabels { topic: "test".to_owned() };
        gateway.metrics.frames_sent.get_or_create(&labels).get()
    };
    assert_eq!(sent(&b), 1);
    assert!(sent(&a) < 300, "under load ids go out, not events: {} frames", sent(&a));

    // What a topic does after a lag: a second subscription names the neighbors, and its end does not
    // end the first.
    let id = RecordKeys::public(&topic).gossip_id();
    let (_, receiver) = super::topic::subscribe(&b.gossip.net.gossip(), id).await.unwrap();
    let soon = tokio::time::Instant::now() + Duration::from_millis(300);
    let mut second = Some((receiver, soon));
    assert_eq!(super::topic::settle(&mut second).await.unwrap(), [a.gossip.id]);
    drop(second);
    let after = event(1, "after");
    a.publish(&after).await;
    b.log.waits_for(&[after.id], &topic).await;

    let status = &b.gossip.status()[0];
    assert_eq!(status.neighbors[0].found_by, FoundBy::Configured);
    assert_eq!(status.neighbors[0].id, a.gossip.id.to_string());
    b.stop().await;
    let gone = async {
        while a.gossip.status()[0].state == TopicPhase::Joined {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(3), gone).await.expect("a neighbor that leaves says so");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_find_one_another_in_the_dht() {
    let dht = mainline::Testnet::builder(5).build().unwrap();
    let discovery = DiscoveryConfig {
        dht: true,
        dht_bootstrap: dht.bootstrap.clone(),
        dht_private_addresses: true,
        ..alone()
    };
    let topics = [name("one"), name("two")];
    let a = Gateway::start(discovery.clone(), &topics).await;
    let b = Gateway::start(discovery, &topics).await;
    a.waits_for_neighbors().await;
    b.waits_for_neighbors().await;
    let found: Vec<_> = [&a, &b]
        .into_iter()
        .flat_map(|gateway| gateway.gossip.status())
        .map(|topic| topic.neighbors[0].found_by)
        .collect();
    assert!(found.contains(&FoundBy::Dht), "{found:?}");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_stuck_topic_holds_up_nobody_and_loses_nothing() {
    let (slow, fast) = (name("slow"), name("fast"));
    let log = MemoryLog::new();
    let (slow_queue, mut slow_end) = mpsc::channel(64);
    let (fast_queue, mut fast_end) = mpsc::channel(1_000);
    let (_passing, passing) = tokio::sync::broadcast::channel(1);
    let (publisher, lanes) = Publisher::new(log.clone(), passing, Default::default());
    let tasks = Tasks::new();
    tasks.spawn("publisher", publisher.run(tasks.token().clone()));
    let neighbors = watch::Sender::new(1);
    lanes.open(slow.clone(), slow_queue, neighbors.subscribe()).await;
    lanes.open(fast.clone(), fast_queue, neighbors.subscribe()).await;

    let commit = |event: &Event, origin: Origin| {
        let event = VerifiedEvent::from_store(event.json()).unwrap();
        let topics = vec![slow.clone(), fast.clone()];
        let done = Box::new(|_: Result<Committed, StoreError>| {});
        log.write(Write {
            event,
            topics,
            private: false,
            vanish: false,
            under_way: 1,
            origin,
            done,
        })
        .unwrap();
    };
    let client =
        || Origin::Client { connection: 1, address: [127, 0, 0, 1].into(), viewer: Arc::default() };
    commit(&event(4, "private"), client());
    commit(
        &event(1, "from the swarm"),
        Origin::Gossip { topic: fast.clone(), peer: PeerId([1; 32]) },
    );
    let many: Vec<_> = (0..1_200).map(|n| event(1, &format!("number {n}"))).collect();
    many.iter().take(600).for_each(|event| commit(event, client()));

    let next = async |end: &mut mpsc::Receiver<Outgoing>| {
        timeout(Duration::from_secs(10), end.recv()).await.unwrap().unwrap().event.id
    };
    for event in &many[..600] {
        assert_eq!(next(&mut fast_end).await, event.id, "barred and own events are left out");
    }
    many.iter().skip(600).for_each(|event| commit(event, client()));
    // What one topic's swarm brought goes into the other topics.
    let _ = next(&mut slow_end).await;
    for event in &many {
        assert_eq!(next(&mut slow_end).await, event.id);
    }
    for event in &many[600..] {
        assert_eq!(next(&mut fast_end).await, event.id);
    }
    assert!(slow_end.try_recv().is_err() && fast_end.try_recv().is_err(), "each went once");

    // For a moment there is nobody whenever gossip is replaced.
    neighbors.send_replace(0);
    let between: Vec<_> = (0..200).map(|n| event(1, &format!("between {n}"))).collect();
    between.iter().for_each(|event| commit(event, client()));
    for event in &between {
        assert_eq!(next(&mut fast_end).await, event.id);
    }
    neighbors.send_replace(1);
    for event in &between {
        assert_eq!(next(&mut slow_end).await, event.id);
    }

    // With nobody there, what has no room is left to the comparison with whoever comes.
    neighbors.send_replace(0);
    let unheard: Vec<_> = (0..600).map(|n| event(1, &format!("unheard {n}"))).collect();
    unheard.iter().for_each(|event| commit(event, client()));
    for event in &unheard {
        assert_eq!(next(&mut fast_end).await, event.id, "here there was room");
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    neighbors.send_replace(1);
    for event in &unheard[..64] {
        assert_eq!(next(&mut slow_end).await, event.id);
    }
    let news = event(1, "for those who came");
    commit(&news, client());
    assert_eq!(next(&mut slow_end).await, news.id);
    tasks.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_without_a_network() {
    let discovery = DiscoveryConfig {
        dht: true,
        dht_bootstrap: vec!["nowhere.invalid:6881".to_owned()],
        mdns: true,
        mdns_service: "nostr-gateway-test".to_owned(),
        ..alone()
    };
    let topic = name("test");
    let starting = Gateway::start(discovery, std::slice::from_ref(&topic));
    let a = timeout(Duration::from_secs(5), starting).await.expect("nothing is waited for");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_ne!(a.gossip.status()[0].state, TopicPhase::Starting);
    assert!(!a.gossip.addresses().is_empty());
    timeout(Duration::from_secs(8), a.stop()).await.expect("shutdown has a deadline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_joined_and_left_while_it_runs() {
    let (first, late) = (name("first"), name("late"));
    let a = Gateway::start(alone(), std::slice::from_ref(&first)).await;
    let peers = vec![a.address()];
    let b =
        Gateway::start(DiscoveryConfig { peers, ..alone() }, std::slice::from_ref(&first)).await;
    b.waits_for_neighbors().await;
    for gateway in [&a, &b] {
        let membership = gateway.gossip.membership();
        let join = || membership.join(late.clone(), HowJoined::Command);
        assert_eq!(join().await.unwrap(), Joining::Joined);
        assert_eq!(join().await.unwrap(), Joining::Already);
        assert!(gateway.joined.contains("late"));
        // What cannot be joined or left stays as it is.
        let error = membership.join(name("hidden"), HowJoined::Command).await.unwrap_err();
        assert!(matches!(error, TopicError::Private(_)), "{error}");
        let error = membership.join(name("NGW1qqqq"), HowJoined::Command).await.unwrap_err();
        assert!(matches!(error, TopicError::Invite), "{error}");
        let error = membership.leave(&first, false).await.unwrap_err();
        assert!(matches!(error, TopicError::Configured(_)), "{error}");
        let error = membership.leave(&name("never"), false).await.unwrap_err();
        assert!(matches!(error, TopicError::NotJoined(_)), "{error}");
    }
    b.waits_for_neighbors().await;
    let target = Target::Topics(vec![late.clone()]);
    let origin =
        Origin::Client { connection: 1, address: [127, 0, 0, 1].into(), viewer: Arc::default() };
    let in_late = event(1, "in a topic that was joined late");
    let candidate = Candidate { event: in_late.clone(), origin: origin.clone(), target };
    assert!(matches!(a.ingest.submit(candidate).await, Outcome::Stored(_)));
    b.log.waits_for(&[in_late.id], &late).await;

    // B leaves: A hears of it at once, in this topic alone, and B is nowhere found in it any more.
    b.gossip.membership().leave(&late, false).await.unwrap();
    assert!(!b.joined.contains("late") && b.kept.0.lock().unwrap().is_empty());
    assert_eq!(b.gossip.status().len(), 1);
    let belated = Candidate {
        event: event(2, "on its way when the topic was left"),
        origin: Origin::Gossip { topic: late.clone(), peer: PeerId([1; 32]) },
        target: Target::Topics(vec![late.clone()]),
    };
    assert!(matches!(b.ingest.submit(belated).await, Outcome::Refused(_)));
    assert!(!b.metrics.render().contains(r#""late""#), "{}", b.metrics.render());
    let gone = async {
        let there = [TopicPhase::Joined, TopicPhase::Syncing];
        while there.contains(&a.gossip.topic(&late).unwrap().state) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(3), gone).await.expect("whoever leaves says goodbye");
    assert_eq!(a.gossip.topic(&late).unwrap().state, TopicPhase::Disconnected);
    let state = a.gossip.topic(&first).unwrap().state;
    assert!(matches!(state, TopicPhase::Joined | TopicPhase::Syncing), "{state:?}");
    a.gossip.measure();
    let figures = a.metrics.render();
    let gauge =
        |state: &str, value: u8| format!("topic_state{{topic=\"late\",state=\"{state}\"}} {value}");
    assert!(figures.contains(&gauge("disconnected", 1)), "{figures}");
    assert!(figures.contains(&gauge("joined", 0)), "{figures}");

    // Whoever asks for a change and goes away leaves nothing half done.
    for _ in 0..3 {
        let join = b.gossip.membership().join(name("brief"), HowJoined::Command).now_or_never();
        assert!(join.is_none_or(|joined| joined.is_ok()));
        while b.gossip.topic(&name("brief")).is_none() || !b.joined.contains("brief") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let leave = b.gossip.membership().leave(&name("brief"), false).now_or_never();
        assert!(leave.is_none_or(|left| left.is_ok()));
        // Another one waits for the end of this one, or comes first: one of them did it whole.
        let again = b.gossip.membership().leave(&name("brief"), false).await;
        assert!(matches!(again, Ok(()) | Err(TopicError::NotJoined(_))), "{again:?}");
        assert!(!b.joined.contains("brief") && b.kept.0.lock().unwrap().is_empty());
        assert!(!b.metrics.render().contains(r#""brief""#));
    }

    // And comes back.
    b.gossip.membership().join(late.clone(), HowJoined::Command).await.unwrap();
    b.waits_for_neighbors().await;
    let peers = b.gossip.peers();
    assert_eq!(peers.len(), 1, "one gateway in two topics: {peers:?}");
    assert_eq!(peers[0].topics.len(), 2, "{peers:?}");
    let path = peers[0].path.as_ref().expect("there is a connection");
    assert_eq!(path.path, "direct");
    assert!(path.address.starts_with("127.0.0.1:") && path.rtt_ms > 0.0, "{path:?}");
    let kept = b.kept.clone();
    b.stop().await;
    a.stop().await;

    // A restart remembers it.
    let b = Gateway::with(alone(), std::slice::from_ref(&first), kept, 0).await;
    let names: Vec<_> =
        b.gossip.status().into_iter().map(|topic| (topic.name, topic.how)).collect();
    assert_eq!(names, [(first, HowJoined::Config), (late, HowJoined::Command)]);
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visited_topics_are_bounded_and_left_when_nobody_is_there() {
    let a = Gateway::with(alone(), &[name("first")], Arc::default(), 2).await;
    let membership = a.gossip.membership();
    let visit = |topic: &str| membership.clone().visit(name(topic));
    visit("one").await.unwrap();
    visit("two").await.unwrap();
    visit("two").await.unwrap();
    let refused = visit("three").await.unwrap_err();
    assert!(refused.contains("topics.join_on_visit"), "{refused}");
    assert!(!a.joined.contains("three"));
    let refused = visit("closed").await.unwrap_err();
    assert!(refused.contains("topics.join_on_visit"), "nobody is asked in vain: {refused}");
    // Somebody stays in one, and the other is joined for good.
    let somebody = a.joined.enter(&name("one")).unwrap();
    let again = membership.join(name("two"), HowJoined::Command).await;
    assert_eq!(again.unwrap(), Joining::Already);
    let refused = visit("closed").await.unwrap_err();
    assert!(refused.contains("a plugin"), "{refused}");
    visit("three").await.unwrap();
    let left = async {
        while a.joined.contains("three") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), left).await.expect("nobody is in it");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(a.joined.contains("one") && a.joined.contains("two"));
    drop(somebody);
    let left = async {
        while a.joined.contains("one") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), left).await.expect("nobody is in it any more");
    assert_eq!(a.gossip.topic(&name("two")).unwrap().how, HowJoined::Command);

    // When visits are not allowed any more, what they joined is not joined again.
    visit("four").await.unwrap();
    let kept = a.kept.clone();
    a.stop().await;
    let a = Gateway::with(alone(), &[name("first")], kept, 0).await;
    assert!(a.joined.contains("two") && !a.joined.contains("four"));
    let refused = a.gossip.membership().clone().visit(name("four")).await.unwrap_err();
    assert!(refused.contains("not in the topic"), "{refused}");
    a.stop().await;
}

/// iroh-gossip goes on sending into a connection that has ended before the peer was a neighbor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_hold_an_ended_connection_of_one_another_meet() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let b = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    for (from, to) in [(&a, &b), (&b, &a)] {
        let address = EndpointAddr::new(to.gossip.net.endpoint().id())
            .with_ip_addr(to.gossip.net.endpoint().bound_sockets()[0]);
        let lookup = MemoryLookup::from_endpoint_info([address.clone()]);
        from.gossip.net.endpoint().address_lookup().unwrap().add(lookup);
        let connection =
            from.gossip.net.endpoint().connect(address, iroh_gossip::ALPN).await.unwrap();
        connection.close(0u32.into(), b"gone");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (from, to) in [(&a, &b), (&b, &a)] {
        let swarm = from.gossip.membership().swarms.get(&topic).unwrap();
        swarm.join.send(vec![to.gossip.net.endpoint().id()]).await.unwrap();
    }
    a.waits_for_neighbors().await;
    b.waits_for_neighbors().await;
    a.stop().await;
    b.stop().await;
}
