//! The side that answers.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use iroh::{
    EndpointId,
    endpoint::{RecvStream, SendStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, SemaphorePermit},
    time::timeout,
};

use super::{
    desk::{Call, Desk, Gained, Turn},
    keep_alive::while_saying,
    library::{Failure, Library, MOST_DIFFERENT},
    pull::Pulled,
    sets::{self, Set},
    wire::{self, Frame},
};
use crate::{
    gossip::fetch::wire::WireError,
    pipeline::Span,
    protocol::{EventId, TopicName, kinds::Part},
};

/// How long the leading side may take for its next frame.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long all may take.
const SESSION: Duration = Duration::from_secs(900);
/// A peer may lead again after this time.
const PAUSE: Duration = Duration::from_millis(500);
/// Messages about one range, new beginnings included.
const ROUNDS: usize = 250;
/// Ranges of one comparison.
const RANGES: usize = 5_000;

/// The range that is being compared.
struct Range {
    part: Part,
    span: Span,
    set: Arc<Set>,
    rounds: usize,
    /// It was to begin later, so it may begin anew.
    split: bool,
    offered: Vec<EventId>,
}

impl Library {
    /// Answers a comparison that a peer leads. A topic that we are not in, or no time, looks the same.
    ///
    /// # Errors
    /// When the peer breaks the protocol, or the connection breaks.
    pub async fn follow(
        &self,
        peer: EndpointId,
        topic: &TopicName,
        is_ours: bool,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<(), WireError> {
        let desk = self.desk(topic).filter(|_| is_ours);
        let mut talk = Talk { library: self, send, receive };
        let Frame::Hello { spans, .. } = talk.read().await? else {
            return Err(WireError::Malformed("no greeting"));
        };
        let Some(desk) = desk else { return talk.not_now().await };
        let Some(_place) = self.place(&desk, peer) else {
            tracing::debug!(%topic, peer = %peer.fmt_short(), "no time to compare");
            return talk.not_now().await;
        };
        tracing::debug!(%topic, peer = %peer.fmt_short(), "another gateway compares with us");
        desk.state.speaks(peer, true);
        let gained = Gained::new(&desk, peer);
        let followed = tokio::select! {
            followed = timeout(SESSION, talk.session(&desk, peer, spans, &gained)) => {
                followed.unwrap_or(Err(Failure::Slow))
            }
            () = desk.closed.cancelled() => Err(Failure::Broken("the topic was left".to_owned())),
        };
        if followed.is_ok() {
            gained.settled();
        }
        self.ended(match &followed {
            Ok(_) => "followed",
            Err(failure) => failure.label(),
        });
        match followed {
            Ok(pulled) => {
                if pulled.gained > 0 {
                    tracing::info!(
                        %topic, peer = %peer.fmt_short(), gained = pulled.gained,
                        "another gateway offered what was missing here"
                    );
                }
                let _ = desk.calls.try_send(Call::Followed(peer, pulled.gained));
                Ok(())
            }
            Err(Failure::Lie(error)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, peer = %peer.fmt_short(), "a comparison was broken off");
                let kind = match error {
                    Failure::Slow => std::io::ErrorKind::TimedOut,
                    _ => std::io::ErrorKind::Other,
                };
                Err(WireError::Io(kind.into()))
            }
        }
    }
}

/// The right to lead a comparison here, for a peer. Given back when dropped.
pub struct Place<'a> {
    _stranger: Option<SemaphorePermit<'a>>,
    _of_peer: OwnedSemaphorePermit,
    _following: SemaphorePermit<'a>,
    _turn: Turn<'a>,
}

impl Library {
    /// A place for a comparison that a peer leads. Where there is none nothing is held, and nothing
    /// changes: neither our own comparison with it, nor when it may ask again.
    pub fn place<'a>(&'a self, desk: &'a Desk, peer: EndpointId) -> Option<Place<'a>> {
        // Those whom we know come before those whom anybody can make up.
        let is_neighbor = desk.state.neighbors().contains(&peer);
        Some(Place {
            _stranger: (!is_neighbor).then(|| self.strangers.try_acquire()).transpose().ok()?,
            _of_peer: self.followed_by.try_place(peer)?,
            _following: self.following.try_acquire().ok()?,
            // Last: it takes the place of a comparison that we lead.
            _turn: desk.follow(self.start.me, peer, PAUSE)?,
        })
    }
}

struct Talk<'a> {
    library: &'a Library,
    send: &'a mut SendStream,
    receive: &'a mut RecvStream,
}

