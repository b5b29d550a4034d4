//! What works on a data directory in which no gateway runs.

use std::{net::Ipv4Addr, sync::Arc};

use super::{
    local::Local,
    tools::{Entrance, Tools},
};
use crate::{
    admin::api::{Command, Reply},
    config::Config,
    data_dir::DataDir,
    metrics::Metrics,
    pipeline::TopicStore,
    relay,
    store::{JoinedTable, Store},
};

/// How much of a gateway a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// What is stored.
    Store,
    /// The way in too: limits, bans, plugins.
    Pipeline,
}

/// Store and perhaps pipeline of a data directory, which is locked as long as this lives. No network.
pub struct Offline {
    tools: Tools,
    local: Option<Local>,
    _data_dir: DataDir,
}

impl Offline {
    /// Starts what the command needs.
    ///
    /// # Errors
    /// With one line that names the setting or file and what to do.
    pub async fn start(config: &Config, data_dir: DataDir, needs: Needs) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let path = data_dir.path().to_owned();
        if needs == Needs::Store {
            let store = Store::open(&path, &config.storage, metrics).await?;
            let tools = Tools { store: Arc::new(store), data_dir: path, entrance: None };
            return Ok(Self { tools, local: None, _data_dir: data_dir });
        }
        // Nobody listens, so nobody can mean this relay by its address.
        let own_urls = relay::own_urls(&config.relay, (Ipv4Addr::LOCALHOST, 0).into());
        let local = Local::start(config, &data_dir, own_urls, metrics).await?;
        let tools = Tools::new(&local, path);
        let offline = Self { tools, local: Some(local), _data_dir: data_dir };
        if let Some(entrance) = &offline.tools.entrance
            && let Err(error) = offline.rejoin(entrance).await
        {
            offline.stop().await;
            return Err(error.into());
        }
        Ok(offline)
    }

    /// The topics that a gateway would be in, beside those of the configuration: what is imported into
    /// them goes out when it runs, as its neighbors compare with it.
    async fn rejoin(&self, entrance: &Entrance) -> Result<(), crate::pipeline::StoreError> {
        let kept = JoinedTable::new(&self.tools.data_dir);
        for topic in kept.private().await? {
            // Also one that was left: what it brought stays private.
            entrance.private.insert(&topic.name);
            entrance.joined.remove(&topic.name);
        }
        for topic in kept.load().await? {
            if !topic.private && !entrance.private.contains(&topic.name) {
                entrance.joined.insert(topic.name);
            }
        }
        Ok(())
    }

    /// Carries a command out, as a running gateway would.
    pub async fn run(&self, command: Command) -> Reply {
        self.tools.carry_out(command).await.unwrap_or_else(Reply::Refused)
    }

    /// Ends everything. What was acknowledged is on disk before.
    pub async fn stop(self) {
        match &self.local {
            Some(local) => {
                local.plugins.close();
                local.stop_judging().await;
                local.stop_storing().await;
            }
            None => self.tools.store.close().await,
        }
    }
}
