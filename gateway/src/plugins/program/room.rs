//! How many events may wait for a program.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{pipeline::Origin, protocol::TopicName};

/// How many events may wait for one program, and how many KiB their requests may have. An import has 1,024
/// under way.
pub const EVENTS: usize = 1_536;
const KIB: usize = 8 * 1024;

/// The same of all programs together: little more than half of what may be under way at all, so that
/// programs which hang leave the rest to others.
const ALL_EVENTS: usize = 2_560;
const ALL_KIB: usize = 32 * 1024;

/// A program that has not answered for so long is slow.
const SLOW: Duration = Duration::from_millis(250);

/// How many events of one connection, one topic, one upstream relay may wait for a slow program. Each of
/// them has only so much under way at once, and is not to be full of what waits. What a topic does not get
/// in now, a later comparison brings again; from upstream it comes once.
const OF_A_CLIENT: usize = 64;
const OF_A_TOPIC: usize = 8;
const OF_A_STREAM: usize = 256;

/// Where events come from, as far as they get in each other's way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    Connection(u64),
    Topic(TopicName),
    Import,
    Upstream(Arc<str>),
}

impl From<&Origin> for Source {
    fn from(origin: &Origin) -> Self {
        match origin {
            Origin::Client { connection, .. } => Self::Connection(*connection),
            Origin::Gossip { topic, .. }
            | Origin::Fetch { topic, .. }
            | Origin::Sync { topic, .. } => Self::Topic(topic.clone()),
            Origin::Import => Self::Import,
            Origin::Upstream { stream, .. } => Self::Upstream(stream.clone()),
        }
    }
}

/// Room for events and for their bytes.
#[derive(Clone)]
pub struct Room {
    events: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

impl Room {
    /// For the programs of a chain together.
    pub fn for_all() -> Self {
        Self::new(ALL_EVENTS, ALL_KIB)
    }

    fn new(events: usize, kib: usize) -> Self {
        Self { events: Arc::new(Semaphore::new(events)), kib: Arc::new(Semaphore::new(kib)) }
    }

    fn take(&self, kib: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let events = self.events.clone().try_acquire_owned().ok()?;
        Some([events, self.kib.clone().try_acquire_many_owned(kib).ok()?])
    }
}

/// The room before one program.
pub struct WaitingRoom {
    own: Room,
    all: Room,
    sources: Mutex<HashMap<Source, usize>>,
    began: Instant,
    /// When the program was asked what it has not answered; milliseconds since `began`, 0 for nothing.
    asked_at: AtomicU64,
}

/// The place of one event. Given back when dropped.
pub struct Place {
    _permits: [[OwnedSemaphorePermit; 2]; 2],
    source: Source,
    room: Arc<WaitingRoom>,
}

impl WaitingRoom {
    pub fn new(all: Room) -> Arc<Self> {
        Arc::new(Self {
            own: Room::new(EVENTS, KIB),
            all,
            sources: Mutex::default(),
            began: Instant::now(),
            asked_at: AtomicU64::new(0),
        })
    }

    /// A place for a request of so many bytes, if there is one.
    pub fn enter(self: &Arc<Self>, source: Source, bytes: usize) -> Option<Place> {
        let kib = u32::try_from(bytes / 1_024 + 1).unwrap_or(u32::MAX);
        let permits = [self.own.take(kib)?, self.all.take(kib)?];
        let most = match (self.is_slow(), &source) {
            (false, _) => usize::MAX,
            (true, Source::Connection(_)) => OF_A_CLIENT,
            (true, Source::Topic(_)) => OF_A_TOPIC,
            (true, Source::Upstream(_)) => OF_A_STREAM,
            // It has nobody beside it.
            (true, Source::Import) => usize::MAX,
        };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = sources.get(&source).copied().unwrap_or(0);
        if waiting >= most {
            return None;
        }
        sources.insert(source.clone(), waiting + 1);
        drop(sources);
        Some(Place { _permits: permits, source, room: Arc::clone(self) })
    }

    /// The program is asked now, or has answered.
    pub fn asks(&self, asks: bool) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.asked_at.store(if asks { now.max(1) } else { 0 }, Ordering::Relaxed);
    }

    fn is_slow(&self) -> bool {
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        let since = self.began.elapsed().saturating_sub(Duration::from_millis(asked_at));
        asked_at != 0 && since > SLOW
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.room.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = sources.get_mut(&self.source) {
            *waiting -= 1;
            if *waiting == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_and_so_much() {
        let all = Room::for_all();
        let room = WaitingRoom::new(all.clone());
        let client = Source::Connection(1);
        let mut places: Vec<_> =
            (0..EVENTS).map(|_| room.enter(client.clone(), 100).unwrap()).collect();
        assert!(room.enter(client.clone(), 100).is_none());
        places.pop();
        assert!(room.enter(client.clone(), 100).is_some());
        drop(places);
        assert!(room.sources.lock().unwrap().is_empty());

        let large: Vec<_> = std::iter::from_fn(|| room.enter(client.clone(), 500_000)).collect();
        assert_eq!(large.len(), KIB / (500_000 / 1_024 + 1));
        drop(large);
        // Three that hang take no more than two would.
        let rooms = [(); 3].map(|()| WaitingRoom::new(all.clone()));
        let taken: Vec<_> = rooms
            .iter()
            .flat_map(|room| std::iter::from_fn(|| room.enter(client.clone(), 1)))
            .collect();
        assert_eq!(taken.len(), ALL_EVENTS);
    }

    #[test]
    fn nobody_is_full_of_what_waits_for_a_slow_program() {
        let room = WaitingRoom::new(Room::for_all());
        let topic = || Source::Topic(TopicName::new("town").unwrap());
        let fast: Vec<_> = (0..OF_A_TOPIC * 2).map(|_| room.enter(topic(), 1).unwrap()).collect();
        room.asks(true);
        std::thread::sleep(SLOW + Duration::from_millis(20));
        assert!(room.enter(topic(), 1).is_none());
        let clients: Vec<_> = std::iter::from_fn(|| room.enter(Source::Connection(1), 1)).collect();
        assert_eq!(clients.len(), OF_A_CLIENT);
        assert!(room.enter(Source::Connection(2), 1).is_some());
        drop(fast);
        assert!(room.enter(topic(), 1).is_some());
        room.asks(false);
        assert!(room.enter(Source::Connection(1), 1).is_some());
    }
}
