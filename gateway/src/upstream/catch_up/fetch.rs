//! Fetching events by their ids, within what the relay takes at once.

use std::collections::HashSet;

use tokio::time::timeout;

use super::{CatchUp, CatchUpError};
use crate::{
    protocol::{EventId, Filter},
    upstream::{
        demand::Wanted,
        flow::{Flow, Settled},
        link::Item,
    },
};

/// Ids of one request.
const AT_ONCE: usize = 500;
/// What an id takes in a filter, in bytes.
const BYTES: usize = 67;
/// The longest message to a relay that does not say how long one may be, in bytes.
const MESSAGE: usize = 48 * 1_024;
/// Ids that a relay named in a comparison and then did not give, beside as many that it did.
const PATIENCE: u64 = 2_000;

/// Ids to fetch of a part, and their events on the way.
pub(super) struct Fetch<'f, 'a> {
    with: &'f CatchUp<'a>,
    wanted: &'f Wanted,
    flow: Flow<'a>,
    /// Not asked for yet.
    waiting: Vec<EventId>,
    given: u64,
    not_given: u64,
    failed: usize,
}

impl<'f, 'a> Fetch<'f, 'a> {
    pub fn new(with: &'f CatchUp<'a>, wanted: &'f Wanted) -> Self {
        let flow = with.flow();
        Self { with, wanted, flow, waiting: Vec::new(), given: 0, not_given: 0, failed: 0 }
    }

    /// Fetches those of these ids that are neither held nor gone; a few may wait for [`Self::rest`].
    pub async fn ids(&mut self, ids: Vec<EventId>) -> Result<(), CatchUpError> {
        let ids = self.unknown(ids).await?;
        self.waiting.extend(ids);
        let at_once = self.at_once();
        while self.waiting.len() >= at_once {
            let batch = self.waiting.split_off(self.waiting.len() - at_once);
            self.batch(batch).await?;
        }
        Ok(())
    }

    /// Fetches what waits.
    pub async fn rest(&mut self) -> Result<(), CatchUpError> {
        let batch = std::mem::take(&mut self.waiting);
        if batch.is_empty() { Ok(()) } else { self.batch(batch).await }
    }

    /// Waits until all that came is committed.
    pub async fn finish(&mut self) -> Result<(), CatchUpError> {
        self.flow.drain().await;
        self.count();
        match self.failed {
            0 => Ok(()),
            failed => Err(CatchUpError::NotTaken(failed)),
        }
    }

    /// What is gone here (deleted, replaced, refused, evicted) is not fetched again and again.
    async fn unknown(&mut self, ids: Vec<EventId>) -> Result<Vec<EventId>, CatchUpError> {
        let reader = &self.with.past.reader;
        let topics = &self.with.source.topics;
        // What the operator deleted would be refused.
        let removed: HashSet<EventId> = reader.removed(ids.clone()).await?.into_iter().collect();
        let ids: Vec<_> = ids.into_iter().filter(|id| !removed.contains(id)).collect();
        if topics.is_empty() {
            return Ok(ids);
        }
        let mut unknown = HashSet::new();
        for topic in topics {
            let missing = reader.missing(topic.clone(), ids.clone()).await?;
            let gone = reader.gone(topic.clone(), missing.clone()).await?;
            let gone: HashSet<EventId> = gone.into_iter().map(|(_, id)| id).collect();
            unknown.extend(missing.into_iter().filter(|id| !gone.contains(id)));
        }
        Ok(unknown.into_iter().collect())
    }

    fn at_once(&self) -> usize {
        let limits = self.with.link.limits();
        let bytes = limits.max_message_length.unwrap_or(MESSAGE).saturating_sub(200) / BYTES;
        let limit = limits.max_limit.and_then(|max| usize::try_from(max).ok());
        bytes.min(limit.unwrap_or(AT_ONCE)).clamp(1, AT_ONCE)
    }

    async fn batch(&mut self, mut ids: Vec<EventId>) -> Result<(), CatchUpError> {
        ids.sort_unstable();
        ids.dedup();
        let asked = ids.len() as u64;
        let link = self.with.link;
        let patience = link.timeouts().answer;
        let filter = Filter { ids: Some(ids), limit: Some(asked), ..Filter::default() };
        let requested = link.request(std::slice::from_ref(&filter));
        let mut request = self.flow.meanwhile(requested).await?;
        let mut given = 0;
        while given < asked {
            match self.flow.meanwhile(timeout(patience, request.next())).await {
                Ok(Some(Item::Event(event))) => {
                    given += 1;
                    if self.wanted.takes(&event) {
                        self.flow.send(event, 0).await;
                    }
                }
                Ok(Some(Item::Eose { .. })) => break,
                Ok(Some(Item::Closed(reason))) => return Err(CatchUpError::Refused(reason)),
                Ok(None) => return Err(link.closed().await.into()),
                Err(_) => return Err(CatchUpError::Silent(patience)),
            }
        }
        self.given += given;
        self.not_given += asked - given;
        self.count();
        self.with.standing.catch_up(|status| status.fetched += given);
        self.with.check_junk()?;
        if self.not_given > self.given + PATIENCE {
            return Err(CatchUpError::Compare(format!(
                "the relay named {} events and gave {} of them",
                self.given + self.not_given,
                self.given
            )));
        }
        Ok(())
    }

    fn count(&mut self) {
        let settled = self.flow.take_settled();
        self.failed += settled.iter().filter(|(_, how)| *how == Settled::Failed).count();
    }
}
