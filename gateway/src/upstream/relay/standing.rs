//! How a relay is doing: for status, for `up`, and for whoever chooses relays.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use tokio::sync::watch;

use crate::{
    clock::unix_now,
    upstream::{
        flow::Taken,
        link::{Link, LinkFigures},
    },
};

/// What a relay of a stream does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayState {
    /// An attempt is under way, or the relay has not answered yet.
    Connecting,
    /// Connected, and fetching what was missed; live events come meanwhile.
    CatchingUp,
    /// Connected, and nothing else is to be fetched.
    Live,
    /// Connected, but the relay answers nothing, or ends what we ask for.
    Refusing,
    /// Not connected; another attempt comes after a pause.
    Away,
    /// Nobody runs it.
    Ended,
}

/// How fetching what was missed goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CatchUpStatus {
    /// `negentropy` or `paging`; `None` before the first.
    pub way: Option<&'static str>,
    /// Parts of what is wanted that are complete, of so many.
    pub done: usize,
    pub parts: usize,
    /// Events fetched on this connection.
    pub fetched: u64,
    /// How far back it has come, in Unix seconds.
    pub reached: Option<u64>,
    /// When all parts were complete last, in Unix seconds.
    pub completed_at: Option<u64>,
    /// Why the last attempt ended early, or what the relay does wrong.
    pub trouble: Option<String>,
}

/// One relay, for `status`. Times are Unix seconds.
#[derive(Debug, Clone, Serialize)]
pub struct RelayStatus {
    pub url: String,
    pub state: RelayState,
    pub connected_since: Option<u64>,
    /// Since when it is not connected.
    pub away_since: Option<u64>,
    /// Failed attempts since it was connected.
    pub attempts: u32,
    pub error: Option<String>,
    /// The relay's last NOTICE.
    pub notice: Option<String>,
    pub software: Option<String>,
    pub negentropy: bool,
    pub last_event_at: Option<u64>,
    pub received: u64,
    pub new: u64,
    pub known: u64,
    pub refused: BTreeMap<&'static str, u64>,
    pub catch_up: CatchUpStatus,
    /// What it sent that is worth nothing: on the connection of now, or the last one.
    pub mismatched: u64,
    pub unasked: u64,
    pub malformed: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

#[derive(Debug)]
struct Now {
    state: RelayState,
    connected_since: Option<u64>,
    away_since: Option<u64>,
    attempts: u32,
    error: Option<String>,
    notice: Option<String>,
    software: Option<String>,
    negentropy: bool,
    last_event_at: Option<u64>,
    catch_up: CatchUpStatus,
    /// Of the connections that have ended.
    ended: LinkFigures,
}

/// The state of a relay, shared by its task and whoever asks.
pub(in crate::upstream) struct Standing {
    now: Mutex<Now>,
    state: watch::Sender<RelayState>,
    link: watch::Sender<Option<Link>>,
}

impl Standing {
    pub fn new() -> Self {
        let now = Now {
            state: RelayState::Connecting,
            connected_since: None,
            away_since: Some(unix_now()),
            attempts: 0,
            error: None,
            notice: None,
            software: None,
            negentropy: false,
            last_event_at: None,
            catch_up: CatchUpStatus::default(),
            ended: LinkFigures::default(),
        };
        Self {
            now: Mutex::new(now),
            state: watch::Sender::new(RelayState::Connecting),
            link: watch::Sender::new(None),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Now) -> T) -> T {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let value = change(&mut now);
        let state = now.state;
        drop(now);
        self.state.send_if_modified(|known| std::mem::replace(known, state) != state);
        value
    }

    pub fn watch(&self) -> watch::Receiver<RelayState> {
        self.state.subscribe()
    }

    pub fn link(&self) -> watch::Receiver<Option<Link>> {
        self.link.subscribe()
    }

    pub fn state(&self) -> RelayState {
        *self.state.borrow()
    }

    pub fn set(&self, state: RelayState) {
        self.with(|now| now.state = state);
    }

    /// There is a connection; whether it serves is to be seen.
    pub fn connected(&self, link: &Link) {
        self.with(|now| {
            now.state = RelayState::Connecting;
            now.connected_since = Some(unix_now());
            now.away_since = None;
            now.attempts = 0;
            now.error = None;
            now.software = link.limits().software.clone();
            now.negentropy = link.limits().negentropy;
            now.catch_up = CatchUpStatus {
                completed_at: now.catch_up.completed_at,
                ..CatchUpStatus::default()
            };
        });
        self.link.send_replace(Some(link.clone()));
    }

    /// The connection is over.
    pub fn lost(&self, link: &Link) {
        self.link.send_replace(None);
        let figures = link.figures();
        self.with(|now| {
            now.notice = link.last_notice().map(|text| text.to_string()).or(now.notice.take());
            now.ended = now.ended + figures;
        });
    }

    pub fn away(&self, error: String, attempts: u32) {
        self.with(|now| {
            now.state = RelayState::Away;
            now.connected_since = None;
            now.away_since.get_or_insert_with(unix_now);
            now.attempts = attempts;
            now.error = Some(error);
        });
    }

    /// It is connected, but does not do what it was asked for.
    pub fn refuses(&self, why: String) {
        self.with(|now| {
            now.state = RelayState::Refusing;
            now.error = Some(why);
        });
    }

    /// It does what it was asked for.
    pub fn serves(&self) {
        self.with(|now| {
            let catch_up = &now.catch_up;
            let is_done = catch_up.done == catch_up.parts;
            now.state = if is_done { RelayState::Live } else { RelayState::CatchingUp };
            now.error = None;
        });
    }

    pub fn event_came(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.last_event_at = Some(unix_now());
    }

    pub fn catch_up(&self, change: impl FnOnce(&mut CatchUpStatus)) {
        self.with(|now| {
            change(&mut now.catch_up);
            let catch_up = &now.catch_up;
            let is_done = catch_up.done == catch_up.parts;
            // One that refuses live events still does.
            if matches!(now.state, RelayState::CatchingUp | RelayState::Live) {
                now.state = if is_done { RelayState::Live } else { RelayState::CatchingUp };
            }
        });
    }

    pub fn status(&self, url: &str, taken: &Taken) -> RelayStatus {
        let link = self.link.borrow().clone();
        let (figures, notice) = match &link {
            Some(link) => (link.figures(), link.last_notice().map(|text| text.to_string())),
            None => (LinkFigures::default(), None),
        };
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = now.ended + figures;
        RelayStatus {
            url: url.to_owned(),
            state: now.state,
            connected_since: now.connected_since,
            away_since: now.away_since,
            attempts: now.attempts,
            error: now.error.clone(),
            notice: notice.or_else(|| now.notice.clone()),
            software: now.software.clone(),
            negentropy: now.negentropy,
            last_event_at: now.last_event_at,
            received: of(&taken.received),
            new: of(&taken.new),
            known: of(&taken.known),
            refused: taken.refused(),
            catch_up: now.catch_up.clone(),
            mismatched: figures.mismatched,
            unasked: figures.unasked,
            malformed: figures.malformed,
            bytes_in: figures.bytes_in,
            bytes_out: figures.bytes_out,
        }
    }
}
