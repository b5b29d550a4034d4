//! Fetching what the other side has.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::EndpointId;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    desk::{Claim, Desk},
    library::{Failure, Library},
};
use crate::{
    clock::unix_now,
    gossip::{
        fetch::{
            answers::{self, Piece},
            trust::Way,
            wire::{self, ANSWER_BYTES, MAX_TAKEN, Request, WireError},
        },
        peer_id,
    },
    pipeline::{Candidate, Gone, Origin, Outcome, Target},
    protocol::{Event, EventId, Prefix, VerifiedEvent, kinds::Part},
    tasks,
};

/// Requests to one peer at once.
const AT_ONCE: usize = 4;
/// Events of one request in the pipeline at once.
const SUBMISSIONS: usize = 256;
/// Refused events that are kept whole until they are remembered.
const REFUSED: usize = 64;
/// More events than this that come and cannot be taken, without one that can, end a comparison: a
/// plugin fails, say.
pub const MOST_LOST: usize = 256;
/// How long one request may take.
const TAKE: Duration = Duration::from_secs(120);
/// How long a request that is given up may take for what it brought: that is stored in any case, and
/// counts.
const LEAVE: Duration = Duration::from_secs(5);
/// Before a look at whether others brought what they fetch, and after an answer without anything.
const PAUSE: Duration = Duration::from_millis(300);
/// So many answers without anything, one after the other, and we give up.
const EMPTY_ANSWERS: usize = 20;
/// Fewer events than this that do not come although they were promised may be a coincidence.
const FEW: usize = 8;

/// What came of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pulled {
    /// Events that came over the network.
    pub fetched: usize,
    /// Those of them that the topic did not have.
    pub gained: usize,
    /// Gone at the other side.
    pub gone: usize,
    /// Promised, and neither there nor gone; or our own store failed.
    pub lost: usize,
}

/// The text of an event, and what became of it. The event itself went into the pipeline.
type Submitted = (Arc<str>, Outcome);
type Refused = (Arc<str>, Prefix);

/// Counts what became of an event, and hands back those that are to be remembered as refused.
fn note((json, outcome): Submitted, pulled: &mut Pulled) -> Option<Refused> {
    match outcome {
        Outcome::Stored(_) | Outcome::Joined(_) => pulled.gained += 1,
        Outcome::Refused(reason) => match reason.prefix {
            Prefix::Error | Prefix::RateLimited => pulled.lost += 1,
            // The store remembers by itself.
            Prefix::Replaced => {}
            prefix => return Some((json, prefix)),
        },
        Outcome::Shadowed => return Some((json, Prefix::Mute)),
        Outcome::Duplicate | Outcome::Passed => {}
    }
    None
}

/// What came of one request.
#[derive(Default)]
struct Taken {
    pulled: Pulled,
    /// What the answer had no room for.
    again: Vec<EventId>,
    /// Why nothing more comes.
    broken: Option<Failure>,
}

/// Hears what came of a request.
type Told<'a> = &'a (dyn Fn(&Pulled) + Sync);

/// What came of one request so far. It is told when this is dropped, however the request ended.
struct Tally<'a> {
    pulled: Pulled,
    told: Told<'a>,
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        (self.told)(&self.pulled);
    }
}

/// What all requests of one pull have in common.
struct Pull<'a> {
    desk: &'a Desk,
    peer: EndpointId,
    part: Part,
    told: Told<'a>,
    /// One of them failed: the others are to end.
    stop: CancellationToken,
}

