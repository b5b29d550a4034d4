//! Answers requests of other gateways: everything is bounded, and only what a topic's members may
//! see goes out.

use std::{collections::HashSet, fmt, io, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::{
    EndpointId,
    endpoint::{Connection, RecvStream, SendStream, VarInt},
    protocol::{AcceptError, ProtocolHandler},
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Opened,
    trust::{Trust, Way},
    wire::{self, ANSWER_BYTES, Rest, WireError},
};
use crate::{
    clock::unix_now,
    gossip::{
        door::{BUSY, Places},
        private::{self, Circles, TalkError},
        sync::Library,
    },
    metrics::{CauseLabels, Metrics},
    pipeline::{EventReader, JoinedTopics, Seq},
    protocol::{Event, EventId, TopicName, kinds},
    tasks::Tasks,
};

const CONNECTIONS: usize = 256;
/// One to use, and one that a peer left behind when it crashed.
const CONNECTIONS_PER_PEER: usize = 2;
const STREAMS_PER_CONNECTION: usize = 64;
/// Requests answered at once, over all peers. Each holds a few events in memory.
const REQUESTS: usize = 256;
/// Of each kind on one connection: whoever reads slowly must not hold the places of all.
const REQUESTS_PER_CONNECTION: usize = 4;
/// What each id that is asked for counts, in bytes of the peer's minute.
const ID_COST: usize = 64;
/// A connection that asks for nothing this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request and its answer may take together.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a peer may take to read anything at all.
const STALLED: Duration = Duration::from_secs(5);
/// Bytes of an answer that go out at a time, unless nothing follows them: each time locks the connection.
const GATHERED: usize = 32 * 1024;
/// How many events are read from the store at a time.
const CHUNK: usize = 8;
const CHUNK_TAKEN: usize = 64;
/// After this time an answer is cut short, so that what came over a slow line counts.
const LONG_ENOUGH: Duration = Duration::from_secs(20);
/// How long a peer that has used up its minute waits before it is answered that there is more.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long an answer waits for events that are on their way to us too: whoever announced them to
/// the asker may be fetching them itself.
const WAIT: Duration = Duration::from_secs(1);
/// Between two looks while waiting; they go to the log's tail in memory.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often an answer that waits may read the store when that tail is too short.
const LOOKS: u32 = 3;

const DONE: VarInt = VarInt::from_u32(0);
/// What a stream with a malformed request is reset with.
const MALFORMED: VarInt = VarInt::from_u32(2);
/// What a stream of a private topic is reset with that is not answered, for whatever reason.
const UNKNOWN: VarInt = VarInt::from_u32(3);

/// The handler of our ALPN. Cheap to clone.
#[derive(Clone)]
pub struct SyncServer(Arc<Shared>);

struct Shared {
    joined: JoinedTopics,
    circles: Circles,
    reader: Arc<dyn EventReader>,
    library: Arc<Library>,
    trust: Arc<Trust>,
    metrics: Arc<Metrics>,
    places: Places,
    requests: Semaphore,
}

/// Requests of one connection that are answered at once.
struct Turns {
    fetches: Semaphore,
    takes: Semaphore,
}

/// What went over the connection's streams so far, in frames.
fn streamed(connection: &Connection) -> u64 {
    let stats = connection.stats();
    stats.frame_rx.stream + stats.frame_tx.stream
}

impl Default for Turns {
    fn default() -> Self {
        let places = || Semaphore::new(REQUESTS_PER_CONNECTION);
        Self { fetches: places(), takes: places() }
    }
}

impl SyncServer {
    pub fn new(
        joined: JoinedTopics,
        circles: Circles,
        reader: Arc<dyn EventReader>,
        library: Arc<Library>,
        trust: Arc<Trust>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Shared {
            joined,
            circles,
            reader,
            library,
            trust,
            metrics,
            places: Places::new(CONNECTIONS, CONNECTIONS_PER_PEER),
            requests: Semaphore::new(REQUESTS),
        }))
    }
}

