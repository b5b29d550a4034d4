//! Who is looking: what a connection may read beyond what its filters ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arc_swap::ArcSwap;

use crate::protocol::{Event, PublicKey, TopicName, kinds};

/// The private topics of this gateway, each with the keys that may read it. Cheap to clone; all
/// clones see the same list.
#[derive(Clone, Default, Debug)]
pub struct PrivateTopics(Arc<ArcSwap<BTreeMap<TopicName, BTreeSet<PublicKey>>>>);

impl PrivateTopics {
    pub fn new(
        topics: impl IntoIterator<Item = (TopicName, impl IntoIterator<Item = PublicKey>)>,
    ) -> Self {
        let topics: BTreeMap<TopicName, BTreeSet<PublicKey>> = topics
            .into_iter()
            .map(|(name, readers)| (name, readers.into_iter().collect()))
            .collect();
        Self(Arc::new(ArcSwap::from_pointee(topics)))
    }

    /// From here on the topic is private. One that was so before keeps its readers.
    pub fn insert(&self, name: &TopicName) {
        self.0.rcu(|topics| {
            let mut topics = BTreeMap::clone(topics);
            topics.entry(name.clone()).or_default();
            topics
        });
    }

    pub fn contains(&self, name: &TopicName) -> bool {
        self.0.load().contains_key(name)
    }

    /// Whether an event that is in these topics is in none that everybody may read.
    pub fn hide(&self, topics: &[TopicName]) -> bool {
        !topics.is_empty() && topics.iter().all(|topic| self.contains(topic))
    }

    /// The topics that these keys may read; all of them for whoever is trusted.
    fn readable_by(&self, keys: &BTreeSet<PublicKey>, trusted: bool) -> BTreeSet<TopicName> {
        let topics = self.0.load();
        let readable = topics.iter().filter(|(_, readers)| trusted || !readers.is_disjoint(keys));
        readable.map(|(name, _)| name.clone()).collect()
    }
}

/// A connection as the guards see it. A snapshot: authenticating makes a new one.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Viewer {
    keys: BTreeSet<PublicKey>,
    topics: BTreeSet<TopicName>,
}

/// The viewer of one connection, exchanged when it authenticates.
pub type SharedViewer = Arc<ArcSwap<Viewer>>;

impl Viewer {
    /// Somebody who proved to hold these keys (NIP-42). `trusted` is a local connection that is not
    /// a foreign web page: it may read every private topic, but no direct messages of others.
    pub fn new(keys: BTreeSet<PublicKey>, trusted: bool, private: &PrivateTopics) -> Self {
        let topics = private.readable_by(&keys, trusted);
        Self { keys, topics }
    }

    /// The keys it authenticated with.
    pub fn keys(&self) -> &BTreeSet<PublicKey> {
        &self.keys
    }

    /// Whether the event's kind and parties allow this viewer to read it. Direct messages (kind 4)
    /// are for their author and recipients, gift wraps (1059, 21059) for their recipients (NIP-59).
    pub fn may_read(&self, event: &Event) -> bool {
        if !kinds::is_for_parties_only(event.kind) {
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
        self.topics.contains(private)
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
}
