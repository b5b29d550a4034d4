//! The side that begins: goes through the parts of a topic, newest first, range by range.

use std::{pin::pin, time::Duration};

use futures_util::FutureExt;
use iroh::{
    EndpointId,
    endpoint::{Connection, RecvStream, SendStream},
};
use tokio::time::timeout;

use super::{
    desk::{Desk, Gained},
    keep_alive::while_saying,
    library::{Failure, Library, MOST_DIFFERENT},
    pull::{MOST_LOST, Pulled},
    sets::{self, Difference},
    wire::{self, Frame, MAX_OFFERED},
};
use crate::{
    gossip::fetch::{
        answers,
        wire::{RECONCILE, WireError, encode_opening},
    },
    pipeline::Span,
    protocol::{EventId, kinds::Part},
};

/// How long the other side may take for its next frame.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long all may take. What is missing then is found the next time.
const SESSION: Duration = Duration::from_secs(900);
/// Messages about one range.
const ROUNDS: usize = 200;

/// What a comparison did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub pulled: Pulled,
    pub offered: usize,
    pub ranges: usize,
    /// Nothing had changed on either side.
    pub unchanged: bool,
}

impl Library {
    /// Compares with one peer and fetches what is lacking here, while it does the same. Unless `deep`,
    /// only the newest range of [`Part::Rest`].
    ///
    /// # Errors
    /// When it was broken off. What came before is kept.
    pub async fn lead(&self, desk: &Desk, peer: EndpointId, deep: bool) -> Result<Report, Failure> {
        // In this order: who only waits stands in nobody's way, and not in the peer's either, which
        // may begin meanwhile.
        let _place = self.leading_to.place(peer).await;
        let _permit = self.leading.acquire().await;
        let gained = Gained::new(desk, peer);
        let led = async {
            // Before the turn: a peer that cannot be reached from here may reach us.
            let connection = self.reach(peer).await?;
            let _turn = desk.lead(peer).ok_or(Failure::NotNow)?;
            let session = self.session(desk, &connection, deep, &gained);
            timeout(SESSION, session).await.unwrap_or(Err(Failure::Slow))
        };
        let led = led.await;
        if led.is_ok() {
            gained.settled();
        }
        if let Err(Failure::Lie(_)) = led {
            self.start.trust.lied(peer, "comparison");
        }
        self.ended(match &led {
            Ok(report) if report.unchanged => "unchanged",
            Ok(_) => "led",
            Err(failure) => failure.label(),
        });
        led
    }

    async fn reach(&self, peer: EndpointId) -> Result<Connection, Failure> {
        if self.start.trust.is_banned(&peer) {
            return Err(Failure::NotNow);
        }
        self.start.connections.to(peer).await.map_err(|error| {
            if does_not_speak(&error) { Failure::DoesNotSpeak } else { Failure::Broken(error) }
        })
    }

    async fn session(
        &self,
        desk: &Desk,
        connection: &Connection,
        deep: bool,
        gained: &Gained<'_>,
    ) -> Result<Report, Failure> {
        let peer = connection.remote_id();
        let opened = answers::open(&desk.state, connection).await;
        let (send, receive) = opened.map_err(Failure::Broken)?;
        let mut talk = Talk { library: self, gained, send, receive };
        let ours = self.state(desk.topic());
        let spans = self.spans(desk.topic());
        talk.send.write_all(&encode_opening(RECONCILE, desk.topic())).await.map_err(broken)?;
        talk.write(&Frame::Hello { state: ours, spans }).await?;
        let (theirs, other) = match talk.read().await? {
            Frame::Hello { state, spans } => (state, spans),
            Frame::NotNow => return Err(Failure::NotNow),
            _ => return Err(lie("no greeting")),
        };
        // Now, not at the end: while it counts as deaf, all that comes is told to it whole as well.
        desk.state.speaks(peer, true);
        let mut report = Report::default();
        let mut whole = true;
        if desk.is_unchanged(peer, ours, theirs) {
            report.unchanged = true;
            let _ = talk.send.finish();
            return Ok(report);
        }
        for ((part, here), there) in Part::ALL.into_iter().zip(spans).zip(other) {
            let from = here.from.max(there.from);
            let mut until = here.until.min(there.until);
            while from <= until {
                let reached =
                    talk.range(desk, peer, part, Span { from, until }, &mut report).await?;
                let Some(next) = reached.checked_sub(1).filter(|_| reached > from) else { break };
                if !deep && part == Part::Rest {
                    whole = false;
                    break;
                }
                until = next;
            }
        }
        let _ = talk.send.finish();
        if whole && report.pulled.lost == 0 {
            desk.are_equal(peer, ours, theirs);
        }
        Ok(report)
    }
}

struct Talk<'a> {
    library: &'a Library,
    /// Counts what came.
    gained: &'a Gained<'a>,
    send: SendStream,
    receive: RecvStream,
}

