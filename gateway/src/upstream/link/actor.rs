//! The task that owns the socket of a link.
//!
//! It reads and writes at once: a relay that does not read must not keep us from reading it, or both
//! would wait. It takes no further orders while something is being written, and reads nothing while an
//! item waits for room with its reader. The socket is not split: a half of it holds a single message.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes, error::ProtocolError};
use url::Url;

use super::{
    Ack, Item, LinkError, LinkOptions, ROOM, Shared, Timeouts,
    auth::{Again, Answered, Auth, Waiting},
    dial::Socket,
    key_of,
    negentropy::NegAnswer,
    request::Queued,
    shown::shown,
    subscription_id,
};
use crate::protocol::{
    Event, EventId, Filter, Prefix,
    remote::{self, RelayMessage},
};

/// After a NOTICE, what has no answer yet is taken for refused unless one comes within this time.
const AFTER_NOTICE: Duration = Duration::from_secs(5);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Messages handled, or orders taken, before looking at what else is to be done.
const AT_ONCE: usize = 64;
/// Bytes of orders that are put together into one write.
const WRITE_AT_ONCE: usize = 64 * 1024;
/// Published events that nobody waits for any more are forgotten when there are more than this.
const FORGOTTEN: usize = 1_024;

/// An order to the actor.
pub(super) enum Command {
    Open(Opening),
    Say(Utf8Bytes),
    Publish { event: Arc<Event>, reply: oneshot::Sender<Ack> },
}

/// A subscription or reconciliation to open.
pub(super) struct Opening {
    pub key: u64,
    pub text: Utf8Bytes,
    pub kind: Kind,
}

pub(super) enum Kind {
    Request { filters: Arc<[Filter]>, queue: mpsc::Sender<Queued>, dropped: Arc<AtomicU64> },
    Negentropy { answer: mpsc::Sender<NegAnswer> },
}

struct Open {
    opening: Opening,
    /// The relay has said something to it.
    answered: bool,
    /// It was sent once more after authenticating.
    again: bool,
    /// A NOTICE came before any answer: when it counts as one, and what it said.
    notice: Option<(Instant, String)>,
}

struct Published {
    event: Arc<Event>,
    replies: Vec<oneshot::Sender<Ack>>,
    again: bool,
}

/// What a message led to.
type Step = Result<(), LinkError>;

pub(super) struct Actor {
    socket: Socket,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    timeouts: Timeouts,
    open: HashMap<u64, Open>,
    published: HashMap<EventId, Published>,
    auth: Auth,
    /// Since when something is being written.
    writing: Option<Instant>,
    /// An item that waits for its reader.
    stalled: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    last_read: Instant,
    /// When the relay was asked for a sign of life.
    pinged: Option<Instant>,
    /// Nobody has a handle any more.
    alone: bool,
}

