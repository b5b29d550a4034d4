//! `[storage]`: the database.

use serde::{Deserialize, Serialize};

/// `[storage]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    pub durability: Durability,
}

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power failure: each group commit is synced to the disk.
    #[default]
    Full,
    /// A crash of the gateway; a power failure may lose the last commits.
    Normal,
}
