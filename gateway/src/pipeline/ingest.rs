//! The pipeline itself: limits → known? → verify → policy → store, in this order for every origin.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};

use super::{
    Answer, EventWriter, Moderation, Outcome, Passing, Policy, Routing,
    inflight::{Inflight, Turn},
    origin::Origin,
    recent::Recent,
    worker::{self, Judging, Shared},
};
use crate::{
    clock::unix_now,
    metrics::{EventLabels, Metrics},
    protocol::{Event, OwnUrls, Prefix, Reason, TopicName, kinds, limits::Limits},
    tasks,
};

/// An event that somebody sent, and where it is to go.
#[derive(Debug)]
pub struct Candidate {
    pub event: Event,
    pub origin: Origin,
    pub target: Target,
}

/// The topics an event is meant for.
#[derive(Debug, Clone)]
pub enum Target {
    /// Published on `/`: the routing decides.
    Routed,
    /// It came by these topics, or was published to them.
    Topics(Vec<TopicName>),
}

/// How many events may be on their way at once.
pub(super) const MAX_UNDER_WAY: usize = 4_096;
/// How much text they may have, in KiB. The parsed event takes about as much again.
const MAX_KIB_UNDER_WAY: u32 = 64 * 1024;

/// How many ephemeral events may wait for a slow consumer before it loses the oldest.
const EPHEMERAL_QUEUE: usize = 1_024;

/// What the pipeline is made of.
pub struct StartIngest {
    pub limits: Limits,
    /// What the operator bans, whoever brings it (NIP-86).
    pub moderation: Arc<Moderation>,
    pub routing: Arc<Routing>,
    /// The URLs of this relay, for requests to vanish (NIP-62).
    pub own_urls: OwnUrls,
    pub writer: Arc<dyn EventWriter>,
    pub policy: Arc<dyn Policy>,
    pub metrics: Arc<Metrics>,
}

/// The entrance of the pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    limits: Arc<Limits>,
    moderation: Arc<Moderation>,
    own_urls: Arc<OwnUrls>,
    routing: Arc<Routing>,
    inflight: Inflight,
    permits: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// The workers hold it weakly: they end with the last entrance.
    queue: Arc<crossbeam_channel::Sender<Job>>,
    /// One for each worker: what it keeps for the next event may be out of date.
    wakes: Arc<[crossbeam_channel::Sender<()>]>,
    passing: broadcast::Sender<Passing>,
    metrics: Arc<Metrics>,
    workers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What a worker thread gets.
pub(super) enum Job {
    Evaluate(Box<Evaluation>),
    /// The policy's question about an event was answered.
    Resume(Box<Judging>, Answer),
    Stop,
}

pub(super) struct Evaluation {
    pub event: Event,
    pub origin: Origin,
    pub topics: Vec<TopicName>,
    /// A client published it to these very topics.
    pub for_topics: bool,
    /// It is a request to vanish that counts here (NIP-62).
    pub vanish: bool,
    pub received_at: u64,
    pub reply: oneshot::Sender<Outcome>,
    pub held: Held,
}

/// What an event has while it is under way. Held until its outcome is known, by whoever finds that out,
/// not by the submitter: that one may be busy with a client that does not read.
pub(super) struct Held {
    _permits: [OwnedSemaphorePermit; 2],
    // Last: the next copy finds its room free.
    _turn: Turn,
}

impl Ingest {
    /// Whether the operator's rules refuse an event now.
    pub fn is_banned(&self, event: &Event) -> bool {
        self.moderation.refusal(event).is_some()
    }

