//! `[secrets]`: where keys and topic secrets are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[secrets]`. No secret stands in the configuration itself: it is shown, copied and backed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsConfig {
    pub store: StoreChoice,
    /// The file with the key or the passphrase of the encrypted file; empty for the systemd
    /// credential or `secrets.key` in the data directory.
    pub key_file: PathBuf,
    /// How long the keyring or the file may take to answer.
    pub timeout_ms: u64,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        Self { store: StoreChoice::default(), key_file: PathBuf::new(), timeout_ms: 10_000 }
    }
}

/// Where secrets rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreChoice {
    /// Where they were before; else in the keyring if there is one that works, else in the file.
    #[default]
    Auto,
    /// In the keyring of the operating system or not at all.
    Keyring,
    /// In an encrypted file in the data directory.
    File,
    /// Nowhere: each start has a new identity.
    Memory,
}