impl Talk<'_> {
    async fn session(
        &mut self,
        desk: &Desk,
        peer: EndpointId,
        theirs: [Span; 3],
        gained: &Gained<'_>,
    ) -> Result<Pulled, Failure> {
        let spans = self.library.spans(desk.topic());
        let state = self.library.state(desk.topic());
        self.write(&Frame::Hello { state, spans }).await?;
        let mut sum = Pulled::default();
        let mut range: Option<Range> = None;
        let mut ranges = 0;
        while let Some(frame) = self.next().await? {
            match frame {
                Frame::Pulling => {}
                Frame::Open { part, span, message } => {
                    ranges += 1;
                    let number = usize::from(part.number());
                    let both = spans.get(number).zip(theirs.get(number));
                    let inside = both.is_some_and(|(ours, theirs)| {
                        span.from >= ours.from.max(theirs.from)
                            && span.until <= ours.until.min(theirs.until)
                    });
                    if ranges > RANGES || !inside || !follows(range.as_ref(), part, span) {
                        return Err(lie("a range out of turn"));
                    }
                    let rounds =
                        range.as_ref().filter(|r| r.part == part && r.span.until == span.until);
                    let rounds = rounds.map_or(0, |range| range.rounds);
                    let (set, from) = self.library.set(desk, peer, part, span).await?;
                    let open = Range { part, span, set, rounds, split: false, offered: vec![] };
                    let open = range.insert(open);
                    if from > span.from {
                        open.span.from = from;
                        open.rounds += 1;
                        open.split = true;
                        self.write(&Frame::Split(from)).await?;
                    } else {
                        self.compare(open, message).await?;
                    }
                }
                Frame::Compare(message) => {
                    let open = range.as_mut().ok_or_else(|| lie("no range is open"))?;
                    self.compare(open, message).await?;
                }
                Frame::Offer(ids) => {
                    let open = range.as_mut().ok_or_else(|| lie("no range is open"))?;
                    if open.offered.len() + ids.len() > MOST_DIFFERENT {
                        return Err(lie("more than a range can hold"));
                    }
                    open.offered.extend(ids);
                }
                Frame::Settle => {
                    let open = range.as_mut().ok_or_else(|| lie("no range is open"))?;
                    let offered = std::mem::take(&mut open.offered);
                    let pulled = self.settle(desk, peer, open.part, offered, gained).await?;
                    sum.gained += pulled.gained;
                    sum.fetched += pulled.fetched;
                    self.write(&Frame::Settled).await?;
                }
                _ => return Err(lie("a frame out of turn")),
            }
        }
        Ok(sum)
    }

    async fn compare(&mut self, open: &mut Range, message: Vec<u8>) -> Result<(), Failure> {
        open.rounds += 1;
        if open.rounds > ROUNDS {
            return Err(lie("no end"));
        }
        self.library.start.metrics.sync_rounds.inc();
        let set = open.set.clone();
        let answer = sets::in_turn(&self.library.turns, move || set.answer(&message)).await?;
        self.write(&Frame::Compare(answer)).await
    }

    /// Fetches what was offered, and says from time to time that it goes on.
    async fn settle(
        &mut self,
        desk: &Desk,
        peer: EndpointId,
        part: Part,
        mut offered: Vec<EventId>,
        gained: &Gained<'_>,
    ) -> Result<Pulled, Failure> {
        offered.sort_unstable();
        offered.dedup();
        let library = self.library;
        let told = |pulled: &Pulled| gained.add(pulled.gained);
        let pull = library.pull(desk, peer, part, offered, &told);
        let pulled = while_saying(pull, self, |talk| talk.write(&Frame::Pulling).boxed()).await?;
        library.events("fetched", pulled.fetched);
        library.events("gone there", pulled.gone);
        Ok(pulled)
    }

    async fn write(&mut self, frame: &Frame) -> Result<(), Failure> {
        let written = timeout(PATIENCE, wire::write(self.send, frame)).await;
        let bytes = written.map_err(|_| Failure::Slow)??;
        self.library.bytes("ids out", bytes);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Frame>, Failure> {
        let read = timeout(PATIENCE, wire::read(self.receive)).await;
        let frame = read.map_err(|_| Failure::Slow)??;
        if let Some(frame) = &frame {
            self.library.bytes("ids in", wire::encode(frame).len());
        }
        Ok(frame)
    }

    /// It may take long to read that; nothing is held meanwhile.
    async fn not_now(&mut self) -> Result<(), WireError> {
        let _ = self.write(&Frame::NotNow).await;
        Ok(())
    }

    async fn read(&mut self) -> Result<Frame, WireError> {
        let read = timeout(PATIENCE, wire::read(self.receive)).await;
        let slow = || WireError::Io(std::io::ErrorKind::TimedOut.into());
        read.map_err(|_| slow())??.ok_or(WireError::Malformed("nothing"))
    }
}

/// Whether a range may come now: parts in their order, and each from its newest range to the oldest.
/// Only after a split the same range begins again, with its end.
fn follows(before: Option<&Range>, part: Part, span: Span) -> bool {
    let Some(before) = before else { return span.from <= span.until };
    let older = span.until < before.span.from;
    let again = before.split && span == before.span;
    span.from <= span.until && (part > before.part || (part == before.part && (older || again)))
}

fn lie(what: &'static str) -> Failure {
    Failure::Lie(WireError::Malformed(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_anew_only_where_a_split_was_asked_for() {
        let span = Span { from: 5, until: 9 };
        let before = |split| {
            let set = Arc::new(Set::new(&[]).unwrap());
            Range { part: Part::Rest, span, set, rounds: 1, split, offered: Vec::new() }
        };
        assert!(follows(Some(&before(true)), Part::Rest, span));
        assert!(!follows(Some(&before(false)), Part::Rest, span), "it costs a look into the store");
        assert!(follows(Some(&before(false)), Part::Rest, Span { from: 0, until: 4 }));
        assert!(!follows(Some(&before(true)), Part::Rest, Span { from: 4, until: 9 }));
    }
}
