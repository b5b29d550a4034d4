//! Who is looking: what a connection may read beyond what its filters ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arc_swap::{ArcSwap, Guard};

use crate::protocol::{Event, PublicKey, TopicName, kinds};

/// The private topics of this gateway, each with the keys that may read it. Cheap to clone; all
/// clones see the same list.
#[derive(Clone, Default, Debug)]
pub struct PrivateTopics(Arc<ArcSwap<List>>);

#[derive(Clone, Default, Debug)]
struct List {
    topics: BTreeMap<TopicName, BTreeSet<PublicKey>>,
    /// Counts the changes, so that a viewer of before is told from one of now.
    version: u64,
}

impl PrivateTopics {
    pub fn new(
        topics: impl IntoIterator<Item = (TopicName, impl IntoIterator<Item = PublicKey>)>,
    ) -> Self {
        let topics = topics
            .into_iter()
            .map(|(name, readers)| (name, readers.into_iter().collect()))
            .collect();
        Self(Arc::new(ArcSwap::from_pointee(List { topics, version: 0 })))
    }

    /// From here on the topic is private. One that was so before keeps its readers.
    pub fn insert(&self, name: &TopicName) {
        self.0.rcu(|list| {
            let mut list = List::clone(list);
            list.topics.entry(name.clone()).or_default();
            list.version += 1;
            list
        });
    }

    pub fn contains(&self, name: &TopicName) -> bool {
        self.0.load().topics.contains_key(name)
    }

    /// Whether anybody may read the topic who is not trusted by where they come from.
    pub fn has_readers(&self, name: &TopicName) -> bool {
        self.0.load().topics.get(name).is_some_and(|readers| !readers.is_empty())
    }

    /// Whether an event that is in these topics is in none that everybody may read.
    pub fn hide(&self, topics: &[TopicName]) -> bool {
        !topics.is_empty() && topics.iter().all(|topic| self.contains(topic))
    }
}

impl List {
    /// The topics that these keys may read; all of them for whoever is trusted.
    fn readable_by(&self, keys: &BTreeSet<PublicKey>, trusted: bool) -> BTreeSet<TopicName> {
        let topics = self.topics.iter();
        let readable = topics.filter(|(_, readers)| trusted || !readers.is_disjoint(keys));
        readable.map(|(name, _)| name.clone()).collect()
    }
}

/// A connection as the guards see it. A snapshot: authenticating makes a new one, and so does a
/// private topic that is new.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Viewer {
    keys: BTreeSet<PublicKey>,
    topics: BTreeSet<TopicName>,
    /// Of the list that the topics are from.
    version: u64,
    /// The operator, on the control socket or with the data directory: all of it is theirs anyway.
    sees_all: bool,
}

/// The viewer of one connection, as it is now. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct SharedViewer(Arc<Connected>);

struct Connected {
    private: PrivateTopics,
    trusted: bool,
    viewer: ArcSwap<Viewer>,
}

impl SharedViewer {
    /// Of a connection that has shown no key yet. `trusted` is as in [`Viewer::new`].
    pub fn new(trusted: bool, private: &PrivateTopics) -> Self {
        let viewer = Viewer::new(BTreeSet::new(), trusted, private);
        let viewer = ArcSwap::from_pointee(viewer);
        Self(Arc::new(Connected { private: private.clone(), trusted, viewer }))
    }

    /// What the connection may see now, the private topics included that are newer than it.
    pub fn load(&self) -> Guard<Arc<Viewer>> {
        let Connected { private, trusted, viewer } = &*self.0;
        let now = viewer.load();
        if now.version == private.0.load().version {
            return now;
        }
        // Of keys that come at the same moment none is lost: then this is done once more.
        viewer.rcu(|viewer| Viewer::new(viewer.keys.clone(), *trusted, private));
        viewer.load()
    }

    /// The same, to be kept for a while.
    pub fn load_full(&self) -> Arc<Viewer> {
        Guard::into_inner(self.load())
    }

    /// The connection has proved to hold this key too.
    pub fn add_key(&self, key: PublicKey) {
        let Connected { private, trusted, viewer } = &*self.0;
        viewer.rcu(|viewer| {
            let mut keys = viewer.keys.clone();
            keys.insert(key);
            Viewer::new(keys, *trusted, private)
        });
    }
}

impl Viewer {
    /// Somebody who proved to hold these keys (NIP-42). `trusted` is a local connection that is not
    /// a foreign web page: it may read every private topic, but no direct messages of others.
    pub fn new(keys: BTreeSet<PublicKey>, trusted: bool, private: &PrivateTopics) -> Self {
        let list = private.0.load();
        let topics = list.readable_by(&keys, trusted);
        Self { keys, topics, version: list.version, sees_all: false }
    }

    /// Whoever holds the data directory: direct messages and private topics too.
    pub fn operator() -> Self {
        Self { sees_all: true, ..Self::default() }
    }

    /// Whether nothing is hidden.
    pub const fn sees_all(&self) -> bool {
        self.sees_all
    }

