//! The topics that this gateway is in at the moment, and who is on their URLs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::StoreError;
use crate::protocol::TopicName;

/// The most topics at once: each costs DHT lookups every minute, and a stream to each neighbor on a
/// connection that has room for little more.
pub const MAX_TOPICS: usize = 100;

/// The public topics this gateway is in at the moment. Cheap to clone; all clones see the same set.
#[derive(Clone, Default, Debug)]
pub struct JoinedTopics(Arc<ArcSwap<Joined>>);

#[derive(Clone, Default, Debug)]
struct Joined {
    names: Arc<BTreeSet<TopicName>>,
    places: BTreeMap<TopicName, Arc<Place>>,
}

/// A topic's URL while the topic is joined.
#[derive(Debug)]
struct Place {
    left: CancellationToken,
    visits: Mutex<Visits>,
}

#[derive(Debug)]
struct Visits {
    open: usize,
    /// When the last one ended; at first, when the topic was joined.
    since: Instant,
}

impl JoinedTopics {
    pub fn new(topics: impl IntoIterator<Item = TopicName>) -> Self {
        let joined = Self::default();
        topics.into_iter().for_each(|topic| joined.insert(topic));
        joined
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.load().names.contains(name)
    }

    /// All of them, in alphabetical order.
    pub fn all(&self) -> Arc<BTreeSet<TopicName>> {
        self.0.load().names.clone()
    }

    /// From here on events may enter the topic.
    pub fn insert(&self, topic: TopicName) {
        self.change(|joined| {
            joined.places.entry(topic.clone()).or_default();
        });
    }

    /// From here on nothing new enters the topic, and whoever is on its URL is told to go.
    pub fn remove(&self, topic: &TopicName) {
        let place = self.0.load().places.get(topic).cloned();
        self.change(|joined| {
            joined.places.remove(topic);
        });
        if let Some(place) = place {
            place.left.cancel();
        }
    }

    /// Somebody comes to the topic's URL. `None` when it is not joined.
    pub fn enter(&self, topic: &TopicName) -> Option<Visit> {
        let place = self.0.load().places.get(topic)?.clone();
        place.visits().open += 1;
        Some(Visit(place))
    }

    /// How long nobody has been on the topic's URL; zero while somebody is, or when it is not joined.
    pub fn idle_for(&self, topic: &TopicName) -> Duration {
        let joined = self.0.load();
        let Some(place) = joined.places.get(topic) else { return Duration::ZERO };
        let visits = place.visits();
        if visits.open > 0 { Duration::ZERO } else { visits.since.elapsed() }
    }

    fn change(&self, change: impl Fn(&mut Joined)) {
        self.0.rcu(|joined| {
            let mut joined = Joined::clone(joined);
            change(&mut joined);
            joined.names = Arc::new(joined.places.keys().cloned().collect());
            joined
        });
    }
}

impl Default for Place {
    fn default() -> Self {
        let visits = Visits { open: 0, since: Instant::now() };
        Self { left: CancellationToken::new(), visits: Mutex::new(visits) }
    }
}

impl Place {
    fn visits(&self) -> MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody on a topic's URL, as long as this lives.
#[derive(Debug)]
pub struct Visit(Arc<Place>);

impl Visit {
    /// Whether the topic was left.
    pub fn is_over(&self) -> bool {
        self.0.left.is_cancelled()
    }

    /// Ends when the topic is left.
    pub fn left(&self) -> WaitForCancellationFutureOwned {
        self.0.left.clone().cancelled_owned()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut visits = self.0.visits();
        visits.open -= 1;
        visits.since = Instant::now();
    }
}

/// How a topic came to be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HowJoined {
    /// It is in `topics.join`.
    Config,
    /// `topic join` or `topic create`.
    Command,
    /// A client connected to its URL (`topics.join_on_visit`).
    Visit,
}

impl HowJoined {
    const ALL: [Self; 3] = [Self::Config, Self::Command, Self::Visit];

    /// The name under which it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Command => "command",
            Self::Visit => "visit",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|how| how.name() == name)
    }
}

/// A topic that outlives the process without standing in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTopic {
    pub name: TopicName,
    pub how: HowJoined,
    /// Unix seconds.
    pub joined_at: u64,
    pub private: bool,
}

/// A private topic that outlives the process, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPrivate {
    pub name: TopicName,
    /// Unix seconds.
    pub joined_at: u64,
    /// Rosters, admissions and public keys.
    pub state: Vec<u8>,
    /// Endpoints to begin with, in the format of `discovery.peers`.
    pub peers: Vec<String>,
    /// When members were last spoken with: ids of 32 bytes, each with 8 bytes of Unix seconds.
    pub seen: Vec<u8>,
    /// It was left. What it brought stays private.
    pub is_left: bool,
}

/// Where joined topics outlive the process.
pub trait TopicStore: Send + Sync + 'static {
    /// All private topics, those that were left too.
    fn private(&self) -> BoxFuture<'_, Result<Vec<KeptPrivate>, StoreError>>;

    /// Commits a private topic before it returns, in place of an earlier state of it.
    fn keep_private(&self, topic: KeptPrivate) -> BoxFuture<'_, Result<(), StoreError>>;

    /// All of them, those joined first first.
    fn load(&self) -> BoxFuture<'_, Result<Vec<KeptTopic>, StoreError>>;

    /// Commits a topic before it returns, in place of an earlier entry of its name.
    fn keep(&self, topic: KeptTopic) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Forgets a public topic; returns after the commit, with whether it was there.
    fn forget(&self, name: TopicName) -> BoxFuture<'_, Result<bool, StoreError>>;
}

/// What the relay asks when a client comes to the URL of a topic that is not joined.
pub trait TopicDoor: Send + Sync + 'static {
    /// Joins the topic if `topics.join_on_visit` allows one more. Goes on when the answer is not
    /// waited for.
    ///
    /// # Errors
    /// With a text for the client.
    fn visit(self: Arc<Self>, name: TopicName) -> BoxFuture<'static, Result<(), String>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn visits_are_counted_and_end_with_the_topic() {
        let topic = |name| TopicName::new(name).unwrap();
        let joined = JoinedTopics::new([topic("a")]);
        let seen_elsewhere = joined.clone();
        assert!(joined.enter(&topic("b")).is_none());
        joined.insert(topic("b"));
        assert!(seen_elsewhere.contains("b") && seen_elsewhere.all().len() == 2);

        let (one, two) = (joined.enter(&topic("b")).unwrap(), joined.enter(&topic("b")).unwrap());
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(joined.idle_for(&topic("b")), Duration::ZERO);
        assert!(joined.idle_for(&topic("a")) >= Duration::from_millis(5));
        drop(one);
        assert_eq!(joined.idle_for(&topic("b")), Duration::ZERO, "one is still there");
        let left = two.left();
        // What is joined again meanwhile is another place.
        joined.insert(topic("b"));
        joined.remove(&topic("b"));
        joined.insert(topic("b"));
        left.await;
        assert!(two.is_over() && !joined.enter(&topic("b")).unwrap().is_over());
        drop(two);
        assert!(joined.idle_for(&topic("b")) < Duration::from_secs(1));
        let still = joined.enter(&topic("b")).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), still.left()).await.is_err());
    }
}
