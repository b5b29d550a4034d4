//! The only place that wires parts together: what starts, in which order, and how it ends.

mod control;
mod reload;
mod transfer;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{
    admin::Admin,
    config::{Config, Sources},
    data_dir::DataDir,
    gossip::{Gossip, StartGossip, VisitRules},
    metrics::Metrics,
    pipeline::{
        EventReader, EventWriter, Ingest, JoinedTopics, Moderation, Policy, PrivateTopics,
        RotationPolicy, Routing, StartIngest, StreamScopes, TopicDoor, UpstreamStore,
    },
    plugins::{self, Kv, PluginChain, Services, Setup},
    protocol::limits::Limits,
    relay::{self, Access, Connections, Listener, Management, Rates, Relay},
    secrets,
    store::{FollowTable, JoinedTable, PeerTable, Store, UpstreamTables},
    subscriptions::Subscriptions,
    tasks::{self, Tasks},
    upstream::{Gate, Intake, LinkOptions, StartStreams, StreamSetup, Streams},
};
use control::Commands;
use reload::Reload;

/// How long each step of the shutdown may take.
const STEP: Duration = Duration::from_secs(5);

/// A running gateway.
pub struct App {
    store: Arc<Store>,
    kv: Arc<Kv>,
    plugins: Arc<PluginChain>,
    ingest: Ingest,
    gossip: Arc<Gossip>,
    /// Listener and sessions; ends first.
    clients: Tasks,
    /// What begins and ends streams, and the streams.
    upstreams: Tasks,
    streams: Arc<Streams>,
    /// What the others rely on; ends last.
    background: Tasks,
    banner: Banner,
    _data_dir: DataDir,
}

