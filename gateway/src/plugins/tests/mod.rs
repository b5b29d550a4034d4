//! The chain with real components: each misbehaviour stays within its limit, and the next event is
//! judged as if nothing had happened.

mod life;
mod limits;
mod loading;
mod rotation;
mod verdicts;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use super::{PluginChain, PluginState};
use crate::{
    metrics::{Metrics, OnePluginLabels},
    pipeline::{Context, Decision, Origin, PeerId, Policy, PolicyWorker},
    protocol::{TopicName, VerifiedEvent},
};

const FIXTURES: &[u8] = include_bytes!("../../../../plugins/fixtures/fixtures.wasm");
const BLOCKLIST: &[u8] = include_bytes!("../../../../plugins/blocklist/blocklist.wasm");

const AUTHOR: &str = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d";

/// A directory of plugins.
struct Plugins(TempDir);

impl Plugins {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// Adds the misbehaving fixture under this id, with more lines in its manifest.
    fn fixture(self, id: &str, more: &str) -> Self {
        self.folder(id, &fixture_manifest(id, more), FIXTURES)
    }

    fn folder(self, name: &str, manifest: &str, component: &[u8]) -> Self {
        let folder = self.0.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("plugin.toml"), manifest).unwrap();
        fs::write(folder.join("plugin.wasm"), component).unwrap();
        self
    }

    fn load(&self) -> Loaded {
        let metrics = Arc::new(Metrics::default());
        let chain = PluginChain::load(self.0.path(), true, Arc::clone(&metrics)).unwrap();
        Loaded { worker: chain.worker(), chain, metrics }
    }
}

fn fixture_manifest(id: &str, more: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
         file = \"plugin.wasm\"\ncapabilities = [\"log\", \"config\", \"clock\"]\n{more}"
    )
}

/// A chain with one worker, and its figures.
struct Loaded {
    chain: PluginChain,
    worker: Box<dyn PolicyWorker>,
    metrics: Arc<Metrics>,
}

impl Loaded {
    /// The decision about a client's event of kind 1 with this content.
    fn ask(&mut self, content: &str) -> Decision {
        self.ask_with(&event(1, content), &client(), &[])
    }

    /// The text that a rejection gives as reason.
    fn answer(&mut self, content: &str) -> String {
        match self.ask(content) {
            Decision::Reject(reason) => reason.to_string(),
            other => panic!("not rejected: {other:?}"),
        }
    }

    fn ask_with(&mut self, event: &VerifiedEvent, origin: &Origin, topics: &[&str]) -> Decision {
        let topics: Vec<TopicName> = topics.iter().map(|name| topic(name)).collect();
        let context = Context { origin, topics: &topics, received_at: 1_700_000_001 };
        self.worker.evaluate(event, &context)
    }

    /// Failed calls of all plugins.
    fn traps(&self) -> u64 {
        let ids = self.chain.summary().into_iter().map(|plugin| plugin.id);
        let labels = ids.map(|plugin| OnePluginLabels { plugin });
        labels.filter_map(|labels| Some(self.metrics.plugin_traps.get(&labels)?.get())).sum()
    }

    /// Why the plugin with this id does not run.
    fn cause(&self, id: &str) -> String {
        let summary = self.chain.summary();
        let plugin = summary.iter().find(|plugin| plugin.id == id).expect("the plugin is listed");
        match &plugin.state {
            PluginState::Broken { cause } => cause.clone(),
            other => panic!("not broken: {other:?}"),
        }
    }
}

fn event(kind: u16, content: &str) -> VerifiedEvent {
    let json = serde_json::json!({
        "id": "11".repeat(32), "pubkey": AUTHOR, "created_at": 1_700_000_000_u64, "kind": kind,
        "tags": [["t", "a", "b"], [], ["e"]], "content": content, "sig": "22".repeat(64),
    });
    VerifiedEvent::from_store(&json.to_string()).unwrap()
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn client() -> Origin {
    Origin::Client {
        connection: 1,
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        viewer: Arc::default(),
    }
}

fn gossip(name: &str) -> Origin {
    Origin::Gossip { topic: topic(name), peer: PeerId([7; 32]) }
}

/// Runs with a log of its own and returns what was written to it.
fn logged(body: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    let text = lines.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap()
}
