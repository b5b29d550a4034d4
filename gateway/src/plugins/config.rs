//! `[plugins]`: where plugins are.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[plugins]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginsConfig {
    /// The directory with one folder per plugin; empty for `plugins` in the data directory.
    pub dir: PathBuf,
}
