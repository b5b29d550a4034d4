//! Where secrets rest: the operating system's keyring, an encrypted file, or memory.
//!
//! The other parts know [`SecretStore`] alone. Which one it is is decided here, once, at the start:
//! a gateway that finds its keyring locked must not go on with an empty file and a new identity.

pub mod config;
mod disk;
mod error;
mod file;
mod index;
mod key;
mod keyring;
mod plan;
mod probe;
#[cfg(test)]
mod tests;
mod transfer;
mod worker;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use self::{
    config::{SecretsConfig, StoreChoice},
    file::SecretFile,
    index::Index,
    key::Source,
    keyring::Keyring,
    plan::{Found, Plan},
    worker::Worker,
};
pub use self::{
    error::SecretsError,
    probe::{Probed, probe, probe_open},
};
use crate::pipeline::{MemorySecrets, SecretStore};

/// The variable by which systemd says where its credentials are.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Opens the store that the configuration and the data directory ask for, and brings secrets over
/// from where they rested before when the configuration now says another place.
///
/// Takes `secrets.timeout_ms` at most for each place that it asks.
///
/// # Errors
/// When the chosen store cannot be used, and above all when the secrets of this data directory are
/// somewhere that cannot be reached: starting anew would lose the gateway's identity.
pub async fn open(
    config: &SecretsConfig,
    data_dir: &Path,
) -> Result<Arc<dyn SecretStore>, SecretsError> {
    let credentials = std::env::var_os(CREDENTIALS_VARIABLE).map(PathBuf::from);
    let store = Opening::new(config, data_dir, credentials.as_deref()).open(Keyring::open).await?;
    tracing::info!("secrets rest in: {}", store.rests_in().as_str());
    Ok(store)
}

/// Opens the keyring: that of this system, or in tests another.
trait OpenKeyring: FnOnce(&Path, Index) -> Result<Keyring, SecretsError> + Send + 'static {}
impl<F> OpenKeyring for F where
    F: FnOnce(&Path, Index) -> Result<Keyring, SecretsError> + Send + 'static
{
}

/// One start.
struct Opening {
    choice: StoreChoice,
    data_dir: PathBuf,
    given: Option<Source>,
    limit: Duration,
}

impl Opening {
    fn new(config: &SecretsConfig, data_dir: &Path, credentials: Option<&Path>) -> Self {
        Self {
            choice: config.store,
            data_dir: data_dir.to_owned(),
            given: Source::given(config, credentials),
            limit: Duration::from_millis(config.timeout_ms),
        }
    }

    /// What this start is to do.
    fn plan(&self) -> Result<Plan, SecretsError> {
        Ok(match self.choice {
            // What is on disk is left alone, damaged or not.
            StoreChoice::Memory => Plan::Memory,
            choice => {
                let index = Index::read(&self.data_dir)?;
                let found = Found {
                    file: disk::is_there(&self.data_dir.join(file::FILE))?,
                    keyring: index.as_ref().is_some_and(|index| !index.is_empty()),
                    moving: index.as_ref().is_some_and(Index::is_moving),
                    key_given: self.given.is_some(),
                };
                plan::plan(choice, found)
            }
        })
    }

    async fn open(
        self,
        open_keyring: impl OpenKeyring,
    ) -> Result<Arc<dyn SecretStore>, SecretsError> {
        match self.plan()? {
            Plan::Memory => {
                tracing::info!("secrets are kept in memory alone: they are gone after this run");
                Ok(Arc::new(MemorySecrets::default()))
            }
            Plan::File => Ok(Arc::new(self.file().await?)),
            Plan::FileAfterBrokenMove => {
                let file = self.file().await?;
                match self.keyring(open_keyring).await {
                    Ok(keyring) => transfer::clear(&keyring).await,
                    Err(error) => transfer::warn_of_copies(&error),
                }
                Ok(Arc::new(file))
            }
            Plan::Keyring => match self.keyring(open_keyring).await {
                Ok(keyring) => Ok(Arc::new(keyring)),
                Err(reason) => Err(self.refusal(reason)?),
            },
            Plan::KeyringElseFile => match self.keyring(open_keyring).await {
                Ok(keyring) => Ok(Arc::new(keyring)),
                Err(error) => {
                    tracing::warn!("{error}; secrets go into an encrypted file");
                    Ok(Arc::new(self.file().await?))
                }
            },
            Plan::FromFileToKeyring => {
                let keyring = match self.keyring(open_keyring).await {
                    Ok(keyring) => keyring,
                    Err(reason) => return Err(self.refusal(reason)?),
                };
                let file = self.file().await?;
                transfer::to_keyring(&file, &keyring, &self.data_dir).await?;
                Ok(Arc::new(keyring))
            }
            Plan::FromKeyringToFile => {
                let keyring = match self.keyring(open_keyring).await {
                    Ok(keyring) => keyring,
                    Err(reason) => return Err(self.refusal(reason)?),
                };
                let file = self.file().await?;
                transfer::to_file(&keyring, &file).await?;
                Ok(Arc::new(file))
            }
        }
    }

    async fn file(&self) -> Result<Worker<SecretFile>, SecretsError> {
        let (data_dir, given) = (self.data_dir.clone(), self.given.clone());
        Worker::start(self.limit, move || SecretFile::open(&data_dir, given)).await
    }

    async fn keyring(&self, open: impl OpenKeyring) -> Result<Worker<Keyring>, SecretsError> {
        let data_dir = self.data_dir.clone();
        let index = Index::read(&data_dir)?.unwrap_or_else(|| Index::new(&data_dir));
        Worker::start(self.limit, move || open(&data_dir, index)).await
    }

    /// Why a start without the keyring is none.
    fn refusal(&self, reason: SecretsError) -> Result<SecretsError, SecretsError> {
        // That a secret is lost says it all.
        if matches!(reason, SecretsError::Lost { .. }) {
            return Ok(reason);
        }
        let reason = Box::new(reason);
        let index = Index::read(&self.data_dir)?.filter(|index| !index.is_empty());
        Ok(match index {
            Some(index) => SecretsError::KeyringNeeded { index: index.path().to_owned(), reason },
            None => SecretsError::KeyringChosen { reason },
        })
    }
}
