//! Plugins of the world `secret-rotation`: when a private topic gets a new secret.

use std::sync::Arc;

use wasmtime::Store;

use super::{
    bindings::rotation::{
        SecretRotation,
        exports::nostr_gateway::plugin::rotation::{Decision, Member, Topic},
    },
    capabilities::Host,
    chain::PluginChain,
    instance::{self, Failure},
    manifest::World,
    plugin::{Guest, Plugin},
};
use crate::pipeline::{RotationAnswer, RotationPolicy, RotationQuestion};

/// One living instance.
pub struct RotationInstance {
    store: Store<Host>,
    exports: SecretRotation,
    plugin: Arc<Plugin>,
}

impl RotationInstance {
    /// Makes an instance and calls its `init`. Runs guest code: never on an async worker.
    ///
    /// # Errors
    /// When it breaks a limit, traps, or says that it cannot run.
    pub fn new(plugin: &Arc<Plugin>) -> Result<Self, Failure> {
        let Guest::Rotation(component) = &plugin.component else {
            return Err(Failure::Trap("it is no rotation policy".to_owned()));
        };
        let mut store = instance::store(plugin, component.engine());
        let failed = |error: wasmtime::Error| plugin.failure(&error, instance::INIT_MS);
        let exports = component.instantiate(&mut store).map_err(failed)?;
        let guest = exports.nostr_gateway_plugin_rotation();
        match guest.call_init(&mut store).map_err(failed)? {
            Ok(()) => Ok(Self { store, exports, plugin: Arc::clone(plugin) }),
            Err(text) => Err(Failure::init(&text)),
        }
    }

    /// Asks about one topic. Runs guest code: never on an async worker.
    ///
    /// # Errors
    /// When it breaks a limit or traps. The instance must not be used again.
    pub fn decide(&mut self, topic: &Topic) -> Result<Decision, Failure> {
        let time_ms = self.plugin.manifest.limits.time_ms;
        instance::begin(&mut self.store, time_ms);
        let guest = self.exports.nostr_gateway_plugin_rotation();
        let decision = guest.call_decide(&mut self.store, topic);
        decision.map_err(|error| self.plugin.failure(&error, time_ms))
    }
}

impl RotationPolicy for PluginChain {
    fn is_empty(&self) -> bool {
        self.generation().of(World::SecretRotation).next().is_none()
    }

    /// The first plugin that wants to rotate is followed. One that fails is passed over: what it
    /// would have decided nobody knows.
    fn decide(&self, question: &RotationQuestion) -> RotationAnswer {
        let topic = lowered(question);
        for entry in self.generation().of(World::SecretRotation) {
            let topics = &entry.applies_to.topics;
            if !topics.is_empty() && !topics.contains(&question.name) {
                continue;
            }
            let decided = self.ask_once(
                entry,
                |plugin| RotationInstance::new(plugin)?.decide(&topic),
                |decision| if matches!(decision, Decision::Keep) { "keep" } else { "rotate" },
            );
            if let Some(Decision::Rotate(plan)) = decided {
                return RotationAnswer::Rotate { grace: plan.grace, exclude: plan.exclude };
            }
        }
        RotationAnswer::Keep
    }
}

/// As the plugin is told.
pub fn lowered(question: &RotationQuestion) -> Topic {
    let members = question.members.iter().map(|member| Member {
        id: member.id.clone(),
        is_self: member.is_self,
        since: member.since,
        last_seen: member.last_seen,
    });
    Topic {
        name: question.name.to_string(),
        epoch: question.epoch,
        since: question.since,
        now: question.now,
        members: members.collect(),
    }
}
