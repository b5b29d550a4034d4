//! The encrypted file: `secrets.age` in the data directory, in the format of age (age-encryption.org),
//! so that its owner can open it with other programs too.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::{
    SecretsError, disk,
    key::{Closed, Key, Source},
    worker::Backend,
};
use crate::pipeline::{RestingPlace, Secret, secrets::check_secret};

/// The file's name in the data directory.
pub(super) const FILE: &str = "secrets.age";

/// The first line of the decrypted text. One line for each secret follows: name, space, base64.
const HEADER: &str = "nostr-gateway secrets 1";

/// How many secrets the file may hold: it is written whole each time.
const MAX_SECRETS: usize = 4_096;

type Secrets = BTreeMap<String, Secret>;

/// The open file. All of it is in memory: whoever can read that has the gateway's keys anyway.
pub(super) struct SecretFile {
    path: PathBuf,
    key: Key,
    secrets: Secrets,
}

impl SecretFile {
    /// Whether there is a file, and it opens. Changes nothing, other than [`Self::open`].
    ///
    /// # Errors
    /// When the file is damaged, or its key is missing or another one.
    pub fn look(data_dir: &Path, given: Option<Source>) -> Result<bool, SecretsError> {
        let path = data_dir.join(FILE);
        let Some(sealed) = disk::read(&path)? else { return Ok(false) };
        let own = Source::beside(data_dir);
        let source = given.unwrap_or_else(|| own.clone());
        let key = source.read()?.ok_or_else(|| SecretsError::NoKey(path.clone()))?;
        match unseal(&path, &sealed, &key, &source) {
            // A key that was given later takes over at the next start.
            Err(wrong @ SecretsError::WrongKey { .. }) => match own.read()? {
                Some(earlier) if unseal(&path, &sealed, &earlier, &own).is_ok() => Ok(true),
                _ => Err(wrong),
            },
            opened => opened.map(|_| true),
        }
    }

