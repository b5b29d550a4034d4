//! NIP-77: reconciliation with clients and other relays. This side answers; the client leads.
//!
//! The ids of an open reconciliation stay in memory, so there is room for a few sets at once over all
//! connections. Sorting and comparing runs off the async workers, one message after another for each
//! connection.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    thread,
    time::Duration,
};

use ::negentropy::{Id, Negentropy, NegentropyStorageVector};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};

use super::{End, MAX_FILTER_VALUES, Session};
use crate::{
    pipeline::IdSet,
    protocol::{EventId, Filter, Prefix, Reason, message},
    relay::rates::{ClientRates, LongQuery},
    tasks::{self, Aside},
};

/// Reconciliations of one connection at once.
const MAX_OPEN: usize = 5;
/// The longest answer, in bytes; twice that in hexadecimal.
const FRAME_BYTES: u64 = 128 * 1024;
/// How long a client may take for its next message.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long one waits for room.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Sets of the largest size for which there is room.
const LARGEST_SETS: usize = 4;
/// The part of the room, 1 in so many, that one address of another machine may have.
const SHARE: usize = 2;
/// Ids that one permit stands for, 40 bytes each.
const IDS_A_PERMIT: usize = 100;
/// Ids for which there is room however small the largest set is.
const LEAST_ROOM: usize = 100_000;

/// What the reconciliations of all connections share.
pub struct Syncs {
    /// The largest set (`relay.max_negentropy_events`).
    max: usize,
    room: Arc<Semaphore>,
    /// Permits that one address may have of it.
    share: usize,
    /// Half of the cores may compare sets.
    turns: Arc<Semaphore>,
}

impl Syncs {
    pub fn new(max: usize) -> Self {
        let room = permits(LARGEST_SETS.saturating_mul(max).max(LEAST_ROOM)) as usize;
        let turns = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Self {
            max,
            room: Arc::new(Semaphore::new(room)),
            share: room / SHARE,
            turns: Arc::new(Semaphore::new(turns)),
        }
    }

    /// The room from which a reconciliation of this client takes its own.
    fn rooms(&self, client: Option<&ClientRates>) -> Rooms {
        let share = client.map(|client| client.sync_room(self.share));
        Rooms { share, all: self.room.clone() }
    }
}

/// Room for ids: the share of an address, and what all have.
struct Rooms {
    /// `None` for programs on this machine.
    share: Option<Arc<Semaphore>>,
    all: Arc<Semaphore>,
}

impl Rooms {
    /// Waits a while for room for so many ids.
    async fn take(self, ids: usize) -> Result<Room, Reason> {
        let take = async {
            // The own share first: whoever waits for that has nothing that others need.
            let share = match self.share {
                Some(share) => Some(share.acquire_many_owned(permits(ids)).await?),
                None => None,
            };
            Ok::<_, AcquireError>(Room {
                share,
                all: self.all.acquire_many_owned(permits(ids)).await?,
            })
        };
        match timeout(LONGEST_WAIT, take).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(no_room()),
        }
    }
}

/// Room that is taken; given back when dropped.
struct Room {
    share: Option<OwnedSemaphorePermit>,
    all: OwnedSemaphorePermit,
}

impl Room {
    /// Gives back what is not needed for so many ids.
    fn shrink(&mut self, ids: usize) {
        let needed = permits(ids) as usize;
        for permit in self.share.iter_mut().chain([&mut self.all]) {
            drop(permit.split(permit.num_permits().saturating_sub(needed)));
        }
    }
}

fn permits(ids: usize) -> u32 {
    u32::try_from(ids.div_ceil(IDS_A_PERMIT).max(1)).unwrap_or(u32::MAX)
}

/// The reconciliations of a connection.
#[derive(Default)]
pub(super) struct Negentropies {
    open: HashMap<Arc<str>, State>,
    /// Those that wait for their turn.
    waiting: VecDeque<Arc<str>>,
    /// On its own: while its client does not read, it must not keep the room or the turn of others.
    running: Option<(Arc<str>, Aside<Answer>)>,
}

enum State {
    /// NEG-OPEN was received.
    Asked {
        filters: Vec<Filter>,
        message: Vec<u8>,
        /// Its place among the long queries of its address.
        query: Option<LongQuery>,
    },
    /// NEG-MSG was received.
    Told {
        set: Arc<Set>,
        message: Vec<u8>,
    },
    Running,
    /// It is the client's turn, until then.
    Answered {
        set: Arc<Set>,
        until: Instant,
    },
}

/// Ids to compare with, sorted.
pub(super) struct Set {
    ids: NegentropyStorageVector,
    _room: Room,
}