    /// The keys it authenticated with.
    pub fn keys(&self) -> &BTreeSet<PublicKey> {
        &self.keys
    }

    /// Whether the event's kind and parties allow this viewer to read it. Direct messages (kind 4)
    /// are for their author and recipients, gift wraps (1059, 21059) for their recipients (NIP-59).
    pub fn may_read(&self, event: &Event) -> bool {
        if self.sees_all || !kinds::is_for_parties_only(event.kind) {
            return true;
        }
        if event.kind == kinds::DIRECT_MESSAGE && self.keys.contains(&event.pubkey) {
            return true;
        }
        let mut recipients = event.tag_values("p").filter_map(PublicKey::parse);
        recipients.any(|recipient| self.keys.contains(&recipient))
    }

    /// Whether it may read this private topic.
    pub fn may_read_topic(&self, private: &TopicName) -> bool {
        self.sees_all || self.topics.contains(private)
    }

    /// The private topics it may read.
    pub fn private_topics(&self) -> &BTreeSet<TopicName> {
        &self.topics
    }

    fn reads_any(&self, topics: &[TopicName]) -> bool {
        topics.iter().any(|topic| self.may_read_topic(topic))
    }
}

/// For whom an event becomes news on `/`. A private event becomes so step by step, as it joins
/// further topics or becomes public; nobody is shown it twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Whoever may see it was shown it before.
    Nobody,
    /// The readers of the private topics that it became part of, except those who saw it before:
    /// the readers of these.
    Readers { but: Vec<TopicName> },
    /// Everybody, except those who saw it before: the readers of these private topics.
    Everybody { but: Vec<TopicName> },
}

impl Audience {
    /// Of an event that is stored or passes for the first time.
    pub fn first(private: bool) -> Self {
        if private {
            Self::Readers { but: Vec::new() }
        } else {
            Self::Everybody { but: Vec::new() }
        }
    }

    /// Whether this viewer is one of them; `topics` are those that the event became part of.
    pub fn includes(&self, viewer: &Viewer, topics: &[TopicName]) -> bool {
        match self {
            Self::Nobody => false,
            Self::Readers { but } => viewer.reads_any(topics) && !viewer.reads_any(but),
            Self::Everybody { but } => !viewer.reads_any(but),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_shown_an_event_once() {
        let [a, b, c] = ["a", "b", "c"].map(|name| TopicName::new(name).unwrap());
        let [x, y] = [PublicKey([1; 32]), PublicKey([2; 32])];
        let private = PrivateTopics::new([
            (a.clone(), vec![x]),
            (b.clone(), vec![x, y]),
            (c.clone(), vec![y]),
        ]);
        let viewer =
            |keys: &[PublicKey]| Viewer::new(keys.iter().copied().collect(), false, &private);
        // It is stored in `a`, joins `b` and `c`, and becomes public.
        let steps = [
            (Audience::first(true), Some(a.clone())),
            (Audience::Readers { but: vec![a.clone()] }, Some(b.clone())),
            (Audience::Readers { but: vec![a.clone(), b.clone()] }, Some(c.clone())),
            (Audience::Everybody { but: vec![a, b, c] }, None),
            (Audience::Nobody, None),
        ];
        for (keys, expected) in [(&[][..], 3), (&[x][..], 0), (&[y][..], 1), (&[x, y][..], 0)] {
            let shown: Vec<usize> = steps
                .iter()
                .enumerate()
                .filter(|(_, (audience, topic))| audience.includes(&viewer(keys), topic.as_slice()))
                .map(|(n, _)| n)
                .collect();
            assert_eq!(shown, [expected], "{keys:?}");
        }
    }

    #[test]
    fn a_connection_sees_the_private_topics_that_are_newer_than_it() {
        let [old, new] = ["old", "new"].map(|name| TopicName::new(name).unwrap());
        let [reader, other] = [PublicKey([1; 32]), PublicKey([2; 32])];
        let private = PrivateTopics::new([(old.clone(), vec![reader])]);
        let [trusted, page] = [true, false].map(|trusted| SharedViewer::new(trusted, &private));
        let sees = |viewer: &SharedViewer| {
            [&old, &new].map(|topic| viewer.clone().load_full().may_read_topic(topic))
        };
        page.add_key(other);
        let of_before = trusted.load_full();
        assert_eq!([sees(&trusted), sees(&page)], [[true, false], [false, false]]);
        private.insert(&new);
        assert_eq!([sees(&trusted), sees(&page)], [[true, true], [false, false]]);
        assert!(!of_before.may_read_topic(&new), "a question is answered as it was asked");
        // Its keys are not forgotten by that, and a new one counts.
        page.add_key(reader);
        private.insert(&new);
        private.insert(&old);
        assert_eq!(sees(&page), [true, false]);
        assert_eq!([&old, &new].map(|topic| private.has_readers(topic)), [true, false]);
        assert_eq!(*page.load().keys(), BTreeSet::from([reader, other]));
    }
}
