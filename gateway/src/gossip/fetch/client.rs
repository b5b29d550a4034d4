//! Gets announced events: each once, from whoever has it.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::EndpointId;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    answers::{self, Piece},
    connections::Connections,
    schedule::{Job, Schedule},
    trust::Trust,
    wire::{self, Request},
};
use crate::{
    gossip::{peer_id, retell::Retell, state::TopicState},
    metrics::{CauseLabels, Metrics},
    pipeline::{Candidate, EventReader, Ingest, Origin, Outcome, Target},
    protocol::{Event, EventId},
};

/// How long one fetch may take in all.
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
    pub trust: Arc<Trust>,
    /// To the topic's sending side: what neighbors that cannot fetch are told whole.
    pub retell: Retell,
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
        if self.trust.is_banned(&job.peer()) {
            job.distrust();
            return job;
        }
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
        let connection = self.connections.to(peer).await?;
        let request = Request { topic: self.state.name().clone(), ids: wanted };
        let answer =
            answers::ask(&self.state, &connection, &wire::encode_request(&request, None)).await?;
        let wanted = request.ids.into_iter().collect();
        let mut pieces = pin!(answers::pieces(answer, wanted, self.max_event_bytes));
        let mut submissions = FuturesUnordered::new();
        let mut came = 0;
        let result = loop {
            tokio::select! {
                Some((id, outcome)) = submissions.next(), if !submissions.is_empty() => {
                    job.note(id, &outcome);
                }
                piece = pieces.next(), if submissions.len() < SUBMISSIONS => match piece {
                    Some(Ok(Piece::Event(event))) => {
                        came += 1;
                        submissions.push(self.submit(event, peer));
                    }
                    Some(Ok(Piece::End(rest))) => {
                        // It has them no more; others may.
                        rest.gone.iter().for_each(|(_, id)| job.doubt(*id));
                        break Ok(came);
                    }
                    Some(Err(error)) => {
                        if error.is_lie() {
                            job.distrust();
                            self.trust.lied(peer, "answer");
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

    async fn submit(&self, event: Event, peer: EndpointId) -> (EventId, Outcome) {
        let id = event.id;
        let topic = self.state.name().clone();
        let target = Target::Topics(vec![topic.clone()]);
        let origin = Origin::Fetch { topic, peer: peer_id(&peer) };
        let copy = self.retell.wants(&event).then(|| event.clone());
        let outcome = self.ingest.submit(Candidate { event, origin, target }).await;
        if let Some(event) = copy
            && matches!(outcome, Outcome::Stored(_) | Outcome::Joined(_))
        {
            self.retell.tell(event.into()).await;
        }
        (id, outcome)
    }

    fn count(&self, cause: &'static str) {
        self.metrics.fetches.get_or_create(&CauseLabels { cause }).inc();
    }
}
