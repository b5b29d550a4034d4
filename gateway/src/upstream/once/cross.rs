//! Events on their way: from the relay through the pipeline, from the store to the relay.

use std::{future::Future, sync::Arc, time::Duration};

use super::{Run, SyncError, count};
use crate::{
    clock::unix_now,
    pipeline::{Candidate, Origin, Outcome, ScanItem, Scope, StoreError, Target, Viewer},
    protocol::{Event, EventId, Filter, Prefix, kinds},
    upstream::link::{Item, Request},
};
use futures_util::{StreamExt, TryStreamExt, stream, stream::FuturesUnordered};

/// Events from the relay that are under way in the pipeline at once.
const AT_ONCE: usize = 512;
/// Ids of one request, and requests at once.
const IDS: usize = 200;
const REQUESTS: usize = 4;
/// Events to the relay without an answer.
const UNANSWERED: usize = 32;
/// Times that an event is offered to a relay that is to be left alone for a while, and the first pause.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_secs(1);
/// Refusals in a row, at the beginning, after which nothing more is offered.
const REFUSALS: u64 = 20;
/// The origin by which plugins and the log know these events, in place of a stream's name.
const STREAM: &str = "sync";

impl Run<'_> {
    /// Takes one event in and counts what came of it.
    pub(super) async fn take_in(&self, event: Event) {
        self.tally.change().received += 1;
        let url = self.wanted.url.as_str().trim_end_matches('/').into();
        let origin = Origin::Upstream { stream: STREAM.into(), url };
        let topic = self.wanted.topic.clone();
        let target = topic.map_or(Target::Routed, |topic| Target::Topics(vec![topic]));
        let outcome = self.parts.ingest.submit(Candidate { event, origin, target }).await;
        let mut figures = self.tally.change();
        let figures = &mut *figures;
        match outcome {
            Outcome::Stored(_) | Outcome::Passed => figures.added += 1,
            Outcome::Joined(_) | Outcome::Duplicate => figures.known += 1,
            Outcome::Shadowed => {
                figures.refused += 1;
                count(&mut figures.reasons, "blocked: a plugin keeps it out".to_owned());
            }
            Outcome::Refused(reason) => {
                figures.refused += 1;
                count(&mut figures.reasons, reason.to_string());
            }
        }
    }

    /// What the relay sends next. Meanwhile what it sent before goes its way; of that so much may be under
    /// way.
    pub(super) async fn next_item<F: Future<Output = ()>>(
        &self,
        request: &mut Request,
        submitted: &mut FuturesUnordered<F>,
    ) -> Result<Item, SyncError> {
        while submitted.len() >= AT_ONCE {
            submitted.next().await;
        }
        let silence = tokio::time::sleep(self.link.timeouts().answer);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                item = request.next() => return match item {
                    Some(item) => Ok(item),
                    None => Err(self.link.closed().await.into()),
                },
                Some(()) = submitted.next(), if !submitted.is_empty() => {}
                () = &mut silence => return Err(SyncError::Endless("it fell silent before EOSE")),
            }
        }
    }

    /// Fetches events by their ids. What the relay does not send in spite of having told of it is not
    /// waited for.
    pub(super) async fn fetch(&self, ids: Vec<EventId>) -> Result<(), SyncError> {
        let chunks: Vec<_> = ids.chunks(IDS).map(<[EventId]>::to_vec).collect();
        let fetched = stream::iter(chunks).map(|ids| self.fetch_some(ids));
        fetched.buffer_unordered(REQUESTS).try_collect::<Vec<()>>().await.map(drop)
    }

    async fn fetch_some(&self, ids: Vec<EventId>) -> Result<(), SyncError> {
        let mut left = ids.len();
        let filter = Filter { limit: Some(left as u64), ids: Some(ids), ..Filter::default() };
        let mut request = self.link.request(&[filter]).await?;
        let mut submitted = FuturesUnordered::new();
        loop {
            match self.next_item(&mut request, &mut submitted).await? {
                Item::Closed(why) => return Err(SyncError::Closed(why)),
                Item::Eose { .. } => break,
                Item::Event(event) => {
                    submitted.push(self.take_in(event));
                    left = left.saturating_sub(1);
                    if left == 0 {
                        break;
                    }
                }
            }
        }
        drop(request);
        while submitted.next().await.is_some() {}
        Ok(())
    }

    /// Offers events to the relay, except those that never leave.
    pub(super) async fn publish(&self, ids: Vec<EventId>) -> Result<(), SyncError> {
        for ids in ids.chunks(IDS) {
            let events = self.read(ids.to_vec()).await?;
            let offers = stream::iter(events).map(|event| self.offer(event));
            offers.buffer_unordered(UNANSWERED).try_collect::<Vec<()>>().await?;
        }
        Ok(())
    }

    /// Events as everybody may read them.
    async fn read(&self, ids: Vec<EventId>) -> Result<Vec<Arc<Event>>, SyncError> {
        let scope = self.wanted.topic.clone().map_or(Scope::All, Scope::Topic);
        let wanted = ids.len();
        let filter = Filter { limit: Some(wanted as u64), ids: Some(ids), ..Filter::default() };
        let mut scan = self.parts.reader.scan(vec![filter], scope, Arc::new(Viewer::default()));
        let mut events = Vec::with_capacity(wanted);
        loop {
            match scan.next().await {
                Some(ScanItem::Events(found)) => {
                    events.extend(found.iter().filter_map(|json| Event::parse(json).ok()));
                }
                Some(ScanItem::End { .. }) => break,
                Some(ScanItem::Failed(error)) => return Err(error.into()),
                None => return Err(StoreError("the query was broken off".to_owned()).into()),
            }
        }
        let now = unix_now();
        let (stay, leave): (Vec<_>, Vec<_>) = events
            .into_iter()
            .partition(|event| kinds::barred_from_public_topics(event, now).is_some());
        self.tally.change().stayed += stay.len() as u64;
        Ok(leave.into_iter().map(Arc::new).collect())
    }

    /// Offers one event, again after a pause when the relay wants one.
    async fn offer(&self, event: Arc<Event>) -> Result<(), SyncError> {
        let topics = self.wanted.topic.iter().cloned().collect();
        let asked = self.parts.gate.ask(&event, &STREAM.into(), topics, &"import".into()).await;
        if asked.is_err() {
            self.tally.change().stayed += 1;
            return Ok(());
        }
        let mut pause = PAUSE;
        for last in (0..TRIES).map(|try_| try_ + 1 == TRIES) {
            let ack = self.link.publish(&event).await?;
            let (word, _) = ack.message.split_once(':').unwrap_or((&ack.message, ""));
            let prefix = Prefix::parse(word);
            if ack.accepted || prefix == Some(Prefix::Duplicate) {
                self.tally.change().sent += 1;
                return Ok(());
            }
            if prefix == Some(Prefix::RateLimited) && !last {
                tokio::time::sleep(pause).await;
                pause *= 2;
                continue;
            }
            let mut figures = self.tally.change();
            figures.not_taken += 1;
            if figures.sent == 0 && figures.not_taken >= REFUSALS {
                return Err(SyncError::RefusesAll(ack.message));
            }
            count(&mut figures.reasons_there, ack.message);
            return Ok(());
        }
        Ok(())
    }
}