impl App {
    /// Starts every part. Whatever the gateway cannot do without is an error; the rest is logged.
    /// `sources` is where the configuration came from, to be read again when it changes.
    ///
    /// # Errors
    /// With one line that names the setting or file and what to do.
    pub async fn start(
        config: Config,
        sources: Sources,
        data_dir: DataDir,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let running = config.clone();
        let metrics = Arc::new(Metrics::default());
        let limits = Limits::from(&config.limits);
        // First what fails most often, so that nothing is half done then.
        let relay_socket = relay::bind("relay.listen", config.relay.listen)?;
        let admin_socket = relay::bind("admin.listen", config.admin.listen);
        let secrets = secrets::open(&config.secrets, data_dir.path()).await?;
        let store = Store::open(data_dir.path(), &config.storage, metrics.clone()).await?;
        store.start_upkeep(&config.retention)?;
        let store = Arc::new(store);
        let reader: Arc<dyn EventReader> = store.clone();
        let writer: Arc<dyn EventWriter> = store.clone();
        let rules = Box::new(store.moderation());
        let moderation = Moderation::load(rules).await.context("cannot read the rules")?;
        let moderation = Arc::new(moderation);

        let kv = Kv::start(store.clone(), metrics.clone()).context("cannot start the plugins")?;
        let services = Services {
            metrics: metrics.clone(),
            kv: kv.clone(),
            lookup: store.clone(),
            budget: Duration::from_millis(config.plugins.budget_ms),
            scopes: StreamScopes::default(),
        };
        let scopes = services.scopes.clone();
        let plugins = Arc::new(load_plugins(&config, &data_dir, services).await?);
        let rules = Rules::new(&config, &data_dir, store.clone());
        let told = rules.clone();
        let told = tasks::blocking(move || told.tell()).await;
        told.context("cannot tell the database the rules")??;
        let joined = JoinedTopics::new(config.topics.join.iter().cloned());
        let private = PrivateTopics::new(
            config.private_topic.iter().map(|topic| (topic.name.clone(), topic.readers.clone())),
        );
        store.private_are(private.clone());
        let own_urls = relay::own_urls(&config.relay, relay_socket.local_addr()?);
        let routing = Arc::new(Routing {
            rules: config.route.iter().map(|r| (r.filter.clone(), r.topics.clone())).collect(),
            default: config.topics.default.clone(),
            joined: joined.clone(),
            private: private.clone(),
        });
        let policy: Arc<dyn Policy> = plugins.clone();
        let ingest = Ingest::start(StartIngest {
            limits: limits.clone(),
            moderation: moderation.clone(),
            routing,
            own_urls: own_urls.clone(),
            writer: writer.clone(),
            policy,
            metrics: metrics.clone(),
        })
        .context("cannot start the pipeline")?;
        let changed = ingest.policy_changes();
        let watching = plugins.watch(move || {
            changed();
            if let Err(error) = rules.tell() {
                tracing::error!("{error:#}");
            }
        });
        if let Err(error) = watching {
            tracing::error!("no thread to watch plugins: {error}; changes count after a restart");
        }

        let (clients, upstreams, background) = (Tasks::new(), Tasks::new(), Tasks::new());
        let subscriptions = Subscriptions::new(reader.clone());
        background.spawn(
            "subscriptions",
            subscriptions.clone().run(ingest.passing(), background.token().clone()),
        );

        let gossip = Gossip::start(StartGossip {
            endpoint: &config.endpoint,
            discovery: &config.discovery,
            sync: &config.sync,
            secrets: secrets.clone(),
            data_dir: data_dir.path(),
            joined: joined.clone(),
            private: private.clone(),
            kept: Arc::new(JoinedTable::new(data_dir.path())),
            peers: Arc::new(PeerTable::new(data_dir.path())),
            visits: VisitRules {
                most: config.topics.join_on_visit,
                idle: Duration::from_secs(config.topics.visit_idle_s),
            },
            visit_policy: plugins.clone(),
            limits: &limits,
            ingest: ingest.clone(),
            reader: reader.clone(),
            writer: writer.clone(),
            rotation: Some((
                plugins.clone() as Arc<dyn RotationPolicy>,
                Duration::from_secs(config.plugins.rotation_check_s),
            )),
            metrics: metrics.clone(),
            tasks: &background,
        })
        .await?;
        let gossip = Arc::new(gossip);

        let upstream_store: Arc<dyn UpstreamStore> = Arc::new(UpstreamTables::new(data_dir.path()));
        let gate = Arc::new(Gate::new(plugins.clone()));
        let streams = Streams::new(StartStreams {
            setup: Arc::new(StreamSetup {
                ingest: ingest.clone(),
                intake: Intake::new(ingest.clone(), metrics.clone()),
                options: LinkOptions::new(config.limits.max_event_bytes),
                reader: reader.clone(),
                store: upstream_store.clone(),
                follows: Arc::new(FollowTable::new(data_dir.path())),
                own_urls: own_urls.clone(),
                gate: gate.clone(),
                secrets: secrets.clone(),
                private: private.clone(),
                metrics: metrics.clone(),
            }),
            store: upstream_store,
            gate,
            scopes,
            joined: joined.clone(),
            private: private.clone(),
            metrics: metrics.clone(),
            tasks: upstreams.clone(),
        });
        streams.apply(&config.upstream).await.context("cannot start the streams")?;
        upstreams.spawn("streams", streams.clone().tend(upstreams.token().clone()));
        let reload = Reload::new(sources, running, streams.clone());
        upstreams.spawn("configuration", reload.clone().watch(upstreams.token().clone()));

        let trouble = {
            let (store, gossip) = (store.clone(), gossip.clone());
            move || store.trouble().or_else(|| gossip.trouble())
        };
        let banner = Banner {
            relay: relay_socket.local_addr()?,
            admin: match &admin_socket {
                Ok(socket) => Some(socket.local_addr()?),
                Err(error) => {
                    tracing::error!("{error}; running without metrics and status");
                    None
                }
            },
            endpoint: gossip.endpoint_id().to_string(),
            addresses: gossip.addresses(),
            topics: joined.all().iter().map(ToString::to_string).collect(),
            plugins: plugins.summary().iter().map(ToString::to_string).collect(),
            upstreams: config.upstream.iter().map(|stream| stream.name.clone()).collect(),
            events: store.stored_at_start(),
            data_dir: data_dir.path().display().to_string(),
        };
        let commands = Commands {
            started,
            data_dir: data_dir.path().to_owned(),
            relay: format!("ws://{}", banner.relay),
            relay_url: config.relay.url.clone(),
            admin: banner.admin.map(|address| format!("http://{address}")),
            endpoint: config.endpoint,
            discovery: config.discovery,
            store: store.clone(),
            ingest: ingest.clone(),
            gossip: gossip.clone(),
            streams: streams.clone(),
            reload,
            plugins: plugins.clone(),
            trouble: Box::new(trouble.clone()),
            secrets,
            counted: Default::default(),
        };
        let admin = Arc::new(Admin {
            metrics: metrics.clone(),
            measure: Box::new({
                let (gossip, plugins, streams) = (gossip.clone(), plugins.clone(), streams.clone());
                move || {
                    gossip.measure();
                    plugins.measure();
                    streams.measure();
                }
            }),
            control: Arc::new(commands),
            trouble: Box::new(trouble.clone()),
        });
        #[cfg(unix)]
        match crate::admin::socket::ControlSocket::bind(data_dir.path()) {
            Ok(socket) => {
                background.spawn("control", admin.clone().run_control(socket, background.clone()));
            }
            Err(error) => tracing::error!(
                "cannot make the control socket in the data directory: {error}; running without, so \
                 commands like `nostr-gateway status` do not reach this gateway"
            ),
        }
        if let Ok(socket) = admin_socket {
            background.spawn("admin", admin.run(socket, background.clone()));
        }
        let relay = Relay {
            access: Access::new(&config.access, moderation.clone()),
            rates: Rates::new(config.rates),
            connections: Connections::default(),
            management: Management::new(&config.relay.admins, writer),
            moderation,
            search: config.storage.search,
            syncs: relay::Syncs::new(config.relay.max_negentropy_events),
            silent_proxy: AtomicBool::default(),
            config: config.relay,
            limits,
            ingest: ingest.clone(),
            reader,
            subscriptions,
            topics: joined,
            door: (config.topics.join_on_visit > 0)
                .then(|| gossip.membership().clone() as Arc<dyn TopicDoor>),
            private,
            own_urls,
            metrics,
            trouble: Box::new(trouble),
        };
        let listener = Listener { socket: relay_socket, relay: Arc::new(relay) };
        clients.spawn("listener", listener.run(clients.clone()));

        Ok(Self {
            store,
            kv,
            plugins,
            ingest,
            gossip,
            clients,
            upstreams,
            streams,
            background,
            banner,
            _data_dir: data_dir,
        })
    }

