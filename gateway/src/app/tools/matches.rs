//! Stored events that match a filter, newest first, however many there are.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::{
    admin::api::{Cause, Line, Refusal},
    pipeline::{EventReader, ScanItem, Scope, StoreError, Viewer},
    protocol::{Event, EventId, Filter},
};

/// Events that are read with one query. Nobody holds a snapshot or a reader between two.
const PAGE: u64 = 500;

/// Reads a page after the other: each goes back to the second in which the last one ended. What comes
/// meanwhile and is newer is not part of it.
pub(super) struct Matches {
    reader: Arc<dyn EventReader>,
    filter: Filter,
    scope: Scope,
    viewer: Arc<Viewer>,
    /// Events that may still come, by the filter's own limit.
    left: u64,
    /// What the last page had of its oldest second: the next one begins with it.
    of_last_second: HashSet<EventId>,
    over: bool,
}

impl Matches {
    /// As the operator sees them: direct messages and private topics too.
    pub fn new(reader: Arc<dyn EventReader>, filter: Filter, scope: Scope) -> Self {
        let over = filter.matches_nothing();
        let left = filter.limit.unwrap_or(u64::MAX);
        let viewer = Arc::new(Viewer::operator());
        Self { reader, filter, scope, viewer, left, of_last_second: HashSet::new(), over }
    }

    /// Whether the events are chosen by words: then the best come first, and not all of them.
    pub fn is_search(&self) -> bool {
        self.filter.words().is_some()
    }

    /// The next events; none at the end.
    ///
    /// # Errors
    /// When the database cannot be read, or a question takes too long.
    pub async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        if self.over || self.left == 0 {
            return Ok(Vec::new());
        }
        if self.is_search() {
            self.over = true;
            return self.page(self.left.min(PAGE)).await.map(|(events, _)| events);
        }
        let again = self.of_last_second.len() as u64;
        let (page, complete) = self.page(self.left.min(PAGE) + again).await?;
        let Some(oldest) = page.last().map(|event| event.created_at) else {
            self.over = true;
            return Ok(Vec::new());
        };
        self.over = complete;
        let of_oldest = page.iter().filter(|event| event.created_at == oldest);
        let of_oldest = of_oldest.map(|event| event.id).collect();
        let before = std::mem::replace(&mut self.of_last_second, of_oldest);
        self.filter.until = Some(oldest);
        let mut fresh: Vec<_> =
            page.into_iter().filter(|event| !before.contains(&event.id)).collect();
        fresh.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= fresh.len() as u64;
        // Nothing but what was there: the page was all of that second, and nothing is older.
        self.over |= fresh.is_empty();
        Ok(fresh)
    }

    async fn page(&self, limit: u64) -> Result<(Vec<Event>, bool), StoreError> {
        let filter = Filter { limit: Some(limit), ..self.filter.clone() };
        let mut scan = self.reader.scan(vec![filter], self.scope.clone(), self.viewer.clone());
        let mut events = Vec::new();
        loop {
            match scan.next().await {
                Some(ScanItem::Events(found)) => {
                    for json in found {
                        let event = Event::parse(&json).map_err(|error| {
                            StoreError(format!("the database holds a broken event: {error}"))
                        })?;
                        events.push(event);
                    }
                }
                Some(ScanItem::End { complete, .. }) => return Ok((events, complete)),
                Some(ScanItem::Failed(error)) => return Err(error),
                None => return Err(StoreError("the query was broken off".to_owned())),
            }
        }
    }

    /// How many there are, exactly.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn count(mut self) -> Result<u64, Refusal> {
        let failed = |error: StoreError| Refusal::new(Cause::Failed, error);
        let filters = vec![self.filter.clone()];
        let (scope, viewer) = (self.scope.clone(), self.viewer.clone());
        let counted = self.reader.count(filters, scope, viewer).await.map_err(failed)?;
        if !counted.approximate {
            return Ok(counted.count.min(self.left));
        }
        let mut count = 0;
        loop {
            let page = self.next().await.map_err(failed)?;
            if page.is_empty() {
                return Ok(count);
            }
            count += page.len() as u64;
        }
    }

    /// As lines of an answer.
    pub fn lines(self) -> stream::BoxStream<'static, Line> {
        stream::unfold(Some((self, 0)), |state| async move {
            let (mut matches, found) = state?;
            match matches.next().await {
                Err(error) => Some((Line::Refused(Refusal::new(Cause::Failed, error)), None)),
                Ok(page) if page.is_empty() => Some((Line::Done(json!({ "found": found })), None)),
                Ok(page) => {
                    let events: Vec<_> = page.iter().map(|event| &**event.json()).collect();
                    let line = Line::Progress(json!({ "events": events }));
                    Some((line, Some((matches, found + page.len()))))
                }
            }
        })
        .boxed()
    }
}