impl SyncServer {
    /// Answers over the connections that we open ourselves, until shutdown.
    pub async fn listen(self, mut opened: mpsc::Receiver<Opened>, tasks: Tasks) {
        let token = tasks.token().clone();
        while let Some(Some(Opened { connection, over })) =
            token.run_until_cancelled(opened.recv()).await
        {
            let (server, token) = (self.clone(), token.clone());
            tasks.spawn("answers", async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = over.cancelled() => {}
                    () = server.0.serve_on(&connection) => {}
                }
            });
        }
    }
}

impl fmt::Debug for SyncServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SyncServer")
    }
}

impl ProtocolHandler for SyncServer {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let shared = &*self.0;
        let peer = connection.remote_id();
        let place = if shared.trust.is_banned(&peer) { None } else { shared.places.take(peer) };
        let Some(_place) = place else {
            shared.count("refused");
            connection.close(BUSY, b"busy");
            return Ok(());
        };
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION as u32));
        connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
        shared.library.start.connections.came(&connection);
        shared.serve(&connection).await;
        connection.close(DONE, b"done");
        Ok(())
    }
}

impl Shared {
    /// Until it is closed.
    async fn serve_on(&self, connection: &Connection) {
        while connection.close_reason().is_none() && !self.trust.is_banned(&connection.remote_id())
        {
            self.serve(connection).await;
        }
    }

