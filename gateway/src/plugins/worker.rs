//! The chain on one thread: an instance of each plugin, kept from call to call.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    bindings::nostr_gateway::plugin::log::Level,
    budget::Budget,
    calls::Calls,
    capabilities::PluginLog,
    chain::{Generation, Shared},
    entry::Entry,
    instance::{Failure, Instance},
    lower::{self, LoweredEvent},
    manifest::OnFailure,
    plugin::Plugin,
    program::Told,
    progress::{self, Answered, ProgramQuestion, Progress},
    quarantine::Step,
    verdict::Verdict,
};
use crate::{
    metrics::Metrics,
    pipeline::{
        Answer, Context, Decision, Direction, Judged, PolicyWorker, Stays, wait_for_decision,
    },
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

impl ChainWorker {
    /// Asks the plugins that were not asked yet. The first rejection ends the chain. A route does not:
    /// plugins further on are asked with the new topics, and the last route counts.
    fn go_on(
        &mut self,
        event: &VerifiedEvent,
        context: &Context<'_>,
        mut progress: Progress,
    ) -> Judged {
        let only = self.shared.services.scopes.of_event(context);
        let judging = progress.former.as_ref().unwrap_or(&self.generation);
        if let Some(missing) = only.as_deref().and_then(|only| judging.lacks(only)) {
            return Judged::Decided(Decision::Reject(progress::absent(missing)));
        }
        let mut lowered: Option<LoweredEvent<'_>> = None;
        let mut budget = Budget::new(progress.left);
        // Of plugins that have changed since this event was put aside.
        let mut gone = Vec::new();
        let judged = loop {
            let at = progress.next;
            progress.next += 1;
            let slot = match &progress.former {
                None => self.slots.get_mut(at),
                Some(former) => former.judges().nth(at).and_then(|entry| {
                    match self.slots.iter().position(|slot| Arc::ptr_eq(&slot.entry, entry)) {
                        Some(at) => self.slots.get_mut(at),
                        None => {
                            gone.push(Slot::new(entry, &self.shared.services.metrics));
                            gone.last_mut()
                        }
                    }
                }),
            };
            let Some(slot) = slot else {
                break Judged::Decided(progress.routed.map_or(Decision::Accept, Decision::Route));
            };
            let topics = progress.routed.as_deref().unwrap_or(context.topics);
            if !slot.is_among(only.as_deref()) || !slot.covers(event, context, topics) {
                continue;
            }
            let verdict = if slot.entry.program().is_some() {
                if !slot.entry.rest.is_resting(Instant::now()) {
                    let entry = Arc::clone(&slot.entry);
                    progress.left = budget.left().unwrap_or_default();
                    progress.former.get_or_insert_with(|| Arc::clone(&self.generation));
                    let question = ProgramQuestion::new(entry, event, context, progress);
                    break Judged::Asks(Box::new(question));
                }
                slot.calls.failed.inc();
                None
            } else {
                let lowered =
                    lowered.get_or_insert_with(|| LoweredEvent::new(event, context.origin));
                slot.ask(lowered, context, topics, &mut budget)
            };
            if let Some(decision) = progress.take(&slot.entry, verdict, context) {
                break Judged::Decided(decision);
            }
        };
        if !gone.is_empty() {
            self.shared.retire(gone.into_iter().filter_map(|slot| slot.instance));
        }
        judged
    }
}

impl Drop for ChainWorker {
    fn drop(&mut self) {
        self.shared.worker_left();
    }
}

impl PolicyWorker for ChainWorker {
    fn evaluate(&mut self, event: &VerifiedEvent, context: &Context<'_>) -> Decision {
        wait_for_decision(self, event, context)
    }

    fn judge(&mut self, event: &VerifiedEvent, context: &Context<'_>) -> Judged {
        self.follow();
        self.go_on(event, context, Progress::begin(self.shared.services.budget))
    }

    /// With the plugins that it was begun with.
    fn resume(&mut self, event: &VerifiedEvent, context: &Context<'_>, answer: Answer) -> Judged {
        self.follow();
        let Ok(answered) = answer.0.downcast::<Answered>() else {
            return Judged::Decided(Decision::Reject(Reason::error("that was not asked")));
        };
        let Answered { entry, told, mut progress } = *answered;
        progress.former.take_if(|former| Arc::ptr_eq(former, &self.generation));
        let verdict = match told {
            Told::Verdict(verdict) => Some(verdict),
            Told::Failed => None,
            // Whoever fills the queue is not to get past the plugin by that, whatever the manifest says.
            Told::Busy => {
                let reason = Reason::error(format!("plugin {} is busy", entry.id));
                return Judged::Decided(Decision::Reject(reason));
            }
            Told::Stopping => {
                let reason = Reason::error("the gateway is shutting down");
                return Judged::Decided(Decision::Reject(reason));
            }
        };
        match progress.take(&entry, verdict, context) {
            Some(decision) => Judged::Decided(decision),
            None => self.go_on(event, context, progress),
        }
    }

    fn refresh(&mut self) {
        self.follow();
    }

    fn judges(&self, direction: Direction<'_>) -> bool {
        // Those of now: whoever is not asked does not follow.
        self.shared.judges(direction)
    }

    /// Each plugin is asked about those of the remaining topics that are in its scope, all at once,
    /// and takes out what it does not let go. When none is left, nobody further is asked.
    fn may_leave(
        &mut self,
        event: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays> {
        self.follow();
        let only = self.shared.services.scopes.of_event(context);
        if let Some(missing) = only.as_deref().and_then(|only| self.generation.lacks(only)) {
            return Err(Stays::Because(progress::absent(missing)));
        }
        let mut lowered: Option<LoweredEvent<'_>> = None;
        let mut budget = Budget::new(self.shared.services.budget);
        let mut left = context.topics.to_vec();
        let to_topics = context.direction == Direction::ToTopics;
        for slot in &mut self.slots {
            if !slot.is_among(only.as_deref()) || !slot.covers(event, context, &left) {
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
                None => Stays::Because(progress::failed(&slot.entry)),
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

    /// Whether it is one of these plugins, or there is no choice of them.
    fn is_among(&self, only: Option<&[String]>) -> bool {
        only.is_none_or(|only| only.contains(&self.entry.id))
    }

    /// Whether the plugin is to be asked.
    fn covers(&self, event: &VerifiedEvent, context: &Context<'_>, topics: &[TopicName]) -> bool {
        self.entry.applies_to.covers(context.direction, event.kind, context.origin, topics)
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
                failed(&self.entry, &plugin.log, &failure);
                None
            }
        }
    }
}

/// Takes note of a call that failed.
pub fn failed(entry: &Entry, log: &PluginLog, failure: &Failure) {
    entry.failures.fetch_add(1, Ordering::Relaxed);
    let cause = failure.to_string();
    log.write(Level::Error, &format!("the plugin failed: {cause}"));
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

/// One call, in the instance that there is or a new one.
///
/// # Errors
/// Why there is no verdict; an instance that is dead then is left where it is.
pub fn call(
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
