//! Plugins of the world `topic-policy`, asked whether a topic may be joined by a visit.

use std::time::Instant;

use super::{
    chain::PluginChain,
    entry::Entry,
    instance::Instance,
    manifest::{OnFailure, World},
    worker,
};
use crate::{
    metrics::{PluginIdLabels, PluginLabels},
    pipeline::VisitPolicy,
    protocol::TopicName,
};

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
        let may_run = entry.rest.may_run(Instant::now());
        let Some(plugin) = entry.plugin().filter(|_| may_run) else {
            count("failed");
            return None;
        };
        let _span = tracing::debug_span!("plugin", name = %entry.id).entered();
        let asked = Instance::new(plugin).and_then(|mut policy| policy.may_visit(topic.as_str()));
        match asked {
            Ok(may) => {
                entry.rest.succeeded();
                count(if may { "accept" } else { "reject" });
                Some(may)
            }
            Err(failure) => {
                count("failed");
                let labels = PluginIdLabels { plugin: entry.id.clone() };
                self.metrics().plugin_traps.get_or_create(&labels).inc();
                worker::failed(entry, plugin, &failure);
                None
            }
        }
    }
}
