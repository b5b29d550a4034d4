//! One joined topic: reads its gossip, sends into it, joins whom discovery finds.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::EndpointId;
use iroh_gossip::{
    TopicId,
    api::{ApiError, Event as GossipEvent, GossipReceiver, GossipSender, Message},
    net::Gossip,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    budget::{Budgets, Missed},
    fetch::Announcement,
    joiner::{Unanswered, join},
    net::Net,
    outbound::Ended,
    peer_id,
    private::Voice,
    state::TopicState,
    watch::Health,
};
use crate::{
    metrics::{CauseLabels, Metrics, TopicLabels},
    pipeline::{Candidate, Ingest, Origin, Target},
    protocol::{
        Event,
        frame::{self, FrameError, GossipFrame},
        private::seal::Sealer,
    },
};

/// How many events of one topic may be in the pipeline at once. Beyond that we stop reading, and
/// gossip tells by `Lagged` that we missed something.
const SUBMISSIONS: usize = 256;

/// How long gossip may take to answer a call.
const CALL: Duration = Duration::from_secs(5);

/// Before a topic that broke is joined anew.
const PAUSE: Duration = Duration::from_secs(1);

/// After subscribing anew, the time in which gossip has told all neighbors.
const SETTLED: Duration = Duration::from_secs(1);

/// The actor of one topic.
pub struct Topic {
    /// Our own endpoint id.
    pub me: EndpointId,
    pub id: TopicId,
    pub net: Arc<Net>,
    pub state: Arc<TopicState>,
    pub ingest: Ingest,
    pub voice: Voice,
    /// Opens the frames of a private topic; nothing else is read there.
    pub seal: Option<Sealer>,
    /// Endpoints that discovery found.
    pub join: mpsc::Receiver<Vec<EndpointId>>,
    /// To the task that makes endpoints answer our joins.
    pub knock: mpsc::Sender<Unanswered>,
    /// To the task that fetches announced events.
    pub announced: mpsc::Sender<Announcement>,
    /// What each neighbor may bring.
    pub budgets: Arc<Budgets>,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
}

impl Topic {
    /// Stays in the topic until shutdown, and leaves it then.
    pub async fn run(mut self, token: CancellationToken) {
        let net = self.net.clone();
        let mut stacks = net.follow();
        while !token.is_cancelled() {
            let gossip = stacks.borrow_and_update().gossip.clone();
            match subscribe(&gossip, self.id).await {
                Ok((sender, receiver)) => {
                    tracing::info!("joined; looking for others");
                    self.state.subscribed(true);
                    self.health.subscribed();
                    let reader = Reader {
                        id: self.id,
                        gossip: &gossip,
                        seal: self.seal.as_ref(),
                        state: &self.state,
                        ingest: &self.ingest,
                        announced: &self.announced,
                        budgets: &self.budgets,
                        metrics: &self.metrics,
                    };
                    tokio::select! {
                        () = token.cancelled() => return,
                        () = reader.read(receiver) => {
                            tracing::warn!("the gossip topic ended; joining anew");
                        }
                        ended = self.voice.speak(&sender) => if ended == Ended::Wedged {
                            self.health.wedged();
                        },
                        _ = stacks.changed() => {}
                        never = join(self.me, &mut self.join, &sender, &self.state, &self.knock) => {
                            match never {}
                        }
                    }
                    self.voice.fall_silent();
                    self.state.subscribed(false);
                    self.state.reset([]);
                }
                Err(error) => {
                    self.health.subscribe_failed();
                    self.state.failed(&error);
                    tracing::warn!(error, "cannot join the gossip topic; trying again");
                }
            }
            token.run_until_cancelled(sleep(PAUSE)).await;
        }
    }
}

pub(super) async fn subscribe(
    gossip: &Gossip,
    id: TopicId,
) -> Result<(GossipSender, GossipReceiver), String> {
    match timeout(CALL, gossip.subscribe(id, Vec::new())).await {
        Ok(Ok(topic)) => Ok(topic.split()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("gossip did not answer for {CALL:?}")),
    }
}

/// The receiving side during one subscription.
struct Reader<'a> {
    id: TopicId,
    gossip: &'a Gossip,
    seal: Option<&'a Sealer>,
    state: &'a TopicState,
    ingest: &'a Ingest,
    announced: &'a mpsc::Sender<Announcement>,
    budgets: &'a Budgets,
    metrics: &'a Metrics,
}

