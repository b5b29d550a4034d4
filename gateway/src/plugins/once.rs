//! Asking a policy plugin one rare question.

use std::{sync::Arc, time::Instant};

use super::{chain::PluginChain, entry::Entry, instance::Failure, plugin::Plugin, worker};
use crate::metrics::{PluginIdLabels, PluginLabels};

impl PluginChain {
    /// What `ask` answers of a new instance, which it makes: such questions are rare. Counts it under
    /// the name that `verdict` gives. Nothing when the plugin failed, or may not run at the moment.
    pub(super) fn ask_once<T>(
        &self,
        entry: &Entry,
        ask: impl FnOnce(&Arc<Plugin>) -> Result<T, Failure>,
        verdict: impl FnOnce(&T) -> &'static str,
    ) -> Option<T> {
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
        match ask(plugin) {
            Ok(answer) => {
                entry.rest.succeeded();
                count(verdict(&answer));
                Some(answer)
            }
            Err(failure) => {
                count("failed");
                let labels = PluginIdLabels { plugin: entry.id.clone() };
                self.metrics().plugin_traps.get_or_create(&labels).inc();
                worker::failed(entry, &plugin.log, &failure);
                None
            }
        }
    }
}
