//! What works on the stored events as a whole: in the running gateway, and on a data directory in which
//! none runs.

mod backup;
mod delete;
mod export;
mod import;
mod matches;
mod sync;

use std::{path::PathBuf, sync::Arc};

use futures_util::stream::BoxStream;
use serde_json::json;

use super::local::Local;
use crate::{
    admin::api::{Cause, Command, Line, Lines, Refusal, Reply},
    pipeline::{Ingest, JoinedTopics, PrivateTopics, Scope},
    protocol::{Filter, TopicName},
    store::Store,
    upstream::{Gate, LinkOptions, once::Wanted},
};
use matches::Matches;

/// What the commands work with.
pub(super) struct Tools {
    pub store: Arc<Store>,
    pub data_dir: PathBuf,
    /// Absent where only what is stored is looked at.
    pub entrance: Option<Entrance>,
}

/// The way in, and the topics that may be named.
pub(super) struct Entrance {
    pub ingest: Ingest,
    pub joined: JoinedTopics,
    pub private: PrivateTopics,
    pub links: LinkOptions,
    pub gate: Arc<Gate>,
}

impl Tools {
    pub fn new(local: &Local, data_dir: PathBuf) -> Self {
        let Local { ingest, joined, private, links, gate, store, .. } = local.clone();
        let entrance = Entrance { ingest, joined, private, links, gate };
        Self { store, data_dir, entrance: Some(entrance) }
    }

    /// Carries a command out, if it is one of these.
    ///
    /// # Errors
    /// With what is to blame.
    pub async fn carry_out(&self, command: Command) -> Result<Reply, Refusal> {
        match command {
            Command::Import { events: Lines(events), first, topics } => {
                let entrance = self.entrance.as_ref().ok_or_else(only_running)?;
                for name in topics.iter().flatten() {
                    entrance.check(name)?;
                }
                let imported = import::import(&entrance.ingest, &events, first, topics).await;
                Ok(Reply::Done(json!(imported)))
            }
            Command::Export { filter, topic } => {
                self.check(topic.as_ref()).await?;
                let filter = filter.as_deref().map(read).transpose()?;
                export::export(self.store.clone(), filter, topic).map(Reply::Lines)
            }
            Command::Scan { filter, topic, count } => {
                let matches = self.matches(&filter, topic).await?;
                match count {
                    true => Ok(Reply::Done(json!({ "count": matches.count().await? }))),
                    false => Ok(Reply::Lines(matches.lines())),
                }
            }
            Command::Delete { filter, topic } => {
                let matches = self.matches(&filter, topic).await?;
                let lines = delete::delete(self.store.clone(), matches)?;
                Ok(Reply::Lines(lines))
            }
            Command::Sync { url, down, up, filter, topic, dry_run } => {
                let entrance = self.entrance.as_ref().ok_or_else(only_running)?;
                if let Some(name) = &topic {
                    entrance.check(name)?;
                    if up && entrance.private.contains(name) {
                        let why =
                            "events of a private topic do not leave it (only --direction down)";
                        return Err(Refusal::new(Cause::Refused, why));
                    }
                }
                let filter = filter.as_deref().map(read).transpose()?.unwrap_or_default();
                let url = sync::address(&url)?;
                let wanted = Wanted { url, down, up, filter, topic, dry_run };
                sync::sync(entrance, self.store.clone(), wanted).map(Reply::Lines)
            }
            Command::Backup { file, with_key } => Ok(Reply::Lines(self.backup(file, with_key))),
            _ => Err(only_running()),
        }
    }

    fn backup(&self, file: PathBuf, with_key: bool) -> BoxStream<'static, Line> {
        backup::backup(self.data_dir.clone(), file, with_key)
    }

    async fn matches(&self, filter: &str, topic: Option<TopicName>) -> Result<Matches, Refusal> {
        self.check(topic.as_ref()).await?;
        let scope = topic.map_or(Scope::All, Scope::Topic);
        Ok(Matches::new(self.store.clone(), read(filter)?, scope))
    }

    /// Whether anything was ever in the topic.
    async fn check(&self, topic: Option<&TopicName>) -> Result<(), Refusal> {
        let Some(name) = topic else { return Ok(()) };
        match self.store.has_topic(name.clone()).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let why = format!("nothing here was ever in a topic {:?}", name.as_str());
                Err(Refusal::new(Cause::Unknown, why))
            }
            Err(error) => Err(Refusal::new(Cause::Failed, error)),
        }
    }
}

impl Entrance {
    fn check(&self, name: &TopicName) -> Result<(), Refusal> {
        if self.joined.contains(name.as_str()) || self.private.contains(name) {
            return Ok(());
        }
        let why = format!("this gateway is not in the topic {:?}", name.as_str());
        Err(Refusal::new(Cause::Unknown, why))
    }
}

fn read(filter: &str) -> Result<Filter, Refusal> {
    Filter::parse(filter)
        .map_err(|error| Refusal::new(Cause::Wrong, format!("the filter: {error}")))
}

fn only_running() -> Refusal {
    Refusal::new(Cause::Refused, "only a running gateway does that")
}
