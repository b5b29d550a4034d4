//! The only place that wires parts together: what starts, in which order, and how it ends.

mod control;
mod local;
mod offline;
pub mod restore;
mod tools;

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

pub use offline::{Needs, Offline};

use self::{control::Commands, local::Local, tools::Tools};
use crate::{
    admin::Admin,
    config::Config,
    data_dir::DataDir,
    gossip::{Gossip, StartGossip, VisitRules},
    metrics::Metrics,
    pipeline::{EventReader, EventWriter, RotationPolicy, TopicDoor},
    protocol::limits::Limits,
    relay::{self, Access, Connections, Listener, Management, Rates, Relay},
    secrets,
    store::{JoinedTable, PeerTable},
    subscriptions::Subscriptions,
    tasks::Tasks,
    upstream::Stream,
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
    /// Upstream streams.
    upstreams: Tasks,
    /// What the others rely on; ends last.
    background: Tasks,
    banner: Banner,
    _data_dir: DataDir,
}

impl App {
    /// Starts every part. Whatever the gateway cannot do without is an error; the rest is logged.
    ///
    /// # Errors
    /// With one line that names the setting or file and what to do.
    pub async fn start(config: Config, data_dir: DataDir) -> anyhow::Result<Self> {
        let started = Instant::now();
        let metrics = Arc::new(Metrics::default());
        let limits = Limits::from(&config.limits);
        // First what fails most often, so that nothing is half done then.
        let relay_socket = relay::bind("relay.listen", config.relay.listen)?;
        let admin_socket = relay::bind("admin.listen", config.admin.listen);
        let secrets = secrets::open(&config.secrets, data_dir.path()).await?;
        let own_urls = relay::own_urls(&config.relay, relay_socket.local_addr()?);
        let local = Local::start(&config, &data_dir, own_urls.clone(), metrics.clone()).await?;
        let Local { store, moderation, plugins, ingest, joined, private, .. } = local.clone();
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

        let streams: Vec<_> = config
            .upstream
            .iter()
            .map(|stream| Stream::new(stream.clone(), ingest.clone(), metrics.clone()))
            .collect();
        for stream in &streams {
            upstreams.spawn("upstream", stream.clone().run(upstreams.token().clone()));
        }

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
            streams,
            plugins: plugins.clone(),
            trouble: Box::new(trouble.clone()),
            secrets,
            counted: Default::default(),
        };
        let admin = Arc::new(Admin {
            metrics: metrics.clone(),
            measure: Box::new({
                let (gossip, plugins) = (gossip.clone(), plugins.clone());
                move || {
                    gossip.measure();
                    plugins.measure();
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

        Ok(Self { local, gossip, clients, upstreams, background, banner, _data_dir: data_dir })
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
        if !self.upstreams.stop(STEP).await {
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
