//! Moving secrets between keyring and file, when the configuration names another place than before. A
//! crash at any point leaves one of the two whole, and the next start knows which.

use std::path::Path;

use super::{
    SecretsError, disk,
    file::{self, SecretFile},
    key,
    keyring::Keyring,
    worker::{Backend, Worker},
};

/// Puts everything of the file into the keyring, reads it back, and removes the file.
///
/// Until the last step the index says that the file counts.
pub(super) async fn to_keyring(
    file: &Worker<SecretFile>,
    keyring: &Worker<Keyring>,
    data_dir: &Path,
) -> Result<(), SecretsError> {
    let all = file.call(|file| Ok(file.all())).await?;
    let count = all.len();
    keyring.call(Keyring::begin_move).await?;
    for (name, secret) in all {
        // One call for each: the limit of time is for one of them.
        let put = move |keyring: &mut Keyring| {
            keyring.set(&name, &secret)?;
            match keyring.get(&name)? {
                Some(kept) if kept == secret => Ok(()),
                _ => Err(SecretsError::NotKept(Keyring::called())),
            }
        };
        keyring.call(put).await?;
    }
    keyring.call(Keyring::end_move).await?;
    disk::remove(&data_dir.join(file::FILE))?;
    // A key that opens nothing any more.
    disk::remove(&data_dir.join(key::FILE))?;
    tracing::info!("{count} secrets moved from {} to the keyring", file::FILE);
    Ok(())
}

/// Puts everything of the keyring into the file at once, and clears the keyring.
pub(super) async fn to_file(
    keyring: &Worker<Keyring>,
    file: &Worker<SecretFile>,
) -> Result<(), SecretsError> {
    let mut all = std::collections::BTreeMap::new();
    for name in keyring.call(|keyring| Ok(keyring.names())).await? {
        let get = {
            let name = name.clone();
            move |keyring: &mut Keyring| keyring.get(&name)
        };
        if let Some(secret) = keyring.call(get).await? {
            all.insert(name, secret);
        }
    }
    let count = all.len();
    file.call(move |file| file.put_all(all)).await?;
    clear(keyring).await;
    tracing::info!("{count} secrets moved from the keyring to {}", file::FILE);
    Ok(())
}

/// Removes what is left in the keyring. That this fails is no reason not to start.
pub(super) async fn clear(keyring: &Worker<Keyring>) {
    if let Err(error) = keyring.call(Keyring::clear).await {
        warn_of_copies(&error);
    }
}

pub(super) fn warn_of_copies(error: &SecretsError) {
    tracing::warn!(
        "the keyring still has copies of secrets that are in {} now: {error}. The next start tries \
         again to remove them",
        file::FILE
    );
}
