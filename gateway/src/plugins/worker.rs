//! The chain on one thread: an instance of each plugin, kept from call to call.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;

use super::{
    bindings::nostr_gateway::plugin::log::Level,
    budget::Budget,
    chain::{Entry, Loaded},
    instance::{Failure, Instance},
    lower::{self, LoweredEvent},
    manifest::OnFailure,
    plugin::Plugin,
    services::Services,
    verdict::Verdict,
};
use crate::{
    metrics::{Metrics, PluginLabels},
    pipeline::{Context, Decision, Direction, PolicyWorker, Stays},
    protocol::{Reason, TopicName, VerifiedEvent},
};

/// The pause after the second failure in a row; it doubles with each further one. A single failure
/// costs no pause: making an instance takes microseconds, and the event that broke it is gone.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Evaluates events on the thread that made it.
pub struct ChainWorker {
    slots: Vec<Slot>,
    /// For one event.
    budget: Duration,
}

impl ChainWorker {
    pub fn new(entries: &[Arc<Entry>], services: &Services) -> Self {
        let slot = |entry| Slot::new(entry, &services.metrics);
        Self { slots: entries.iter().map(slot).collect(), budget: services.budget }
    }
}

impl PolicyWorker for ChainWorker {
    /// The first rejection ends the chain. A route does not: plugins further on are asked with the
    /// new topics, and the last route counts.
    fn evaluate(&mut self, event: &VerifiedEvent, context: &Context<'_>) -> Decision {
        let mut routed: Option<Vec<TopicName>> = None;
        let mut lowered: Option<LoweredEvent<'_>> = None;
        let mut budget = Budget::new(self.budget);
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
        let way = direction.into();
        self.slots.iter().any(|slot| slot.entry.applies_to.directions.contains(&way))
    }

    /// Each plugin is asked about those of the remaining topics that are in its scope, all at once,
    /// and takes out what it does not let go. When none is left, nobody further is asked.
    fn may_leave(
        &mut self,
        event: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays> {
        let mut lowered: Option<LoweredEvent<'_>> = None;
        let mut budget = Budget::new(self.budget);
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
    pause: Pause,
    calls: Calls,
}

impl Slot {
    fn new(entry: &Arc<Entry>, metrics: &Metrics) -> Self {
        Self {
            entry: Arc::clone(entry),
            instance: None,
            pause: Pause::default(),
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
        let Loaded::Ready(plugin) = &self.entry.loaded else {
            self.calls.failed.inc();
            return None;
        };
        if self.pause.holds(Instant::now()) {
            self.calls.failed.inc();
            return None;
        }
        let _span = tracing::debug_span!("plugin", name = %self.entry.id).entered();
        match call(&mut self.instance, plugin, event, context, topics, budget) {
            Ok(verdict) => {
                self.pause = Pause::default();
                self.calls.count(&verdict);
                Some(verdict)
            }
            Err(failure) => {
                self.instance.take_if(|instance| !instance.is_alive());
                // For what the plugins before it took, it is not to rest.
                if !matches!(failure, Failure::Budget(_)) {
                    self.pause.failed(Instant::now());
                }
                self.calls.failed.inc();
                self.calls.traps.inc();
                self.entry.failures.fetch_add(1, Ordering::Relaxed);
                plugin.log.write(Level::Error, &format!("the plugin failed: {failure}"));
                None
            }
        }
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
    instance.evaluate(event.record(&tags), lower::context(context, &names, &keys), budget)
}

/// How long a failing plugin rests, so that it does not eat the thread's time.
#[derive(Default)]
struct Pause {
    /// Without a success in between.
    failures: u32,
    until: Option<Instant>,
}

impl Pause {
    fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if let Some(doublings) = self.failures.checked_sub(2) {
            let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings));
            self.until = Some(now + pause.min(LONGEST_PAUSE));
        }
    }
}

/// The plugin's counters, looked up once.
struct Calls {
    accept: Counter,
    reject: Counter,
    shadow_reject: Counter,
    route: Counter,
    failed: Counter,
    traps: Counter,
}

impl Calls {
    fn new(id: &str, metrics: &Metrics) -> Self {
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
            traps: metrics.plugin_traps.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_cost_a_pause() {
        let now = Instant::now();
        let mut pause = Pause::default();
        pause.failed(now);
        assert!(!pause.holds(now));
        pause.failed(now);
        assert!(pause.holds(now) && !pause.holds(now + FIRST_PAUSE));
        pause.failed(now);
        assert!(pause.holds(now + FIRST_PAUSE) && !pause.holds(now + 2 * FIRST_PAUSE));
        for _ in 0..1_000 {
            pause.failed(now);
        }
        assert!(!pause.holds(now + LONGEST_PAUSE));
    }
}