    /// Until nobody has used it for a while.
    async fn serve(&self, connection: &Connection) {
        let peer = connection.remote_id();
        let turns = Turns::default();
        let mut moved = streamed(connection);
        let mut answers = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = answers.next(), if !answers.is_empty() => {}
                stream = timeout(IDLE, connection.accept_bi()),
                    if answers.len() < STREAMS_PER_CONNECTION =>
                {
                    match stream {
                        Ok(Ok(_)) if self.trust.is_banned(&peer) => return,
                        Ok(Ok((send, receive))) => {
                            answers.push(self.stream(connection, &turns, send, receive));
                        }
                        Ok(Err(_)) => return,
                        Err(_) => {
                            // We ask over it as well.
                            let before = std::mem::replace(&mut moved, streamed(connection));
                            if answers.is_empty() && moved == before {
                                return;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn stream(
        &self,
        connection: &Connection,
        turns: &Turns,
        mut send: SendStream,
        mut receive: RecvStream,
    ) {
        let peer = connection.remote_id();
        let from = (peer, turns);
        let result = match timeout(REQUEST, wire::read_type(&mut receive)).await {
            Ok(Ok(wire::PRIVATE)) => self.private(connection, turns, &mut send, &mut receive).await,
            Ok(Ok(kind)) => self.public(from, kind, &mut send, &mut receive).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(slow()),
        };
        match result {
            Ok(Served::Yes) => {
                let _ = send.finish();
            }
            Ok(Served::Unknown) => {
                self.count("unknown private topic");
                let _ = send.reset(UNKNOWN);
                let _ = receive.stop(UNKNOWN);
            }
            Err(WireError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                self.count("served too slowly");
                let _ = send.reset(DONE);
            }
            Err(WireError::Io(_)) => self.count("broken off"),
            Err(error) => {
                self.count("malformed");
                self.trust.lied(peer, "request");
                tracing::debug!(%error, "a request was malformed");
                let _ = send.reset(MALFORMED);
                let _ = receive.stop(MALFORMED);
            }
        }
    }

    /// A request by a topic's name: a private topic is unknown to it.
    async fn public(
        &self,
        from: (EndpointId, &Turns),
        kind: u8,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<Served, WireError> {
        let topic = timeout(REQUEST, wire::read_topic(receive)).await.map_err(|_| slow())??;
        let is_ours = self.joined.contains(topic.as_str());
        self.request(from, kind, &topic, is_ours, send, receive).await?;
        Ok(Served::Yes)
    }

    /// A stream of a private topic: first both find out who the other is, then there may be a request.
    async fn private(
        &self,
        connection: &Connection,
        turns: &Turns,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<Served, WireError> {
        let peer = connection.remote_id();
        let circle = match private::answer(&self.circles, connection, send, receive).await {
            Ok(circle) => circle,
            Err(TalkError::Malformed) => return Err(WireError::Malformed("a private stream")),
            Err(error) => {
                tracing::debug!(%error, peer = %peer.fmt_short(), "a private stream is not answered");
                return Ok(Served::Unknown);
            }
        };
        let name = &circle.topic().name;
        let mut kind = [0];
        match timeout(REQUEST, receive.read(&mut kind)).await.map_err(|_| slow())? {
            Ok(Some(1)) => {}
            // It came for the meeting alone.
            Ok(_) => return Ok(Served::Yes),
            Err(error) => return Err(WireError::Io(io::Error::other(error))),
        }
        let kind = wire::read_type(&mut &kind[..]).await?;
        let topic = timeout(REQUEST, wire::read_topic(receive)).await.map_err(|_| slow())??;
        if kind == wire::PRIVATE || topic != *name {
            return Err(WireError::Malformed("another topic than that of the stream"));
        }
        self.request((peer, turns), kind, name, true, send, receive).await?;
        Ok(Served::Yes)
    }

    /// Answers a request whose type and topic are known.
    async fn request(
        &self,
        (peer, turns): (EndpointId, &Turns),
        kind: u8,
        topic: &TopicName,
        is_ours: bool,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<(), WireError> {
        match kind {
            // It has time limits of its own.
            wire::RECONCILE => self.library.follow(peer, topic, is_ours, send, receive).await,
            wire::HINT => {
                if is_ours {
                    self.library.hinted(peer, topic);
                }
                Ok(())
            }
            kind => {
                let turns = if kind == wire::TAKE { &turns.takes } else { &turns.fetches };
                let answer = self.answer((peer, turns), kind, topic, is_ours, send, receive);
                timeout(REQUEST, answer).await.unwrap_or_else(|_| Err(slow()))
            }
        }
    }

    /// Sends the events of a [`wire::FETCH`] or [`wire::TAKE`].
    async fn answer(
        &self,
        (peer, turns): (EndpointId, &Semaphore),
        kind: u8,
        topic: &TopicName,
        is_ours: bool,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<(), WireError> {
        let taken = kind == wire::TAKE;
        let longest = if taken { receive.read_u32().await? as usize } else { usize::MAX };
        let ids = wire::read_ids(receive, if taken { wire::MAX_TAKEN } else { wire::MAX_IDS });
        let ids = ids.await?;
        // Looking for what is not there costs as well.
        self.trust.spend(peer, Way::Out, ids.len() * ID_COST);
        let mut rest = Rest::default();
        if taken && !is_ours && self.library.left_lately(topic) {
            // It was promised when we were in the topic. "Nothing" would look like a lie.
            return Err(WireError::Io(io::ErrorKind::NotConnected.into()));
        }
        if is_ours {
            let pause = self.trust.pause(peer, Way::Out);
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
            let room = if pause > LONGEST_PAUSE { 0 } else { ANSWER_BYTES };
            let trust = Some((&*self.trust, peer));
            let mut answer = Answer { longest, trust, ..Answer::new(send, room) };
            let _turn = turns.acquire().await;
            // Before the store is read: what is committed from here on must wake us.
            let mut head = self.reader.head();
            let seen = *head.borrow_and_update();
            let chunk = if taken { CHUNK_TAKEN } else { CHUNK };
            self.send_known(&mut answer, topic, &ids, chunk).await?;
            let missing = answer.missing(&ids);
            if answer.room > 0 && !missing.is_empty() {
                let gone = self.reader.gone(topic.clone(), missing.clone()).await;
                rest.gone = gone.unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot look up what is gone for a peer");
                    answer.room = 0;
                    Vec::new()
                });
                rest.gone.append(&mut answer.too_long);
                if taken && let Some(desk) = self.library.desk(topic) {
                    // It asks for what it told us is gone there: it has forgotten that, and we have not.
                    rest.gone.extend(desk.gone_at(peer, &missing));
                }
                // By id: two may know different times.
                rest.gone.sort_unstable_by_key(|(_, id)| *id);
                rest.gone.dedup_by_key(|(_, id)| *id);
                if !taken && rest.gone.len() < missing.len() {
                    let gone: HashSet<_> = rest.gone.iter().map(|(_, id)| *id).collect();
                    let late: Vec<_> =
                        missing.into_iter().filter(|id| !gone.contains(id)).collect();
                    self.send_late(&mut answer, topic, &late, head, seen).await?;
                    // It may have been replaced meanwhile.
                    rest.gone.retain(|(_, id)| !answer.sent.contains(id));
                }
            }
            self.library.bytes("events out", answer.bytes);
            rest.cut = answer.room == 0 && answer.sent.len() < ids.len();
        }
        // The answer for a topic that we are not in is the same as for events that we do not have.
        wire::write_end(send, &rest).await?;
        self.count("served");
        Ok(())
    }

    /// Sends those that are in the store now.
    async fn send_known(
        &self,
        answer: &mut Answer<'_>,
        topic: &TopicName,
        ids: &[EventId],
        chunk: usize,
    ) -> Result<(), WireError> {
        let _permit = self.requests.acquire().await;
        for ids in ids.chunks(chunk) {
            if answer.room == 0 {
                break;
            }
            let found = match self.reader.fetch(topic.clone(), ids.to_vec()).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "cannot read events for a peer");
                    // Not "nothing there": the answer is cut short.
                    answer.room = 0;
                    break;
                }
            };
            let now = unix_now();
            for json in found {
                let Ok(event) = Event::parse(&json) else { continue };
                if json.len() > answer.longest
                    || kinds::barred_from_public_topics(&event, now).is_some()
                {
                    answer.too_long.push((event.created_at, event.id));
                } else {
                    answer.event(event.id, &json).await?;
                }
            }
        }
        answer.flush().await
    }

    /// Waits a little for those that are not, and sends what comes. `seen` is the log's position
    /// before the store was read.
    async fn send_late(
        &self,
        answer: &mut Answer<'_>,
        topic: &TopicName,
        ids: &[EventId],
        mut head: watch::Receiver<Seq>,
        mut seen: Seq,
    ) -> Result<(), WireError> {
        let deadline = Instant::now() + WAIT;
        let mut looks = LOOKS;
        loop {
            let missing: HashSet<_> =
                ids.iter().filter(|id| !answer.sent.contains(*id)).copied().collect();
            if missing.is_empty() || answer.room == 0 {
                return Ok(());
            }
            match timeout_at(deadline, head.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
            // Commits come in quick succession; do not look at each of them.
            tokio::time::sleep(LOOK_AGAIN).await;
            let newest = *head.borrow_and_update();
            let Some(entries) = self.reader.recent_log_after(seen) else {
                // The tail in memory is too short: ask the store, but not often.
                if looks == 0 {
                    return Ok(());
                }
                looks -= 1;
                seen = newest;
                let missing: Vec<_> = missing.into_iter().collect();
                self.send_known(answer, topic, &missing, CHUNK).await?;
                continue;
            };
            seen = entries.last().map_or(newest, |entry| entry.seq.max(newest));
            let now = unix_now();
            for entry in entries.iter().filter(|entry| entry.topic.as_ref() == Some(topic)) {
                let event = &entry.event;
                if missing.contains(&event.id)
                    && kinds::barred_from_public_topics(event, now).is_none()
                {
                    let _permit = self.requests.acquire().await;
                    answer.event(event.id, event.json()).await?;
                    answer.flush().await?;
                }
            }
        }
    }

    fn count(&self, cause: &'static str) {
        self.metrics.fetches.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// What became of a stream.
enum Served {
    Yes,
    /// It is of no private topic that we and the peer are both in.
    Unknown,
}

fn slow() -> WireError {
    WireError::Io(io::ErrorKind::TimedOut.into())
}

/// An answer being written.
struct Answer<'a, W = SendStream> {
    send: &'a mut W,
    sent: HashSet<EventId>,
    /// Bytes that may still be sent; 0 once an event did not fit.
    room: usize,
    /// Whose bytes are counted.
    trust: Option<(&'a Trust, EndpointId)>,
    /// The longest event that the other side takes; it is told of those that are longer, and of those
    /// that have expired.
    longest: usize,
    until: Instant,
    too_long: Vec<(u64, EventId)>,
    /// Bytes of events that were sent.
    bytes: usize,
    /// What was not written yet.
    gathered: Vec<u8>,
}

impl<'a, W> Answer<'a, W> {
    fn new(send: &'a mut W, room: usize) -> Self {
        let (sent, too_long) = (HashSet::new(), Vec::new());
        let until = Instant::now() + LONG_ENOUGH;
        let (longest, gathered) = (usize::MAX, Vec::new());
        Self { send, sent, room, trust: None, longest, until, too_long, bytes: 0, gathered }
    }
}

impl<W: AsyncWrite + Unpin> Answer<'_, W> {
    fn missing(&self, ids: &[EventId]) -> Vec<EventId> {
        ids.iter().filter(|id| !self.sent.contains(*id)).copied().collect()
    }

    async fn event(&mut self, id: EventId, json: &str) -> Result<(), WireError> {
        if self.sent.contains(&id) {
            return Ok(());
        }
        // The first goes out whatever its size: a larger one could never be fetched.
        if self.room == 0 || (json.len() > self.room && !self.sent.is_empty()) {
            self.room = 0;
        } else {
            self.sent.insert(id);
            self.bytes += json.len();
            self.room = self.room.saturating_sub(json.len());
            let spent =
                self.trust.is_some_and(|(trust, peer)| trust.spend(peer, Way::Out, json.len()));
            if spent || Instant::now() > self.until {
                self.room = 0;
            }
            wire::write_event(&mut self.gathered, json).await?;
            if self.gathered.len() >= GATHERED {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Writes what was gathered. A peer that does not read must not keep its place for long.
    async fn flush(&mut self) -> Result<(), WireError> {
        let mut rest = self.gathered.as_slice();
        while !rest.is_empty() {
            let written =
                timeout(STALLED, self.send.write(rest)).await.map_err(io::Error::from)??;
            rest = match rest.get(written..) {
                Some(rest) if written > 0 => rest,
                _ => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            };
        }
        self.gathered.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_event_beyond_the_room_goes_out_if_it_is_the_first() {
        let json = "x".repeat(10);
        let mut bytes = Vec::new();
        let mut answer = Answer::new(&mut bytes, 9);
        answer.event(EventId([1; 32]), &json).await.unwrap();
        answer.event(EventId([2; 32]), "y").await.unwrap();
        answer.flush().await.unwrap();
        assert_eq!((answer.sent.len(), answer.room), (1, 0));
        assert_eq!(bytes.len(), 4 + 10);

        let mut bytes = Vec::new();
        let mut answer = Answer::new(&mut bytes, 12);
        for (n, json) in [(1, &*json), (1, &*json), (2, &*json), (3, "y")] {
            answer.event(EventId([n; 32]), json).await.unwrap();
        }
        answer.flush().await.unwrap();
        assert_eq!(answer.sent, HashSet::from([EventId([1; 32])]), "the answer ends there");
        assert_eq!(bytes.len(), 4 + 10);
    }

    #[tokio::test]
    async fn an_answer_goes_out_in_pieces_and_whoever_does_not_read_is_given_up() {
        tokio::time::pause();
        let json = "x".repeat(1_000);
        let (mut near, mut far) = tokio::io::duplex(100);
        let mut answer = Answer::new(&mut near, usize::MAX);
        for n in 0..40 {
            // Not even a small part can be written at once; with the 33rd there is enough to write.
            let mut read = vec![0; 33 * 1_004];
            let (sent, _) = tokio::join!(answer.event(EventId([n; 32]), &json), async {
                if n == 32 { far.read_exact(&mut read).await.map(drop) } else { Ok(()) }
            });
            sent.unwrap();
        }
        assert_eq!(answer.gathered.len(), 7 * 1_004);
        let slow = answer.flush().await.unwrap_err();
        assert!(matches!(slow, WireError::Io(error) if error.kind() == io::ErrorKind::TimedOut));
    }
}