impl Library {
    /// Fetches these events of a topic from a peer that said it has them. `told` hears what came of each
    /// request, of one that was broken off too.
    pub async fn pull(
        &self,
        desk: &Desk,
        peer: EndpointId,
        part: Part,
        ids: Vec<EventId>,
        told: Told<'_>,
    ) -> Result<Pulled, Failure> {
        let pull = Pull { desk, peer, part, told, stop: CancellationToken::new() };
        let mut sum = Pulled::default();
        let mut queue = ids.into_iter();
        let mut busy = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut empty = 0;
        let failure = loop {
            while running.len() < AT_ONCE && queue.len() > 0 {
                let claim = desk.claim(&mut queue, &mut busy, MAX_TAKEN);
                if !claim.ids.is_empty() {
                    running.push(self.take(&pull, claim));
                }
            }
            let Some(taken) = running.next().await else {
                if busy.is_empty() {
                    return Ok(sum);
                }
                // Somebody else fetches these. When they have come, they are not missing any more.
                sleep(PAUSE).await;
                queue = std::mem::take(&mut busy).into_iter();
                continue;
            };
            let Taken { pulled, again, broken } = match taken {
                Ok(taken) => taken,
                Err(failure) => break failure,
            };
            if let Some(failure) = broken {
                break failure;
            }
            sum.fetched += pulled.fetched;
            sum.gained += pulled.gained;
            sum.gone += pulled.gone;
            sum.lost += pulled.lost;
            if sum.gained == 0 && sum.lost > MOST_LOST {
                break Failure::NotTaken;
            }
            if !again.is_empty() {
                if pulled.fetched == 0 {
                    empty += 1;
                    if empty > EMPTY_ANSWERS {
                        break Failure::Slow;
                    }
                    sleep(PAUSE).await;
                } else {
                    empty = 0;
                }
                queue = queue.chain(again).collect::<Vec<_>>().into_iter();
            }
        };
        pull.stop.cancel();
        let _ = timeout(LEAVE, async { while running.next().await.is_some() {} }).await;
        Err(failure)
    }

    async fn take(&self, pull: &Pull<'_>, claim: Claim) -> Result<Taken, Failure> {
        let reader = &self.start.reader;
        // Gossip or another neighbor may have brought them meanwhile.
        let missing = reader.missing(pull.desk.topic().clone(), claim.ids.clone()).await?;
        if missing.is_empty() {
            return Ok(Taken::default());
        }
        let turn = async {
            let place = self.takes.place(pull.peer).await;
            sleep(self.start.trust.pause(pull.peer, Way::In)).await;
            place
        };
        let Some(_place) = pull.stop.run_until_cancelled(turn).await else {
            return Ok(Taken::default());
        };
        self.request(pull, missing).await
    }

