//! One living plugin, and what it is asked.

use std::path::Path;

use super::{Gateway, events};
use crate::{
    Context, Event, EventFilter, Verdict,
    rotation::{Decision, SecretRotation, Topic},
    topics::TopicPolicy,
};

/// An instance of a plugin, as one worker thread of a gateway has it. Another one of the same
/// [`Gateway`] is another thread's: it shares configuration, clock, `kv` and store.
pub struct Running<P> {
    gateway: Gateway,
    plugin: P,
    init: fn() -> Result<P, String>,
    /// What the plugin is told of the events that follow: at first that a client published them, who
    /// has not authenticated, and that they are in no topic. `received_at` is always the clock's.
    pub context: Context,
}

impl<P> Running<P> {
    pub(super) fn start(
        gateway: &Gateway,
        init: fn() -> Result<P, String>,
    ) -> Result<Self, String> {
        let plugin = gateway.run(init)?;
        Ok(Self { gateway: gateway.clone(), plugin, init, context: events::context() })
    }

    /// Replaces the instance by a new one, as the host may do at any time: what it had in memory is
    /// gone, what is in `kv` is not.
    ///
    /// # Errors
    /// What its `init` says.
    pub fn restart(&mut self) -> Result<(), String> {
        self.plugin = self.gateway.run(self.init)?;
        Ok(())
    }

    /// The plugin itself.
    pub fn plugin(&mut self) -> &mut P {
        &mut self.plugin
    }

    fn context_now(&self) -> Context {
        Context { received_at: self.gateway.now(), ..self.context.clone() }
    }
}

impl<F: EventFilter> Running<F> {
    /// Asks about an event.
    pub fn evaluate(&mut self, event: &Event) -> Verdict {
        let context = self.context_now();
        let plugin = &mut self.plugin;
        self.gateway.run(|| plugin.evaluate(event.clone(), context))
    }

    /// Asks about every line of a file of events, with the context that stands there and the clock at
    /// its time. What is accepted is in the store from then on.
    ///
    /// # Panics
    /// When the file cannot be understood; the text names file and line.
    pub fn evaluate_all(&mut self, path: impl AsRef<Path>) -> Vec<Verdict> {
        let one = |line: events::Line| {
            self.gateway.set_now(line.context.received_at);
            let plugin = &mut self.plugin;
            let verdict = self.gateway.run(|| plugin.evaluate(line.event.clone(), line.context));
            if matches!(verdict, Verdict::Accept | Verdict::Route(_)) {
                self.gateway.hold(&line.event);
            }
            verdict
        };
        events::lines(path).into_iter().map(one).collect()
    }
}

impl<P: TopicPolicy> Running<P> {
    /// Asks to which topics an event goes.
    pub fn topics(&mut self, event: &Event) -> Option<Vec<String>> {
        let context = self.context_now();
        let plugin = &mut self.plugin;
        self.gateway.run(|| plugin.topics(event.clone(), context))
    }

    /// Asks whether a topic may be joined because somebody visits it.
    pub fn may_visit(&mut self, topic: &str) -> bool {
        let plugin = &mut self.plugin;
        self.gateway.run(|| plugin.may_visit(topic.to_owned()))
    }
}

impl<P: SecretRotation> Running<P> {
    /// Asks about a private topic.
    pub fn decide(&mut self, topic: Topic) -> Decision {
        let plugin = &mut self.plugin;
        self.gateway.run(|| plugin.decide(topic))
    }
}
