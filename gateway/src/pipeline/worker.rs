//! One thread of the CPU pool: looks the id up, verifies, asks the policy, hands over to the store.

use std::{
    collections::{HashMap, VecDeque},
    panic,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Semaphore, broadcast};

use super::{
    Audience, Committed, Context, Decision, Direction, EventWriter, Gone, Origin, Outcome, Passing,
    Policy, PolicyWorker, Presence, Routing, Stays, Write,
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
    let Evaluation { event, origin, mut topics, for_topics, vanish, received_at, reply, _held } =
        job;
    let is_ephemeral = event.class() == kinds::Class::Ephemeral;

    // A known id is answered without verifying again: most gossip traffic ends here.
    let presence = if is_ephemeral {
        let private = shared.routing.private.hide(&topics);
        Ok(shared.recent.presence(&event.id, &topics, private))
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
    let affected = match shared.writer.affected(&event) {
        Ok(affected) => affected,
        Err(error) => return answer(reply, store_failure(&error)),
    };
    let mut for_all = topics.is_empty();
    // A new version that is meant for private topics alone does not leave them.
    let stays = shared.routing.private.hide(&topics)
        && !matches!(event.kind, kinds::DELETION | kinds::VANISH);
    for topic in shared.routing.ours(&affected.topics) {
        let barred = !shared.routing.private.contains(&topic)
            && (stays || kinds::barred_from_public_topics(&event, received_at).is_some());
        if !barred && !topics.contains(&topic) {
            topics.push(topic);
        }
    }

    let direction = Direction::In;
    let context = Context { direction, origin: &origin, topics: &topics, received_at };
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
            for_all = false;
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

    // Published for all, it does not become private by acting on what is in a private topic too.
    let is_private =
        |topics: &[TopicName]| shared.routing.private.hide(topics) && !(for_all && affected.public);
    let was_private = is_private(&topics);
    if let Err(stays) = keep_in(&event, &origin, &mut topics, received_at, policy) {
        // Outside its private topics it would be for everybody. Who published it in a topic wanted
        // nothing else.
        if was_private || for_topics {
            return answer(
                reply,
                match stays {
                    Stays::Because(reason) => Outcome::Refused(reason),
                    Stays::Silently => Outcome::Shadowed,
                },
            );
        }
    }
    let private = is_private(&topics);
    if is_ephemeral {
        let Some((topics, audience)) = shared.recent.remember(&event.id, topics, private) else {
            return answer(reply, Outcome::Duplicate);
        };
        // No receiver is no failure: nobody listens at the moment.
        let _ = shared.passing.send(Passing { event, topics: topics.into(), audience, origin });
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
        // A frozen submitter is not to keep other copies waiting: not its end, ours counts.
        drop(_held);
    });
    let under_way = MAX_UNDER_WAY - shared.permits.available_permits();
    let write = Write { event, topics, private, vanish, under_way, origin, done };
    if let Err(error) = shared.writer.write(write) {
        // The write took the reply with it: the submitter learns of it by the closed channel.
        tracing::error!(%error, "the store takes no more events");
        shared.metrics.store_failures.inc();
    }
}