    async fn request(&self, pull: &Pull<'_>, ids: Vec<EventId>) -> Result<Taken, Failure> {
        let Pull { desk, peer, part, told, ref stop } = *pull;
        let start = &self.start;
        let until = Instant::now() + TAKE;
        let connection = start.connections.to(peer).await.map_err(Failure::Broken)?;
        let request = Request { topic: desk.topic().clone(), ids };
        let bytes = wire::encode_request(&request, Some(start.max_event_bytes));
        let asking = timeout_at(until, answers::ask(&desk.state, &connection, &bytes)).await;
        let answer = asking.map_err(|_| Failure::Slow)?.map_err(Failure::Broken)?;
        let mut missing: HashSet<_> = request.ids.iter().copied().collect();
        let mut pieces = pin!(answers::pieces(answer, missing.clone(), start.max_event_bytes));
        let mut submissions = FuturesUnordered::new();
        let (mut taken, mut refused, mut bytes) = (Taken::default(), Vec::new(), 0);
        let mut tally = Tally { pulled: Pulled::default(), told };
        // Not the whole request within a time: what is under way counts, however it ends.
        let (mut late, mut stopped) = (pin!(sleep_until(until)), pin!(stop.cancelled()));
        let mut ended = loop {
            tokio::select! {
                () = &mut late => break Err(slow()),
                () = &mut stopped => break Err(std::io::Error::from(std::io::ErrorKind::Interrupted).into()),
                Some(done) = submissions.next(), if !submissions.is_empty() => {
                    refused.extend(note(done, &mut tally.pulled));
                    if refused.len() >= REFUSED {
                        self.remember(desk, peer, std::mem::take(&mut refused)).await;
                    }
                }
                piece = pieces.next(), if submissions.len() < SUBMISSIONS => match piece {
                    Some(Ok(Piece::Event(event))) => {
                        missing.remove(&event.id);
                        tally.pulled.fetched += 1;
                        bytes += event.json().len();
                        if bytes > ANSWER_BYTES + start.max_event_bytes {
                            break Err(WireError::TooMany);
                        }
                        start.trust.spend(peer, Way::In, event.json().len());
                        submissions.push(self.submit(desk, peer, event));
                    }
                    Some(Ok(Piece::End(rest))) => break Ok(rest),
                    Some(Err(error)) => break Err(error),
                    None => break Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                },
            }
        };
        let leaving = async {
            while let Some(done) = submissions.next().await {
                refused.extend(note(done, &mut tally.pulled));
            }
        };
        if timeout_at(until.max(Instant::now() + LEAVE), leaving).await.is_err() {
            ended = Err(slow());
        }
        self.bytes("events in", bytes);
        self.remember(desk, peer, refused).await;
        let rest = match ended {
            Ok(rest) => rest,
            // What came before counts.
            Err(error) => {
                taken.pulled = tally.pulled;
                taken.broken = Some(error.into());
                return Ok(taken);
            }
        };
        for (_, id) in &rest.gone {
            missing.remove(id);
        }
        desk.gone_there(peer, part, &rest.gone);
        tally.pulled.gone = rest.gone.len();
        if rest.cut {
            taken.again = missing.into_iter().collect();
        } else if !missing.is_empty() {
            tally.pulled.lost += missing.len();
            if missing.len() >= FEW && missing.len() * 2 > request.ids.len() {
                start.trust.lied(peer, "promise");
                let failure = "what it said it has does not come".to_owned();
                taken.broken = Some(Failure::Broken(failure));
            }
        }
        taken.pulled = tally.pulled;
        Ok(taken)
    }

    async fn submit(&self, desk: &Desk, peer: EndpointId, event: Event) -> Submitted {
        let topic = desk.topic().clone();
        let target = Target::Topics(vec![topic.clone()]);
        let origin = Origin::Sync { topic, peer: peer_id(&peer) };
        // The event goes into the pipeline; a copy is made only for whoever needs it.
        let json = event.json().clone();
        let told = desk.retell.wants_of_comparison(&event).then(|| event.clone());
        let outcome = self.start.ingest.submit(Candidate { event, origin, target }).await;
        if let Some(event) = told
            && matches!(outcome, Outcome::Stored(_) | Outcome::Joined(_))
        {
            desk.retell.try_tell(event.into());
        }
        (json, outcome)
    }

    /// Remembers what is not wanted, if it is an event at all. What comes too early may be welcome
    /// later.
    async fn remember(&self, desk: &Desk, peer: EndpointId, refused: Vec<Refused>) {
        if refused.is_empty() {
            return;
        }
        let (writer, topic) = (self.start.writer.clone(), desk.topic().clone());
        let ingest = self.start.ingest.clone();
        let forged = tasks::blocking(move || {
            let now = unix_now();
            let mut forged = 0;
            for (json, prefix) in refused {
                // It is the text of one.
                let Ok(event) = Event::parse(&json) else { continue };
                let why = if prefix == Prefix::Blocked { Gone::Banned } else { Gone::Refused };
                // A ban that was lifted meanwhile must not be remembered.
                if prefix == Prefix::Blocked && !ingest.is_banned(&event) {
                    continue;
                }
                let early = event.created_at > now;
                match VerifiedEvent::verify(event) {
                    Ok(event) if !early => {
                        writer.refused(&event, std::slice::from_ref(&topic), why)
                    }
                    Ok(_) => {}
                    Err(_) => forged += 1,
                }
            }
            forged
        });
        for _ in 0..forged.await.unwrap_or(0) {
            self.start.trust.lied(peer, "forged");
        }
    }
}

fn slow() -> WireError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
