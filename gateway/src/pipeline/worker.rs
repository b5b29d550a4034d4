//! One thread of the CPU pool: looks the id up, verifies, asks the policy, hands over to the store.

use std::{
    collections::{HashSet, VecDeque},
    panic,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Semaphore, broadcast};

use super::{
    Committed, Context, Decision, EventWriter, Gone, Origin, Outcome, Passing, Policy,
    PolicyWorker, Presence, Routing, Write,
    ingest::{Evaluation, Job, MAX_UNDER_WAY},
};
use crate::{
    metrics::Metrics,
    protocol::{Event, EventId, Prefix, Reason, TopicName, VerifiedEvent, kinds},
};

/// What all worker threads use.
pub(super) struct Shared {
    pub writer: Arc<dyn EventWriter>,
    pub routing: Arc<Routing>,
    pub passing: broadcast::Sender<Passing>,
    pub recent: Recent,
    pub metrics: Arc<Metrics>,
    /// One for each event that may be under way.
    pub permits: Arc<Semaphore>,
}

/// Runs until it is told to stop.
pub(super) fn run(jobs: &crossbeam_channel::Receiver<Job>, shared: &Shared, policy: &dyn Policy) {
    let mut worker = policy.worker();
    while let Ok(Job::Evaluate(job)) = jobs.recv() {
        // The event that makes us panic loses its answer; the thread and all others go on.
        let run = panic::AssertUnwindSafe(|| evaluate(*job, shared, &mut *worker));
        if panic::catch_unwind(run).is_err() {
            tracing::error!("processing an event panicked; this is a defect, please report it");
            worker = policy.worker();
        }
    }
}

fn evaluate(job: Evaluation, shared: &Shared, policy: &mut dyn PolicyWorker) {
    let Evaluation { event, origin, mut topics, vanish, received_at, reply, _permits } = job;
    let is_ephemeral = event.class() == kinds::Class::Ephemeral;

    // A known id is answered without verifying again: most gossip traffic ends here.
    let presence = if is_ephemeral {
        Ok(shared.recent.presence(&event.id, &topics))
    } else {
        shared.writer.presence(&event, &topics)
    };
    match presence {
        // To tell that a message of others or an event of a private topic is held, to whoever cannot
        // even show it, would tell too much.
        Ok(Presence::Known) if is_public(&event, &topics, shared) => {
            return answer(reply, Outcome::Duplicate);
        }
        Ok(Presence::Known) => {}
        Ok(Presence::Deleted) => return answer(reply, Outcome::Refused(deleted())),
        Ok(Presence::Vanished) => return answer(reply, Outcome::Refused(vanished())),
        Ok(Presence::PastRetention) => {
            let reason = Reason::restricted("older than what is kept here (retention)");
            return answer(reply, Outcome::Refused(reason));
        }
        Ok(Presence::Unknown | Presence::KnownElsewhere) => {}
        Err(error) => return answer(reply, store_failure(&error)),
    }

    let event = match VerifiedEvent::verify(event) {
        Ok(event) => event,
        Err(error) => return answer(reply, Outcome::Refused(Reason::invalid(error.to_string()))),
    };

    // What acts on other events goes to every topic that holds them, and the policy sees that it
    // does. A request to this relay alone goes nowhere.
    match shared.writer.topics_affected(&event) {
        Ok(affected) => {
            for topic in shared.routing.ours(&affected) {
                let barred = !shared.routing.private.contains(&topic)
                    && kinds::barred_from_public_topics(&event, received_at).is_some();
                if !barred && !topics.contains(&topic) {
                    topics.push(topic);
                }
            }
        }
        Err(error) => return answer(reply, store_failure(&error)),
    }

    let context = Context { origin: &origin, topics: &topics, received_at };
    match policy.evaluate(&event, &context) {
        Decision::Accept => {}
        Decision::Reject(reason) => {
            if is_lasting(reason.prefix) {
                remember(&event, &origin, shared);
            }
            return answer(reply, Outcome::Refused(reason));
        }
        Decision::ShadowReject => {
            remember(&event, &origin, shared);
            return answer(reply, Outcome::Shadowed);
        }
        Decision::Route(chosen) => {
            topics = shared.routing.ours(&chosen);
            if kinds::barred_from_public_topics(&event, received_at).is_some() {
                topics.retain(|topic| shared.routing.private.contains(topic));
            }
            // What a swarm brought stays part of the topic it came by.
            if let Some(own) = origin.topic()
                && !topics.contains(own)
            {
                topics.push(own.clone());
            }
        }
    }

    let private = shared.routing.private.hide(&topics);
    if is_ephemeral {
        let (first, news) = shared.recent.remember(&event.id, topics);
        if !first && news.is_empty() {
            return answer(reply, Outcome::Duplicate);
        }
        // No receiver is no failure: nobody listens at the moment.
        let _ = shared.passing.send(Passing { event, first, topics: news.into(), private, origin });
        return answer(reply, Outcome::Passed);
    }

    let done = Box::new(move |result: Result<Committed, super::StoreError>| {
        let outcome = match result {
            Ok(Committed::New(seq)) => Outcome::Stored(seq),
            Ok(Committed::Joined(seq)) => Outcome::Joined(seq),
            Ok(Committed::Duplicate) => Outcome::Duplicate,
            Ok(Committed::Superseded) => Outcome::Refused(Reason::new(
                Prefix::Replaced,
                "a newer version of this event is stored",
            )),
            Ok(Committed::Deleted) => Outcome::Refused(deleted()),
            Ok(Committed::Vanished) => Outcome::Refused(vanished()),
            Err(error) => store_failure(&error),
        };
        answer(reply, outcome);
        drop(_permits);
    });
    let under_way = MAX_UNDER_WAY - shared.permits.available_permits();
    let write = Write { event, topics, private, vanish, under_way, origin, done };
    if let Err(error) = shared.writer.write(write) {
        // The write took the reply with it: the submitter learns of it by the closed channel.
        tracing::error!(%error, "the store takes no more events");
        shared.metrics.store_failures.inc();
    }
}

