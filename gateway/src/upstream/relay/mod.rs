//! One relay of one stream, for as long as the stream runs: connect, fetch what was missed, take what
//! comes, and connect again.

mod live;
mod missed;
mod pauses;
mod signals;
mod standing;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use url::Url;

pub(super) use standing::Standing;
pub use standing::{RelayState, RelayStatus};

use super::{
    catch_up::Past,
    demand::Demand,
    flow::{Intake, Pace, Source},
    link::{Document, Link, LinkError, LinkOptions, RemoteLimits},
    seen::Seen,
};
use crate::{
    metrics::Metrics,
    pipeline::{
        EventReader,
        streams::{StreamRelay, UpstreamStore},
    },
    protocol::TopicName,
    tasks::Tasks,
};
use pauses::{Ending, Pauses};
use signals::Signals;

/// How long a NIP-11 document counts, so that a relay that comes back is not asked twice.
const DOCUMENT: Duration = Duration::from_secs(3_600);
/// The same when there was none.
const NO_DOCUMENT: Duration = Duration::from_secs(600);
/// Ids that a relay gave us and that are remembered at least, where events are sent to it too.
const SEEN: usize = 8_192;

/// What [`Relay::new`] needs.
pub struct StartRelay {
    pub stream: Arc<str>,
    /// In its normal form ([`crate::protocol::normal_url`]).
    pub url: Arc<str>,
    /// Where its events go.
    pub topics: Vec<TopicName>,
    /// Changes count at once. Without a sender it stays as it is.
    pub demand: watch::Receiver<Demand>,
    /// Whether events are sent to it too: then what it gave is remembered ([`Relay::seen`]).
    pub up: bool,
    pub options: LinkOptions,
    pub intake: Intake,
    pub reader: Arc<dyn EventReader>,
    pub store: Arc<dyn UpstreamStore>,
    pub tasks: Tasks,
    pub metrics: Arc<Metrics>,
}

/// A relay of a stream. Shared between its task and whoever asks for its state.
pub struct Relay {
    source: Source,
    past: Past,
    standing: Standing,
    demand: watch::Receiver<Demand>,
    options: LinkOptions,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// What an earlier connection learned, and when.
    limits: Mutex<Option<(Instant, RemoteLimits)>>,
}

impl Relay {
    pub fn new(start: StartRelay) -> Arc<Self> {
        let StartRelay {
            stream,
            url,
            topics,
            demand,
            up,
            options,
            intake,
            reader,
            store,
            tasks,
            metrics,
        } = start;
        let of = StreamRelay { stream: stream.clone(), url: url.clone() };
        let seen = Seen::new(if up { SEEN } else { 0 });
        Arc::new(Self {
            source: Source { intake, stream, url, topics, seen, taken: Default::default() },
            past: Past::new(of, store, reader),
            standing: Standing::new(),
            demand,
            options,
            tasks,
            metrics,
            limits: Mutex::default(),
        })
    }

    pub fn url(&self) -> &Arc<str> {
        &self.source.url
    }

    /// The connection of now, for whoever sends to this relay.
    pub fn link(&self) -> watch::Receiver<Option<Link>> {
        self.standing.link()
    }

    /// Which events it has because it gave them to us; remembers only with [`StartRelay::up`].
    pub fn seen(&self) -> &Seen {
        &self.source.seen
    }

    pub fn status(&self) -> RelayStatus {
        self.standing.status(&self.source.url, &self.source.taken)
    }

    /// Changes of its state.
    pub fn state(&self) -> watch::Receiver<RelayState> {
        self.standing.watch()
    }

    /// Whether it gives what it is asked for; `None` while that is not known.
    pub fn serves(&self) -> Option<bool> {
        match self.standing.state() {
            RelayState::Live | RelayState::CatchingUp => Some(true),
            RelayState::Refusing | RelayState::Away => Some(false),
            RelayState::Connecting | RelayState::Ended => None,
        }
    }

    /// Runs until the token is cancelled.
    pub async fn run(self: Arc<Self>, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.stay_connected() => {}
        }
        // Apart: a borrow that lasts keeps everybody from changing it, us included.
        let link = self.standing.link().borrow().clone();
        if let Some(link) = link {
            link.close();
            self.standing.lost(&link);
        }
        self.standing.set(RelayState::Ended);
    }

    /// Ends only when the URL is none.
    async fn stay_connected(&self) {
        let (stream, url) = (&*self.source.stream, &*self.source.url);
        let parsed = match Url::parse(url) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::error!(stream, url, %error, "an upstream has no usable URL");
                return self.standing.away(error.to_string(), 1);
            }
        };
        let mut pauses = Pauses::default();
        // Further failures are no news until an attempt succeeds.
        let mut is_told = false;
        loop {
            let known = self.known_limits();
            let opened = Link::open_knowing(&parsed, &self.options, known, &self.tasks).await;
            let (why, ending) = match opened {
                Ok(link) => {
                    self.metrics.upstream_connects.inc();
                    tracing::info!(stream, url, "connected to upstream");
                    is_told = false;
                    self.connected(&link).await
                }
                Err(why) => {
                    let retry_after = match &why {
                        LinkError::Http { retry_after, .. } => *retry_after,
                        _ => None,
                    };
                    (why, Ending::Failed { retry_after })
                }
            };
            let is_lost = !matches!(ending, Ending::Failed { .. });
            let pause = pauses.after(ending, rand::random());
            let pause_s = pause.as_secs_f64().ceil();
            let why = why.to_string();
            if is_lost {
                tracing::warn!(stream, url, why, pause_s, "lost upstream; connecting again");
                is_told = true;
            } else if is_told {
                tracing::debug!(stream, url, why, pause_s, "still cannot reach upstream");
            } else {
                let text = "cannot reach upstream; trying again with growing pauses";
                tracing::warn!(stream, url, why, pause_s, "{text}");
                is_told = true;
            }
            self.standing.away(why, pauses.failures());
            sleep(pause).await;
            self.standing.set(RelayState::Connecting);
        }
    }

    /// Serves one connection to its end.
    async fn connected(&self, link: &Link) -> (LinkError, Ending) {
        let began = Instant::now();
        let limits = link.limits().clone();
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some((began, limits));
        self.source.taken.forgive();
        self.standing.connected(link);
        let signals = Signals::default();
        let why = tokio::select! {
            why = link.closed() => why,
            why = self.live(link, &signals) => why,
            why = self.fetch_missed(link, &signals) => why,
        };
        link.close();
        self.standing.lost(link);
        let ending = match &why {
            LinkError::Misbehaved(_) => Ending::Misbehaved,
            _ if link.figures().good > 0 => Ending::Worked(began.elapsed()),
            _ => Ending::Failed { retry_after: None },
        };
        (why, ending)
    }

    fn known_limits(&self) -> Option<RemoteLimits> {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, limits) = limits.as_ref()?;
        let lasts = if limits.document == Document::Read { DOCUMENT } else { NO_DOCUMENT };
        (at.elapsed() < lasts).then(|| limits.clone())
    }

    fn pace(&self) -> Pace {
        Pace::new(self.demand.borrow().events_per_s)
    }
}
