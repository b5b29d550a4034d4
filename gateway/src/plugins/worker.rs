//! The chain on one thread: an instance of each plugin, kept from call to call.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::{
    bindings::nostr_gateway::plugin::log::Level,
    chain::{Generation, Shared},
    entry::Entry,
    instance::{Failure, Instance},
    lower::{self, LoweredEvent},
    manifest::{OnFailure, World},
    plugin::Plugin,
    quarantine::Step,
    verdict::Verdict,
};
use crate::{
    metrics::{Metrics, OnePluginLabels, PluginLabels},
    pipeline::{Context, Decision, PolicyWorker},
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
        let filters = self.generation.of(World::EventFilter);
        self.slots = filters
            .map(|entry| match before.iter().position(|slot| Arc::ptr_eq(&slot.entry, entry)) {
                Some(at) => before.swap_remove(at),
                None => Slot::new(entry, &self.shared.metrics),
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
        for slot in &mut self.slots {
            let topics = routed.as_deref().unwrap_or(context.topics);
            if !slot.entry.applies_to.covers(event.kind, context.origin, topics) {
                continue;
            }
            let lowered = lowered.get_or_insert_with(|| LoweredEvent::new(event));
            match slot.ask(lowered, context, topics) {
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
                None => {
                    // The cause is the operator's business, not the sender's.
                    let text = format!("plugin {} failed", slot.entry.id);
                    return Decision::Reject(Reason::error(text));
                }
            }
        }
        routed.map_or(Decision::Accept, Decision::Route)
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

    /// The plugin's verdict; nothing when it failed, or may not run at the moment.
    fn ask(
        &mut self,
        event: &LoweredEvent<'_>,
        context: &Context<'_>,
        topics: &[TopicName],
    ) -> Option<Verdict> {
        let began = Instant::now();
        let Some(plugin) = self.entry.plugin().filter(|_| self.entry.rest.may_run(began)) else {
            self.calls.failed.inc();
            return None;
        };
        let _span = tracing::debug_span!("plugin", name = %self.entry.id).entered();
        let called = call(&mut self.instance, plugin, event, context, topics);
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
                self.instance = None;
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
) -> Result<Verdict, Failure> {
    let instance = match instance {
        Some(living) => living,
        None => instance.insert(Instance::new(plugin)?),
    };
    let (tags, names) = (event.tags(), lower::names(topics));
    instance.evaluate(event.record(&tags), lower::context(context, &names))
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
        let own = OnePluginLabels { plugin: id.to_owned() };
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
