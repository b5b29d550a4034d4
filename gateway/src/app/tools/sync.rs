//! One relay, once, with how far it is.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use serde_json::json;
use url::Url;

use super::Entrance;
use crate::{
    admin::api::{Cause, Line, Refusal},
    protocol::normal_url,
    store::Store,
    tasks,
    upstream::once::{self, Parts, SyncError, Tally, Wanted},
};

/// How often it is told.
const EVERY: Duration = Duration::from_millis(250);

/// Reads a relay's URL.
///
/// # Errors
/// When it is none.
pub(super) fn address(url: &str) -> Result<Url, Refusal> {
    let wrong = || {
        let why = format!("{url:?} is no relay's URL; write it like wss://relay.example.org");
        Refusal::new(Cause::Wrong, why)
    };
    normal_url(url).and_then(|url| Url::parse(&url).ok()).ok_or_else(wrong)
}

/// Runs it. The last line has what came of it; a refusal has what crossed before in a line of progress
/// before it.
///
/// # Errors
/// When the filter is not one for this.
pub(super) fn sync(
    entrance: &Entrance,
    store: Arc<Store>,
    wanted: Wanted,
) -> Result<stream::BoxStream<'static, Line>, Refusal> {
    if wanted.filter.words().is_some() || wanted.filter.limit.is_some() {
        let why = "the filter: `search` and `limit` choose by rank and age; both sides are compared whole";
        return Err(Refusal::new(Cause::Wrong, why));
    }
    let tally = Tally::default();
    let parts = Parts {
        ingest: entrance.ingest.clone(),
        reader: store,
        options: entrance.links.clone(),
        gate: entrance.gate.clone(),
    };
    // Aside: it goes on while its lines are written, and ends with whoever reads them.
    let running = tasks::aside("sync", once::run(parts, wanted, tally.clone()));
    let tick = tokio::time::interval(EVERY);
    let state = Some((running, tick, tally, None));
    Ok(stream::unfold(state, |state| async move {
        let (mut running, mut tick, tally, last) = state?;
        if let Some(last) = last {
            return Some((last, None));
        }
        tokio::select! {
            biased;
            result = &mut running => {
                let figures = Line::Progress(json!(tally.figures()));
                let last = match result {
                    Some(Ok(())) => return Some((Line::Done(json!(tally.figures())), None)),
                    Some(Err(error)) => Line::Refused(Refusal::new(cause(&error), error)),
                    None => Line::Refused(Refusal::new(Cause::Failed, "it was broken off")),
                };
                Some((figures, Some((running, tick, tally, Some(last)))))
            }
            _ = tick.tick() => {
                let line = Line::Progress(json!(tally.figures()));
                Some((line, Some((running, tick, tally, None))))
            }
        }
    })
    .boxed())
}

const fn cause(error: &SyncError) -> Cause {
    match error {
        SyncError::CannotCount(_) | SyncError::TooMany => Cause::Refused,
        _ => Cause::Failed,
    }
}
