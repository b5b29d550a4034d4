//! Peers that were not there when they were asked, with real endpoints: what the simulator says of
//! iroh-gossip's connections is true of it.

use std::net::UdpSocket;

use futures_util::StreamExt as _;
use iroh::protocol::Router;
use iroh_gossip::api::GossipTopic;

use super::*;

/// A member of a topic that is no gateway, at an address that is known before it starts.
struct Member {
    key: SecretKey,
    port: u16,
}

impl Member {
    fn new() -> Self {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { key: SecretKey::generate(), port }
    }

    fn address(&self) -> String {
        format!("{}@127.0.0.1:{}", self.key.public(), self.port)
    }

    async fn start(&self, topic: &TopicName) -> (Router, iroh_gossip::net::Gossip, GossipTopic) {
        let endpoint = Endpoint::builder(iroh::endpoint::presets::Minimal)
            .relay_mode(iroh::RelayMode::Disabled)
            .secret_key(self.key.clone())
            .clear_ip_transports()
            .bind_addr(format!("127.0.0.1:{}", self.port))
            .unwrap()
            .bind()
            .await
            .unwrap();
        let gossip = iroh_gossip::net::Gossip::builder()
            .max_message_size(GOSSIP_MESSAGE)
            .spawn(endpoint.clone());
        let router = Router::builder(endpoint).accept(iroh_gossip::ALPN, gossip.clone()).spawn();
        let id = RecordKeys::public(topic).gossip_id();
        let topic = gossip.subscribe(id, Vec::new()).await.unwrap();
        (router, gossip, topic)
    }
}

/// gossip's own dial has failed by then, and it makes no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_late_is_reached() {
    let (topic, member) = (name("test"), Member::new());
    let peers = vec![member.address()];
    let a =
        Gateway::start(DiscoveryConfig { peers, ..alone() }, std::slice::from_ref(&topic)).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let running = member.start(&topic).await;
    let began = std::time::Instant::now();
    a.waits_for_neighbors().await;
    println!("reached after {:?}", began.elapsed());
    running.0.shutdown().await.unwrap();
    a.stop().await;
}

/// gossip leaves open what it does not use any more, and dials anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_and_goes_is_let_in_each_time() {
    let (topic, member) = (name("test"), Member::new());
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let (router, gossip, first) = member.start(&topic).await;
    drop(first);
    let lookup = iroh::address_lookup::memory::MemoryLookup::new();
    lookup.add_endpoint_info(peers::parse(&a.address()).unwrap());
    router.endpoint().address_lookup().unwrap().add(lookup);
    let id = RecordKeys::public(&topic).gossip_id();
    for time in 0..8 {
        let subscribed = gossip.subscribe_and_join(id, vec![a.gossip.id]);
        let joined = timeout(Duration::from_secs(5), subscribed).await;
        assert!(joined.is_ok(), "time {time}");
        a.waits_for_neighbors().await;
        drop(joined);
        while a.gossip.status()[0].state == TopicPhase::Joined {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    router.shutdown().await.unwrap();
    a.stop().await;
}

/// It was not announced where the gateway hears it, so no fetch tells it on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_comparison_brings_is_told_to_who_cannot_compare_if_it_is_news() {
    let (topic, member) = (name("test"), Member::new());
    let (router, _gossip, mut heard) = member.start(&topic).await;
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let (old, news) = (event_at(1_700_000_000, 1, "old"), event(1, "news"));
    for event in [&old, &news] {
        // As if the topic itself had brought it: gossip does not carry it again.
        let origin = Origin::Sync { topic: topic.clone(), peer: peer_id(&router.endpoint().id()) };
        let target = Target::Topics(vec![topic.clone()]);
        let outcome = a.ingest.submit(Candidate { event: event.clone(), origin, target }).await;
        assert!(matches!(outcome, Outcome::Stored(_)));
    }
    let peers = vec![member.address(), a.address()];
    let b =
        Gateway::start(DiscoveryConfig { peers, ..alone() }, std::slice::from_ref(&topic)).await;
    b.log.waits_for(&[old.id, news.id], &topic).await;
    let last = event(1, "last");
    let mut told = Vec::new();
    let hears = async {
        while told.last().is_none_or(|told| told != last.json().as_bytes()) {
            let said = heard.next().await.expect("the topic is open").unwrap();
            if let iroh_gossip::api::Event::Received(message) = said {
                if told.is_empty() {
                    // Whatever else is told, is told by then.
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    b.publish(&last).await;
                }
                told.push(message.content);
            }
        }
    };
    timeout(Duration::from_secs(20), hears).await.expect("it is told");
    assert_eq!(told, [news.json().as_bytes(), last.json().as_bytes()]);
    router.shutdown().await.unwrap();
    a.stop().await;
    b.stop().await;
}
