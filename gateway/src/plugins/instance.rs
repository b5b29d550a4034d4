//! One living instance of a plugin, and a call of it within its limits.

use std::sync::Arc;

use wasmtime::{Engine, Store, StoreLimits, StoreLimitsBuilder, Trap};

use super::{
    bindings::{EventFilter, nostr_gateway::plugin::types, topics::TopicPolicy},
    budget::Budget,
    capabilities::{Allowance, Host, Lookups},
    deadline::Deadline,
    manifest::LimitsOfCall,
    memory::Memory,
    plugin::{Guest, Plugin},
    printable::one_line,
    verdict::Verdict,
};

/// How long making an instance and its `init` may take, in milliseconds: it reads its
/// configuration, which calls do not.
pub const INIT_MS: u64 = 2_000;

/// What interpreters compiled to WebAssembly need; the memory itself is bounded by the manifest.
const MAX_CORE_INSTANCES: usize = 64;
const MAX_TABLES: usize = 64;
/// `Memory` bounds all of them together.
const MAX_MEMORIES: usize = 8;
const MAX_TABLE_ELEMENTS: usize = 100_000;

/// The longest cause that is logged, in bytes.
const CAUSE_BYTES: usize = 512;

/// Why a call did not end with a verdict. Only for the operator's eyes. After it the instance is
/// dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("it ran longer than {0} ms")]
    Time(u64),
    #[error("the plugins together took longer than {0} ms")]
    Budget(u64),
    #[error("it wanted more memory than {0} MiB")]
    Memory(u64),
    #[error("its stack overflowed")]
    Stack,
    #[error("it handed over more than {0} bytes")]
    Output(u64),
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("its init failed: {0}")]
    Init(String),
    #[error("{0}")]
    Verdict(String),
    /// Of a program.
    #[error("{0}")]
    Program(String),
}

/// An instance with its memory.
pub struct Instance {
    store: Store<Host>,
    exports: Exports,
    plugin: Arc<Plugin>,
    /// No call of it has failed.
    alive: bool,
}

/// What it exports, by its world.
enum Exports {
    Filter(EventFilter),
    Topics(TopicPolicy),
}

impl Instance {
    /// Makes an instance and calls its `init`. Runs guest code: never on an async worker.
    ///
    /// # Errors
    /// When it breaks a limit, traps, or says that it cannot run.
    pub fn new(plugin: &Arc<Plugin>) -> Result<Self, Failure> {
        let failed = |error: wasmtime::Error| plugin.failure(&error, INIT_MS);
        let (store, exports, begun) = match &plugin.component {
            Guest::Filter(component) => {
                let mut store = store(plugin, component.engine());
                let exports = component.instantiate(&mut store).map_err(failed)?;
                let begun = exports.nostr_gateway_plugin_filter().call_init(&mut store);
                (store, Exports::Filter(exports), begun)
            }
            Guest::Topics(component) => {
                let mut store = store(plugin, component.engine());
                let exports = component.instantiate(&mut store).map_err(failed)?;
                let begun = exports.nostr_gateway_plugin_routing().call_init(&mut store);
                (store, Exports::Topics(exports), begun)
            }
            Guest::Rotation(_) => {
                return Err(Failure::Trap("it judges no events".to_owned()));
            }
        };
        match begun.map_err(failed)? {
            Ok(()) => Ok(Self { store, exports, plugin: Arc::clone(plugin), alive: true }),
            Err(text) => Err(Failure::init(&text)),
        }
    }

