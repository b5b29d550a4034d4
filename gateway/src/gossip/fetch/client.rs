//! Gets announced events: each once, from whoever has it.

use std::{collections::HashSet, io, pin::pin, sync::Arc, time::Duration};

use futures_util::{
    Stream, StreamExt,
    stream::{self, FuturesUnordered},
};
use iroh::{EndpointId, endpoint::RecvStream};
use tokio::{
    io::AsyncRead,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    connections::Connections,
    schedule::{Job, Schedule},
    wire::{self, Request, WireError},
};
use crate::{
    gossip::{peer_id, state::TopicState},
    metrics::{CauseLabels, Metrics},
    pipeline::{Candidate, EventReader, Ingest, Origin, Outcome, Target},
    protocol::{Event, EventId, TopicName, event::compute_id},
};

/// How long one fetch may go without progress, and how long it may take in all.
const STALLED: Duration = Duration::from_secs(10);
const FETCH: Duration = Duration::from_secs(30);
/// Fetched events of one fetch in the pipeline at once.
const SUBMISSIONS: usize = 16;

/// Ids that a neighbor passed on to us.
#[derive(Debug)]
pub struct Announcement {
    /// The last hop: the likeliest to have the events, and a neighbor.
    pub peer: EndpointId,
    pub ids: Vec<EventId>,
}

/// Fetches the announced events of one topic.
pub struct Puller {
    pub state: Arc<TopicState>,
    pub reader: Arc<dyn EventReader>,
    pub ingest: Ingest,
    pub connections: Arc<Connections>,
    /// The longest event taken, in bytes.
    pub max_event_bytes: usize,
    pub metrics: Arc<Metrics>,
}