    /// Says on stdout where everything is. The last line is `ready`.
    pub fn announce(&self) {
        // A closed stdout is no reason to stop.
        let _ = std::io::stdout().lock().write_all(self.banner.to_string().as_bytes());
    }

    /// Ends every part, those that bring events first: clients, upstream relays, topics, the
    /// pipeline, the store. What was acknowledged is on disk before; what is under way is answered.
    pub async fn stop(self) {
        let late = |what: &str| tracing::warn!("{what} did not end in time");
        // Nothing is to wait for a program longer than a client waits for the end.
        self.plugins.close();
        if !self.clients.stop(STEP).await {
            late("client connections");
        }
        let (tended, ended) = tokio::join!(self.upstreams.stop(STEP), self.streams.stop());
        if !tended || !ended {
            late("upstream streams");
        }
        self.gossip.shutdown().await;
        if tokio::time::timeout(STEP, self.ingest.stop()).await.is_err() {
            late("the pipeline");
        }
        let plugins = self.plugins.clone();
        let ended = tasks::blocking(move || plugins.end());
        if !matches!(tokio::time::timeout(STEP, ended).await, Ok(Ok(()))) {
            late("a program");
        }
        if !self.background.stop(STEP).await {
            late("background tasks");
        }
        // Nobody changes it any more, and the store still takes it.
        let kv = self.kv.clone();
        if !matches!(
            tokio::time::timeout(STEP, tasks::blocking(move || kv.stop())).await,
            Ok(Ok(()))
        ) {
            late("what plugins remember");
        }
        if tokio::time::timeout(STEP, self.store.close()).await.is_err() {
            late("a query");
        }
    }
}

