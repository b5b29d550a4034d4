//! EVENT → pipeline → OK.

use futures_util::FutureExt;

use super::{Done, End, Session};
use crate::{
    pipeline::{Candidate, Outcome, Scope, Target},
    protocol::{Event, EventId, Reason, TopicName, message},
};

/// How the way of a published event ended, and how many bytes it had.
pub(super) struct Published {
    id: EventId,
    outcome: Outcome,
    bytes: usize,
}

impl Session {
    pub(super) async fn publish(&mut self, event: Event) -> Result<(), End> {
        let id = event.id;
        match self.take(event)? {
            None => Ok(()),
            // In a box: every connection would carry the room for it otherwise.
            Some(reason) => {
                let answer = message::ok(&id, false, &reason.to_string());
                Box::pin(self.answer(Some(reason.prefix), answer)).await
            }
        }
    }

    /// Sends the event on its way. Returns why not, if it is refused at once.
    fn take(&mut self, event: Event) -> Result<Option<Reason>, End> {
        if let Some(reason) = self.refusal_to_write(&event) {
            return Ok(Some(reason));
        }
        if let Some(Err(limited)) = self.rates.as_ref().map(|rates| rates.event()) {
            return self.patience(limited).map(Some);
        }
        let target = match &self.scope {
            Scope::All => Target::Routed,
            Scope::Topic(name) => Target::Topics(vec![TopicName::clone(name)]),
        };
        let (id, ingest) = (event.id, self.relay.ingest.clone());
        let bytes = event.json().len();
        self.bytes_under_way += bytes;
        let candidate = Candidate { event, origin: self.origin.clone(), target };
        self.under_way.push(
            async move {
                let outcome = ingest.submit(candidate).await;
                Done::Published(Published { id, outcome, bytes })
            }
            .boxed(),
        );
        Ok(None)
    }

    pub(super) async fn published(&mut self, published: Published) -> Result<(), End> {
        let Published { id, outcome, bytes } = published;
        self.bytes_under_way -= bytes;
        let (accepted, text) = outcome.ok();
        let prefix = match &outcome {
            Outcome::Refused(reason) => Some(reason.prefix),
            _ => None,
        };
        self.answer(prefix, message::ok(&id, accepted, &text)).await
    }
}