impl Talk<'_> {
    /// Compares one range that ends with the span, and exchanges what differs. Returns where it
    /// begins.
    async fn range(
        &mut self,
        desk: &Desk,
        peer: EndpointId,
        part: Part,
        span: Span,
        report: &mut Report,
    ) -> Result<u64, Failure> {
        let (from, found) = self.compare(desk, peer, part, span).await?;
        let (needed, offered) = (found.need.len(), found.have.len());
        desk.tell(peer, |progress| {
            progress.needed += needed;
            progress.offered += offered;
        });
        self.library.events("offered", offered);
        let pulled = self.exchange(desk, peer, part, found).await?;
        self.library.events("fetched", pulled.fetched);
        self.library.events("gone there", pulled.gone);
        report.ranges += 1;
        report.offered += offered;
        report.pulled.fetched += pulled.fetched;
        report.pulled.gained += pulled.gained;
        report.pulled.gone += pulled.gone;
        report.pulled.lost += pulled.lost;
        if report.pulled.gained == 0 && report.pulled.lost > MOST_LOST {
            return Err(Failure::NotTaken);
        }
        desk.tell(peer, |progress| progress.ranges_done += 1);
        Ok(from)
    }

    async fn compare(
        &mut self,
        desk: &Desk,
        peer: EndpointId,
        part: Part,
        mut span: Span,
    ) -> Result<(u64, Difference), Failure> {
        let library = self.library;
        let mut found = Difference::default();
        let (mut set, from) = library.set(desk, peer, part, span).await?;
        span.from = from;
        let first = set.clone();
        let message = sets::in_turn(&library.turns, move || first.first()).await?;
        self.write(&Frame::Open { part, span, message }).await?;
        for _ in 0..ROUNDS {
            library.start.metrics.sync_rounds.inc();
            let next = match self.read().await? {
                Frame::Compare(answer) => {
                    let set = set.clone();
                    let mut so_far = std::mem::take(&mut found);
                    let (next, so_far) = sets::in_turn(&library.turns, move || {
                        Ok((set.next(&answer, &mut so_far)?, so_far))
                    })
                    .await?;
                    found = so_far;
                    // What lacks there may be named again and again, up to so often in honesty.
                    if found.need.len() > MOST_DIFFERENT || found.have.len() > 2 * MOST_DIFFERENT {
                        return Err(lie("more than a range can hold"));
                    }
                    let Some(next) = next else {
                        let sorted = sets::in_turn(&library.turns, move || {
                            for ids in [&mut found.have, &mut found.need] {
                                ids.sort_unstable();
                                ids.dedup();
                            }
                            Ok(found)
                        });
                        return Ok((span.from, sorted.await?));
                    };
                    Frame::Compare(next)
                }
                // The other side has too many, so it is asked for less.
                Frame::Split(from) if from > span.from && from <= span.until => {
                    span.from = from;
                    found = Difference::default();
                    set = library.set(desk, peer, part, span).await?.0;
                    let first = set.clone();
                    let message = sets::in_turn(&library.turns, move || first.first()).await?;
                    Frame::Open { part, span, message }
                }
                _ => return Err(lie("no answer to a message")),
            };
            self.write(&next).await?;
        }
        Err(lie("no end"))
    }

    /// Both sides fetch at once.
    async fn exchange(
        &mut self,
        desk: &Desk,
        peer: EndpointId,
        part: Part,
        found: Difference,
    ) -> Result<Pulled, Failure> {
        let library = self.library;
        let gained = self.gained;
        let told = |pulled: &Pulled| {
            gained.add(pulled.gained);
            desk.tell(peer, |p| p.fetched += pulled.fetched);
        };
        let mut pull = pin!(library.pull(desk, peer, part, found.need, &told));
        if !found.have.is_empty() {
            let mut settle = pin!(self.settle(&found.have));
            tokio::select! {
                settled = &mut settle => settled?,
                pulled = &mut pull => {
                    let pulled = pulled?;
                    settle.await?;
                    return Ok(pulled);
                }
            };
        }
        while_saying(pull, self, |talk| talk.write(&Frame::Pulling).boxed()).await
    }

    /// Offers what the other side lacks and waits until it has it.
    async fn settle(&mut self, have: &[EventId]) -> Result<(), Failure> {
        for ids in have.chunks(MAX_OFFERED) {
            self.write(&Frame::Offer(ids.to_vec())).await?;
        }
        self.write(&Frame::Settle).await?;
        loop {
            match self.read().await? {
                Frame::Pulling => {}
                Frame::Settled => return Ok(()),
                _ => return Err(lie("no answer to an offer")),
            }
        }
    }

    async fn write(&mut self, frame: &Frame) -> Result<(), Failure> {
        let written = timeout(PATIENCE, wire::write(&mut self.send, frame)).await;
        let bytes = written.map_err(|_| Failure::Slow)??;
        self.library.bytes("ids out", bytes);
        Ok(())
    }

    async fn read(&mut self) -> Result<Frame, Failure> {
        let read = timeout(PATIENCE, wire::read(&mut self.receive)).await;
        match read.map_err(|_| Failure::Slow)?? {
            Some(frame) => {
                let bytes = wire::encode(&frame).len();
                self.library.bytes("ids in", bytes);
                Ok(frame)
            }
            None => Err(Failure::Broken("it ended early".to_owned())),
        }
    }
}

fn lie(what: &'static str) -> Failure {
    Failure::Lie(WireError::Malformed(what))
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}

/// TLS alert 120, `no_application_protocol` (RFC 7301), as a QUIC error (RFC 9001 §4.8).
fn does_not_speak(error: &str) -> bool {
    error.contains("error 120") || error.contains("no_application_protocol")
}