impl Actor {
    pub fn new(
        url: &Url,
        socket: Socket,
        options: &LinkOptions,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            socket,
            commands,
            shared,
            timeouts: options.timeouts,
            open: HashMap::new(),
            published: HashMap::new(),
            auth: Auth::new(options.auth.clone(), url),
            writing: None,
            stalled: None,
            last_read: Instant::now(),
            pinged: None,
            alone: false,
        }
    }

    /// Serves the connection to its end, and tells why it ended.
    pub async fn run(mut self, end: watch::Sender<Option<LinkError>>) {
        let why = match self.serve().await {
            Err(why) => why,
            Ok(()) => LinkError::ClosedHere,
        };
        // Before the queues are dropped: whoever sees one of them end asks why.
        let _ = end.send(Some(why));
        let Self { mut socket, commands, open, published, .. } = self;
        drop((commands, open, published));
        let _ = timeout(GOODBYE, socket.close(None)).await;
    }

    /// Ends well when nobody wants the link any more.
    async fn serve(&mut self) -> Step {
        loop {
            self.close_dropped()?;
            if self.alone && self.open.is_empty() && self.writing.is_none() {
                return Ok(());
            }
            let deadline = self.next_deadline();
            if deadline <= Instant::now() {
                // Whatever else keeps it busy.
                self.look_at_the_clock()?;
            }
            let (write, read) = (self.writing.is_some(), self.stalled.is_none());
            tokio::select! {
                biased;
                () = self.shared.token.cancelled() => return Ok(()),
                () = self.shared.drops.notified() => {}
                order = self.commands.recv(), if self.writing.is_none() && !self.alone => {
                    self.take_orders(order)?;
                }
                () = waited(&mut self.stalled), if !read => {
                    self.stalled = None;
                    self.last_read = Instant::now();
                }
                (written, message) = wire(&mut self.socket, write, read) => {
                    if written.map_err(|error| ended(&error))? {
                        self.writing = None;
                    }
                    if let Some(message) = message {
                        self.take_messages(message)?;
                    }
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn take_orders(&mut self, first: Option<Command>) -> Step {
        let Some(first) = first else {
            self.alone = true;
            return Ok(());
        };
        let mut bytes = self.obey(first)?;
        for _ in 1..AT_ONCE {
            if bytes >= WRITE_AT_ONCE {
                break;
            }
            // What was dropped before an order is closed before it, or the relay counts both.
            self.close_dropped()?;
            let Ok(next) = self.commands.try_recv() else { break };
            bytes += self.obey(next)?;
        }
        Ok(())
    }

    /// Returns how many bytes are to be written.
    fn obey(&mut self, command: Command) -> Result<usize, LinkError> {
        let text = match command {
            Command::Say(text) => text,
            Command::Open(opening) => {
                let text = opening.text.clone();
                let open = Open { opening, answered: false, again: false, notice: None };
                self.open.insert(open.opening.key, open);
                text
            }
            Command::Publish { event, reply } => {
                if self.published.len() > FORGOTTEN {
                    self.published.retain(|_, p| p.replies.iter().any(|r| !r.is_closed()));
                }
                let text = remote::publish(&event).into();
                let published = self.published.entry(event.id).or_insert_with(|| Published {
                    event,
                    replies: Vec::new(),
                    again: false,
                });
                published.replies.push(reply);
                if published.replies.len() > 1 {
                    // One answer is for all who wait for it.
                    return Ok(0);
                }
                text
            }
        };
        let bytes = text.len();
        self.say(Message::Text(text))?;
        Ok(bytes)
    }

    /// Puts a message into the buffer; the loop writes it.
    fn say(&mut self, message: Message) -> Step {
        self.socket.start_send_unpin(message).map_err(|error| ended(&error))?;
        self.writing.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Tells the relay what is no longer wanted.
    fn close_dropped(&mut self) -> Step {
        let dropped = std::mem::take(
            &mut *self.shared.dropped.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for key in dropped {
            // Those that the relay has closed are gone already.
            let Some(open) = self.open.remove(&key) else { continue };
            self.auth.forget(Again::Subscription(key));
            let id = subscription_id(key);
            let text = match open.opening.kind {
                Kind::Request { .. } => remote::close(&id),
                Kind::Negentropy { .. } => remote::neg_close(&id),
            };
            self.say(Message::text(text))?;
        }
        Ok(())
    }

    fn take_messages(&mut self, first: Option<Result<Message, Error>>) -> Step {
        let mut next = first;
        for round in 1..=AT_ONCE {
            self.last_read = Instant::now();
            self.pinged = None;
            self.shared.traffic.is_whole();
            match next {
                Some(Ok(Message::Text(text))) => self.hear(&text)?,
                Some(Ok(Message::Close(frame))) => {
                    return Err(LinkError::Ended(match frame {
                        Some(frame) if frame.reason.is_empty() => {
                            format!("the relay closed the connection (code {})", frame.code)
                        }
                        Some(frame) => {
                            format!("the relay closed the connection: {}", shown(&frame.reason))
                        }
                        None => "the relay closed the connection".to_owned(),
                    }));
                }
                // Pings are answered by the library, with the next write or read.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => self.count(|tally| &tally.malformed)?,
                Some(Err(error)) => return Err(ended(&error)),
                None => {
                    let text = "the relay ended the connection without a word";
                    return Err(LinkError::Ended(text.to_owned()));
                }
            }
            // What is taken out of the socket in the last round would be lost.
            if self.stalled.is_some() || round == AT_ONCE {
                break;
            }
            match self.socket.next().now_or_never() {
                Some(message) => next = message,
                None => break,
            }
        }
        Ok(())
    }

    fn hear(&mut self, text: &str) -> Step {
        let Some(message) = remote::parse(text) else {
            return self.count(|tally| &tally.malformed);
        };
        match message {
            RelayMessage::Event { subscription, event } => match event {
                Ok(event) => self.event(&subscription, *event, text.len()),
                Err(error) => {
                    tracing::debug!(%error, "an upstream relay sent a malformed event");
                    self.count(|tally| &tally.malformed)
                }
            },
            RelayMessage::Eose { subscription, complete } => {
                let item = Item::Eose { complete };
                self.item(&subscription, item)
            }
            RelayMessage::Closed { subscription, reason } => self.closed(&subscription, &reason),
            RelayMessage::NegError { subscription, reason } => self.closed(&subscription, &reason),
            RelayMessage::NegMessage { subscription, message } => {
                self.neg_message(&subscription, message)
            }
            RelayMessage::Ok { id, accepted, message } => self.ok(id, accepted, &message),
            RelayMessage::Auth(challenge) => {
                self.auth.challenged(&challenge);
                self.authenticate()
            }
            RelayMessage::Notice(text) => self.notice(&text),
            RelayMessage::Other => self.count(|tally| &tally.unasked),
        }
    }

    fn event(&mut self, subscription: &str, event: Event, bytes: usize) -> Step {
        let Some(open) = self.find(subscription)? else { return Ok(()) };
        let Kind::Request { filters, queue, dropped } = &open.opening.kind else {
            return self.count(|tally| &tally.unasked);
        };
        open.answered = true;
        if !filters.iter().any(|filter| filter.matches(&event)) {
            dropped.fetch_add(1, Ordering::Relaxed);
            return self.count(|tally| &tally.mismatched);
        }
        let queue = queue.clone();
        self.good();
        self.deliver(queue, Item::Event(event), bytes);
        Ok(())
    }

    fn item(&mut self, subscription: &str, item: Item) -> Step {
        let Some(open) = self.find(subscription)? else { return Ok(()) };
        let Kind::Request { queue, .. } = &open.opening.kind else {
            return self.count(|tally| &tally.unasked);
        };
        // A second EOSE is worth as little as an unknown id.
        let queue = queue.clone();
        open.answered = true;
        self.good();
        self.deliver(queue, item, 0);
        Ok(())
    }

    /// CLOSED or NEG-ERR.
    fn closed(&mut self, subscription: &str, reason: &str) -> Step {
        let Some(open) = self.find(subscription)? else { return Ok(()) };
        let (key, reason) = (open.opening.key, shown(reason));
        open.answered = true;
        if !open.again && wants_auth(&reason) {
            let until = Instant::now() + self.timeouts.answer;
            return match self.auth.demanded(Again::Subscription(key), reason, until) {
                Ok(()) => self.authenticate(),
                Err(reason) => self.end(key, reason),
            };
        }
        self.end(key, reason)
    }

    /// Tells the reader that its subscription or reconciliation is over.
    fn end(&mut self, key: u64, reason: String) -> Step {
        let Some(open) = self.open.remove(&key) else { return Ok(()) };
        match open.opening.kind {
            Kind::Request { queue, .. } => {
                // One that is closed again and again is no use of the connection.
                self.deliver(queue, Item::Closed(reason), 0);
            }
            Kind::Negentropy { answer } => drop(answer.try_send(NegAnswer::Refused(reason))),
        }
        Ok(())
    }

    fn neg_message(&mut self, subscription: &str, message: Vec<u8>) -> Step {
        let Some(open) = self.find(subscription)? else { return Ok(()) };
        open.answered = true;
        let taken = match &open.opening.kind {
            Kind::Negentropy { answer } => answer.try_send(NegAnswer::Message(message)).is_ok(),
            Kind::Request { .. } => false,
        };
        if taken {
            self.good();
            return Ok(());
        }
        self.count(|tally| &tally.unasked)
    }

    fn ok(&mut self, id: EventId, accepted: bool, message: &str) -> Step {
        match self.auth.answered(id, accepted, message) {
            Some(Answered::Granted(waiting)) => return self.once_more(waiting),
            Some(Answered::Denied(waiting, why)) => {
                tracing::debug!(why, "an upstream relay refused the authentication");
                return self.refuse(waiting, &format!("authentication was refused: {why}"));
            }
            None => {}
        }
        // Late ones too: whoever waited has given up.
        let Some(published) = self.published.get_mut(&id) else {
            return self.count(|tally| &tally.late);
        };
        let mut message = shown(message);
        if !accepted && !published.again && wants_auth(&message) {
            let until = Instant::now() + self.timeouts.answer;
            match self.auth.demanded(Again::Event(id), message, until) {
                Ok(()) => return self.authenticate(),
                Err(reason) => message = reason,
            }
        }
        self.good();
        self.reply(id, &Ack { accepted, message });
        Ok(())
    }

    fn reply(&mut self, id: EventId, ack: &Ack) {
        let Some(published) = self.published.remove(&id) else { return };
        for reply in published.replies {
            // Whoever gave up does not need it.
            let _ = reply.send(ack.clone());
        }
    }

    fn authenticate(&mut self) -> Step {
        match self.auth.to_send() {
            Some(event) => self.say(Message::text(remote::auth(&event))),
            None => Ok(()),
        }
    }

    /// Sends again what was refused before we were authenticated.
    fn once_more(&mut self, waiting: Vec<Waiting>) -> Step {
        for Waiting { again, .. } in waiting {
            let text = match again {
                Again::Subscription(key) => self.open.get_mut(&key).map(|open| {
                    (open.again, open.answered) = (true, false);
                    open.opening.text.clone()
                }),
                Again::Event(id) => self.published.get_mut(&id).map(|published| {
                    published.again = true;
                    remote::publish(&published.event).into()
                }),
            };
            if let Some(text) = text {
                self.say(Message::Text(text))?;
            }
        }
        Ok(())
    }

    /// It stays refused.
    fn refuse(&mut self, waiting: Vec<Waiting>, why: &str) -> Step {
        for Waiting { again, refusal, .. } in waiting {
            let reason = format!("{refusal} ({why})");
            match again {
                Again::Subscription(key) => self.end(key, reason)?,
                Again::Event(id) => self.reply(id, &Ack { accepted: false, message: reason }),
            }
        }
        Ok(())
    }

    /// Nothing says what a NOTICE is about. Some relays answer with one to what they do not take.
    fn notice(&mut self, text: &str) -> Step {
        let text = shown(text);
        let due = Instant::now() + AFTER_NOTICE.min(self.timeouts.answer);
        for open in self.open.values_mut().filter(|open| !open.answered) {
            open.notice.get_or_insert_with(|| (due, text.clone()));
        }
        *self.shared.notice.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.into());
        self.count(|tally| &tally.notices)
    }

    /// What a message is about; `None`, and counted, when it is nothing of ours.
    fn find(&mut self, subscription: &str) -> Result<Option<&mut Open>, LinkError> {
        let key = key_of(subscription);
        match key {
            Some(key) if self.open.contains_key(&key) => return Ok(self.open.get_mut(&key)),
            // What was closed here or there may still be on its way.
            Some(key) if key < self.shared.next.load(Ordering::Relaxed) => {
                self.count(|tally| &tally.late)?;
            }
            _ => self.count(|tally| &tally.unasked)?,
        }
        Ok(None)
    }

    /// Gives an item to its reader, or keeps it and reads nothing more until there is room.
    fn deliver(&mut self, queue: mpsc::Sender<Queued>, item: Item, bytes: usize) {
        let wanted = u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX);
        let room = self.shared.room.clone();
        let before = self.stalled.take();
        let waiting = match room.clone().try_acquire_many_owned(wanted) {
            Ok(permit) => {
                let queued = Queued { item, _room: Some(permit) };
                if before.is_some() {
                    // Nothing overtakes what waits.
                    queued
                } else {
                    match queue.try_send(queued) {
                        Err(mpsc::error::TrySendError::Full(queued)) => queued,
                        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
                    }
                }
            }
            Err(_) => Queued { item, _room: None },
        };
        self.stalled = Some(Box::pin(async move {
            if let Some(before) = before {
                before.await;
            }
            let permit = match waiting._room {
                Some(permit) => Some(permit),
                // A reader that goes away needs nothing, and takes the room that others wait for.
                None => tokio::select! {
                    permit = room.acquire_many_owned(wanted) => permit.ok(),
                    () = queue.closed() => return,
                },
            };
            let _ = queue.send(Queued { item: waiting.item, _room: permit }).await;
        }));
    }

    fn good(&self) {
        self.shared.tally.good.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, of: impl Fn(&super::Tally) -> &AtomicU64) -> Step {
        let tally = &self.shared.tally;
        match tally.count(of(tally)) {
            None => Ok(()),
            Some(wrong) => Err(LinkError::Misbehaved(wrong)),
        }
    }

    fn next_deadline(&self) -> Instant {
        let Timeouts { answer, silence, .. } = self.timeouts;
        let reading = self.stalled.is_none().then(|| match self.pinged {
            Some(at) => at + answer,
            None => self.last_read + silence,
        });
        let notices = self.open.values().filter_map(|open| open.notice.as_ref());
        let notice = notices.map(|(due, _)| *due).min();
        let writing = self.writing.map(|since| since + answer);
        let deadlines = [reading, notice, writing, self.auth.next_deadline()];
        let far = || Instant::now() + silence;
        deadlines.into_iter().flatten().min().unwrap_or_else(far)
    }

    fn look_at_the_clock(&mut self) -> Step {
        let now = Instant::now();
        let Timeouts { answer, silence, .. } = self.timeouts;
        if self.writing.is_some_and(|since| since + answer <= now) {
            return Err(LinkError::Slow { what: "reading of what is sent to it", after: answer });
        }
        let overdue = self.auth.overdue(now);
        self.refuse(overdue, "it sent no challenge, or no answer to ours")?;
        self.take_notices_for_answers(now)?;
        if self.stalled.is_some() {
            return Ok(());
        }
        match self.pinged {
            Some(at) if at + answer <= now => {
                Err(LinkError::Slow { what: "sign of life", after: silence + answer })
            }
            None if self.last_read + silence <= now => {
                self.pinged = Some(now);
                self.say(Message::Ping(Bytes::new()))
            }
            _ => Ok(()),
        }
    }

    fn take_notices_for_answers(&mut self, now: Instant) -> Step {
        for open in self.open.values_mut() {
            // It was about something else.
            open.notice.take_if(|_| open.answered);
        }
        let due = |open: &Open| open.notice.as_ref().is_some_and(|(due, _)| *due <= now);
        let due: Vec<u64> =
            self.open.iter().filter(|(_, open)| due(open)).map(|(key, _)| *key).collect();
        for key in due {
            let Some(open) = self.open.remove(&key) else { continue };
            let text = open.notice.map(|(_, text)| text).unwrap_or_default();
            // The relay may have taken it all the same.
            let id = subscription_id(key);
            match open.opening.kind {
                Kind::Request { queue, .. } => {
                    self.say(Message::text(remote::close(&id)))?;
                    let reason = format!("notice: {text}");
                    self.deliver(queue, Item::Closed(reason), 0);
                }
                Kind::Negentropy { answer } => drop(answer.try_send(NegAnswer::Notice(text))),
            }
        }
        Ok(())
    }
}

/// Whether a refusal asks for authentication (NIP-42).
fn wants_auth(reason: &str) -> bool {
    reason.split_once(':').is_some_and(|(word, _)| word == Prefix::AuthRequired.as_str())
}

/// Waits for a reader to have room.
async fn waited(stalled: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match stalled {
        Some(stalled) => stalled.await,
        None => std::future::pending().await,
    }
}

/// What came of writing, and the next message.
type Wired = (Result<bool, Error>, Option<Option<Result<Message, Error>>>);

/// Waits until all is written, or until there is a message, whatever is asked for; both may be.
async fn wire(socket: &mut Socket, write: bool, read: bool) -> Wired {
    poll_fn(|cx| {
        let mut written = Ok(false);
        if write && let Poll::Ready(flushed) = socket.poll_flush_unpin(cx) {
            written = flushed.map(|()| true);
        }
        if read
            && written.is_ok()
            && let Poll::Ready(message) = socket.poll_next_unpin(cx)
        {
            return Poll::Ready((written, Some(message)));
        }
        match written {
            Ok(false) => Poll::Pending,
            written => Poll::Ready((written, None)),
        }
    })
    .await
}

/// What ended the connection, in words for the operator.
fn ended(error: &Error) -> LinkError {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => {
            LinkError::Ended("the relay closed the connection".to_owned())
        }
        // It went away, or what lies between did.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            LinkError::Ended("the connection was reset".to_owned())
        }
        Error::Capacity(error) => LinkError::Misbehaved(format!("{error}")),
        Error::Protocol(_) | Error::Utf8(_) => LinkError::Misbehaved(shown(&error.to_string())),
        Error::Io(error) => LinkError::Ended(error.to_string()),
        error => LinkError::Ended(shown(&error.to_string())),
    }
}
