//! Secrets, and where the parts put them: the keyring, an encrypted file, or nowhere.

use std::{collections::BTreeMap, fmt, sync::Mutex};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

/// The longest secret, in bytes: Windows stores 2,560 bytes with a credential, and they are put there
/// as base64.
pub const MAX_SECRET_BYTES: usize = 1_920;

/// The longest name of a secret, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Bytes that nobody but their owner may see: overwritten when dropped, shown by no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over. Whoever grew them before by reallocation left copies behind: give the
    /// vector its capacity at once.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, when there are exactly `N`.
    pub fn array<const N: usize>(&self) -> Option<Zeroizing<[u8; N]>> {
        self.0.as_slice().try_into().ok().map(Zeroizing::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The store of secrets failed. The text names what to look at and holds no secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(pub String);

/// Where secrets rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestingPlace {
    /// The operating system's keyring.
    Keyring,
    /// An encrypted file in the data directory.
    File,
    /// Nowhere: they are gone when the gateway ends.
    Memory,
}

impl RestingPlace {
    /// The word for it in the configuration, the status and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyring => "keyring",
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// Keeps secrets under names. Cheap to call from any task: the work is done elsewhere, one call after
/// the other, and every call ends within `secrets.timeout_ms`.
///
/// A name has 1 to [`MAX_NAME_BYTES`] of the characters `a-z`, `0-9`, `.`, `_`, `-` and `/`, as in
/// `endpoint` or `topic/HASH/epoch/7`. **Names are not secret**: a keyring shows them to its user, and
/// a file beside it lists them. A secret has at most [`MAX_SECRET_BYTES`].
pub trait SecretStore: Send + Sync + 'static {
    fn rests_in(&self) -> RestingPlace;

    /// The secret of this name.
    ///
    /// # Errors
    /// When the store does not answer; also when it held the secret before and lost it.
    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SecretError>>;

    /// Puts a secret in, in place of another of this name. It lasts when this returns. After a
    /// timeout it may or may not be there.
    ///
    /// # Errors
    /// When name or secret are too long, or the store does not take it.
    fn set<'a>(&'a self, name: &'a str, secret: Secret) -> BoxFuture<'a, Result<(), SecretError>>;

    /// Removes a secret. That there is none is no error.
    ///
    /// # Errors
    /// When the store does not do it.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), SecretError>>;

    /// The names that begin like this, in order. After a crash there may be one among them whose
    /// secret was about to be put in or removed, and is not there.
    ///
    /// # Errors
    /// When the store does not answer.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, SecretError>>;
}

/// Checks name and length. Every store asks here, so that what one takes the others take too.
///
/// # Errors
/// With the name, and without the secret.
pub fn check_secret(name: &str, secret: Option<&Secret>) -> Result<(), SecretError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b);
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(SecretError(format!("{name:?} cannot be the name of a secret")));
    }
    match secret.map(|secret| secret.bytes().len()) {
        Some(length) if length > MAX_SECRET_BYTES => Err(SecretError(format!(
            "the secret {name:?} has {length} bytes; at most {MAX_SECRET_BYTES} can be kept"
        ))),
        _ => Ok(()),
    }
}

/// Keeps secrets as long as the process lives.
#[derive(Debug, Default)]
pub struct MemorySecrets(Mutex<BTreeMap<String, Secret>>);

impl MemorySecrets {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Secret>) -> T) -> T {
        // A map is whole after any panic in here.
        work(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl SecretStore for MemorySecrets {
    fn rests_in(&self) -> RestingPlace {
        RestingPlace::Memory
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SecretError>> {
        Box::pin(async move {
            check_secret(name, None)?;
            Ok(self.with(|all| all.get(name).cloned()))
        })
    }

    fn set<'a>(&'a self, name: &'a str, secret: Secret) -> BoxFuture<'a, Result<(), SecretError>> {
        Box::pin(async move {
            check_secret(name, Some(&secret))?;
            self.with(|all| all.insert(name.to_owned(), secret));
            Ok(())
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), SecretError>> {
        Box::pin(async move {
            check_secret(name, None)?;
            self.with(|all| all.remove(name));
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, SecretError>> {
        Box::pin(async move {
            Ok(self.with(|all| all.keys().filter(|n| n.starts_with(prefix)).cloned().collect()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not compile otherwise.
    #[test]
    fn a_secret_is_zeroed_when_dropped() {
        fn zeroed<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let secret = Secret::new(vec![1; 32]);
        zeroed(&secret.0);
        zeroed(&secret.array::<32>().unwrap());
    }

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret::new(b"correct horse".to_vec());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(…) Some(Secret(…))");
        assert_eq!(secret.array::<13>().as_deref(), Some(b"correct horse"));
        assert!(secret.array::<12>().is_none() && secret.array::<14>().is_none());
    }

    #[test]
    fn names_and_lengths_are_checked_without_telling_the_secret() {
        let longest = Secret::new(vec![b'x'; MAX_SECRET_BYTES]);
        assert!(check_secret("topic/00ff/epoch/7", Some(&longest)).is_ok());
        assert!(check_secret(&"n".repeat(MAX_NAME_BYTES), None).is_ok());
        for bad in ["", "UPPER", "a b", "a\n", "ü", &"n".repeat(MAX_NAME_BYTES + 1)] {
            assert!(check_secret(bad, None).is_err(), "{bad:?}");
        }
        let error = check_secret("n", Some(&Secret::new(vec![b'x'; MAX_SECRET_BYTES + 1])));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("\"n\"") && !error.contains("xxxx"), "{error}");
    }
}
