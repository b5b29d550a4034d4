//! Taking events out for good.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::matches::Matches;
use crate::{
    admin::api::{Cause, Line, NO_WORDS, Refusal},
    pipeline::{EventWriter, Removal, StoreError},
    store::Store,
    tasks,
};

/// Events that are removed with one commit: another one waits a few milliseconds for it.
const CHUNK: usize = 250;

/// Removes what matches, newest first. Each line of the answer is a commit; between two, the writer is
/// left to others for as long as it took. Breaking off keeps what was removed up to then.
///
/// # Errors
/// When the filter searches for words, which finds the best and not all.
pub(super) fn delete(
    store: Arc<Store>,
    matches: Matches,
) -> Result<stream::BoxStream<'static, Line>, Refusal> {
    if matches.is_search() {
        return Err(Refusal::new(Cause::Wrong, NO_WORDS));
    }
    let deleting = Deleting { store, matches, waiting: Vec::new(), deleted: 0, over: false };
    Ok(stream::unfold(deleting, |mut deleting| async move {
        let line = deleting.next().await?;
        Some((line, deleting))
    })
    .boxed())
}

struct Deleting {
    store: Arc<Store>,
    matches: Matches,
    /// Found and not removed yet.
    waiting: Vec<crate::protocol::EventId>,
    deleted: u64,
    over: bool,
}

impl Deleting {
    async fn next(&mut self) -> Option<Line> {
        if self.over {
            return None;
        }
        match self.step().await {
            Ok(true) => Some(Line::Progress(json!({ "deleted": self.deleted }))),
            Ok(false) => {
                self.over = true;
                Some(Line::Done(json!({ "deleted": self.deleted })))
            }
            Err(error) => {
                self.over = true;
                let why = format!("{error}; {} events were deleted before", self.deleted);
                Some(Line::Refused(Refusal::new(Cause::Failed, why)))
            }
        }
    }

    /// Whether there was anything to remove.
    async fn step(&mut self) -> Result<bool, StoreError> {
        if self.waiting.is_empty() {
            self.waiting = self.matches.next().await?.iter().map(|event| event.id).collect();
        }
        let chunk: Vec<_> = self.waiting.drain(..self.waiting.len().min(CHUNK)).collect();
        if chunk.is_empty() {
            return Ok(false);
        }
        let (store, begun) = (self.store.clone(), Instant::now());
        let removed = tasks::blocking(move || store.remove(Removal::Events(chunk))).await;
        self.deleted += removed.map_err(|error| StoreError(error.to_string()))??;
        // A busy writer took long to come to it, so it is left alone for longer.
        tokio::time::sleep(begun.elapsed().min(Duration::from_secs(1))).await;
        Ok(true)
    }
}
