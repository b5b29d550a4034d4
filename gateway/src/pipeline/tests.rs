//! Events that wait for somebody outside of this process, and workers that have nothing to do.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::timeout;

use super::{
    Affected, Answer, Candidate, Committed, Context, Decision, Direction, EventWriter, Gone,
    Ingest, JoinedTopics, Judged, Moderation, Origin, Outcome, Policy, PolicyWorker, Presence,
    Question, Removal, Routing, StartIngest, Stays, StoreError, Target, Write,
    config::LimitsConfig,
    moderation::{Change, List},
};
use crate::{
    clock::unix_now,
    protocol::{Event, Reason, TopicName, VerifiedEvent, limits::Limits, signing::Author},
};

/// Commits everything at once, and tells how much it was told to be under way.
#[derive(Default)]
struct Quick {
    under_way: AtomicUsize,
}

impl EventWriter for Quick {
    fn presence(&self, _: &Event, _: &[TopicName]) -> Result<Presence, StoreError> {
        Ok(Presence::Unknown)
    }

    fn affected(&self, _: &Event) -> Result<Affected, StoreError> {
        Ok(Affected::default())
    }

    fn write(&self, write: Write) -> Result<(), StoreError> {
        self.under_way.store(write.under_way, Ordering::Relaxed);
        (write.done)(Ok(Committed::New(1)));
        Ok(())
    }

    fn remove(&self, _: Removal) -> Result<u64, StoreError> {
        unreachable!("nothing is removed")
    }

    fn refused(&self, _: &VerifiedEvent, _: &[TopicName], _: Gone) {}
}

type Waiting = Arc<Mutex<Vec<Box<dyn FnOnce(Answer) + Send>>>>;

/// Asks about every event of kind 7.
#[derive(Clone, Default)]
struct Asking {
    waiting: Waiting,
    refreshed: Arc<Mutex<HashSet<ThreadId>>>,
}

