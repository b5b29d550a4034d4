//! The chain with real components: each misbehaviour stays within its limit, and the next event is
//! judged as if nothing had happened.

mod directions;
mod life;
mod limits;
mod loading;
#[cfg(unix)]
mod programs;
mod remembering;
mod rotation;
mod shipped;
mod topics;
mod verdicts;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Kv, PluginChain, PluginState, Services};
use crate::{
    metrics::{Metrics, PluginIdLabels},
    pipeline::{
        AuthorHeld, Context, Cost, Decision, Direction, KvChange, KvPair, KvStore, Lookup,
        LookupError, Origin, PeerId, Policy, PolicyWorker, Stays, StoreError, StreamScopes, Viewer,
        VisitPolicy,
    },
    protocol::{PublicKey, TopicName, VerifiedEvent},
};

const FIXTURES: &[u8] = include_bytes!("../../../../plugins/fixtures/fixtures.wasm");
const BLOCKLIST: &[u8] = include_bytes!("../../../../plugins/blocklist/blocklist.wasm");

const STORE_FIXTURE: &[u8] =
    include_bytes!("../../../../plugins/fixtures-store/fixtures-store.wasm");
const TOPICS_FIXTURE: &[u8] =
    include_bytes!("../../../../plugins/fixtures-topics/fixtures-topics.wasm");

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

    /// Adds the fixture that uses `kv` and `lookup`.
    fn store_fixture(self, id: &str, more: &str) -> Self {
        let manifest = format!(
            "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
             file = \"plugin.wasm\"\ncapabilities = [\"log\", \"kv\", \"lookup\"]\n{more}"
        );
        self.folder(id, &manifest, STORE_FIXTURE)
    }

    /// Adds the topic policy of the fixtures.
    fn topics_fixture(self, id: &str, more: &str) -> Self {
        let manifest = format!(
            "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"topic-policy\"\n\
             file = \"plugin.wasm\"\ncapabilities = [\"log\"]\n{more}"
        );
        self.folder(id, &manifest, TOPICS_FIXTURE)
    }

    fn folder(self, name: &str, manifest: &str, component: &[u8]) -> Self {
        let folder = self.0.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("plugin.toml"), manifest).unwrap();
        fs::write(folder.join("plugin.wasm"), component).unwrap();
        self
    }

    fn load(&self) -> Loaded {
        self.load_with(services())
    }

    fn load_with(&self, services: Services) -> Loaded {
        let metrics = Arc::clone(&services.metrics);
        let chain = PluginChain::load(self.0.path(), true, services).unwrap();
        Loaded { worker: chain.worker(), chain, metrics }
    }
}

/// An empty store, and time enough on a busy machine.
fn services() -> Services {
    // Without one for all threads, a line that a thread without a log comes to at the same moment is
    // missing in the log of another: whether anybody wants it is found out once.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    let metrics = Arc::new(Metrics::default());
    Services {
        kv: Kv::start(Arc::new(Forgetful), Arc::clone(&metrics)).unwrap(),
        metrics,
        lookup: Arc::new(Empty),
        budget: Duration::from_secs(60),
        scopes: StreamScopes::default(),
    }
}

/// Remembers nothing.
struct Forgetful;

impl KvStore for Forgetful {
    fn load(&self, _plugin: &str) -> Result<Vec<KvPair>, StoreError> {
        Ok(Vec::new())
    }

    fn save(&self, _changes: Vec<KvChange>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Knows nobody.
struct Empty;

impl Lookup for Empty {
    fn author(&self, _: &PublicKey, _: u32, cost: &mut Cost) -> Result<AuthorHeld, LookupError> {
        cost.pay(1)?;
        Ok(AuthorHeld::default())
    }

    fn how_many(
        &self,
        _: &[PublicKey],
        _: &[u16],
        _: u64,
        _: u32,
        cost: &mut Cost,
    ) -> Result<u32, LookupError> {
        cost.pay(1)?;
        Ok(0)
    }

    fn follows(
        &self,
        _: &PublicKey,
        _: usize,
        cost: &mut Cost,
    ) -> Result<Vec<PublicKey>, LookupError> {
        cost.pay(1)?;
        Ok(Vec::new())
    }

    fn is_followed(
        &self,
        _: &PublicKey,
        _: &PublicKey,
        cost: &mut Cost,
    ) -> Result<bool, LookupError> {
        cost.pay(1)?;
        Ok(false)
    }

    fn newest_tags(
        &self,
        _: &PublicKey,
        _: u16,
        _: usize,
        cost: &mut Cost,
    ) -> Result<Vec<Vec<String>>, LookupError> {
        cost.pay(1)?;
        Ok(Vec::new())
    }
}

/// The names of the topics that an event may go out to.
type Left = Result<Vec<String>, Stays>;

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
        let (direction, received_at) = (Direction::In, 1_700_000_001);
        let context = Context { direction, origin, topics: &topics, received_at };
        self.worker.evaluate(event, &context)
    }

    /// Which of these topics an event of a client with this content may go out to.
    fn leave(&mut self, content: &str, direction: Direction<'_>, topics: &[&str]) -> Left {
        let topics: Vec<TopicName> = topics.iter().map(|name| topic(name)).collect();
        let (origin, received_at) = (client(), 1_700_000_001);
        let context = Context { direction, origin: &origin, topics: &topics, received_at };
        let left = self.worker.may_leave(&event(1, content), &context)?;
        Ok(left.iter().map(ToString::to_string).collect())
    }

    /// Failed calls of all plugins.
    fn traps(&self) -> u64 {
        let ids = self.chain.summary().into_iter().map(|plugin| plugin.id);
        let labels = ids.map(|plugin| PluginIdLabels { plugin });
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