/// Asks the policy about the topics that the event is about to go out to, and takes those out that it
/// may not go to. What has become part of a topic is also fetched from us by its other members, so it
/// is asked before. The topic that brought the event has it.
///
/// # Errors
/// When no topic is left of those that there were.
fn keep_in(
    event: &VerifiedEvent,
    origin: &Origin,
    topics: &mut Vec<TopicName>,
    received_at: u64,
    policy: &mut dyn PolicyWorker,
) -> Result<(), Stays> {
    if topics.is_empty() || !policy.judges(Direction::ToTopics) {
        return Ok(());
    }
    let own = origin.topic();
    let out: Vec<_> = topics.iter().filter(|topic| Some(*topic) != own).cloned().collect();
    if out.is_empty() {
        return Ok(());
    }
    let context = Context { direction: Direction::ToTopics, origin, topics: &out, received_at };
    let left = policy.may_leave(event, &context);
    let may = left.as_deref().unwrap_or_default();
    topics.retain(|topic| Some(topic) == own || may.contains(topic));
    match left {
        Err(stays) if topics.is_empty() => Err(stays),
        _ => Ok(()),
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

/// How many ephemeral events are remembered, each once and once more for each of its topics.
const REMEMBERED: usize = 8_192;

/// Ephemeral events that passed lately, so that one which comes back by another way is not passed on
/// a second time.
#[derive(Default)]
pub(super) struct Recent(Mutex<RecentSet>);

#[derive(Default)]
struct RecentSet {
    known: HashMap<EventId, Passed>,
    order: VecDeque<EventId>,
    /// What they take of [`REMEMBERED`].
    size: usize,
}

/// Where an event passed, in this order.
struct Passed {
    topics: Vec<TopicName>,
    /// Only there so far: not for everybody on `/`.
    private: bool,
}

impl Recent {
    /// Whether it passed by all of these topics; if not `private`, for everybody.
    fn presence(&self, id: &EventId, topics: &[TopicName], private: bool) -> Presence {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match set.known.get(id) {
            None => Presence::Unknown,
            Some(passed) => {
                let seen = private || !passed.private;
                if seen && topics.iter().all(|topic| passed.topics.contains(topic)) {
                    Presence::Known
                } else {
                    Presence::KnownElsewhere
                }
            }
        }
    }

    /// Takes note of an event. Returns the topics that it is new to, and for whom it is news on `/`;
    /// `None` when it is no news.
    fn remember(
        &self,
        id: &EventId,
        topics: Vec<TopicName>,
        private: bool,
    ) -> Option<(Vec<TopicName>, Audience)> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = &mut *set;
        let (news, audience) = match set.known.get_mut(id) {
            None => {
                set.known.insert(*id, Passed { topics: topics.clone(), private });
                set.order.push_back(*id);
                set.size += 1;
                (topics, Audience::first(private))
            }
            Some(passed) => {
                let is_new = |topic: &TopicName| !passed.topics.contains(topic);
                let news: Vec<_> = topics.into_iter().filter(is_new).collect();
                let but = if passed.private { passed.topics.clone() } else { Vec::new() };
                let audience = match (passed.private, private) {
                    (false, _) => Audience::Nobody,
                    (true, true) => Audience::Readers { but },
                    (true, false) => Audience::Everybody { but },
                };
                if news.is_empty() && (private || !passed.private) {
                    return None;
                }
                passed.private &= private;
                passed.topics.extend_from_slice(&news);
                (news, audience)
            }
        };
        set.size += news.len();
        while set.size > REMEMBERED {
            let Some(oldest) = set.order.pop_front() else { break };
            if let Some(passed) = set.known.remove(&oldest) {
                set.size -= 1 + passed.topics.len();
            }
        }
        Some((news, audience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(names: &[&str]) -> Vec<TopicName> {
        names.iter().map(|name| TopicName::new(name).unwrap()).collect()
    }

    #[test]
    fn an_ephemeral_event_is_news_once_and_once_in_each_topic() {
        let (recent, id) = (Recent::default(), EventId([1; 32]));
        let (a, both) = (topics(&["a"]), topics(&["a", "b"]));
        assert_eq!(recent.presence(&id, &both, false), Presence::Unknown);
        let first = recent.remember(&id, a.clone(), false);
        assert_eq!(first, Some((a.clone(), Audience::first(false))));
        assert_eq!(recent.presence(&id, &a, false), Presence::Known);
        assert_eq!(recent.presence(&id, &both, false), Presence::KnownElsewhere);
        let second = recent.remember(&id, both.clone(), false);
        assert_eq!(second, Some((topics(&["b"]), Audience::Nobody)));
        assert_eq!(recent.remember(&id, both.clone(), false), None);
        // It stays public.
        assert_eq!(recent.remember(&id, both, true), None);
    }

    #[test]
    fn one_that_passed_in_a_private_topic_is_news_for_the_others() {
        let (recent, id) = (Recent::default(), EventId([1; 32]));
        let (a, b) = (topics(&["a"]), topics(&["b"]));
        let first = recent.remember(&id, a.clone(), true);
        assert_eq!(first, Some((a.clone(), Audience::Readers { but: vec![] })));
        assert_eq!(recent.presence(&id, &a, true), Presence::Known);
        assert_eq!(recent.presence(&id, &[], false), Presence::KnownElsewhere);
        let second = recent.remember(&id, b.clone(), true);
        assert_eq!(second, Some((b.clone(), Audience::Readers { but: a })));
        let third = recent.remember(&id, vec![], false);
        assert_eq!(third, Some((vec![], Audience::Everybody { but: topics(&["a", "b"]) })));
        assert_eq!(recent.presence(&id, &[], false), Presence::Known);
        assert_eq!(recent.remember(&id, b, true), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let recent = Recent::default();
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            EventId(id)
        };
        for n in 0..REMEMBERED {
            recent.remember(&id(n), topics(&["a", "b"]), false);
        }
        assert_eq!(recent.presence(&id(0), &[], false), Presence::Unknown);
        let last = recent.presence(&id(REMEMBERED - 1), &[], false);
        assert_eq!(last, Presence::Known);
        let set = recent.0.lock().unwrap();
        assert_eq!(set.known.len(), set.order.len());
        assert_eq!(set.size, set.known.len() * 3);
        assert!(set.size <= REMEMBERED && set.size > REMEMBERED - 3);
    }
}
