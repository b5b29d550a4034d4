//! Answers fetches: everything is bounded, and only what a topic's members may see goes out.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::{
    EndpointId,
    endpoint::{Connection, RecvStream, SendStream, VarInt},
    protocol::{AcceptError, ProtocolHandler},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};

use super::wire::{self, Request, WireError};
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics},
    pipeline::{EventReader, JoinedTopics},
    protocol::{Event, EventId, TopicName, kinds},
};

const CONNECTIONS: usize = 256;
/// One to use, and one that a peer left behind when it crashed.
const CONNECTIONS_PER_PEER: usize = 2;
const STREAMS_PER_CONNECTION: usize = 8;
/// Requests answered at once, over all peers. Each holds a few events in memory.
const REQUESTS: usize = 64;
/// A connection that asks for nothing this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request and its answer may take together.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a peer may take to read one event.
const STALLED: Duration = Duration::from_secs(5);
/// An answer ends after this many bytes; the rest can be asked for again.
const ANSWER_BYTES: usize = 8 << 20;
/// How many events are read from the store at a time.
const CHUNK: usize = 8;
/// How long an answer waits for events that are on their way to us too: whoever announced them to
/// the asker may be fetching them itself.
const WAIT: Duration = Duration::from_secs(1);
/// Between two looks at the store while waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

const BUSY: VarInt = VarInt::from_u32(1);
const DONE: VarInt = VarInt::from_u32(0);
/// What a stream with a malformed request is reset with.
const MALFORMED: VarInt = VarInt::from_u32(2);

/// The handler of our ALPN. Cheap to clone.
#[derive(Clone)]
pub struct FetchServer(Arc<Shared>);

struct Shared {
    joined: JoinedTopics,
    reader: Arc<dyn EventReader>,
    metrics: Arc<Metrics>,
    connections: Semaphore,
    requests: Semaphore,
    peers: Mutex<HashMap<EndpointId, usize>>,
}

impl FetchServer {
    pub fn new(joined: JoinedTopics, reader: Arc<dyn EventReader>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            joined,
            reader,
            metrics,
            connections: Semaphore::new(CONNECTIONS),
            requests: Semaphore::new(REQUESTS),
            peers: Mutex::default(),
        }))
    }
}

impl fmt::Debug for FetchServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FetchServer")
    }
}

impl ProtocolHandler for FetchServer {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let shared = &*self.0;
        let peer = connection.remote_id();
        let Some(_place) = shared.place(peer) else {
            shared.count("refused");
            connection.close(BUSY, b"busy");
            return Ok(());
        };
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION as u32));
        connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
        shared.serve(&connection).await;
        connection.close(DONE, b"done");
        Ok(())
    }
}

impl Shared {
    async fn serve(&self, connection: &Connection) {
        let mut answers = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = answers.next(), if !answers.is_empty() => {}
                stream = timeout(IDLE, connection.accept_bi()),
                    if answers.len() < STREAMS_PER_CONNECTION =>
                {
                    match stream {
                        Ok(Ok((send, receive))) => answers.push(self.stream(send, receive)),
                        Ok(Err(_)) => return,
                        Err(_) if answers.is_empty() => return,
                        Err(_) => {}
                    }
                }
            }
        }
    }

    async fn stream(&self, mut send: SendStream, mut receive: RecvStream) {
        match timeout(REQUEST, self.answer(&mut send, &mut receive)).await {
            Ok(Ok(())) => {
                let _ = send.finish();
            }
            Ok(Err(WireError::Io(_))) => self.count("broken off"),
            Ok(Err(error)) => {
                self.count("malformed");
                tracing::debug!(%error, "a fetch was malformed");
                let _ = send.reset(MALFORMED);
                let _ = receive.stop(MALFORMED);
            }
            Err(_) => {
                self.count("served too slowly");
                let _ = send.reset(DONE);
            }
        }
    }

    async fn answer(
        &self,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<(), WireError> {
        let Request { topic, ids } = wire::read_request(receive).await?;
        if self.joined.contains(topic.as_str()) {
            let mut answer = Answer { send, sent: HashSet::new(), room: ANSWER_BYTES };
            self.send_known(&mut answer, &topic, &ids).await?;
            self.send_late(&mut answer, &topic, &ids).await?;
        }
        // The answer for a topic that we are not in is the same as for events that we do not have.
        wire::write_end(send).await?;
        self.count("served");
        Ok(())
    }

    /// Sends those that are in the store now.
    async fn send_known(
        &self,
        answer: &mut Answer<'_>,
        topic: &TopicName,
        ids: &[EventId],
    ) -> Result<(), WireError> {
        let _permit = self.requests.acquire().await;
        for ids in ids.chunks(CHUNK) {
            let found = match self.reader.fetch(topic.clone(), ids.to_vec()).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "cannot read events for a peer");
                    return Ok(());
                }
            };
            let now = unix_now();
            for json in found {
                let Ok(event) = Event::parse(&json) else { continue };
                if kinds::barred_from_public_topics(&event, now).is_none() {
                    answer.event(event.id, &json).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits a little for those that are not, and sends what comes.
    async fn send_late(
        &self,
        answer: &mut Answer<'_>,
        topic: &TopicName,
        ids: &[EventId],
    ) -> Result<(), WireError> {
        let deadline = Instant::now() + WAIT;
        let mut head = self.reader.head();
        loop {
            let missing: Vec<_> =
                ids.iter().filter(|id| !answer.sent.contains(id)).copied().collect();
            if missing.is_empty() || answer.room == 0 {
                return Ok(());
            }
            match timeout_at(deadline, head.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
            // Commits come in quick succession; do not read the store at each of them.
            tokio::time::sleep(LOOK_AGAIN).await;
            head.mark_unchanged();
            self.send_known(answer, topic, &missing).await?;
        }
    }

    /// A place for one more connection of this peer, if there is any.
    fn place(&self, peer: EndpointId) -> Option<Place<'_>> {
        let permit = self.connections.try_acquire().ok()?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= CONNECTIONS_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Place { peer, shared: self, _permit: permit })
    }

    fn count(&self, cause: &'static str) {
        self.metrics.fetches.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// Given back when dropped.
struct Place<'a> {
    peer: EndpointId,
    shared: &'a Shared,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// An answer being written.
struct Answer<'a> {
    send: &'a mut SendStream,
    sent: HashSet<EventId>,
    /// Bytes that may still be sent; 0 once an event did not fit.
    room: usize,
}

impl Answer<'_> {
    async fn event(&mut self, id: EventId, json: &str) -> Result<(), WireError> {
        if json.len() > self.room {
            self.room = 0;
        } else if self.sent.insert(id) {
            self.room -= json.len();
            // A peer that does not read must not keep its place for long.
            timeout(STALLED, wire::write_event(self.send, json))
                .await
                .map_err(io::Error::from)??;
        }
        Ok(())
    }
}