/// A set and what this side says about it, or why the reconciliation ends.
type Answer = Result<(Arc<Set>, Vec<u8>), Reason>;

/// What happened to a reconciliation.
pub(super) enum Reconciled {
    Answer(Arc<str>, Answer),
    /// The client did not go on.
    Expired(Arc<str>),
}

impl Negentropies {
    /// Waits for the next answer, or for the client to be late. Cancel safe.
    pub async fn next(&mut self) -> Reconciled {
        let latest = self.open.iter().filter_map(|(id, state)| match state {
            State::Answered { until, .. } => Some((*until, id)),
            _ => None,
        });
        let latest = latest.min().map(|(until, id)| (until, id.clone()));
        let expired = async {
            match latest {
                Some((until, id)) => {
                    sleep_until(until).await;
                    id
                }
                None => std::future::pending().await,
            }
        };
        let answered = async {
            match &mut self.running {
                Some((id, running)) => (id.clone(), running.await.unwrap_or_else(|| Err(failed()))),
                None => std::future::pending().await,
            }
        };
        let (id, answer) = tokio::select! {
            answered = answered => answered,
            id = expired => return Reconciled::Expired(id),
        };
        self.running = None;
        Reconciled::Answer(id, answer)
    }

    fn forget(&mut self, id: &Arc<str>) {
        self.open.remove(id);
        self.waiting.retain(|waiting| waiting != id);
        if self.running.as_ref().is_some_and(|(running, _)| running == id) {
            self.running = None;
        }
    }
}

impl Session {
    /// NEG-OPEN. The id has nothing to do with that of a REQ; an open one is replaced.
    pub(super) async fn open_negentropy(
        &mut self,
        id: Arc<str>,
        filters: Vec<Filter>,
        message: Vec<u8>,
    ) -> Result<(), End> {
        self.close_negentropy(&id);
        if let Some(reason) = self.refusal_to_reconcile(&filters) {
            return self.answer(Some(reason.prefix), message::neg_error(&id, &reason)).await;
        }
        let query = match self.rates.as_ref().map(|rates| rates.long_query()) {
            Some(Err(limited)) => {
                let reason = self.patience(limited)?;
                return self.send(message::neg_error(&id, &reason)).await;
            }
            Some(Ok(query)) => Some(query),
            None => None,
        };
        if self.withholds(&filters) {
            self.challenge().await?;
        }
        let negentropies = self.negentropies.get_or_insert_default();
        negentropies.open.insert(id.clone(), State::Asked { filters, message, query });
        negentropies.waiting.push_back(id);
        Ok(())
    }

    fn refusal_to_reconcile(&self, filters: &[Filter]) -> Option<Reason> {
        if let Some(reason) = self.refusal_to_read(filters) {
            return Some(reason);
        }
        let open = self.negentropies.as_ref().map_or(0, |negentropies| negentropies.open.len());
        if open >= MAX_OPEN {
            let text = format!("more than {MAX_OPEN} reconciliations at once; close one first");
            return Some(Reason::new(Prefix::RateLimited, text));
        }
        let values: usize = filters.iter().map(Filter::values).sum();
        (values > MAX_FILTER_VALUES).then(|| {
            let text = format!("more than {MAX_FILTER_VALUES} ids, authors, kinds and tag values");
            Reason::new(Prefix::RateLimited, text)
        })
    }

    /// NEG-MSG.
    pub(super) async fn go_on_with_negentropy(
        &mut self,
        id: Arc<str>,
        message: Vec<u8>,
    ) -> Result<(), End> {
        let negentropies = self.negentropies.as_mut();
        let Some(negentropies) = negentropies.filter(|all| all.open.contains_key(&id)) else {
            let why = "closed: there is no such reconciliation; begin with NEG-OPEN";
            return self.send(message::neg_error(&id, &why)).await;
        };
        // Whatever its state was, it is taken out: a client that does not wait for its turn is not
        // gone on with.
        let Some(State::Answered { set, .. }) = negentropies.open.remove(&id) else {
            self.close_negentropy(&id);
            let reason = Reason::invalid("NEG-MSG before the last one was answered");
            return self.send(message::neg_error(&id, &reason)).await;
        };
        negentropies.open.insert(id.clone(), State::Told { set, message });
        negentropies.waiting.push_back(id);
        Ok(())
    }

    /// NEG-CLOSE.
    pub(super) fn close_negentropy(&mut self, id: &Arc<str>) {
        let Some(negentropies) = &mut self.negentropies else { return };
        negentropies.forget(id);
        if negentropies.open.is_empty() {
            self.negentropies = None;
        }
    }

