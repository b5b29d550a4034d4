//! The only place that wires parts together: what starts, in which order, and how it ends.

mod control;
mod local;
mod offline;
mod reload;
pub mod restore;
mod tools;

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::Context;
pub use offline::{Needs, Offline};

use self::{control::Commands, local::Local, reload::Reload, tools::Tools};
use crate::{
    admin::Admin,
    config::{Config, Sources},
    data_dir::DataDir,
    gossip::{Gossip, StartGossip, VisitRules},
    metrics::Metrics,
    pipeline::{EventReader, EventWriter, RotationPolicy, TopicDoor, UpstreamStore},
    protocol::limits::Limits,
    relay::{self, Access, Connections, Listener, Management, Rates, Relay},
    secrets,
    store::{FollowTable, JoinedTable, PeerTable, UpstreamTables},
    subscriptions::Subscriptions,
    tasks::Tasks,
    upstream::{Intake, StartStreams, StreamSetup, Streams},
};

/// How long each step of the shutdown may take.
const STEP: Duration = Duration::from_secs(5);

fn late(what: &str) {
    tracing::warn!("{what} did not end in time");
}

/// A running gateway.
pub struct App {
    local: Local,
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
        let own_urls = relay::own_urls(&config.relay, relay_socket.local_addr()?);
        let local = Local::start(&config, &data_dir, own_urls.clone(), metrics.clone()).await?;
        let Local { store, moderation, plugins, ingest, gate, joined, private, .. } = local.clone();
        let reader: Arc<dyn EventReader> = store.clone();
        let writer: Arc<dyn EventWriter> = store.clone();

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
        let streams = Streams::new(StartStreams {
            setup: Arc::new(StreamSetup {
                ingest: ingest.clone(),
                intake: Intake::new(ingest.clone(), metrics.clone()),
                options: local.links.clone(),
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
            scopes: local.scopes.clone(),
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
            tools: Tools::new(&local, data_dir.path().to_owned()),
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
            local,
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
        // Nothing is to wait for a program longer than a client waits for the end.
        self.local.plugins.close();
        if !self.clients.stop(STEP).await {
            late("client connections");
        }
        let (tended, ended) = tokio::join!(self.upstreams.stop(STEP), self.streams.stop());
        if !tended || !ended {
            late("upstream streams");
        }
        self.gossip.shutdown().await;
        self.local.stop_judging().await;
        if !self.background.stop(STEP).await {
            late("background tasks");
        }
        self.local.stop_storing().await;
    }
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
