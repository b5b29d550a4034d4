//! NIP-45: COUNT. One query at a time for each connection; further ones wait.

use std::{collections::VecDeque, sync::Arc};

use super::{End, MAX_FILTER_VALUES, Session};
use crate::{
    pipeline::{Count, StoreError},
    protocol::{Filter, Prefix, Reason, message},
    relay::rates::LongQuery,
    tasks::{self, Aside},
};

/// The COUNTs of a connection that are not answered yet.
#[derive(Default)]
pub(super) struct Counting {
    waiting: VecDeque<Waiting>,
    /// On its own: while its client does not read, it must not keep the turn of its address.
    running: Option<(Arc<str>, Aside<Answer>)>,
}

/// One that was asked.
struct Waiting {
    id: Arc<str>,
    filters: Vec<Filter>,
    /// Its place among those of its address; programs on this machine need none.
    query: Option<LongQuery>,
}

type Answer = Result<Count, StoreError>;

/// The answer to one.
pub(super) struct Counted {
    id: Arc<str>,
    /// `None` when it panicked.
    result: Option<Answer>,
}

impl Counting {
    /// Waits for the next answer. Cancel safe.
    pub async fn next(&mut self) -> Counted {
        match &mut self.running {
            Some((id, running)) => {
                let (result, id) = (running.await, id.clone());
                self.running = None;
                Counted { id, result }
            }
            None => std::future::pending().await,
        }
    }
}

impl Session {
    /// The id of a COUNT has nothing to do with that of a REQ.
    pub(super) async fn count(&mut self, id: Arc<str>, filters: Vec<Filter>) -> Result<(), End> {
        if let Some(reason) = self.refusal_to_count(&filters) {
            // NIP-45: a refusal is CLOSED.
            return self.answer(Some(reason.prefix), message::closed(&id, &reason)).await;
        }
        let query = match self.rates.as_ref().map(|rates| rates.long_query()) {
            Some(Err(limited)) => {
                let reason = self.patience(limited)?;
                return self.send(message::closed(&id, &reason)).await;
            }
            Some(Ok(query)) => Some(query),
            None => None,
        };
        if self.withholds(&filters) {
            self.challenge().await?;
        }
        let waiting = Waiting { id, filters, query };
        self.counting.get_or_insert_default().waiting.push_back(waiting);
        Ok(())
    }

    fn refusal_to_count(&self, filters: &[Filter]) -> Option<Reason> {
        if let Some(reason) = self.refusal_to_read(filters) {
            return Some(reason);
        }
        let waiting = self.counting.as_ref().map(|counting| &counting.waiting);
        let max = self.relay.config.max_subscriptions;
        if waiting.is_some_and(|waiting| waiting.len() >= max) {
            let text = format!("more than {max} counts at once; wait for their answers");
            return Some(Reason::new(Prefix::RateLimited, text));
        }
        let waiting = waiting.into_iter().flatten().flat_map(|one| &one.filters);
        let values: usize = waiting.chain(filters).map(Filter::values).sum();
        (values > MAX_FILTER_VALUES).then(|| {
            let text = format!(
                "more than {MAX_FILTER_VALUES} ids, authors, kinds and tag values in all counts"
            );
            Reason::new(Prefix::RateLimited, text)
        })
    }

    pub(super) fn start_next_count(&mut self) {
        let Some(counting) = &mut self.counting else { return };
        if counting.running.is_some() {
            return;
        }
        let Some(Waiting { id, filters, query }) = counting.waiting.pop_front() else {
            self.counting = None;
            return;
        };
        let (reader, scope) = (self.relay.reader.clone(), self.scope.clone());
        let viewer = self.viewer.load_full();
        let running = tasks::aside("count", async move {
            let _turn = match &query {
                Some(query) => query.turn().await,
                None => None,
            };
            reader.count(filters, scope, viewer).await
        });
        counting.running = Some((id, running));
    }

    pub(super) async fn counted(&mut self, counted: Counted) -> Result<(), End> {
        let Counted { id, result } = counted;
        let answer = match result {
            Some(Ok(Count { count, approximate })) => message::count(&id, count, approximate),
            Some(Err(error)) => {
                tracing::error!(%error, "a count failed");
                message::closed(&id, &failed())
            }
            None => message::closed(&id, &failed()),
        };
        self.send(answer).await
    }
}

fn failed() -> Reason {
    Reason::error("the query could not be answered")
}
