//! The part that a gateway cannot be without, and that works without the network: the store, and the
//! one way into it with its rules, limits and plugins.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;

use super::{STEP, late};
use crate::{
    config::Config,
    data_dir::DataDir,
    metrics::Metrics,
    pipeline::{
        Ingest, JoinedTopics, Moderation, Policy, PrivateTopics, Routing, StartIngest, StreamScopes,
    },
    plugins::{self, Kv, PluginChain, Services, Setup},
    protocol::{OwnUrls, limits::Limits},
    store::Store,
    tasks,
    upstream::{Gate, LinkOptions},
};

/// Store and pipeline. Cheap to clone; it ends with [`Local::stop_judging`] and [`Local::stop_storing`].
#[derive(Clone)]
pub(super) struct Local {
    pub store: Arc<Store>,
    pub moderation: Arc<Moderation>,
    kv: Arc<Kv>,
    pub plugins: Arc<PluginChain>,
    /// Those of the configuration; the others join it later.
    pub joined: JoinedTopics,
    pub private: PrivateTopics,
    pub ingest: Ingest,
    /// Which streams each plugin judges.
    pub scopes: StreamScopes,
    /// For connections to other relays, and what may go to them.
    pub links: LinkOptions,
    pub gate: Arc<Gate>,
}

impl Local {
    /// Starts it in a data directory.
    ///
    /// # Errors
    /// With one line that names the setting or file and what to do.
    pub async fn start(
        config: &Config,
        data_dir: &DataDir,
        own_urls: OwnUrls,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let store = Store::open(data_dir.path(), &config.storage, metrics.clone()).await?;
        store.start_upkeep(&config.retention)?;
        let store = Arc::new(store);
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
        let plugins = Arc::new(load_plugins(config, data_dir, services).await?);
        let rules = Rules::new(config, data_dir, store.clone());
        let told = rules.clone();
        let told = tasks::blocking(move || told.tell()).await;
        told.context("cannot tell the database the rules")??;
        let joined = JoinedTopics::new(config.topics.join.iter().cloned());
        let private = PrivateTopics::new(
            config.private_topic.iter().map(|topic| (topic.name.clone(), topic.readers.clone())),
        );
        store.private_are(private.clone());
        let routing = Arc::new(Routing {
            rules: config.route.iter().map(|r| (r.filter.clone(), r.topics.clone())).collect(),
            default: config.topics.default.clone(),
            joined: joined.clone(),
            private: private.clone(),
        });
        let policy: Arc<dyn Policy> = plugins.clone();
        let ingest = Ingest::start(StartIngest {
            limits: Limits::from(&config.limits),
            moderation: moderation.clone(),
            routing,
            own_urls,
            writer: store.clone(),
            policy,
            metrics,
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
        let links = LinkOptions::new(config.limits.max_event_bytes);
        let gate = Arc::new(Gate::new(plugins.clone()));
        Ok(Self { store, moderation, kv, plugins, joined, private, ingest, scopes, links, gate })
    }

    /// Ends the pipeline and the plugins: what is under way is answered.
    pub async fn stop_judging(&self) {
        if tokio::time::timeout(STEP, self.ingest.stop()).await.is_err() {
            late("the pipeline");
        }
        let plugins = self.plugins.clone();
        let ended = tasks::blocking(move || plugins.end());
        if !matches!(tokio::time::timeout(STEP, ended).await, Ok(Ok(()))) {
            late("a program");
        }
    }

    /// Ends the store, once nobody uses it any more.
    pub async fn stop_storing(&self) {
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
