//! One thread of the CPU pool: looks the id up, verifies, asks the policy, hands over to the store.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;

use super::{
    Committed, Context, Decision, EventWriter, Outcome, Passing, Policy, PolicyWorker, Presence,
    Routing, Write,
    ingest::{Evaluation, Job},
};
use crate::{
    metrics::Metrics,
    protocol::{EventId, Prefix, Reason, TopicName, VerifiedEvent, kinds},
};

/// What all worker threads use.
pub(super) struct Shared {
    pub writer: Arc<dyn EventWriter>,
    pub routing: Arc<Routing>,
    pub passing: broadcast::Sender<Passing>,
    pub recent: Recent,
    pub metrics: Arc<Metrics>,
}

/// Runs until it is told to stop.
pub(super) fn run(jobs: &crossbeam_channel::Receiver<Job>, shared: &Shared, policy: &dyn Policy) {
    let mut policy = policy.worker();
    while let Ok(Job::Evaluate(job)) = jobs.recv() {
        evaluate(*job, shared, &mut *policy);
    }
}

fn evaluate(job: Evaluation, shared: &Shared, policy: &mut dyn PolicyWorker) {
    let Evaluation { event, origin, mut topics, routed, received_at, reply, _permit } = job;
    let is_ephemeral = event.class() == kinds::Class::Ephemeral;

    // A known id is answered without verifying again: most gossip traffic ends here.
    let presence = if is_ephemeral {
        Ok(shared.recent.presence(&event.id, &topics))
    } else {
        shared.writer.presence(&event.id, &topics)
    };
    match presence {
        Ok(Presence::Known) => return answer(reply, Outcome::Duplicate),
        Ok(Presence::Unknown | Presence::KnownElsewhere) => {}
        Err(error) => return answer(reply, store_failure(&error)),
    }

    let event = match VerifiedEvent::verify(event) {
        Ok(event) => event,
        Err(error) => return answer(reply, Outcome::Refused(Reason::invalid(error.to_string()))),
    };

    let context = Context { origin: &origin, topics: &topics, received_at };
    match policy.evaluate(&event, &context) {
        Decision::Accept => {}
        Decision::Reject(reason) => return answer(reply, Outcome::Refused(reason)),
        Decision::ShadowReject => return answer(reply, Outcome::Shadowed),
        Decision::Route(chosen) => {
            let barred = kinds::barred_from_public_topics(&event, received_at).is_some();
            topics = if barred { Vec::new() } else { shared.routing.joined_only(&chosen) };
            // What a swarm brought stays part of the topic it came by.
            if let Some(own) = origin.topic()
                && !topics.contains(own)
            {
                topics.push(own.clone());
            }
        }
    }

    if is_ephemeral {
        shared.recent.remember(&event.id, &topics);
        // No receiver is no failure: nobody listens at the moment.
        let _ = shared.passing.send(Passing { event, topics: topics.into(), origin });
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
            Err(error) => store_failure(&error),
        };
        answer(reply, outcome);
        drop(_permit);
    });
    let write = Write { event, topics, inherit_topics: routed, origin, done };
    if let Err(error) = shared.writer.write(write) {
        // The write took the reply with it: the submitter learns of it by the closed channel.
        tracing::error!(%error, "the store takes no more events");
        shared.metrics.store_failures.inc();
    }
}

fn store_failure(error: &super::StoreError) -> Outcome {
    tracing::error!(%error, "the store failed");
    Outcome::Refused(Reason::error("the event could not be stored"))
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

    fn remember(&self, id: &EventId, topics: &[TopicName]) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in std::iter::once(None).chain(topics.iter().cloned().map(Some)) {
            let key = (*id, topic);
            if set.known.insert(key.clone()) {
                set.order.push_back(key);
            }
        }
        while set.order.len() > REMEMBERED {
            if let Some(oldest) = set.order.pop_front() {
                set.known.remove(&oldest);
            }
        }
    }
}
