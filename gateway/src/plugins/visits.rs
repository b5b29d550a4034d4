//! Plugins of the world `topic-policy`, asked whether a topic may be joined by a visit.

use std::sync::atomic::Ordering;

use super::{
    bindings::nostr_gateway::plugin::log::Level,
    chain::{Entry, Loaded, PluginChain},
    instance::Instance,
    manifest::{OnFailure, World},
};
use crate::{metrics::PluginLabels, pipeline::VisitPolicy, protocol::TopicName};

impl VisitPolicy for PluginChain {
    /// All must agree whose scope has the topic. One that fails does not, unless its manifest lets
    /// pass what it failed on.
    fn may_visit(&self, topic: &TopicName) -> bool {
        let policies = self.entries().iter().filter(|entry| {
            let topics = &entry.applies_to.topics;
            entry.world == World::TopicPolicy && (topics.is_empty() || topics.contains(topic))
        });
        policies.into_iter().all(|entry| {
            let agreed = self.ask_about_visit(entry, topic);
            agreed.unwrap_or(entry.on_failure == OnFailure::Pass)
        })
    }
}

impl PluginChain {
    /// A new instance for each question: they are rare.
    fn ask_about_visit(&self, entry: &Entry, topic: &TopicName) -> Option<bool> {
        let count = |verdict| {
            let labels = PluginLabels { plugin: entry.id.clone(), verdict };
            self.metrics().plugin_calls.get_or_create(&labels).inc();
        };
        let Loaded::Ready(plugin) = &entry.loaded else {
            count("failed");
            return None;
        };
        let _span = tracing::debug_span!("plugin", name = %entry.id).entered();
        let asked = Instance::new(plugin).and_then(|mut policy| policy.may_visit(topic.as_str()));
        match asked {
            Ok(may) => {
                count(if may { "accept" } else { "reject" });
                Some(may)
            }
            Err(failure) => {
                count("failed");
                self.metrics().plugin_traps.inc();
                entry.failures.fetch_add(1, Ordering::Relaxed);
                plugin.log.write(Level::Error, &format!("the plugin failed: {failure}"));
                None
            }
        }
    }
}