impl Puller {
    /// Fetches until shutdown or the topic ends. Asks the last hop and then other neighbors until
    /// nothing is missing, or gives up: a later sync brings what nobody had.
    pub async fn run(self, mut queue: mpsc::Receiver<Announcement>, token: CancellationToken) {
        let mut schedule = Schedule::new(self.metrics.clone());
        let mut running = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            let neighbors = self.state.neighbors();
            while let Some(job) = schedule.start(&neighbors, now) {
                running.push(self.attempt(job));
            }
            let wake = schedule.wake(now);
            tokio::select! {
                () = token.cancelled() => return,
                Some(job) = running.next(), if !running.is_empty() => {
                    schedule.ended(job, Instant::now());
                }
                announcement = queue.recv() => {
                    let Some(Announcement { peer, ids }) = announcement else { return };
                    schedule.add(peer, ids, Instant::now());
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    /// One request to one peer, for what is still missing.
    async fn attempt(&self, mut job: Job) -> Job {
        // Asked again each time: events also come by gossip and from others.
        let topic = self.state.name().clone();
        let missing: HashSet<_> = match self.reader.missing(topic, job.ids().to_vec()).await {
            Ok(missing) => missing.into_iter().collect(),
            Err(error) => {
                tracing::warn!(%error, "cannot look up announced events");
                return job;
            }
        };
        job.keep(&missing);
        let wanted = job.wanted();
        if wanted.is_empty() {
            return job;
        }
        let fetched = timeout(FETCH, self.fetch(&mut job, wanted)).await;
        match fetched.unwrap_or_else(|_| Err("took too long".to_owned())) {
            Ok(0) => self.count("not there"),
            Ok(_) => self.count("fetched"),
            Err(error) => {
                self.count("failed");
                tracing::debug!(peer = %job.peer().fmt_short(), error, "a fetch failed");
            }
        }
        job
    }

    /// Returns how many events came.
    async fn fetch(&self, job: &mut Job, wanted: Vec<EventId>) -> Result<usize, String> {
        let peer = job.peer();
        let answer = self.ask(peer, &wanted).await?;
        let mut events = pin!(events(answer, wanted.into_iter().collect(), self.max_event_bytes));
        let mut submissions = FuturesUnordered::new();
        let mut came = 0;
        let result = loop {
            tokio::select! {
                Some((id, outcome)) = submissions.next(), if !submissions.is_empty() => {
                    job.note(id, &outcome);
                }
                event = events.next(), if submissions.len() < SUBMISSIONS => match event {
                    Some(Ok(event)) => {
                        came += 1;
                        submissions.push(self.submit(event, peer));
                    }
                    Some(Err(error)) => {
                        if error.is_lie() {
                            job.distrust();
                        }
                        break Err(error.to_string());
                    }
                    None => break Ok(came),
                },
            }
        };
        while let Some((id, outcome)) = submissions.next().await {
            job.note(id, &outcome);
        }
        result
    }

    async fn ask(&self, peer: EndpointId, wanted: &[EventId]) -> Result<RecvStream, String> {
        let connection = self.connections.to(peer).await?;
        let topic: TopicName = self.state.name().clone();
        let request = wire::encode_request(&Request { topic, ids: wanted.to_vec() });
        let sending = async {
            let (mut send, receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
            send.write_all(&request).await.map_err(|e| e.to_string())?;
            send.finish().map_err(|e| e.to_string())?;
            Ok(receive)
        };
        timeout(STALLED, sending).await.unwrap_or_else(|_| Err("stalled".to_owned()))
    }

    async fn submit(&self, event: Event, peer: EndpointId) -> (EventId, Outcome) {
        let id = event.id;
        let topic = self.state.name().clone();
        let target = Target::Topics(vec![topic.clone()]);
        let origin = Origin::Fetch { topic, peer: peer_id(&peer) };
        (id, self.ingest.submit(Candidate { event, origin, target }).await)
    }

    fn count(&self, cause: &'static str) {
        self.metrics.fetches.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// The events of an answer, until its end or its first fault.
fn events(
    answer: RecvStream,
    wanted: HashSet<EventId>,
    max: usize,
) -> impl Stream<Item = Result<Event, WireError>> {
    stream::unfold(Some((answer, wanted)), move |state| async move {
        let (mut answer, mut wanted) = state?;
        let event = match timeout(STALLED, next(&mut answer, &mut wanted, max)).await {
            Ok(event) => event.transpose()?,
            Err(_) => Err(WireError::Io(io::ErrorKind::TimedOut.into())),
        };
        let state = event.is_ok().then_some((answer, wanted));
        Some((event, state))
    })
}

/// The next event of an answer: one that was asked for, and only once.
async fn next(
    answer: &mut (impl AsyncRead + Unpin),
    wanted: &mut HashSet<EventId>,
    max: usize,
) -> Result<Option<Event>, WireError> {
    let Some(json) = wire::read_event(answer, max).await? else { return Ok(None) };
    if wanted.is_empty() {
        return Err(WireError::TooMany);
    }
    let event = Event::parse(&json).map_err(|error| WireError::Event(error.to_string()))?;
    if !wanted.remove(&event.id) {
        return Err(WireError::NotAsked);
    }
    // What the pipeline refuses unverified, like a protected event, is refused for good: it must be
    // the event of this id. A forged signature is left to the pipeline.
    if compute_id(&event) == event.id { Ok(Some(event)) } else { Err(WireError::Forged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(tags: &str, id: Option<EventId>) -> Event {
        let json = |id: &str| {
            format!(
                r#"{{"id":"{id}","pubkey":"{0:064x}","created_at":1,"kind":1,"tags":[{tags}],"content":"","sig":"{0:0128x}"}}"#,
                1
            )
        };
        let draft = Event::parse(&json(&"0".repeat(64))).unwrap();
        let id = id.unwrap_or_else(|| compute_id(&draft));
        Event::parse(&json(&id.to_string())).unwrap()
    }

    #[tokio::test]
    async fn a_copy_with_a_claimed_id_says_nothing_of_the_event() {
        let real = event("", None);
        let forged = event(r#"["-"]"#, Some(real.id));
        let answer = async |event: &Event| {
            let mut bytes = Vec::new();
            wire::write_event(&mut bytes, event.json()).await.unwrap();
            next(&mut &bytes[..], &mut HashSet::from([real.id]), 10_000).await
        };
        assert!(matches!(answer(&forged).await, Err(error @ WireError::Forged) if error.is_lie()));
        assert_eq!(answer(&real).await.unwrap().unwrap().id, real.id);
        let other = event(r#"["-"]"#, None);
        assert!(matches!(answer(&other).await, Err(WireError::NotAsked)));
    }
}
