//! Submitters that freeze, wait, or go away.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::*;
use crate::{
    pipeline::{
        Affected, Committed, Context, Decision, Direction, Gone, PolicyWorker, Presence, Removal,
        Stays, StoreError, Write, config::LimitsConfig,
    },
    protocol::{VerifiedEvent, signing::Author},
};

/// Commits when it is told to.
#[derive(Default)]
struct Slow {
    writes: Mutex<Vec<Write>>,
    known: Mutex<Vec<crate::protocol::EventId>>,
}

impl Slow {
    async fn commit(&self) {
        let write = loop {
            if let Some(write) = self.writes.lock().unwrap().pop() {
                break write;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.known.lock().unwrap().push(write.event.id);
        (write.done)(Ok(Committed::New(1)));
    }
}

impl EventWriter for Slow {
    fn presence(&self, event: &Event, _topics: &[TopicName]) -> Result<Presence, StoreError> {
        let is_known = self.known.lock().unwrap().contains(&event.id);
        Ok(if is_known { Presence::Known } else { Presence::Unknown })
    }

    fn affected(&self, _event: &Event) -> Result<Affected, StoreError> {
        Ok(Affected::default())
    }

    fn write(&self, write: Write) -> Result<(), StoreError> {
        self.writes.lock().unwrap().push(write);
        Ok(())
    }

    fn remove(&self, _removal: Removal) -> Result<u64, StoreError> {
        unreachable!("nothing is removed")
    }

    fn refused(&self, _event: &VerifiedEvent, _topics: &[TopicName], _why: Gone) {}
}

struct Open;

impl Policy for Open {
    fn worker(&self) -> Box<dyn PolicyWorker> {
        Box::new(Self)
    }
}

impl PolicyWorker for Open {
    fn evaluate(&mut self, _event: &VerifiedEvent, _context: &Context<'_>) -> Decision {
        Decision::Accept
    }

    fn judges(&self, _direction: Direction<'_>) -> bool {
        false
    }

    fn may_leave(
        &mut self,
        _event: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays> {
        Ok(context.topics.to_vec())
    }
}

fn pipeline() -> (Ingest, Arc<Slow>) {
    let writer = Arc::<Slow>::default();
    let topic = TopicName::new("test").unwrap();
    let routing = Routing {
        rules: Vec::new(),
        default: vec![topic.clone()],
        joined: crate::pipeline::JoinedTopics::new([topic]),
        private: Default::default(),
    };
    let ingest = Ingest::start(StartIngest {
        limits: Limits::from(&LimitsConfig::default()),
        moderation: Default::default(),
        routing: Arc::new(routing),
        own_urls: Default::default(),
        writer: writer.clone(),
        policy: Arc::new(Open),
        metrics: Arc::default(),
    });
    (ingest.unwrap(), writer)
}

fn candidate(content: &str) -> Candidate {
    let event = Author::new(1).sign(unix_now(), 1, &[], content);
    let origin =
        Origin::Client { connection: 1, address: [127, 0, 0, 1].into(), viewer: Arc::default() };
    Candidate { event, origin, target: Target::Routed }
}

fn again(candidate: &Candidate) -> Candidate {
    let Candidate { event, origin, target } = candidate;
    Candidate { event: event.clone(), origin: origin.clone(), target: target.clone() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("nobody stands in the way")
}

/// A session does not poll its submissions while its client does not read.
#[tokio::test]
async fn a_copy_does_not_wait_for_a_submitter_that_froze() {
    let (ingest, writer) = pipeline();
    let first = candidate("once");
    let mut second = Box::pin(ingest.submit(again(&first)));
    let mut frozen = Box::pin(ingest.submit(first));
    assert!((&mut frozen).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    soon(writer.commit()).await;
    assert_eq!(soon(second).await, Outcome::Duplicate);
    assert_eq!(frozen.now_or_never(), Some(Outcome::Stored(1)));
}

#[tokio::test]
async fn room_that_a_frozen_submitter_waited_for_is_used() {
    let (ingest, writer) = pipeline();
    ingest.permits.forget_permits(MAX_UNDER_WAY - 1);
    let all = ingest.permits.clone().acquire_owned().await.unwrap();
    let mut frozen = Box::pin(ingest.submit(candidate("waits")));
    assert!((&mut frozen).now_or_never().is_none());
    // It comes to wait in its own task.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut other = Box::pin(ingest.submit(candidate("waits too")));
    assert!((&mut other).now_or_never().is_none());
    drop(all);
    soon(writer.commit()).await;
    soon(writer.commit()).await;
    assert_eq!(soon(other).await, Outcome::Stored(1));
    assert_eq!(frozen.now_or_never(), Some(Outcome::Stored(1)));
}

#[tokio::test]
async fn a_submission_that_is_given_up_while_it_waits_leaves_nothing() {
    let (ingest, writer) = pipeline();
    let all = ingest.permits.clone().acquire_many_owned(MAX_UNDER_WAY as u32).await.unwrap();
    let given_up = candidate("given up");
    let copy = again(&given_up);
    let mut waiting = Box::pin(ingest.submit(given_up));
    assert!((&mut waiting).now_or_never().is_none());
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(waiting);
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(all);
    assert_eq!(ingest.memory.available_permits(), MAX_KIB_UNDER_WAY as usize);
    let (outcome, ()) = soon(async { tokio::join!(ingest.submit(copy), writer.commit()) }).await;
    assert_eq!(outcome, Outcome::Stored(1));
}