/// What other gateways sent and these rules refused is remembered, as long as they are the same.
#[derive(Clone)]
struct Rules {
    settings: u64,
    plugins: PathBuf,
    grants: PathBuf,
    store: Arc<Store>,
}

impl Rules {
    fn new(config: &Config, data_dir: &DataDir, store: Arc<Store>) -> Self {
        let mut hash = DefaultHasher::new();
        // Another version may judge differently.
        let version = env!("CARGO_PKG_VERSION");
        let settings = (version, &config.limits, &config.retention, config.storage.max_bytes);
        format!("{settings:?}").hash(&mut hash);
        let (plugins, _) = plugins::dir(&config.plugins, data_dir.path());
        let grants = data_dir.path().join(plugins::granted::FILE_NAME);
        Self { settings: hash.finish(), plugins, grants, store }
    }

    /// Reads what belongs to the plugins and tells the database. Blocks.
    fn tell(&self) -> anyhow::Result<()> {
        let mut hash = DefaultHasher::new();
        self.settings.hash(&mut hash);
        plugins::fingerprint(&self.plugins).hash(&mut hash);
        std::fs::read(&self.grants).unwrap_or_default().hash(&mut hash);
        let told = self.store.rules_are(hash.finish().cast_signed());
        told.context("cannot tell the database the rules")
    }
}

async fn load_plugins(
    config: &Config,
    data_dir: &DataDir,
    services: Services,
) -> anyhow::Result<PluginChain> {
    let (dir, must_exist) = plugins::dir(&config.plugins, data_dir.path());
    let setup = Setup {
        dir,
        must_exist,
        data_dir: Some(data_dir.path().to_owned()),
        quarantine_after: config.plugins.quarantine_after,
        // Whatever lies at the path by now, this is what runs.
        launcher: cfg!(target_os = "linux").then(|| PathBuf::from("/proc/self/exe")),
    };
    let loaded = tasks::blocking(move || PluginChain::open(setup, services)).await;
    Ok(loaded.context("cannot load the plugins")??)
}

struct Banner {
    relay: SocketAddr,
    admin: Option<SocketAddr>,
    endpoint: String,
    addresses: Vec<SocketAddr>,
    topics: Vec<String>,
    plugins: Vec<String>,
    upstreams: Vec<String>,
    events: u64,
    data_dir: String,
}

impl std::fmt::Display for Banner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |items: &[String]| match items {
            [] => "none".to_owned(),
            items => items.join(", "),
        };
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        writeln!(f, "nostr-gateway {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "  relay     ws://{}", self.relay)?;
        match self.admin {
            Some(admin) => writeln!(f, "  admin     http://{admin}")?,
            None => writeln!(f, "  admin     none")?,
        }
        writeln!(f, "  endpoint  {}", self.endpoint)?;
        writeln!(f, "  addresses {}", list(&addresses))?;
        writeln!(f, "  topics    {}", list(&self.topics))?;
        writeln!(f, "  peers     0 so far; the log tells when they come")?;
        writeln!(f, "  upstream  {}", list(&self.upstreams))?;
        writeln!(f, "  plugins   {}", list(&self.plugins))?;
        writeln!(f, "  store     {} events in {}", self.events, self.data_dir)?;
        writeln!(f, "ready")
    }
}