impl Reader<'_> {
    /// Reads until gossip closes the topic.
    async fn read(&self, mut receiver: GossipReceiver) {
        let labels = TopicLabels { topic: self.state.name().to_string() };
        let received = self.metrics.frames_received.get_or_create_owned(&labels);
        let mut submissions = FuturesUnordered::new();
        let mut missed = Missed::default();
        // A second subscription and when it has been told all neighbors; see `Step::Lagged`.
        let mut second: Option<(GossipReceiver, Instant)> = None;
        loop {
            tokio::select! {
                Some(_) = submissions.next(), if !submissions.is_empty() => {}
                event = receiver.next(), if submissions.len() < SUBMISSIONS => {
                    match self.event(event) {
                        Step::Nothing => {}
                        Step::Frame(message) => {
                            received.inc();
                            let (peer, length) = (message.delivered_from, message.content.len());
                            let now = Instant::now();
                            if !self.budgets.take(peer, length, now) {
                                self.dropped("over budget");
                                if missed.is_due(now) {
                                    self.state.lagged();
                                }
                            } else if let Some(candidate) = self.candidate(&message) {
                                submissions.push(self.ingest.submit(candidate));
                            }
                        }
                        Step::Lagged => {
                            self.dropped("lagged");
                            self.state.lagged();
                            // Changes of neighbors may be among what was missed. A second
                            // subscription names them all; the first has more to read. One that is
                            // still listening hears the changes of now as well.
                            if second.is_none() {
                                second = self.listen_anew().await;
                            }
                        }
                        Step::End => return,
                    }
                }
                done = settle(&mut second) => {
                    match done {
                        Some(neighbors) => {
                            self.state.reset(neighbors);
                            second = None;
                        }
                        // It missed something itself.
                        None => second = self.listen_anew().await,
                    }
                }
            }
        }
    }

    async fn listen_anew(&self) -> Option<(GossipReceiver, Instant)> {
        match subscribe(self.gossip, self.id).await {
            Ok((_, receiver)) => Some((receiver, Instant::now() + SETTLED)),
            Err(error) => {
                tracing::warn!(error, "cannot subscribe anew");
                None
            }
        }
    }

    fn event(&self, event: Option<Result<GossipEvent, ApiError>>) -> Step {
        match event {
            Some(Ok(GossipEvent::Received(message))) => return Step::Frame(message),
            Some(Ok(GossipEvent::NeighborUp(peer))) => self.state.up(peer),
            Some(Ok(GossipEvent::NeighborDown(peer))) => self.state.down(peer),
            Some(Ok(GossipEvent::Lagged)) => return Step::Lagged,
            Some(Err(_)) | None => return Step::End,
        }
        Step::Nothing
    }

    /// Gossip forwards a message before anybody verified it: what is wrong with it is not the
    /// neighbor's fault, and costs no more than being counted.
    fn candidate(&self, message: &Message) -> Option<Candidate> {
        let peer = message.delivered_from;
        let opened = match self.seal {
            None => None,
            Some(seal) => match seal.open(&message.content) {
                Ok(frame) => Some(frame),
                Err(_) => {
                    self.dropped("not sealed for this epoch");
                    return None;
                }
            },
        };
        match GossipFrame::decode(opened.as_deref().unwrap_or(&message.content)) {
            Ok(GossipFrame::Event(json)) => match Event::parse(json) {
                Ok(event) => {
                    let topic = self.state.name().clone();
                    let target = Target::Topics(vec![topic.clone()]);
                    let origin = Origin::Gossip { topic, peer: peer_id(&peer) };
                    return Some(Candidate { event, origin, target });
                }
                Err(_) => self.dropped("no event"),
            },
            Ok(GossipFrame::Announce(ids)) => {
                let announcement = Announcement { peer, ids: frame::ids(ids) };
                if self.announced.try_send(announcement).is_err() {
                    self.dropped("too many announcements");
                }
            }
            Err(error) => self.dropped(cause(error)),
        }
        None
    }

    fn dropped(&self, cause: &'static str) {
        self.metrics.frames_dropped.get_or_create(&CauseLabels { cause }).inc();
    }
}

/// Listens until the subscription has been told all neighbors and returns them; nothing when it
/// missed a part. Waits for ever when there is none. Can be dropped and called again.
pub(super) async fn settle(
    second: &mut Option<(GossipReceiver, Instant)>,
) -> Option<Vec<EndpointId>> {
    let Some((receiver, settled)) = second else { return std::future::pending().await };
    loop {
        tokio::select! {
            biased;
            event = receiver.next() => match event {
                // Messages come by the first subscription too.
                Some(Ok(GossipEvent::Lagged)) | Some(Err(_)) | None => return None,
                Some(Ok(_)) => {}
            },
            () = sleep_until(*settled) => return Some(receiver.neighbors().collect()),
        }
    }
}

enum Step {
    Nothing,
    Frame(Message),
    Lagged,
    End,
}

const fn cause(error: FrameError) -> &'static str {
    match error {
        FrameError::Empty => "empty",
        FrameError::TooLong => "too long",
        FrameError::Type(_) => "unknown type",
        FrameError::Utf8 => "not UTF-8",
        FrameError::Announcement => "malformed announcement",
    }
}
