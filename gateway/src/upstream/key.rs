//! The gateway's Nostr key, with which it authenticates to relays (NIP-42).

use std::sync::Arc;

use nostr_sdk::{Keys, SecretKey};

use crate::pipeline::{Secret, SecretError, SecretStore};

/// The secret's name.
const NAME: &str = "nostr";

/// Takes the key from the secrets, or makes one and keeps it.
///
/// # Errors
/// When the secrets cannot be read or written, or hold something else. That is never overwritten: the
/// relays that let this gateway write know it by its key.
pub async fn load_or_create(secrets: &dyn SecretStore) -> Result<Arc<Keys>, SecretError> {
    let broken = || SecretError(format!("the secret {NAME:?} is no Nostr key; remove or mend it"));
    if let Some(secret) = secrets.get(NAME).await? {
        let key = SecretKey::from_slice(secret.bytes()).map_err(|_| broken())?;
        return Ok(Arc::new(Keys::new(key)));
    }
    let keys = Keys::generate();
    let secret = Secret::new(keys.secret_key().as_secret_bytes().to_vec());
    secrets.set(NAME, secret.clone()).await?;
    match secrets.get(NAME).await? {
        Some(kept) if kept == secret => Ok(Arc::new(keys)),
        _ => Err(broken()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::MemorySecrets;

    #[tokio::test]
    async fn the_key_stays_the_same_and_is_never_overwritten() {
        let secrets = MemorySecrets::default();
        let key = load_or_create(&secrets).await.unwrap().public_key();
        assert_eq!(load_or_create(&secrets).await.unwrap().public_key(), key);
        let secret = Secret::new(vec![0; 32]);
        secrets.set(NAME, secret.clone()).await.unwrap();
        assert!(load_or_create(&secrets).await.is_err(), "zero is no key");
        assert_eq!(secrets.get(NAME).await.unwrap(), Some(secret));
    }
}