    /// Opens the file, or takes note that there is none yet: it is made when the first secret is put
    /// in.
    ///
    /// `given` is the key that the operator names. Without one there is a key of our own beside the
    /// file. When the file still is under our own and one was given, it goes over to that one.
    ///
    /// # Errors
    /// When the file is damaged, or its key is missing or another one.
    pub fn open(data_dir: &Path, given: Option<Source>) -> Result<Self, SecretsError> {
        let path = data_dir.join(FILE);
        let sealed = disk::read(&path)?;
        let own = Source::beside(data_dir);
        let is_given = given.is_some();
        let source = given.unwrap_or_else(|| own.clone());
        let key = match (source.read()?, &sealed) {
            (Some(key), _) => key,
            (None, _) if is_given => {
                let reason = "there is no such file (secrets.key_file)".to_owned();
                return Err(SecretsError::KeyFile { path: source.path().to_owned(), reason });
            }
            (None, Some(_)) => return Err(SecretsError::NoKey(path)),
            (None, None) => make_key(&own, &path)?,
        };
        let Some(sealed) = sealed else {
            return Ok(Self { path, key, secrets: Secrets::new() });
        };
        match unseal(&path, &sealed, &key, &source) {
            Ok(secrets) => {
                let file = Self { path, key, secrets };
                // Left over from a crash while the key was changed, or from before.
                if is_given {
                    file.drop_own_key(&own)?;
                }
                Ok(file)
            }
            Err(wrong @ SecretsError::WrongKey { .. }) if is_given => {
                let Some(earlier) = own.read()? else { return Err(wrong) };
                let Ok(secrets) = unseal(&path, &sealed, &earlier, &own) else { return Err(wrong) };
                let file = Self { path, key, secrets };
                file.write(&file.secrets)?;
                file.drop_own_key(&own)?;
                tracing::info!("{} is now encrypted with {source}", file.path.display());
                Ok(file)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the key beside the file, once the file no longer needs it.
    fn drop_own_key(&self, own: &Source) -> Result<(), SecretsError> {
        if disk::is_there(own.path())? { disk::remove(own.path()) } else { Ok(()) }
    }

    /// Everything, to be put elsewhere.
    pub fn all(&self) -> Secrets {
        self.secrets.clone()
    }

    /// Puts all of these in at once, beside what is there: all or, after a crash, none.
    pub fn put_all(&mut self, more: Secrets) -> Result<(), SecretsError> {
        let mut secrets = self.secrets.clone();
        secrets.extend(more);
        self.keep(secrets)
    }

    fn keep(&mut self, secrets: Secrets) -> Result<(), SecretsError> {
        self.write(&secrets)?;
        self.secrets = secrets;
        Ok(())
    }

    fn write(&self, secrets: &Secrets) -> Result<(), SecretsError> {
        let failed =
            |source| SecretsError::Io { path: self.path.clone(), action: "encrypt", source };
        if secrets.len() > MAX_SECRETS {
            let text = format!("at most {MAX_SECRETS} secrets fit");
            return Err(failed(std::io::Error::other(text)));
        }
        let sealed = self.key.seal(&to_text(secrets)).map_err(failed)?;
        disk::replace(&self.path, &sealed)
    }
}

/// A key of our own beside the file: better than none for a copy of one of the two, and for nothing
/// else, which is said once.
fn make_key(own: &Source, file: &Path) -> Result<Key, SecretsError> {
    let key = Key::generate();
    let text = key.to_file().expect("a generated key has a file");
    disk::replace(own.path(), &text)?;
    tracing::info!(
        "secrets rest in {}, encrypted with {own}: that protects them when the first is copied \
         without the second, and not from whoever can read both. To keep the key elsewhere, set \
         secrets.key_file",
        file.display()
    );
    Ok(key)
}

fn unseal(path: &Path, sealed: &[u8], key: &Key, source: &Source) -> Result<Secrets, SecretsError> {
    let damaged = |reason| SecretsError::Damaged { path: path.to_owned(), reason };
    let plain = key.open(sealed).map_err(|closed| match closed {
        Closed::WrongKey(hint) => {
            SecretsError::WrongKey { path: path.to_owned(), key: source.to_string(), hint }
        }
        Closed::Damaged(reason) => damaged(reason),
    })?;
    from_text(&plain)
        .ok_or_else(|| damaged("it opens, and what is in it is not of this gateway".to_owned()))
}

fn to_text(secrets: &Secrets) -> Zeroizing<Vec<u8>> {
    let line = |(name, secret): (&String, &Secret)| {
        name.len() + BASE64.encode_len(secret.bytes().len()) + 2
    };
    let length = HEADER.len() + 1 + secrets.iter().map(line).sum::<usize>();
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    text.extend_from_slice(HEADER.as_bytes());
    text.push(b'\n');
    for (name, secret) in secrets {
        text.extend_from_slice(name.as_bytes());
        text.push(b' ');
        let start = text.len();
        text.resize(start + BASE64.encode_len(secret.bytes().len()), 0);
        BASE64.encode_mut(secret.bytes(), &mut text[start..]);
        text.push(b'\n');
    }
    text
}

fn from_text(text: &[u8]) -> Option<Secrets> {
    let mut lines = str::from_utf8(text).ok()?.strip_suffix('\n')?.split('\n');
    if lines.next()? != HEADER {
        return None;
    }
    let mut secrets = Secrets::new();
    for line in lines {
        let (name, encoded) = line.split_once(' ')?;
        let secret = Secret::new(BASE64.decode(encoded.as_bytes()).ok()?);
        check_secret(name, Some(&secret)).ok()?;
        if secrets.insert(name.to_owned(), secret).is_some() {
            return None;
        }
    }
    Some(secrets)
}

impl Backend for SecretFile {
    fn rests_in() -> RestingPlace {
        RestingPlace::File
    }

    fn called() -> &'static str {
        "the encrypted file of secrets"
    }

    fn when_slow() -> &'static str {
        "the disk or the machine is very busy"
    }

    fn get(&mut self, name: &str) -> Result<Option<Secret>, SecretsError> {
        Ok(self.secrets.get(name).cloned())
    }

    fn set(&mut self, name: &str, secret: &Secret) -> Result<(), SecretsError> {
        self.put_all(Secrets::from([(name.to_owned(), secret.clone())]))
    }

    fn delete(&mut self, name: &str) -> Result<(), SecretsError> {
        let mut secrets = self.secrets.clone();
        if secrets.remove(name).is_some() { self.keep(secrets) } else { Ok(()) }
    }

    fn names(&mut self) -> Vec<String> {
        self.secrets.keys().cloned().collect()
    }
}
