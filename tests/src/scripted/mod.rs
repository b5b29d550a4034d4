//! A relay that does what its script says, right or wrong, and counts what it is sent.

mod counts;
mod door;
mod held;
mod script;
mod session;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use nostr_sdk::Event;
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    sync::broadcast,
};

use crate::free_port;
use counts::Counted;
use held::{Held, Stored};

pub use counts::Counts;
pub use script::{Auth, Document, Door, OnEvent, OnNeg, OnReq, Script};

/// Live events that a connection may be behind; further behind, it is closed.
const LIVE: usize = 65_536;

/// A scripted relay on loopback, on a thread of its own.
pub struct ScriptedRelay {
    shared: Arc<Shared>,
    /// When it ends, so do all connections.
    runtime: Option<Runtime>,
}

/// What the connections share.
struct Shared {
    port: u16,
    script: Mutex<Script>,
    held: Mutex<Held>,
    counted: Counted,
    live: broadcast::Sender<Arc<Stored>>,
    /// Ends the connections that are open.
    hang_up: broadcast::Sender<()>,
}

impl ScriptedRelay {
    pub async fn start(script: Script) -> Self {
        Self::holding(script, &[]).await
    }

    /// With these events from the beginning.
    pub async fn holding(script: Script, events: &[Event]) -> Self {
        let mut held = Held::default();
        for event in events {
            held.insert(event);
        }
        let shared = Arc::new(Shared {
            port: free_port(),
            script: Mutex::new(script),
            held: Mutex::new(held),
            counted: Counted::default(),
            live: broadcast::Sender::new(LIVE),
            hang_up: broadcast::Sender::new(1),
        });
        let mut relay = Self { shared, runtime: None };
        relay.restart().await;
        relay
    }

    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// Another script from the next connection, message or event on.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.shared.counted.snapshot()
    }

    /// Adds an event without telling anybody, as one that came late to it.
    pub fn hold(&self, event: &Event) {
        self.shared.held.lock().unwrap().insert(event);
    }

    /// Adds an event and tells the open subscriptions.
    pub fn tell(&self, event: &Event) {
        self.shared.take(event);
    }

    /// The ids it holds, in hexadecimal, sorted.
    pub fn ids(&self) -> Vec<String> {
        self.shared.held.lock().unwrap().ids()
    }

    /// Closes all connections; new ones are let in.
    pub fn hang_up(&self) {
        // Nobody may be there.
        let _ = self.shared.hang_up.send(());
    }

    /// Ends it and all its connections. Events and counts stay.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Starts it again on the same port.
    pub async fn restart(&mut self) {
        self.stop();
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread");
        let listener = self.listen(&runtime).await;
        runtime.spawn(accept(listener, self.shared.clone()));
        self.runtime = Some(runtime);
    }

    async fn listen(&self, runtime: &Runtime) -> TcpListener {
        // The old listener lets go of the port a moment after its end.
        for _ in 0..50 {
            let bound = TcpListener::bind(("127.0.0.1", self.shared.port));
            if let Ok(listener) = runtime.spawn(bound).await.expect("binding does not panic") {
                return listener;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("port {} stays taken", self.shared.port);
    }
}

impl Drop for ScriptedRelay {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    fn script(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    /// Holds an event and tells the open subscriptions. Whether it is new.
    fn take(&self, event: &Event) -> bool {
        let stored = self.held.lock().unwrap().insert(event);
        if let Some(stored) = &stored {
            // Nobody may be listening.
            let _ = self.live.send(stored.clone());
        }
        stored.is_some()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut hang_up = shared.hang_up.subscribe();
            tokio::select! {
                () = door::open(stream, shared.clone()) => {}
                _ = hang_up.recv() => {}
            }
        });
    }
}
