//! `[plugins]`: where plugins are, and how much failing is too much.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[plugins]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginsConfig {
    /// The directory with one folder per plugin; empty for `plugins` in the data directory.
    pub dir: PathBuf,
    /// Failures in a row after which a plugin is in quarantine; 0 for never.
    pub quarantine_after: u32,
    /// Seconds between two questions to rotation policies.
    pub rotation_check_s: u64,
    /// How long all plugins together may take for one event, in milliseconds.
    pub budget_ms: u64,
}

impl Default for PluginsConfig {
    fn default() -> Self {
        Self { dir: PathBuf::new(), quarantine_after: 10, rotation_check_s: 60, budget_ms: 100 }
    }
}
