//! The chain on one thread: an instance of each plugin, kept from call to call.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::{
    bindings::nostr_gateway::plugin::log::Level,
    budget::Budget,
    chain::{Generation, Shared},
    entry::Entry,
    instance::{Failure, Instance},
    lower::{self, LoweredEvent},
    manifest::OnFailure,
    plugin::Plugin,
    quarantine::Step,
    verdict::Verdict,
};
use crate::{
    metrics::{Metrics, PluginIdLabels, PluginLabels},
    pipeline::{Context, Decision, Direction, PolicyWorker, Stays},
    protocol::{Reason, TopicName, VerifiedEvent},
};

/// Evaluates events on the thread that made it.
pub struct ChainWorker {
    shared: Arc<Shared>,
    /// What `slots` was made from.
    generation: Arc<Generation>,
    slots: Vec<Slot>,
}

impl ChainWorker {
    pub fn new(shared: Arc<Shared>) -> Self {
        shared.worker_came();
        let mut worker = Self { generation: Arc::default(), slots: Vec::new(), shared };
        worker.follow();
        worker
    }

    /// Goes on with the plugins of now; called between two events alone, so each event is judged by
    /// one chain from its beginning to its end. Plugins that stayed keep their instances.
    fn follow(&mut self) {
        if !self.shared.has_changed(&self.generation) {
            return;
        }
        let mut before = mem::take(&mut self.slots);
        self.generation = self.shared.generation();
        let filters = self.generation.judges();
        self.slots = filters
            .map(|entry| match before.iter().position(|slot| Arc::ptr_eq(&slot.entry, entry)) {
                Some(at) => before.swap_remove(at),
                None => Slot::new(entry, &self.shared.services.metrics),
            })
            .collect();
        self.shared.retire(before.into_iter().filter_map(|slot| slot.instance));
    }
}

impl Drop for ChainWorker {
    fn drop(&mut self) {
        self.shared.worker_left();
    }
}

impl PolicyWorker for ChainWorker {
    /// The first rejection ends the chain. A route does not: plugins further on are asked with the
    /// new topics, and the last route counts.
    fn evaluate(&mut self, event: &VerifiedEvent, context: &Context<'_>) -> Decision {
        self.follow();
        let mut routed: Option<Vec<TopicName>> = None;
        let mut lowered: Option<LoweredEvent<'_>> = None;
        let mut budget = Budget::new(self.shared.services.budget);
        for slot in &mut self.slots {
            let topics = routed.as_deref().unwrap_or(context.topics);
            if !slot.covers(event, context, topics) {
                continue;
            }
            let lowered = lowered.get_or_insert_with(|| LoweredEvent::new(event, context.origin));
            match slot.ask(lowered, context, topics, &mut budget) {
                Some(Verdict::Accept) => {}
                Some(Verdict::Route(mut topics)) => {
                    // What a swarm brought stays in the topic it came by: whoever guards that topic
                    // is asked even after a route elsewhere.
                    if let Some(own) = context.origin.topic()
                        && !topics.contains(own)
                    {
                        topics.push(own.clone());
                    }
                    routed = Some(topics);
                }
                Some(Verdict::Reject(reason)) => return Decision::Reject(reason),
                Some(Verdict::ShadowReject) => return Decision::ShadowReject,
                None if slot.entry.on_failure == OnFailure::Pass => {}
                None => return Decision::Reject(slot.failed()),
            }
        }
        routed.map_or(Decision::Accept, Decision::Route)
    }

    fn judges(&self, direction: Direction<'_>) -> bool {
        // Those of now: whoever is not asked does not follow.
        let way = direction.into();
        self.shared.generation().judges().any(|entry| entry.applies_to.directions.contains(&way))
    }

    /// Each plugin is asked about those of the remaining topics that are in its scope, all at once,
    /// and takes out what it does not let go. When none is left, nobody further is asked.
    fn may_leave(
        &mut self,
        event: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays> {
        self.follow();
        let mut lowered: Option<LoweredEvent<'_>> = None;
        let mut budget = Budget::new(self.shared.services.budget);
        let mut left = context.topics.to_vec();
        let to_topics = context.direction == Direction::ToTopics;
        for slot in &mut self.slots {
            if !slot.covers(event, context, &left) {
                continue;
            }
            let scope = &slot.entry.applies_to.topics;
            let in_scope = |topic: &&TopicName| scope.is_empty() || scope.contains(topic);
            let asked: Vec<_> = left.iter().filter(in_scope).cloned().collect();
            let lowered = lowered.get_or_insert_with(|| LoweredEvent::new(event, context.origin));
            let verdict = slot.ask(lowered, context, &asked, &mut budget);
            let stays = match verdict {
                Some(Verdict::Accept) => continue,
                Some(Verdict::Route(to)) if to_topics => {
                    left.retain(|topic| !asked.contains(topic) || to.contains(topic));
                    if !left.is_empty() {
                        continue;
                    }
                    let text = format!("plugin {} sends it elsewhere", slot.entry.id);
                    return Err(Stays::Because(Reason::restricted(text)));
                }
                // To another relay there are no topics to choose.
                Some(Verdict::Route(_)) => continue,
                Some(Verdict::Reject(reason)) => Stays::Because(reason),
                Some(Verdict::ShadowReject) => Stays::Silently,
                None if slot.entry.on_failure == OnFailure::Pass => continue,
                None => Stays::Because(slot.failed()),
            };
            left.retain(|topic| !asked.contains(topic));
            if left.is_empty() || !to_topics {
                return Err(stays);
            }
        }
        Ok(left)
    }
}

/// One plugin on this thread.
struct Slot {
    entry: Arc<Entry>,
    instance: Option<Instance>,
    calls: Calls,
}

impl Slot {
    fn new(entry: &Arc<Entry>, metrics: &Metrics) -> Self {
        Self {
            entry: Arc::clone(entry),
            instance: entry.spare(),
            calls: Calls::new(&entry.id, metrics),
        }
    }

