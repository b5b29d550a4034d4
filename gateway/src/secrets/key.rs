//! The key of the encrypted file: a key or a passphrase, and where it comes from.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use age::{
    Decryptor, Encryptor,
    secrecy::{ExposeSecret, SecretString},
    x25519,
};
use zeroize::Zeroizing;

use super::{SecretsError, config::SecretsConfig, disk};

/// The key that the gateway makes when none is given, in the data directory.
pub(super) const FILE: &str = "secrets.key";

/// The name of the credential (`LoadCredential=` and `LoadCredentialEncrypted=` of systemd).
pub(super) const CREDENTIAL: &str = "nostr-gateway";

/// What a secret key of the age format begins with.
const SECRET_KEY: &str = "AGE-SECRET-KEY-1";

/// scrypt with N = 2^17 (128 MiB, a fraction of a second): for passphrases of people. Tests have no
/// secrets to guess.
const WORK: u8 = if cfg!(test) { 4 } else { 17 };
/// What another program may have encrypted the file with.
const MAX_WORK: u8 = 20;

/// Where a key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// `secrets.key_file`.
    Setting(PathBuf),
    /// A credential that systemd handed over.
    Credential(PathBuf),
    /// `secrets.key` in the data directory.
    Beside(PathBuf),
}

impl Source {
    /// What the operator gave; `None` when nothing was.
    pub fn given(config: &SecretsConfig, credentials: Option<&Path>) -> Option<Self> {
        if !config.key_file.as_os_str().is_empty() {
            return Some(Self::Setting(config.key_file.clone()));
        }
        let credential = credentials?.join(CREDENTIAL);
        credential.is_file().then_some(Self::Credential(credential))
    }

    pub fn beside(data_dir: &Path) -> Self {
        Self::Beside(data_dir.join(FILE))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Setting(path) | Self::Credential(path) | Self::Beside(path) => path,
        }
    }

    /// Reads the key; `None` when there is no file at all.
    pub fn read(&self) -> Result<Option<Key>, SecretsError> {
        let Some(bytes) = disk::read(self.path())? else { return Ok(None) };
        if matches!(self, Self::Beside(_)) {
            disk::warn_if_open(self.path());
        }
        let wrong = |reason: &str| SecretsError::KeyFile {
            path: self.path().to_owned(),
            reason: reason.to_owned(),
        };
        let text = str::from_utf8(&bytes).map_err(|_| {
            wrong("not text; the key is one line: a passphrase, or what age-keygen makes")
        })?;
        Key::parse(text).map(Some).map_err(wrong)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path().display();
        match self {
            Self::Setting(_) => write!(f, "the key in {path} (secrets.key_file)"),
            Self::Credential(_) => write!(f, "the systemd credential {path}"),
            Self::Beside(_) => write!(f, "the key in {path}"),
        }
    }
}

/// What encrypts and decrypts. Overwritten when dropped.
pub(super) enum Key {
    Pair(x25519::Identity),
    Passphrase(SecretString),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why a file does not open.
#[derive(Debug)]
pub(super) enum Closed {
    WrongKey(&'static str),
    Damaged(String),
}

impl Key {
    pub fn generate() -> Self {
        Self::Pair(x25519::Identity::generate())
    }

    /// A secret key of age with comments around it, or a passphrase on one line.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut keys = lines().filter(|line| line.starts_with(SECRET_KEY));
        match (keys.next(), keys.next()) {
            (Some(key), None) => key.parse().map(Self::Pair).map_err(|_| {
                "the line that begins with AGE-SECRET-KEY-1 is no key: it is damaged or cut off"
            }),
            (Some(_), Some(_)) => Err("there are several keys in it; leave one"),
            (None, _) => match (lines().next(), lines().nth(1)) {
                (None, _) => Err("empty; write a passphrase into it, or what age-keygen makes"),
                (Some(_), Some(_)) => Err("several lines and no key; a passphrase is one line"),
                (Some(phrase), None) => Ok(Self::Passphrase(SecretString::from(phrase))),
            },
        }
    }

    /// The content of a key file. A passphrase has none: it is never written.
    pub fn to_file(&self) -> Option<Zeroizing<Vec<u8>>> {
        let Self::Pair(pair) = self else { return None };
        let secret = pair.to_string();
        let parts = [
            "# Opens secrets.age of this nostr-gateway. Keep it to yourself.\n",
            secret.expose_secret(),
            "\n",
        ];
        let mut bytes = Zeroizing::new(Vec::with_capacity(parts.iter().map(|p| p.len()).sum()));
        parts.iter().for_each(|part| bytes.extend_from_slice(part.as_bytes()));
        Some(bytes)
    }

