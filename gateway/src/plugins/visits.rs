//! Plugins of the world `topic-policy`, asked whether a topic may be joined by a visit.

use super::{
    chain::PluginChain,
    instance::Instance,
    manifest::{OnFailure, World},
};
use crate::{pipeline::VisitPolicy, protocol::TopicName};

impl VisitPolicy for PluginChain {
    /// All must agree whose scope has the topic. One that fails does not, unless its manifest lets
    /// pass what it failed on.
    fn may_visit(&self, topic: &TopicName) -> bool {
        let generation = self.generation();
        let mut policies = generation.of(World::TopicPolicy).filter(|entry| {
            let topics = &entry.applies_to.topics;
            topics.is_empty() || topics.contains(topic)
        });
        policies.all(|entry| {
            let agreed = self.ask_once(
                entry,
                |plugin| Instance::new(plugin)?.may_visit(topic.as_str()),
                |may| if *may { "accept" } else { "reject" },
            );
            agreed.unwrap_or(entry.on_failure == OnFailure::Pass)
        })
    }
}