    /// Whether the plugin is to be asked.
    fn covers(&self, event: &VerifiedEvent, context: &Context<'_>, topics: &[TopicName]) -> bool {
        self.entry.applies_to.covers(context.direction, event.kind, context.origin, topics)
    }

    /// What the sender hears of a failure. The cause is the operator's business.
    fn failed(&self) -> Reason {
        Reason::error(format!("plugin {} failed", self.entry.id))
    }

    /// The plugin's verdict; nothing when it failed, or may not run at the moment.
    fn ask(
        &mut self,
        event: &LoweredEvent<'_>,
        context: &Context<'_>,
        topics: &[TopicName],
        budget: &mut Budget,
    ) -> Option<Verdict> {
        let began = Instant::now();
        let Some(plugin) = self.entry.plugin().filter(|_| self.entry.rest.may_run(began)) else {
            self.calls.failed.inc();
            return None;
        };
        let _span = tracing::debug_span!("plugin", name = %self.entry.id).entered();
        let called = call(&mut self.instance, plugin, event, context, topics, budget);
        let took = began.elapsed();
        self.entry.took(took);
        self.calls.seconds.observe(took.as_secs_f64());
        match called {
            Ok(verdict) => {
                if self.entry.rest.succeeded() {
                    tracing::info!(plugin = %self.entry.id, "the plugin works again");
                }
                self.calls.count(&verdict);
                Some(verdict)
            }
            Err(failure) => {
                self.instance.take_if(|instance| !instance.is_alive());
                self.calls.failed.inc();
                self.calls.traps.inc();
                failed(&self.entry, plugin, &failure);
                None
            }
        }
    }
}

/// Takes note of a call that failed.
pub fn failed(entry: &Entry, plugin: &Plugin, failure: &Failure) {
    entry.failures.fetch_add(1, Ordering::Relaxed);
    let cause = failure.to_string();
    plugin.log.write(Level::Error, &format!("the plugin failed: {cause}"));
    // For what the plugins before it took, it is not to rest.
    if matches!(failure, Failure::Budget(_)) {
        return entry.rest.was_not_asked();
    }
    if let Step::Quarantined(pause) = entry.rest.failed(&cause, Instant::now()) {
        let consequence = match entry.on_failure {
            OnFailure::Stop => "refused",
            OnFailure::Pass => "passed unseen",
        };
        tracing::error!(
            plugin = %entry.id,
            "the plugin failed too often in a row and is in quarantine: events in its scope are \
             {consequence}. It is tried again in {} s; `nostr-gateway plugin enable {}` ends the \
             quarantine",
            pause.as_secs(),
            entry.id
        );
    }
}

fn call(
    instance: &mut Option<Instance>,
    plugin: &Arc<Plugin>,
    event: &LoweredEvent<'_>,
    context: &Context<'_>,
    topics: &[TopicName],
    budget: &mut Budget,
) -> Result<Verdict, Failure> {
    // Not to make an instance that cannot be asked.
    if budget.left().is_none() {
        return Err(Failure::Budget(budget.whole_ms()));
    }
    let instance = match instance {
        Some(living) => living,
        None => instance.insert(Instance::new(plugin)?),
    };
    let (tags, names, keys) = (event.tags(), lower::names(topics), event.keys());
    let context = lower::context(context, &names, &keys, event.address());
    instance.evaluate(event.record(&tags), context, budget)
}

/// The plugin's counters, looked up once.
struct Calls {
    accept: Counter,
    reject: Counter,
    shadow_reject: Counter,
    route: Counter,
    failed: Counter,
    traps: Counter,
    seconds: Histogram,
}

impl Calls {
    fn new(id: &str, metrics: &Metrics) -> Self {
        let own = PluginIdLabels { plugin: id.to_owned() };
        let counter = |verdict| {
            let labels = PluginLabels { plugin: id.to_owned(), verdict };
            metrics.plugin_calls.get_or_create_owned(&labels)
        };
        Self {
            accept: counter("accept"),
            reject: counter("reject"),
            shadow_reject: counter("shadow-reject"),
            route: counter("route"),
            failed: counter("failed"),
            traps: metrics.plugin_traps.get_or_create_owned(&own),
            seconds: metrics.plugin_seconds.get_or_create_owned(&own),
        }
    }

    fn count(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Accept => &self.accept,
            Verdict::Reject(_) => &self.reject,
            Verdict::ShadowReject => &self.shadow_reject,
            Verdict::Route(_) => &self.route,
        }
        .inc();
    }
}