    pub fn seal(&self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        use std::io::Write as _;
        let seal_for = |recipient: &dyn age::Recipient| {
            let encryptor = Encryptor::with_recipients(std::iter::once(recipient))
                .map_err(std::io::Error::other)?;
            let mut sealed = Vec::with_capacity(plain.len() + 1_024);
            let mut writer = encryptor.wrap_output(&mut sealed)?;
            writer.write_all(plain)?;
            writer.finish()?;
            Ok(sealed)
        };
        match self {
            Self::Pair(pair) => seal_for(&pair.to_public()),
            Self::Passphrase(phrase) => {
                let mut recipient = age::scrypt::Recipient::new(phrase.clone());
                recipient.set_work_factor(WORK);
                seal_for(&recipient)
            }
        }
    }

    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Closed> {
        use std::io::Read as _;
        let damaged = |text: &str| Closed::Damaged(text.to_owned());
        let decryptor = Decryptor::new_buffered(sealed).map_err(|_| damaged("not an age file"))?;
        let by_passphrase = decryptor.is_scrypt();
        let identity: Box<dyn age::Identity> = match self {
            Self::Pair(pair) => Box::new(pair.clone()),
            Self::Passphrase(phrase) => {
                let mut identity = age::scrypt::Identity::new(phrase.clone());
                identity.set_max_work_factor(MAX_WORK);
                Box::new(identity)
            }
        };
        let mut reader = decryptor.decrypt(std::iter::once(&*identity)).map_err(|error| {
            use age::DecryptError::{DecryptionFailed, KeyDecryptionFailed, NoMatchingKeys};
            match (error, self) {
                (NoMatchingKeys, Self::Pair(_)) if by_passphrase => {
                    Closed::WrongKey("it is encrypted with a passphrase")
                }
                (NoMatchingKeys, Self::Passphrase(_)) => {
                    Closed::WrongKey("it is encrypted with a key, not with a passphrase")
                }
                (NoMatchingKeys | DecryptionFailed | KeyDecryptionFailed, Self::Pair(_)) => {
                    Closed::WrongKey("it is another key")
                }
                (DecryptionFailed | KeyDecryptionFailed, Self::Passphrase(_)) => {
                    Closed::WrongKey("it is another passphrase")
                }
                _ => damaged("its header is damaged"),
            }
        })?;
        let mut plain = Zeroizing::new(Vec::with_capacity(sealed.len()));
        match reader.read_to_end(&mut plain) {
            Ok(_) => Ok(plain),
            Err(_) => Err(damaged("it is damaged or cut off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_what_age_keygen_makes_or_a_passphrase() {
        let pair = Key::generate();
        let file = pair.to_file().unwrap();
        let text = str::from_utf8(&file).unwrap();
        let sealed = pair.seal(b"hello").unwrap();
        assert_eq!(**Key::parse(text).unwrap().open(&sealed).unwrap(), *b"hello");
        let phrase = Key::parse("correct horse battery\n").unwrap();
        assert!(
            matches!(&phrase, Key::Passphrase(p) if p.expose_secret() == "correct horse battery")
        );
        assert!(phrase.to_file().is_none());
        for bad in ["", "\n\n", "one\ntwo", "AGE-SECRET-KEY-1QQQ", &format!("{text}{text}")] {
            assert!(Key::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(format!("{pair:?} {phrase:?}"), "Key(…) Key(…)");
    }

    #[test]
    fn what_does_not_open_says_why() {
        let keys = || [Key::generate(), Key::Passphrase(SecretString::from("one"))];
        for key in keys() {
            let sealed = key.seal(b"hello").unwrap();
            assert_eq!(**key.open(&sealed).unwrap(), *b"hello");
            for other in [Key::generate(), Key::Passphrase(SecretString::from("two"))] {
                assert!(matches!(other.open(&sealed), Err(Closed::WrongKey(_))));
            }
            // Each byte of header and content is protected.
            for cut in [0, 1, sealed.len() / 2, sealed.len() - 1] {
                assert!(matches!(key.open(&sealed[..cut]), Err(Closed::Damaged(_))), "{cut}");
                let mut changed = sealed.clone();
                changed[cut] ^= 1;
                assert!(key.open(&changed).is_err(), "{cut}");
            }
        }
    }
}
