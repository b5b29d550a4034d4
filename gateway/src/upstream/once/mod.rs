//! One relay, once: `nostr-gateway sync URL`. What is on either side and not on the other crosses, and
//! nothing is remembered of it.

mod compare;
mod cross;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use url::Url;

use super::{
    gate::Gate,
    link::{Link, LinkError, LinkOptions},
};
use crate::{
    pipeline::{EventReader, IdSet, Ingest, Scope, StoreError, Viewer},
    protocol::{EventId, Filter, TopicName},
    tasks::Tasks,
};

/// The most events of one run on each side. A filter or a time makes several of it.
pub const MOST: usize = 2_000_000;
/// How long the end of the connection is waited for.
const END: Duration = Duration::from_secs(2);

/// What is to cross.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub url: Url,
    /// From the relay to here.
    pub down: bool,
    /// From here to the relay.
    pub up: bool,
    /// Without limit and search.
    pub filter: Filter,
    /// Where events from the relay go, and the only topic whose events go to it. Without one, routing
    /// decides, and every event that is for everybody may go.
    pub topic: Option<TopicName>,
    /// Only count.
    pub dry_run: bool,
}

/// What the run works with.
#[derive(Clone)]
pub struct Parts {
    pub ingest: Ingest,
    pub reader: Arc<dyn EventReader>,
    pub options: LinkOptions,
    pub gate: Arc<Gate>,
}

/// How far it is, and at the end what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// `negentropy` (NIP-77) or `paging`; nothing before that is known.
    pub by: Option<&'static str>,
    /// Events that match, here and as far as it is known there.
    pub here: u64,
    /// On the relay and not here. By paging, those that came so far.
    pub missing_here: u64,
    /// Here and not on the relay, and may leave.
    pub missing_there: u64,
    /// Came from the relay.
    pub received: u64,
    pub added: u64,
    pub known: u64,
    /// By limits, bans and plugins of this gateway, with the reasons.
    pub refused: u64,
    pub reasons: BTreeMap<String, u64>,
    /// Taken by the relay.
    pub sent: u64,
    /// Not taken by the relay, with its reasons.
    pub not_taken: u64,
    pub reasons_there: BTreeMap<String, u64>,
    /// Never leave a gateway, like protected and expired events, or are kept back by a plugin.
    pub stayed: u64,
}

/// The figures of a run that is under way.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<Figures>>);

/// Reasons that are told apart.
const REASONS: usize = 50;

impl Tally {
    pub fn figures(&self) -> Figures {
        self.change().clone()
    }

    fn change(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(reasons: &mut BTreeMap<String, u64>, reason: String) {
    let reason = match reasons.len() < REASONS || reasons.contains_key(&reason) {
        true => reason,
        false => "other reasons".to_owned(),
    };
    *reasons.entry(reason).or_default() += 1;
}

/// Why it was broken off. What crossed before has crossed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("cannot connect to {url}: {error}")]
    Unreachable { url: Url, error: LinkError },
    #[error("the connection ended: {0}")]
    Link(#[from] LinkError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "more than {MOST} events match here; take them in parts, with --since or a --filter of fewer kinds \
         or authors"
    )]
    TooMany,
    #[error(
        "the relay cannot compare ({0}), so nothing but transferring tells what is missing: leave --dry-run"
    )]
    CannotCount(String),
    #[error("the relay refuses everything: {0}")]
    RefusesAll(String),
    #[error("the relay ended the request: {0}")]
    Closed(String),
    #[error("the relay did not send all that it has: {0}")]
    Endless(&'static str),
    #[error("the comparison failed: {0}")]
    Compared(String),
}

/// Brings both sides together, as far as `wanted` says.
///
/// # Errors
/// When the relay cannot be reached, does not answer in time, or refuses; or the database fails.
pub async fn run(parts: Parts, wanted: Wanted, tally: Tally) -> Result<(), SyncError> {
    let tasks = Tasks::new();
    let result = on_link(&parts, &wanted, &tally, &tasks).await;
    tasks.stop(END).await;
    result
}

async fn on_link(
    parts: &Parts,
    wanted: &Wanted,
    tally: &Tally,
    tasks: &Tasks,
) -> Result<(), SyncError> {
    let link = Link::open(&wanted.url, &parts.options, tasks).await;
    let link = link.map_err(|error| SyncError::Unreachable { url: wanted.url.clone(), error })?;
    let run = Run { parts, wanted, tally, link };
    let mut here = run.held().await?;
    tally.change().here = here.len() as u64;
    let why_not = if run.link.limits().negentropy {
        match run.compare(&here).await? {
            Ok(difference) => {
                tally.change().by = Some("negentropy");
                drop(here);
                return run.cross(difference).await;
            }
            Err(why) => why,
        }
    } else {
        "its NIP-11 document does not name NIP-77".to_owned()
    };
    if wanted.dry_run {
        return Err(SyncError::CannotCount(why_not));
    }
    tally.change().by = Some("paging");
    let there = run.page().await?;
    here.retain(|(_, id)| !there.contains(id));
    let difference =
        Difference { have: here.into_iter().map(|(_, id)| id).collect(), need: Vec::new() };
    run.cross(difference).await
}

/// What is only on one side.
#[derive(Debug, Default)]
struct Difference {
    have: Vec<EventId>,
    need: Vec<EventId>,
}

/// One run, on its link.
struct Run<'r> {
    parts: &'r Parts,
    wanted: &'r Wanted,
    tally: &'r Tally,
    link: Link,
}

impl Run<'_> {
    /// What is here and for everybody: whatever is not, is nothing that the relay is to hear of.
    async fn held(&self) -> Result<Vec<(u64, EventId)>, SyncError> {
        let viewer = Arc::new(Viewer::default());
        let filter = self.wanted.filter.clone();
        match self.parts.reader.ids(filter, Scope::All, viewer, MOST).await? {
            IdSet::All(ids) => Ok(ids),
            IdSet::TooMany => Err(SyncError::TooMany),
        }
    }

    /// What was compared or paged for is here: lets it cross, both ways at once.
    async fn cross(&self, mut difference: Difference) -> Result<(), SyncError> {
        for ids in [&mut difference.have, &mut difference.need] {
            ids.sort_unstable();
            ids.dedup();
        }
        let Difference { have, mut need } = difference;
        // What the operator deleted would be refused.
        let mut removed = self.parts.reader.removed(need.clone()).await?;
        removed.sort_unstable();
        need.retain(|id| removed.binary_search(id).is_err());
        let have = if self.wanted.up { self.of_topic(have).await? } else { Vec::new() };
        {
            let mut figures = self.tally.change();
            figures.missing_there = have.len() as u64;
            if self.wanted.down && figures.by == Some("negentropy") {
                figures.missing_here = need.len() as u64;
            }
        }
        if self.wanted.dry_run {
            return Ok(());
        }
        let down = async {
            match self.wanted.down {
                true => self.fetch(need).await,
                false => Ok(()),
            }
        };
        let (down, up) = tokio::join!(down, self.publish(have));
        down.and(up)
    }

    /// Those that are in the topic, if one is named.
    async fn of_topic(&self, ids: Vec<EventId>) -> Result<Vec<EventId>, SyncError> {
        let Some(topic) = &self.wanted.topic else { return Ok(ids) };
        let mut missing = self.parts.reader.missing(topic.clone(), ids.clone()).await?;
        missing.sort_unstable();
        Ok(ids.into_iter().filter(|id| missing.binary_search(id).is_err()).collect())
    }
}