    /// Starts the worker threads, one per core.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn start(start: StartIngest) -> std::io::Result<Self> {
        let StartIngest { limits, moderation, routing, own_urls, writer, policy, metrics } = start;
        // The semaphore bounds the queue; the channel's own bound leaves room for the stop jobs.
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (queue, jobs) = crossbeam_channel::bounded(MAX_UNDER_WAY + threads);
        let (passing, _) = broadcast::channel(EPHEMERAL_QUEUE);
        let queue = Arc::new(queue);
        let permits = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        let shared = Arc::new(Shared {
            writer,
            moderation: moderation.clone(),
            jobs: Arc::downgrade(&queue),
            aside: Arc::default(),
            routing: routing.clone(),
            passing: passing.clone(),
            recent: Recent::default(),
            metrics: metrics.clone(),
            permits: permits.clone(),
        });
        let (wakes, woken): (Vec<_>, Vec<_>) =
            (0..threads).map(|_| crossbeam_channel::bounded(1)).unzip();
        let workers = woken
            .into_iter()
            .enumerate()
            .map(|(n, woken)| {
                let (jobs, shared, policy) = (jobs.clone(), shared.clone(), policy.clone());
                tasks::thread(format!("ingest-{n}"), move || {
                    worker::run(&jobs, &woken, &shared, &*policy);
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self {
            limits: Arc::new(limits),
            moderation,
            own_urls: Arc::new(own_urls),
            routing,
            inflight: Inflight::default(),
            permits,
            memory: Arc::new(Semaphore::new(MAX_KIB_UNDER_WAY as usize)),
            queue,
            wakes: wakes.into(),
            passing,
            metrics,
            workers: Arc::new(Mutex::new(workers)),
        })
    }

    /// Ephemeral events as they pass. A consumer that is too slow loses the oldest (best effort).
    pub fn passing(&self) -> broadcast::Receiver<Passing> {
        self.passing.subscribe()
    }

    /// Lets workers that have nothing to do give up what they keep of a former policy, whenever it is
    /// called.
    pub fn policy_changes(&self) -> impl Fn() + Send + 'static {
        let wakes = self.wakes.clone();
        move || {
            for wake in &*wakes {
                // One that is full says so already.
                let _ = wake.try_send(());
            }
        }
    }

    /// Takes one event all the way. Returns after the commit; waits while the pipeline is full.
    pub async fn submit(&self, candidate: Candidate) -> Outcome {
        let kind = candidate.origin.kind();
        let outcome = self.process(candidate).await;
        let labels =
            EventLabels { origin: kind, outcome: outcome.label(), reason: outcome.reason_label() };
        self.metrics.events.get_or_create(&labels).inc();
        outcome
    }

    async fn process(&self, candidate: Candidate) -> Outcome {
        let Candidate { event, origin, target } = candidate;
        let now = unix_now();
        if let Some(reason) = self.limits.refusal(&event, now) {
            return Outcome::Refused(reason);
        }
        if let Some(reason) = self.moderation.refusal(&event) {
            return Outcome::Refused(reason);
        }
        if matches!(origin, Origin::Client { .. })
            && let Some(reason) = self.limits.refusal_of_work(&event)
        {
            return Outcome::Refused(reason);
        }
        if let Some(reason) = protection(&event, &origin) {
            return Outcome::Refused(reason);
        }
        let vanish = event.kind == kinds::VANISH;
        if vanish && let Some(reason) = self.not_asked_to_forget(&event, &origin) {
            return Outcome::Refused(reason);
        }
        let for_topics = matches!((&target, &origin), (Target::Topics(_), Origin::Client { .. }));
        let topics = match target {
            Target::Routed => self.routing.route(&event, now),
            Target::Topics(topics) => {
                // A comparison may outlast its topic.
                if let Some(own) = origin.topic()
                    && !self.routing.joined.contains(own.as_str())
                    && !self.routing.private.contains(own)
                {
                    return Outcome::Refused(Reason::error("this gateway has left the topic"));
                }
                let public = topics.iter().any(|topic| !self.routing.private.contains(topic));
                if public && let Some(why) = kinds::barred_from_public_topics(&event, now) {
                    return Outcome::Refused(Reason::restricted(why));
                }
                topics
            }
        };
        let (reply, outcome) = oneshot::channel();
        let evaluation = move |event, reply, held| {
            let received_at = now;
            let job =
                Evaluation { event, origin, topics, for_topics, vanish, received_at, reply, held };
            Job::Evaluate(Box::new(job))
        };
        let _waiting = match self.try_hold(&event) {
            Some(held) => {
                if self.queue.send(evaluation(event, reply, held)).is_err() {
                    return Outcome::Refused(stopping());
                }
                None
            }
            None => {
                let ingest = self.clone();
                Some(tasks::aside("submission", async move {
                    match ingest.hold(&event).await {
                        // A pipeline that has ended drops the reply.
                        Some(held) => drop(ingest.queue.send(evaluation(event, reply, held))),
                        None => drop(reply.send(Outcome::Refused(stopping()))),
                    }
                }))
            }
        };
        outcome
            .await
            .unwrap_or_else(|_| Outcome::Refused(Reason::error("the event could not be processed")))
    }

    /// All that an event needs to get under way, if it is there at once.
    fn try_hold(&self, event: &Event) -> Option<Held> {
        let turn = self.inflight.try_enter(event)?;
        let memory = self.memory.clone().try_acquire_many_owned(kib(event)).ok()?;
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        Some(Held { _permits: [memory, permit], _turn: turn })
    }

    /// Waits for it; `None` when the pipeline ends. To be polled without a pause: a permit that is
    /// given to who does not take it is nobody's.
    async fn hold(&self, event: &Event) -> Option<Held> {
        let turn = self.inflight.enter(event).await;
        let memory = self.memory.clone().acquire_many_owned(kib(event)).await.ok()?;
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        Some(Held { _permits: [memory, permit], _turn: turn })
    }

    /// Why a request to vanish does not count here (NIP-62). One that names this relay counts only
    /// when a client publishes it here: all gateways share the loopback URLs.
    fn not_asked_to_forget(&self, event: &Event, origin: &Origin) -> Option<Reason> {
        if event.asks_all_relays_to_vanish() {
            return None;
        }
        let Origin::Client { address, .. } = origin else {
            return Some(Reason::restricted(
                "a request to vanish from one relay stays there (NIP-62)",
            ));
        };
        // From elsewhere a loopback URL may mean any gateway.
        let own = if address.is_loopback() {
            |own: &OwnUrls, url: &str| own.contains(url)
        } else {
            |own: &OwnUrls, url: &str| own.contains_from_elsewhere(url)
        };
        if event.tag_values("relay").any(|url| own(&self.own_urls, url)) {
            return None;
        }
        Some(Reason::invalid("the request to vanish does not name this relay (relay.url, NIP-62)"))
    }

    /// Refuses new events, lets those under way end, and ends the worker threads.
    pub async fn stop(&self) {
        // All permits back means that nothing is under way.
        let all = u32::try_from(MAX_UNDER_WAY).unwrap_or(u32::MAX);
        let _all = self.permits.acquire_many(all).await;
        self.permits.close();
        let workers =
            std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for _ in &workers {
            let _ = self.queue.send(Job::Stop);
        }
        let _ = tasks::blocking(move || {
            workers.into_iter().for_each(|worker| drop(worker.join()));
        })
        .await;
    }
}

/// What an event takes of the memory under way, in KiB.
fn kib(event: &Event) -> u32 {
    let kib = u32::try_from(event.json().len() / 1_024 + 1).unwrap_or(u32::MAX);
    kib.min(MAX_KIB_UNDER_WAY)
}

/// NIP-70: a protected event is published by its authenticated author alone, and nobody reposts it.
fn protection(event: &Event, origin: &Origin) -> Option<Reason> {
    if event.embeds_protected() {
        return Some(Reason::restricted("it reposts a protected event (NIP-70)"));
    }
    if !event.is_protected() {
        return None;
    }
    match origin {
        Origin::Client { viewer, .. } if viewer.keys().contains(&event.pubkey) => None,
        // Whoever took it from its author has it in the files that are imported here.
        Origin::Import => None,
        Origin::Client { .. } => Some(Reason::new(
            Prefix::AuthRequired,
            "only its author may publish a protected event (NIP-70)",
        )),
        _ => {
            Some(Reason::restricted("protected events are taken from their authors alone (NIP-70)"))
        }
    }
}

fn stopping() -> Reason {
    Reason::error("the gateway is shutting down")
}

#[cfg(test)]
mod tests;
