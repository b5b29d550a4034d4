//! One thread of the CPU pool: looks the id up, verifies, asks the policy, hands over to the store.
//!
//! While the policy waits for somebody outside of this process the event is aside: it has its turn and
//! its room, and no thread. Any worker goes on with it.

use std::{
    panic,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use tokio::sync::{Semaphore, broadcast, oneshot};

use super::{
    Affected, Committed, Context, Decision, Direction, EventWriter, Gone, Judged, Moderation,
    Origin, Outcome, Passing, Policy, PolicyWorker, Presence, Routing, Stays, Write,
    ingest::{Evaluation, Held, Job, MAX_UNDER_WAY},
    recent::Recent,
};
use crate::{
    metrics::Metrics,
    protocol::{Event, Prefix, Reason, TopicName, VerifiedEvent, kinds},
};

/// What all worker threads use.
pub(super) struct Shared {
    pub writer: Arc<dyn EventWriter>,
    pub moderation: Arc<Moderation>,
    pub jobs: Weak<Sender<Job>>,
    /// How many events wait for somebody outside of this process.
    pub aside: Arc<AtomicUsize>,
    pub routing: Arc<Routing>,
    pub passing: broadcast::Sender<Passing>,
    pub recent: Recent,
    pub metrics: Arc<Metrics>,
    /// One for each event that may be under way.
    pub permits: Arc<Semaphore>,
}

/// Runs until it is told to stop.
pub(super) fn run(
    jobs: &Receiver<Job>,
    woken: &Receiver<()>,
    shared: &Shared,
    policy: &dyn Policy,
) {
    let mut worker = policy.worker();
    while let Some(job) = next(jobs, woken, &mut *worker) {
        // The event that makes us panic loses its answer; the thread and all others go on.
        let run = panic::AssertUnwindSafe(|| match job {
            Job::Evaluate(job) => evaluate(*job, shared, &mut *worker),
            Job::Resume(judging, answer) => {
                if let Some(judging) = still_wanted(*judging, shared) {
                    let judged =
                        worker.resume(&judging.event, &judging.context(Direction::In), answer);
                    go_on(judging, judged, shared, &mut *worker);
                }
            }
            Job::Stop => {}
        });
        if panic::catch_unwind(run).is_err() {
            tracing::error!("processing an event panicked; this is a defect, please report it");
            worker = policy.worker();
        }
    }
}

/// Waits for something to do; `None` at the end.
fn next(jobs: &Receiver<Job>, woken: &Receiver<()>, worker: &mut dyn PolicyWorker) -> Option<Job> {
    loop {
        let job = match jobs.try_recv() {
            Err(TryRecvError::Empty) => crossbeam_channel::select! {
                recv(jobs) -> job => job.ok()?,
                recv(woken) -> told => {
                    // Without anybody who could tell, there is no one to send jobs either.
                    told.ok()?;
                    worker.refresh();
                    continue;
                }
            },
            job => job.ok()?,
        };
        return (!matches!(job, Job::Stop)).then_some(job);
    }
}

/// A verified event about which the policy is asked.
pub(super) struct Judging {
    event: VerifiedEvent,
    origin: Origin,
    topics: Vec<TopicName>,
    /// A client published it to these very topics.
    for_topics: bool,
    /// It was published for all.
    for_all: bool,
    affected: Affected,
    vanish: bool,
    received_at: u64,
    reply: oneshot::Sender<Outcome>,
    held: Held,
}

impl Judging {
    fn context<'a>(&'a self, direction: Direction<'a>) -> Context<'a> {
        let (origin, topics) = (&self.origin, &self.topics);
        Context { direction, origin, topics, received_at: self.received_at }
    }

    fn is_ephemeral(&self) -> bool {
        self.event.class() == kinds::Class::Ephemeral
    }

    fn answer(self, outcome: Outcome) {
        answer(self.reply, outcome);
    }
}

fn evaluate(job: Evaluation, shared: &Shared, policy: &mut dyn PolicyWorker) {
    let Evaluation { event, origin, mut topics, for_topics, vanish, received_at, reply, held } =
        job;
    // A known id is answered without verifying again: most gossip traffic ends here.
    let presence = if event.class() == kinds::Class::Ephemeral {
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
        Ok(Presence::Removed) if !is_meant(&origin) => {
            let reason = Reason::new(Prefix::Blocked, "the operator of this gateway deleted it");
            return answer(reply, Outcome::Refused(reason));
        }
        Ok(Presence::Unknown | Presence::KnownElsewhere | Presence::Removed) => {}
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
    let for_all = topics.is_empty();
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

    let judging = Judging {
        event,
        origin,
        topics,
        for_topics,
        for_all,
        affected,
        vanish,
        received_at,
        reply,
        held,
    };
    let judged = policy.judge(&judging.event, &judging.context(Direction::In));
    go_on(judging, judged, shared, policy);
}

/// Puts the policy's question, or does what it decided.
fn go_on(judging: Judging, judged: Judged, shared: &Shared, policy: &mut dyn PolicyWorker) {
    let question = match judged {
        Judged::Decided(decision) => return conclude(judging, decision, shared, policy),
        Judged::Asks(question) => question,
    };
    // At the end nobody goes on with it.
    let Some(jobs) = shared.jobs.upgrade() else { return };
    let aside = Aside::new(&shared.aside);
    question.put(Box::new(move |answer| {
        drop(aside);
        // There is room for every event under way.
        let _ = jobs.send(Job::Resume(Box::new(judging), answer));
    }));
}

/// Counts an event as aside while it lives.
struct Aside(Arc<AtomicUsize>);

impl Aside {
    fn new(aside: &Arc<AtomicUsize>) -> Self {
        aside.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(aside))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An event that was aside for seconds, if the operator has not banned it and none of its topics was
/// left meanwhile: outside of them it might be for others than was meant. What the store knows of it,
/// the store looks up itself.
fn still_wanted(judging: Judging, shared: &Shared) -> Option<Judging> {
    if let Some(reason) = shared.moderation.refusal(&judging.event) {
        judging.answer(Outcome::Refused(reason));
        return None;
    }
    let ours = shared.routing.ours(&judging.topics);
    if !judging.topics.iter().all(|topic| ours.contains(topic)) {
        let reason = Reason::error("this gateway has left the topic");
        judging.answer(Outcome::Refused(reason));
        return None;
    }
    Some(judging)
}

/// Does what the policy decided.
fn conclude(
    mut judging: Judging,
    decision: Decision,
    shared: &Shared,
    policy: &mut dyn PolicyWorker,
) {
    match decision {
        Decision::Accept => {}
        Decision::Reject(reason) => {
            if is_lasting(reason.prefix) {
                remember(&judging.event, &judging.origin, shared);
            }
            return judging.answer(Outcome::Refused(reason));
        }
        Decision::ShadowReject => {
            remember(&judging.event, &judging.origin, shared);
            return judging.answer(Outcome::Shadowed);
        }
        Decision::Route(chosen) => {
            let mut topics = shared.routing.ours(&chosen);
            judging.for_all = false;
            if kinds::barred_from_public_topics(&judging.event, judging.received_at).is_some() {
                topics.retain(|topic| shared.routing.private.contains(topic));
            }
            // What a swarm brought stays part of the topic it came by.
            if let Some(own) = judging.origin.topic()
                && !topics.contains(own)
            {
                topics.push(own.clone());
            }
            judging.topics = topics;
        }
    }

    // Published for all, it does not become private by acting on what is in a private topic too.
    let stays_public = judging.for_all && judging.affected.public;
    let is_private = |topics: &[TopicName]| shared.routing.private.hide(topics) && !stays_public;
    let was_private = is_private(&judging.topics);
    if let Err(stays) = keep_in(&mut judging, policy) {
        // Outside its private topics it would be for everybody. Who published it in a topic wanted
        // nothing else.
        if was_private || judging.for_topics {
            return judging.answer(match stays {
                Stays::Because(reason) => Outcome::Refused(reason),
                Stays::Silently => Outcome::Shadowed,
            });
        }
    }
    let private = is_private(&judging.topics);
    let is_ephemeral = judging.is_ephemeral();
    let Judging { event, origin, topics, vanish, reply, held, .. } = judging;
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
        drop(held);
    });
    // What is aside does not come to the store soon.
    let under_way = (MAX_UNDER_WAY - shared.permits.available_permits())
        .saturating_sub(shared.aside.load(Ordering::Relaxed));
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
fn keep_in(judging: &mut Judging, policy: &mut dyn PolicyWorker) -> Result<(), Stays> {
    if judging.topics.is_empty() || !policy.judges(Direction::ToTopics) {
        return Ok(());
    }
    let Judging { event, origin, topics, received_at, .. } = judging;
    let own = origin.topic();
    let out: Vec<_> = topics.iter().filter(|topic| Some(*topic) != own).cloned().collect();
    if out.is_empty() {
        return Ok(());
    }
    let received_at = *received_at;
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

/// Whether somebody here wants this very event in, and it is not only what others happen to have.
const fn is_meant(origin: &Origin) -> bool {
    matches!(origin, Origin::Client { .. } | Origin::Import)
}

fn deleted() -> Reason {
    Reason::new(Prefix::Blocked, "the event was deleted by its author (NIP-09)")
}

fn vanished() -> Reason {
    Reason::new(Prefix::Blocked, "its author asked to be forgotten (NIP-62)")
}

/// A submitter that went away does not need its answer.
fn answer(reply: oneshot::Sender<Outcome>, outcome: Outcome) {
    let _ = reply.send(outcome);
}
