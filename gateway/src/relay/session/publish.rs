//! EVENT → pipeline → OK.

use futures_util::FutureExt;

use super::{Done, End, Session};
use crate::{
    pipeline::{Candidate, Outcome, Scope, Target},
    protocol::{Event, EventId, TopicName, message},
};

/// How the way of a published event ended, and how many bytes it had.
pub(super) struct Published {
    id: EventId,
    outcome: Outcome,
    bytes: usize,
}

impl Session {
    pub(super) async fn publish(&mut self, event: Event) -> Result<(), End> {
        if let Some(reason) = self.refusal_to_write(&event) {
            let answer = message::ok(&event.id, false, &reason.to_string());
            return self.answer(Some(reason.prefix), answer).await;
        }
        if let Some(Err(limited)) = self.rates.as_ref().map(|rates| rates.event()) {
            let reason = self.patience(limited)?;
            return self.send(message::ok(&event.id, false, &reason.to_string())).await;
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
        Ok(())
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