    /// Whether it can be used again.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Asks about one event, within what is left of the chain's budget. Runs guest code: never on an async worker.
    ///
    /// # Errors
    /// When it breaks a limit, traps, or answers with nonsense. The instance is dead then.
    pub fn evaluate(
        &mut self,
        event: types::Event<'_>,
        context: types::Context<'_>,
        budget: &mut Budget,
    ) -> Result<Verdict, Failure> {
        let spent = Failure::Budget(budget.whole_ms());
        let left = budget.left().ok_or_else(|| spent.clone())?;
        let own_ms = self.plugin.manifest.limits.time_ms.min(budget.whole_ms());
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        let time_ms = own_ms.min(left_ms);
        self.alive = false;
        begin(&mut self.store, time_ms);
        let store = &mut self.store;
        let verdict = match &self.exports {
            Exports::Filter(filter) => {
                filter.nostr_gateway_plugin_filter().call_evaluate(store, event, context)
            }
            Exports::Topics(policy) => {
                let topics =
                    policy.nostr_gateway_plugin_routing().call_topics(store, event, context);
                topics.map(|topics| match topics {
                    Some(topics) => types::Verdict::Route(topics),
                    None => types::Verdict::Accept,
                })
            }
        };
        let verdict = verdict.map_err(|error| match self.plugin.failure(&error, time_ms) {
            // Others took the time, where they left it less than half of its own.
            Failure::Time(_) if time_ms < own_ms / 2 => spent,
            failure => failure,
        })?;
        let verdict = Verdict::check(verdict).map_err(Failure::Verdict)?;
        self.alive = true;
        Ok(verdict)
    }

    /// Asks a topic policy whether a topic may be joined by a visit. Runs guest code: never on an
    /// async worker.
    ///
    /// # Errors
    /// When it breaks a limit or traps. The instance must not be used again.
    pub fn may_visit(&mut self, topic: &str) -> Result<bool, Failure> {
        let Exports::Topics(policy) = &self.exports else {
            return Err(Failure::Trap("it is no topic policy".to_owned()));
        };
        let time_ms = self.plugin.manifest.limits.time_ms;
        begin(&mut self.store, time_ms);
        let answer = policy.nostr_gateway_plugin_routing().call_may_visit(&mut self.store, topic);
        answer.map_err(|error| self.plugin.failure(&error, time_ms))
    }
}

/// A store for one instance, with all limits of the manifest. Making an instance runs guest code
/// too, so the time of `init` runs from here on.
pub fn store(plugin: &Plugin, engine: &Engine) -> Store<Host> {
    let limits = &plugin.manifest.limits;
    let host = Host {
        limits: Memory::new(limits_of(limits), plugin.memory.clone()),
        deadline: Deadline::new(INIT_MS),
        log: Arc::clone(&plugin.log),
        config: Arc::clone(&plugin.config),
        kv: Arc::clone(&plugin.kv),
        lookups: Lookups::new(plugin.lookup.clone()),
    };
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.limits);
    store.set_hostcall_fuel(bytes(limits.output_bytes));
    store.epoch_deadline_callback(Deadline::reached);
    store.set_epoch_deadline(store.data().deadline.first_epochs());
    store
}

fn limits_of(limits: &LimitsOfCall) -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(bytes(limits.memory_mib.saturating_mul(1024 * 1024)))
        .memories(MAX_MEMORIES)
        .instances(MAX_CORE_INSTANCES)
        .tables(MAX_TABLES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .trap_on_grow_failure(true)
        .build()
}

fn bytes(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Begins the time of a call.
pub fn begin(store: &mut Store<Host>, time_ms: u64) {
    let deadline = Deadline::new(time_ms);
    store.set_epoch_deadline(deadline.first_epochs());
    let host = store.data_mut();
    host.deadline = deadline;
    host.lookups.begin(Allowance::CALL);
}

impl Failure {
    /// What a plugin said for not running.
    pub fn init(text: &str) -> Self {
        Self::Init(one_line(text, CAUSE_BYTES))
    }
}

impl Plugin {
    pub fn failure(&self, error: &wasmtime::Error, time_ms: u64) -> Failure {
        let limits = &self.manifest.limits;
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => return Failure::Time(time_ms),
            Some(Trap::StackOverflow) => return Failure::Stack,
            _ => {}
        }
        // These two are plain messages in wasmtime. The words only choose a clearer line.
        let root = error.root_cause().to_string();
        if root.contains("when growing memory") || root.contains("exceeds memory limits") {
            return Failure::Memory(limits.memory_mib);
        }
        if root.contains("too much data") {
            return Failure::Output(limits.output_bytes);
        }
        Failure::Trap(one_line(&root, CAUSE_BYTES))
    }
}
