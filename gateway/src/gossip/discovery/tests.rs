//! That the settings of `[discovery]` count.

use std::net::UdpSocket;

use mainline::{Dht, Testnet};

use super::*;
use crate::protocol::TopicName;

const MINUTE: u64 = 29_000_000;

/// Somebody who looks for neighbors, and the records that it writes.
fn discovery(seed: u8, config: DiscoveryConfig) -> Discovery {
    let name = TopicName::new("t").unwrap();
    let metrics = Arc::<Metrics>::default();
    Discovery {
        keys: RecordKeys::public(&name),
        me: SigningKey::from_bytes(&[seed; 32]),
        id: iroh::SecretKey::from_bytes(&[seed; 32]).public(),
        config: Arc::new(DiscoveryConfig { jitter_ms: 0, ..config }),
        dht: None,
        configured: Arc::new([]),
        local: None,
        state: Arc::new(TopicState::new(name, metrics.clone())),
        join: mpsc::channel(16).0,
        metrics,
    }
}

fn client(bootstrap: &[String]) -> AsyncDht {
    Dht::builder().bootstrap(bootstrap).build().unwrap().as_async()
}

/// The clock goes on as soon as everybody waits: nothing here takes its time.
#[tokio::test(start_paused = true)]
async fn an_operation_takes_its_timeout_and_is_tried_again_as_often_as_set() {
    // Somebody who is there and says nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = [silent.local_addr().unwrap().to_string()];
    for (retries, timeout_ms) in [(0, 100), (0, 5_000), (3, 100), (3, 5_000)] {
        let config = DiscoveryConfig { retries, timeout_ms, ..DiscoveryConfig::default() };
        let discovery = discovery(1, config);
        let dht = client(&address);
        let limit = Duration::from_millis(timeout_ms);
        let began = tokio::time::Instant::now();
        assert!(discovery.look(&dht, MINUTE, &Mutex::default()).await.is_none());
        // The clock of tokio counts milliseconds.
        let tick = Duration::from_millis(2);
        let took = began.elapsed();
        assert!(took >= limit && took <= limit + tick, "{took:?}");

        let began = tokio::time::Instant::now();
        assert!(!discovery.publish(&dht, MINUTE).await);
        let took = began.elapsed();
        let pauses = RETRY_PAUSE * retries;
        assert!(took >= pauses, "{retries} retries: {took:?}");
        assert!(took <= pauses + limit * (retries + 1) + tick * (2 * retries + 1), "{took:?}");
        let step = discovery.state.status(crate::pipeline::HowJoined::Command, 0);
        assert_eq!(step.steps[&Step::DhtPublish].failures, 1, "one step, however often tried");
    }
}

/// Two that wrote in different corners of the DHT: usually the last one alone is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_minute_no_more_peers_are_taken_than_set() {
    let nets = [(); 2].map(|()| Testnet::builder(5).build().unwrap());
    let mut writers = Vec::new();
    for (seed, net) in (2..).zip(&nets) {
        let writer = discovery(seed, DiscoveryConfig::default());
        let dht = client(&net.bootstrap);
        assert!(dht.bootstrapped().await);
        assert!(writer.publish(&dht, MINUTE).await);
        writers.push(writer.id);
    }
    let both = client(&[nets[0].bootstrap.clone(), nets[1].bootstrap.clone()].concat());
    assert!(both.bootstrapped().await);
    for (records_per_minute, expected) in [(10, 2), (1, 1)] {
        let config = DiscoveryConfig { records_per_minute, ..DiscoveryConfig::default() };
        let reader = discovery(1, config);
        let found = reader.look(&both, MINUTE, &Mutex::default()).await.unwrap();
        assert_eq!(found.len(), expected, "{found:?}");
        assert!(found.iter().all(|sighting| writers.contains(&sighting.publisher)));
    }
}
