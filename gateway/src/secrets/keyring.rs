//! The operating system's keyring: the Secret Service, the macOS keychain, the Windows credential
//! store.

use std::{collections::HashMap, path::Path, sync::Arc};

use data_encoding::BASE64_NOPAD;
use keyring_core::{CredentialStore, Entry, Error};
use zeroize::{Zeroize, Zeroizing};

use super::{
    SecretsError,
    index::{Index, State},
    worker::Backend,
};
use crate::pipeline::{RestingPlace, Secret};

/// The service under which all entries stand. The user of an entry is the id of the data directory, a
/// slash and the name of the secret.
const SERVICE: &str = "nostr-gateway";

/// The name that a new keyring is tried out with.
const TRIAL: &str = "trial";

/// The entries of one data directory.
pub(super) struct Keyring {
    credentials: Arc<CredentialStore>,
    index: Index,
    /// What the user reads in the keyring's own program, before the name; not every one has labels.
    label: Option<String>,
}

impl Keyring {
    /// Connects to the keyring of this system and makes sure that it works: a held secret is read,
    /// or one is put in, read and removed. That may ask the user to unlock it, and wait for that.
    pub fn open(data_dir: &Path, index: Index) -> Result<Self, SecretsError> {
        let credentials = of_this_system().map_err(failed)?;
        // The others refuse what they do not know.
        let label = cfg!(all(unix, not(target_vendor = "apple")))
            .then(|| format!("nostr-gateway {}", data_dir.display()));
        Self::with(credentials, index, label)
    }

    pub fn with(
        credentials: Arc<CredentialStore>,
        index: Index,
        label: Option<String>,
    ) -> Result<Self, SecretsError> {
        let mut keyring = Self { credentials, index, label };
        match keyring.index.first_held() {
            // While a move is under way the index may name what was removed already.
            Some(name) if !keyring.index.is_moving() => drop(keyring.get(&name)?),
            _ => keyring.try_out()?,
        }
        Ok(keyring)
    }

    /// Puts an entry of its own in, reads it and removes it.
    pub fn try_out(&self) -> Result<(), SecretsError> {
        let secret = Secret::new(rand::random::<[u8; 16]>().to_vec());
        self.put(TRIAL, &secret)?;
        let kept = self.entry(TRIAL)?.get_secret().map_err(failed).map(decode)?;
        self.entry(TRIAL)?.delete_credential().map_err(failed)?;
        match kept {
            Some(kept) if kept == secret => Ok(()),
            _ => Err(SecretsError::NotKept(Self::called())),
        }
    }

    fn entry(&self, name: &str) -> Result<Entry, SecretsError> {
        let user = format!("{}/{name}", self.index.id());
        let label = self.label.as_ref().map(|label| format!("{label}: {name}"));
        let modifiers = label.as_ref().map(|label| HashMap::from([("label", label.as_str())]));
        self.credentials.build(SERVICE, &user, modifiers.as_ref()).map_err(failed)
    }

    /// As base64: some keyrings hold nothing but text.
    fn put(&self, name: &str, secret: &Secret) -> Result<(), SecretsError> {
        let length = BASE64_NOPAD.encode_len(secret.bytes().len());
        let mut text = Zeroizing::new(vec![0; length]);
        BASE64_NOPAD.encode_mut(secret.bytes(), &mut text);
        self.entry(name)?.set_secret(&text).map_err(failed)
    }

    /// Says that the file counts from now on, and removes what an earlier move left here.
    pub fn begin_move(&mut self) -> Result<(), SecretsError> {
        self.index.note_moving(true)?;
        for name in self.names() {
            self.remove_entry(&name)?;
            self.index.note(&name, None)?;
        }
        Ok(())
    }

    /// Says that the keyring counts again.
    pub fn end_move(&mut self) -> Result<(), SecretsError> {
        self.index.note_moving(false)
    }

    /// Removes all entries and then the index. The file counts from the first moment on.
    pub fn clear(&mut self) -> Result<(), SecretsError> {
        self.begin_move()?;
        self.index.remove()
    }

    fn remove_entry(&self, name: &str) -> Result<(), SecretsError> {
        match self.entry(name)?.delete_credential() {
            Ok(()) | Err(Error::NoEntry) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Backend for Keyring {
    fn rests_in() -> RestingPlace {
        RestingPlace::Keyring
    }

    fn called() -> &'static str {
        "the keyring"
    }

    fn when_slow() -> &'static str {
        "it is probably locked and waits for somebody to unlock it"
    }

    fn get(&mut self, name: &str) -> Result<Option<Secret>, SecretsError> {
        let Some(state) = self.index.state(name) else { return Ok(None) };
        match (self.entry(name)?.get_secret(), state) {
            (Ok(text), _) => match decode(text) {
                Some(secret) => Ok(Some(secret)),
                None => Err(SecretsError::Keyring(format!(
                    "holds something else than a secret of this gateway under {name:?}"
                ))),
            },
            (Err(Error::NoEntry), State::Pending) => Ok(None),
            (Err(Error::NoEntry), State::Held) => Err(SecretsError::Lost {
                name: name.to_owned(),
                index: self.index.path().to_owned(),
            }),
            (Err(error), _) => Err(failed(error)),
        }
    }

    fn set(&mut self, name: &str, secret: &Secret) -> Result<(), SecretsError> {
        // First the index: whatever the keyring holds has its name there. A name that is there
        // already stays as it is, the entry is there before and after.
        if self.index.state(name).is_none() {
            self.index.note(name, Some(State::Pending))?;
        }
        self.put(name, secret)?;
        if self.index.state(name) == Some(State::Pending) {
            self.index.note(name, Some(State::Held))?;
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<(), SecretsError> {
        if self.index.state(name).is_none() {
            return Ok(());
        }
        self.index.note(name, Some(State::Pending))?;
        self.remove_entry(name)?;
        self.index.note(name, None)
    }

    fn names(&mut self) -> Vec<String> {
        self.index.names().cloned().collect()
    }
}

fn decode(mut text: Vec<u8>) -> Option<Secret> {
    let secret = BASE64_NOPAD.decode(&text).ok().map(Secret::new);
    text.zeroize();
    secret
}

/// What the keyring says, without anything that it gave.
fn failed(error: Error) -> SecretsError {
    SecretsError::Keyring(match error {
        Error::NoStorageAccess(why) => format!("is locked or lets nobody in: {why}"),
        Error::PlatformFailure(why) => format!("cannot be used: {why}"),
        Error::BadEncoding(_) | Error::BadDataFormat(..) => "gave something unreadable".to_owned(),
        Error::Ambiguous(entries) => format!("has {} entries of one name", entries.len()),
        other => format!("cannot be used: {other}"),
    })
}

#[cfg(all(unix, not(any(target_os = "macos", target_os = "ios", target_os = "android"))))]
fn of_this_system() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(zbus_secret_service_keyring_store::Store::new()?)
}

#[cfg(target_os = "macos")]
fn of_this_system() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(apple_native_keyring_store::keychain::Store::new()?)
}

#[cfg(windows)]
fn of_this_system() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(windows_native_keyring_store::Store::new()?)
}

#[cfg(not(any(
    all(unix, not(any(target_os = "ios", target_os = "android"))),
    target_os = "macos",
    windows
)))]
fn of_this_system() -> keyring_core::Result<Arc<CredentialStore>> {
    Err(Error::NoDefaultStore)
}

#[cfg(test)]
mod tests;
