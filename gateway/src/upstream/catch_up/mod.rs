//! Fetching what a relay has and we missed: by comparing sets (NIP-77) where it does that, else page by
//! page, back to where an earlier run had come.

mod compare;
mod fetch;
mod ledger;
mod pages;
mod sets;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex as AsyncMutex, time::Instant};

pub(super) use ledger::{Ledger, Pending};

use super::{
    config::History,
    demand::Wanted,
    flow::{Flow, Pace, Source},
    link::{Link, LinkError, NegError},
    relay::Standing,
};
use crate::{
    clock::unix_now,
    pipeline::{
        EventReader, Span, StoreError,
        streams::{Part, StreamRelay, UpstreamStore},
    },
};

/// After a relay failed to compare sets it is asked for pages alone, for so long.
const NO_COMPARING: Duration = Duration::from_secs(3_600);

/// Why fetching ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CatchUpError {
    #[error("the relay refused it: {0}")]
    Refused(String),
    #[error("the relay did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// What it sends leads nowhere.
    #[error("{0}")]
    Misbehaved(String),
    #[error("{0} events could not be taken here; the log says why")]
    NotTaken(usize),
    #[error("comparing failed: {0}")]
    Compare(String),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<NegError> for CatchUpError {
    fn from(error: NegError) -> Self {
        match error {
            NegError::Link(error) => Self::Link(error),
            error => Self::Compare(error.to_string()),
        }
    }
}

/// What is known of a relay's past from one connection to the next.
pub(super) struct Past {
    pub of: StreamRelay,
    pub store: Arc<dyn UpstreamStore>,
    pub reader: Arc<dyn EventReader>,
    ledgers: Mutex<HashMap<Part, Arc<AsyncMutex<Ledger>>>>,
    compared: Mutex<Compared>,
}

#[derive(Default)]
struct Compared {
    /// Parts that were compared as a whole: when, and how many ids it took.
    whole: HashMap<Part, (Instant, usize)>,
    /// Until when the relay is not asked to compare.
    not_before: Option<Instant>,
}

impl Past {
    pub fn new(
        of: StreamRelay,
        store: Arc<dyn UpstreamStore>,
        reader: Arc<dyn EventReader>,
    ) -> Self {
        Self { of, store, reader, ledgers: Mutex::default(), compared: Mutex::default() }
    }

    /// The ledger of a part, read from the store when it is needed first.
    pub async fn ledger(&self, part: Part) -> Result<Arc<AsyncMutex<Ledger>>, StoreError> {
        let known = self.ledgers().get(&part).cloned();
        if let Some(ledger) = known {
            return Ok(ledger);
        }
        let ledger = Ledger::load(&*self.store, self.of.clone(), part).await?;
        let ledger = Arc::new(AsyncMutex::new(ledger));
        // Whoever was faster may have changed theirs.
        Ok(self.ledgers().entry(part).or_insert(ledger).clone())
    }

    /// Forgets what is not wanted any more; it stays in the store.
    pub fn retain(&self, wanted: &[Wanted]) {
        let is_wanted = |part: &Part| wanted.iter().any(|wanted| wanted.part == *part);
        self.ledgers().retain(|part, _| is_wanted(part));
        self.compared().whole.retain(|part, _| is_wanted(part));
    }

    fn ledgers(&self) -> std::sync::MutexGuard<'_, HashMap<Part, Arc<AsyncMutex<Ledger>>>> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compared(&self) -> std::sync::MutexGuard<'_, Compared> {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_compare(&self) -> bool {
        self.compared().not_before.is_none_or(|at| at <= Instant::now())
    }
}

/// What fetching works with.
pub(super) struct CatchUp<'a> {
    pub link: &'a Link,
    pub source: &'a Source,
    pub past: &'a Past,
    pub standing: &'a Standing,
    pub pace: Pace,
}

impl<'a> CatchUp<'a> {
    /// Fetches what is missing of a part, to the end.
    ///
    /// # Errors
    /// When the relay does not give it, or it cannot be taken here. What was taken stays counted.
    pub async fn part(&self, wanted: &Wanted) -> Result<(), CatchUpError> {
        let ledger = self.past.ledger(wanted.part).await?;
        let Some(since) = self.since(wanted, &ledger).await else { return Ok(()) };
        let is_simple = wanted.concerning.is_none() && wanted.filter.search.is_none();
        if is_simple && self.link.limits().negentropy && self.past.may_compare() {
            match self.compare(wanted, since, &ledger).await {
                Ok(compare::Compared::Complete) => return Ok(()),
                Ok(compare::Compared::NothingHeld) => {}
                Err(CatchUpError::Compare(why)) => {
                    let (stream, url) = (&*self.source.stream, &*self.source.url);
                    tracing::warn!(
                        stream,
                        url,
                        why,
                        "upstream says that it compares sets (NIP-77), but does not; asking for pages"
                    );
                    self.past.compared().not_before = Some(Instant::now() + NO_COMPARING);
                    self.trouble(format!("comparing failed: {why}"));
                }
                Err(error) => return Err(error),
            }
        }
        self.pages(wanted, since, &ledger).await
    }

    /// From when on events are wanted; `None` when nothing of the past is.
    async fn since(&self, wanted: &Wanted, ledger: &AsyncMutex<Ledger>) -> Option<u64> {
        let now = unix_now();
        let since = match wanted.history {
            // What came since the stream began, and was missed.
            History::None => {
                let mut ledger = ledger.lock().await;
                let Some(began) = ledger.earliest() else {
                    ledger.add(Span { from: now, until: now });
                    ledger.keep_now(&*self.past.store).await;
                    return None;
                };
                began
            }
            history => history.since(now),
        };
        Some(since.max(self.kept_since()).max(wanted.filter.since.unwrap_or(0)))
    }

    /// What is older than all topics keep need not come.
    fn kept_since(&self) -> u64 {
        let topics = self.source.topics.iter();
        topics.map(|topic| self.past.reader.kept_since(topic)).min().unwrap_or(0)
    }

    fn flow(&self) -> Flow<'a> {
        Flow::new(self.source, self.pace.clone())
    }

    fn trouble(&self, what: String) {
        self.standing.catch_up(|status| status.trouble = Some(what));
    }

    /// A relay that sends nothing but invalid events is not asked for more.
    fn check_junk(&self) -> Result<(), CatchUpError> {
        if self.source.taken.is_junk() {
            let text = "it sends nothing but invalid events";
            return Err(CatchUpError::Misbehaved(text.to_owned()));
        }
        Ok(())
    }
}
