//! Where what plugins remember outlives the process.

use std::sync::Arc;

use super::StoreError;

/// What stands under one key of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvPair {
    pub key: String,
    pub value: Vec<u8>,
    /// Unix seconds.
    pub expires_at: Option<u64>,
}

/// A change of what stands under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvChange {
    Set { plugin: Arc<str>, pair: KvPair },
    Removed { plugin: Arc<str>, key: String },
}

/// Blocks, and is called by one thread of its own and when a plugin is loaded.
pub trait KvStore: Send + Sync + 'static {
    /// All that a plugin has.
    ///
    /// # Errors
    /// When it cannot be read.
    fn load(&self, plugin: &str) -> Result<Vec<KvPair>, StoreError>;

    /// Commits changes before it returns.
    ///
    /// # Errors
    /// When they could not be committed.
    fn save(&self, changes: Vec<KvChange>) -> Result<(), StoreError>;
}
