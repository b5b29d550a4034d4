//! An independent relay implementation, for gateways to bridge.

use std::net::{IpAddr, Ipv4Addr};

use nostr_relay_builder::{
    LocalRelay, RelayBuilder,
    builder::RateLimit,
    prelude::{MemoryDatabase, MemoryDatabaseOptions, NostrDatabase},
};
use nostr_sdk::Event;
use tokio::runtime::{self, Runtime};

/// A relay in this process, on loopback.
pub struct IndependentRelay {
    database: MemoryDatabase,
    running: Option<Running>,
    port: u16,
}

struct Running {
    /// Of its own: when it ends, so do all connections. A shutdown alone misses those that are at work.
    runtime: Runtime,
    _relay: LocalRelay,
}

impl IndependentRelay {
    /// Holds `events` from the start; more can be published by any client.
    pub async fn start(events: &[Event]) -> Self {
        let database =
            MemoryDatabase::with_opts(MemoryDatabaseOptions { events: true, max_events: None });
        for event in events {
            database.save_event(event).await.unwrap();
        }
        let port = free_port();
        let running = Some(run(database.clone(), port).await);
        Self { database, running, port }
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// Adds an event without telling anybody, also while it is stopped.
    pub async fn load(&self, event: &Event) {
        self.database.save_event(event).await.unwrap();
    }

    /// Ends it and all its connections. The events stay.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.runtime.shutdown_background();
        }
    }

    /// Starts it again on the same port, with the same events.
    pub async fn restart(&mut self) {
        self.stop();
        self.running = Some(run(self.database.clone(), self.port).await);
    }
}

impl Drop for IndependentRelay {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn run(database: MemoryDatabase, port: u16) -> Running {
    let builder = RelayBuilder::default()
        .addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .port(port)
        .database(database)
        .rate_limit(RateLimit { max_reqs: 500, notes_per_minute: 1_000_000 });
    let relay = LocalRelay::new(builder);
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a thread");
    // The old listener lets go of the port a moment after its end.
    for attempt in 0.. {
        let relay = relay.clone();
        match runtime.spawn(async move { relay.run().await }).await.expect("it does not panic") {
            Ok(()) => break,
            Err(error) if attempt == 50 => panic!("the relay does not start: {error}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
    Running { runtime, _relay: relay }
}

/// A TCP port of loopback that is free now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
