//! Whether secrets can be kept: what `nostr-gateway doctor` finds out. It goes where a start would go,
//! behind the same timeout, and changes nothing but an entry of its own, which it removes again.

use std::path::{Path, PathBuf};

use super::{
    CREDENTIALS_VARIABLE, OpenKeyring, Opening, SecretsError, config::SecretsConfig,
    file::SecretFile, keyring::Keyring, plan::Plan,
};
use crate::{
    pipeline::{Secret, SecretError, SecretStore},
    tasks,
};

/// The name that an open store is tried out with.
const TRIAL: &str = "doctor/trial";

/// What a start would find.
#[derive(Debug)]
pub enum Probed {
    /// Secrets are to be kept in memory alone.
    Memory,
    /// The keyring gave back what was put in.
    Keyring,
    /// The encrypted file is there and opens.
    File,
    /// There is nothing yet; a start makes the file.
    NoFile,
    /// The keyring cannot be used, and a start would take the file in its place.
    FileInstead(SecretsError),
}

/// Looks at the store that the next start would use. No gateway may be running.
///
/// Takes `secrets.timeout_ms` at most for each question.
///
/// # Errors
/// For what would stop that start.
pub async fn probe(config: &SecretsConfig, data_dir: &Path) -> Result<Probed, SecretsError> {
    let credentials = std::env::var_os(CREDENTIALS_VARIABLE).map(PathBuf::from);
    Opening::new(config, data_dir, credentials.as_deref()).probe(Keyring::open).await
}

/// Puts a secret of no worth into the store of the running gateway, reads it and removes it.
///
/// # Errors
/// When the store does not do one of these, or gives back something else.
pub async fn probe_open(store: &dyn SecretStore) -> Result<(), SecretError> {
    let secret = Secret::new(rand::random::<[u8; 16]>().to_vec());
    store.set(TRIAL, secret.clone()).await?;
    let kept = store.get(TRIAL).await;
    store.delete(TRIAL).await?;
    match kept? {
        Some(kept) if kept == secret => Ok(()),
        _ => Err(SecretsError::NotKept("the store of secrets").into()),
    }
}

impl Opening {
    pub(super) async fn probe(
        self,
        open_keyring: impl OpenKeyring,
    ) -> Result<Probed, SecretsError> {
        match self.plan()? {
            Plan::Memory => Ok(Probed::Memory),
            // What the keyring still has are copies: a start does without them.
            Plan::File | Plan::FileAfterBrokenMove => self.look_at_file().await,
            Plan::Keyring => self.try_keyring(open_keyring).await,
            Plan::KeyringElseFile => match self.ask_keyring(open_keyring).await {
                Ok(()) => Ok(Probed::Keyring),
                Err(error) => Ok(Probed::FileInstead(error)),
            },
            Plan::FromFileToKeyring | Plan::FromKeyringToFile => {
                self.look_at_file().await?;
                self.try_keyring(open_keyring).await
            }
        }
    }

    async fn look_at_file(&self) -> Result<Probed, SecretsError> {
        let (data_dir, given) = (self.data_dir.clone(), self.given.clone());
        let looked = tasks::blocking(move || SecretFile::look(&data_dir, given)).await;
        let is_there = looked.map_err(|_| SecretsError::Ended("the encrypted file"))??;
        Ok(if is_there { Probed::File } else { Probed::NoFile })
    }

    async fn try_keyring(&self, open: impl OpenKeyring) -> Result<Probed, SecretsError> {
        match self.ask_keyring(open).await {
            Ok(()) => Ok(Probed::Keyring),
            Err(reason) => Err(self.refusal(reason)?),
        }
    }

    async fn ask_keyring(&self, open: impl OpenKeyring) -> Result<(), SecretsError> {
        self.keyring(open).await?.call(|keyring| keyring.try_out()).await
    }
}
