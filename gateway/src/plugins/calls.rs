//! What is counted of one plugin.

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::verdict::Verdict;
use crate::metrics::{Metrics, PluginIdLabels, PluginLabels};

/// The plugin's counters, looked up once.
pub struct Calls {
    pub accept: Counter,
    pub reject: Counter,
    pub shadow_reject: Counter,
    pub route: Counter,
    pub failed: Counter,
    pub traps: Counter,
    pub seconds: Histogram,
}

impl Calls {
    pub fn new(id: &str, metrics: &Metrics) -> Self {
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

    /// Counts a verdict.
    pub fn count(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Accept => &self.accept,
            Verdict::Reject(_) => &self.reject,
            Verdict::ShadowReject => &self.shadow_reject,
            Verdict::Route(_) => &self.route,
        }
        .inc();
    }
}
