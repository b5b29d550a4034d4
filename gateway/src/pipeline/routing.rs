//! Which topics an event published on `/` goes to.

use std::collections::BTreeSet;

use super::{JoinedTopics, PrivateTopics};
use crate::protocol::{Event, Filter, TopicName, kinds};

/// The routing rules: every matching `[[route]]`, else joined topics named by a `t` tag, else
/// `topics.default`. A plugin's route comes before all of them, in the worker.
#[derive(Debug)]
pub struct Routing {
    pub rules: Vec<(Filter, Vec<TopicName>)>,
    pub default: Vec<TopicName>,
    /// The public topics. No tag leads into a private one.
    pub joined: JoinedTopics,
    pub private: PrivateTopics,
}

impl Routing {
    /// The topics for an event published on `/`. What may not enter a public topic goes to the
    /// private ones of the rules alone.
    pub fn route(&self, event: &Event, now: u64) -> Vec<TopicName> {
        let by_rule =
            self.rules.iter().filter(|(filter, _)| filter.matches(event)).flat_map(|(_, to)| to);
        let mut topics = self.ours(by_rule);
        if kinds::barred_from_public_topics(event, now).is_some() {
            topics.retain(|topic| self.private.contains(topic));
            return topics;
        }
        if !topics.is_empty() {
            return topics;
        }
        let joined = self.joined.all();
        let topics: BTreeSet<_> =
            event.tag_values("t").filter_map(|name| joined.get(name)).cloned().collect();
        if !topics.is_empty() {
            return topics.into_iter().collect();
        }
        self.ours(&self.default)
    }

    /// Those of the topics that are joined or private here, each once.
    pub fn ours<'a>(&self, topics: impl IntoIterator<Item = &'a TopicName>) -> Vec<TopicName> {
        let joined = self.joined.all();
        let topics: BTreeSet<_> = topics
            .into_iter()
            .filter(|name| joined.contains(*name) || self.private.contains(name))
            .cloned()
            .collect();
        topics.into_iter().collect()
    }
}