/// Whether a plugin that refuses an event for this reason will do so again.
const fn is_lasting(prefix: Prefix) -> bool {
    !matches!(prefix, Prefix::Error | Prefix::RateLimited)
}

/// What a topic brought and the policy refused need not be fetched from its other members.
fn remember(event: &VerifiedEvent, origin: &Origin, shared: &Shared) {
    if let Some(topic) = origin.topic()
        && event.class() != kinds::Class::Ephemeral
    {
        shared.writer.refused(event, std::slice::from_ref(topic), Gone::Refused);
    }
}

fn store_failure(error: &super::StoreError) -> Outcome {
    tracing::error!(%error, "the store failed");
    Outcome::Refused(Reason::error("the event could not be stored"))
}

/// Whether everybody may know that the event is here.
fn is_public(event: &Event, topics: &[TopicName], shared: &Shared) -> bool {
    !kinds::is_for_parties_only(event.kind)
        && topics.iter().any(|topic| !shared.routing.private.contains(topic))
}

fn deleted() -> Reason {
    Reason::new(Prefix::Blocked, "the event was deleted by its author (NIP-09)")
}

fn vanished() -> Reason {
    Reason::new(Prefix::Blocked, "its author asked to be forgotten (NIP-62)")
}

/// A submitter that went away does not need its answer.
fn answer(reply: tokio::sync::oneshot::Sender<Outcome>, outcome: Outcome) {
    let _ = reply.send(outcome);
}

/// How many (id, topic) pairs of ephemeral events are remembered.
const REMEMBERED: usize = 8_192;

/// Ephemeral events that passed lately, so that one which comes back by another way is not passed on
/// a second time.
#[derive(Default)]
pub(super) struct Recent(Mutex<RecentSet>);

#[derive(Default)]
struct RecentSet {
    known: HashSet<(EventId, Option<TopicName>)>,
    order: VecDeque<(EventId, Option<TopicName>)>,
}

impl RecentSet {
    fn insert(&mut self, key: (EventId, Option<TopicName>)) -> bool {
        let new = self.known.insert(key.clone());
        if new {
            self.order.push_back(key);
        }
        new
    }
}

impl Recent {
    fn presence(&self, id: &EventId, topics: &[TopicName]) -> Presence {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let knows = |topic: Option<TopicName>| set.known.contains(&(*id, topic));
        match (knows(None), topics.iter().all(|topic| knows(Some(topic.clone())))) {
            (false, _) => Presence::Unknown,
            (true, true) => Presence::Known,
            (true, false) => Presence::KnownElsewhere,
        }
    }

    /// Takes note of an event. Returns whether it is new, and the topics that it is new to.
    fn remember(&self, id: &EventId, topics: Vec<TopicName>) -> (bool, Vec<TopicName>) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = set.insert((*id, None));
        let news =
            topics.into_iter().filter(|topic| set.insert((*id, Some(topic.clone())))).collect();
        while set.order.len() > REMEMBERED {
            if let Some(oldest) = set.order.pop_front() {
                set.known.remove(&oldest);
            }
        }
        (first, news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ephemeral_event_is_news_once_and_once_in_each_topic() {
        let recent = Recent::default();
        let (id, a, b) =
            (EventId([1; 32]), TopicName::new("a").unwrap(), TopicName::new("b").unwrap());
        let both = vec![a.clone(), b.clone()];
        assert_eq!(recent.presence(&id, &both), Presence::Unknown);
        assert_eq!(recent.remember(&id, vec![a.clone()]), (true, vec![a.clone()]));
        assert_eq!(recent.presence(&id, &[a]), Presence::Known);
        assert_eq!(recent.presence(&id, &both), Presence::KnownElsewhere);
        assert_eq!(recent.remember(&id, both.clone()), (false, vec![b]));
        assert_eq!(recent.remember(&id, both), (false, vec![]));
    }
}