    pub(super) fn start_next_reconciliation(&mut self) {
        let Some(negentropies) = &mut self.negentropies else { return };
        if negentropies.running.is_some() {
            return;
        }
        let Some(id) = negentropies.waiting.pop_front() else { return };
        let Some(state) = negentropies.open.get_mut(&id) else { return };
        let turns = self.relay.syncs.turns.clone();
        let running = match std::mem::replace(state, State::Running) {
            State::Asked { filters, message, query } => {
                let (reader, scope) = (self.relay.reader.clone(), self.scope.clone());
                let viewer = self.viewer.load_full();
                let rooms = self.relay.syncs.rooms(self.rates.as_deref());
                let max = self.relay.syncs.max;
                tasks::aside("reconciliation", async move {
                    let most = |filter: &Filter| {
                        filter.limit.map_or(max, |limit| usize::try_from(limit).unwrap_or(max))
                    };
                    let most = filters.iter().map(most).fold(0, usize::saturating_add).min(max);
                    let room = rooms.take(most).await?;
                    let turn = match &query {
                        Some(query) => query.turn().await,
                        None => None,
                    };
                    let mut ids = Vec::new();
                    for filter in filters {
                        match reader.ids(filter, scope.clone(), viewer.clone(), max).await {
                            Ok(IdSet::All(more)) => ids = union(ids, more).await?,
                            Ok(IdSet::TooMany) => return Err(too_many(max)),
                            Err(error) => {
                                tracing::error!(%error, "the ids to reconcile could not be read");
                                return Err(Reason::error("the query could not be answered"));
                            }
                        }
                        if ids.len() > max {
                            return Err(too_many(max));
                        }
                    }
                    drop((turn, query));
                    answer_first(turns, room, ids, message).await
                })
            }
            State::Told { set, message } => {
                tasks::aside("reconciliation", answer(turns, set, message))
            }
            State::Running | State::Answered { .. } => return,
        };
        negentropies.running = Some((id, running));
    }

    pub(super) async fn reconciled(&mut self, reconciled: Reconciled) -> Result<(), End> {
        let Some(negentropies) = &mut self.negentropies else { return Ok(()) };
        let text = match reconciled {
            Reconciled::Answer(id, Ok((set, answer))) => {
                let until = Instant::now() + PATIENCE;
                negentropies.open.insert(id.clone(), State::Answered { set, until });
                message::neg_message(&id, &answer)
            }
            Reconciled::Answer(id, Err(reason)) => {
                self.close_negentropy(&id);
                message::neg_error(&id, &reason)
            }
            Reconciled::Expired(id) => {
                self.close_negentropy(&id);
                message::neg_error(&id, &"closed: the reconciliation was idle for too long")
            }
        };
        self.send(text).await
    }
}

type Ids = Vec<(u64, EventId)>;

/// What is in one or in both; negentropy does not bear an id twice.
async fn union(mut ids: Ids, mut more: Ids) -> Result<Ids, Reason> {
    if ids.is_empty() {
        return Ok(more);
    }
    let both = tasks::blocking(move || {
        ids.append(&mut more);
        ids.sort_unstable();
        ids.dedup();
        ids
    });
    both.await.map_err(|_| failed())
}

/// Sorts the ids, gives back the room that they do not need, and answers the first message.
async fn answer_first(turns: Arc<Semaphore>, mut room: Room, ids: Ids, message: Vec<u8>) -> Answer {
    in_turn(turns, move || {
        let mut sorted = NegentropyStorageVector::with_capacity(ids.len());
        for (created_at, id) in &ids {
            sorted.insert(*created_at, Id::from_byte_array(id.0)).map_err(broken)?;
        }
        sorted.seal().map_err(broken)?;
        room.shrink(ids.len());
        reconcile(Arc::new(Set { ids: sorted, _room: room }), &message)
    })
    .await
}

async fn answer(turns: Arc<Semaphore>, set: Arc<Set>, message: Vec<u8>) -> Answer {
    in_turn(turns, move || reconcile(set, &message)).await
}

/// Runs it off the async workers when its turn comes. It keeps its turn to the end even when nobody
/// waits for it any more.
async fn in_turn(turns: Arc<Semaphore>, work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let Ok(turn) = turns.acquire_owned().await else { return Err(no_room()) };
    let worked = tasks::blocking(move || {
        let _turn = turn;
        work()
    });
    worked.await.unwrap_or_else(|_| Err(failed()))
}