impl Asking {
    /// The question that was put, as soon as it is.
    async fn question(&self) -> Box<dyn FnOnce(Answer) + Send> {
        loop {
            if let Some(answered) = self.waiting.lock().unwrap().pop() {
                return answered;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Question for Asking {
    fn put(self: Box<Self>, answered: Box<dyn FnOnce(Answer) + Send>) {
        self.waiting.lock().unwrap().push(answered);
    }
}

impl Policy for Asking {
    fn worker(&self) -> Box<dyn PolicyWorker> {
        Box::new(self.clone())
    }
}

impl PolicyWorker for Asking {
    fn evaluate(&mut self, _: &VerifiedEvent, _: &Context<'_>) -> Decision {
        Decision::Accept
    }

    fn judge(&mut self, event: &VerifiedEvent, _: &Context<'_>) -> Judged {
        match event.kind {
            7 => Judged::Asks(Box::new(self.clone())),
            _ => Judged::Decided(Decision::Accept),
        }
    }

    fn resume(&mut self, _: &VerifiedEvent, _: &Context<'_>, answer: Answer) -> Judged {
        Judged::Decided(*answer.0.downcast().unwrap())
    }

    fn refresh(&mut self) {
        self.refreshed.lock().unwrap().insert(thread::current().id());
    }

    fn judges(&self, _: Direction<'_>) -> bool {
        false
    }

    fn may_leave(
        &mut self,
        _: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays> {
        Ok(context.topics.to_vec())
    }
}

struct Pipeline {
    ingest: Ingest,
    writer: Arc<Quick>,
    policy: Asking,
    joined: JoinedTopics,
    moderation: Arc<Moderation>,
}

fn pipeline() -> Pipeline {
    let (writer, policy) = (Arc::<Quick>::default(), Asking::default());
    let topic = TopicName::new("test").unwrap();
    let joined = JoinedTopics::new([topic.clone()]);
    let routing = Routing {
        rules: Vec::new(),
        default: vec![topic],
        joined: joined.clone(),
        private: Default::default(),
    };
    let moderation = Arc::<Moderation>::default();
    let ingest = Ingest::start(StartIngest {
        limits: Limits::from(&LimitsConfig::default()),
        moderation: moderation.clone(),
        routing: Arc::new(routing),
        own_urls: Default::default(),
        writer: writer.clone(),
        policy: Arc::new(policy.clone()),
        metrics: Arc::default(),
    })
    .unwrap();
    Pipeline { ingest, writer, policy, joined, moderation }
}

fn candidate(kind: u16, content: &str) -> Candidate {
    let event = Author::new(1).sign(unix_now(), kind, &[], content);
    let origin =
        Origin::Client { connection: 1, address: [127, 0, 0, 1].into(), viewer: Arc::default() };
    Candidate { event, origin, target: Target::Routed }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("nobody stands in the way")
}

fn decided(decision: Decision) -> Answer {
    Answer(Box::new(decision))
}

#[tokio::test]
async fn others_pass_while_one_waits() {
    let Pipeline { ingest, writer, policy, .. } = pipeline();
    let mut asked = Box::pin(ingest.submit(candidate(7, "asked")));
    assert!((&mut asked).now_or_never().is_none());
    let answered = soon(policy.question()).await;
    // More than there are threads.
    let mut more: Vec<_> =
        (0..20).map(|n| Box::pin(ingest.submit(candidate(7, &format!("asked {n}"))))).collect();
    let mut questions = Vec::new();
    for asked in &mut more {
        assert!(asked.now_or_never().is_none());
        questions.push(soon(policy.question()).await);
    }
    for n in 0..50 {
        let other = ingest.submit(candidate(1, &n.to_string()));
        assert_eq!(soon(other).await, Outcome::Stored(1));
        // What is aside does not make the store wait for it. The one before may still be there.
        assert!(writer.under_way.load(Ordering::Relaxed) <= 2);
    }
    assert!((&mut asked).now_or_never().is_none());
    answered(decided(Decision::Reject(Reason::blocked("no"))));
    assert_eq!(soon(asked).await, Outcome::Refused(Reason::blocked("no")));

    for (asked, answered) in more.into_iter().zip(questions) {
        answered(decided(Decision::Accept));
        assert_eq!(soon(asked).await, Outcome::Stored(1));
    }

    let asked = ingest.submit(candidate(7, "asked again"));
    let answer = async { soon(policy.question()).await(decided(Decision::Accept)) };
    assert_eq!(tokio::join!(soon(asked), answer).0, Outcome::Stored(1));
    // A question that nobody answers ends its event.
    let (asked, question) = tokio::join!(soon(ingest.submit(candidate(7, "lost"))), async {
        drop(soon(policy.question()).await);
    });
    assert!(matches!(asked, Outcome::Refused(_)), "{question:?}");
    soon(ingest.stop()).await;
}

#[tokio::test]
async fn what_changed_while_one_waited_counts() {
    let Pipeline { ingest, policy, joined, moderation, .. } = pipeline();
    let banned = candidate(7, "banned");
    let id = banned.event.id;
    let mut asked = Box::pin(ingest.submit(banned));
    assert!((&mut asked).now_or_never().is_none());
    let answered = soon(policy.question()).await;
    let put = vec![(List::BannedEvents, id.to_string(), String::new())];
    moderation.change(Change { put, ..Change::default() }).await.unwrap();
    answered(decided(Decision::Accept));
    assert!(matches!(soon(asked).await, Outcome::Refused(_)));

    let mut asked = Box::pin(ingest.submit(candidate(7, "left")));
    assert!((&mut asked).now_or_never().is_none());
    let answered = soon(policy.question()).await;
    joined.remove(&TopicName::new("test").unwrap());
    answered(decided(Decision::Accept));
    let left = Reason::error("this gateway has left the topic");
    assert_eq!(soon(asked).await, Outcome::Refused(left));
}

#[tokio::test]
async fn workers_without_work_hear_of_a_change() {
    let Pipeline { ingest, policy, .. } = pipeline();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let changed = ingest.policy_changes();
    changed();
    soon(async {
        while policy.refreshed.lock().unwrap().len() < workers {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // It keeps nobody alive.
    drop(ingest);
    changed();
}