fn reconcile(set: Arc<Set>, message: &[u8]) -> Answer {
    let mut negentropy = Negentropy::borrowed(&set.ids, FRAME_BYTES).map_err(broken)?;
    let answer = negentropy.reconcile(message).map_err(broken)?;
    Ok((set, answer))
}

/// The ids are sound, so it is the message that is not.
fn broken(error: ::negentropy::Error) -> Reason {
    Reason::invalid(format!("the negentropy message: {error}"))
}

/// NIP-77 wants the word and the number.
fn too_many(max: usize) -> Reason {
    Reason::blocked(format!("this query is too big: more than {max} events"))
}

fn failed() -> Reason {
    Reason::error("the reconciliation failed")
}

fn no_room() -> Reason {
    Reason::new(Prefix::RateLimited, "too many reconciliations at the moment; try again later")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::relay::{Rates, RatesConfig};

    const MAX: usize = 300_000;

    fn client(rates: &Rates, address: &str) -> Arc<ClientRates> {
        rates.connect(address.parse().unwrap()).unwrap()
    }

    fn take(syncs: &Syncs, client: Option<&ClientRates>) -> Option<Room> {
        take_for(syncs, client, MAX)
    }

    fn take_for(syncs: &Syncs, client: Option<&ClientRates>, ids: usize) -> Option<Room> {
        let taken = syncs.rooms(client).take(ids).now_or_never()?;
        Some(taken.unwrap())
    }

    #[tokio::test]
    async fn an_address_has_half_of_the_room_and_gives_it_back() {
        let (syncs, rates) = (Syncs::new(MAX), Rates::new(RatesConfig::default()));
        let (a, again, b) = (
            client(&rates, "203.0.113.7"),
            client(&rates, "203.0.113.7"),
            client(&rates, "203.0.113.8"),
        );
        let mut first = take(&syncs, Some(&a)).unwrap();
        let _second = take(&syncs, Some(&again)).unwrap();
        assert!(take(&syncs, Some(&a)).is_none(), "it waits for its own");
        let third = take(&syncs, Some(&b)).unwrap();
        // Programs on this machine have no share, but there is only so much.
        let _fourth = take(&syncs, None).unwrap();
        assert!(take(&syncs, None).is_none() && take(&syncs, Some(&b)).is_none());
        drop(third);
        assert!(take(&syncs, Some(&a)).is_none(), "what is free is not for those who have theirs");
        assert!(take(&syncs, Some(&b)).is_some());
        // A set that turns out small leaves room for others.
        first.shrink(10);
        assert!(take_for(&syncs, Some(&a), MAX - 1_000).is_some());
    }

    #[tokio::test]
    async fn a_set_takes_room_until_its_client_is_late() {
        let syncs = Syncs::new(MAX);
        let all = syncs.room.available_permits();
        let set = || {
            let mut room = take(&syncs, None).unwrap();
            room.shrink(1_000);
            let mut ids = NegentropyStorageVector::new();
            ids.seal().unwrap();
            Arc::new(Set { ids, _room: room })
        };
        let taken = permits(1_000) as usize;
        let mut negentropies = Negentropies::default();
        let in_time = State::Answered { set: set(), until: Instant::now() + PATIENCE };
        negentropies.open.insert("in time".into(), in_time);
        assert!(negentropies.next().now_or_never().is_none());
        let late = State::Answered { set: set(), until: Instant::now() };
        negentropies.open.insert("late".into(), late);
        assert_eq!(syncs.room.available_permits(), all - 2 * taken);
        let Reconciled::Expired(id) = negentropies.next().await else { panic!() };
        assert_eq!(&*id, "late");
        negentropies.forget(&id);
        assert_eq!(syncs.room.available_permits(), all - taken);
        assert!(negentropies.next().now_or_never().is_none());
    }

    /// A session does not poll its reconciliation while its client does not read.
    #[tokio::test]
    async fn a_client_that_froze_passes_its_turn_on() {
        let turns = Arc::new(Semaphore::new(1));
        let held = turns.clone().acquire_owned().await.unwrap();
        let work = || Err(failed());
        let frozen = tasks::aside("reconciliation", in_turn(turns.clone(), work));
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(held);
        let other = timeout(Duration::from_secs(10), in_turn(turns.clone(), work)).await;
        assert!(other.expect("it is its turn").is_err());
        assert!(frozen.await.unwrap().is_err());
        // Nor does one that left stand in the line.
        let held = turns.clone().acquire_owned().await.unwrap();
        let left = tasks::aside("reconciliation", in_turn(turns.clone(), work));
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(left);
        drop(held);
        let other = timeout(Duration::from_secs(10), in_turn(turns, work)).await;
        assert!(other.is_ok());
    }
}
