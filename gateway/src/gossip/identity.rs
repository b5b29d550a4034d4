//! The endpoint's identity: an ed25519 key among the gateway's secrets.

use std::{fs, io, path::Path};

use iroh::SecretKey;
use zeroize::Zeroizing;

use super::GossipError;
use crate::{
    pipeline::{RestingPlace, Secret, SecretStore},
    protocol::hex,
};

/// The secret's name.
const NAME: &str = "endpoint";

/// The file in which earlier versions kept the key, in the data directory: 64 hexadecimal digits and
/// a line feed.
pub const FILE: &str = "endpoint.key";

/// Takes the key from the secrets, or makes one at the first start. A key that an earlier version left
/// in `endpoint.key` is taken over; the file goes when the key was read back from where it is now, so
/// that a crash in between leaves two of it and never none.
///
/// Where secrets are kept in memory, each start has a new key, and the file is left alone.
///
/// # Errors
/// When the secrets cannot be read or written, or hold something else; when the file is damaged, or
/// is another identity than that of the secrets. Neither is ever overwritten: a new key is a new
/// endpoint id, and whoever has this one in a configuration would lose us.
pub async fn load_or_create(
    secrets: &dyn SecretStore,
    data_dir: &Path,
) -> Result<SecretKey, GossipError> {
    if secrets.rests_in() == RestingPlace::Memory {
        tracing::info!(
            "secrets.store is \"memory\": this endpoint id lasts until the gateway ends"
        );
        return put(secrets, SecretKey::generate()).await;
    }
    let kept = match secrets.get(NAME).await? {
        Some(secret) => Some(secret.array::<32>().ok_or(GossipError::KeySecret)?),
        None => None,
    };
    let path = data_dir.join(FILE);
    let (kept, filed) = (kept.map(|key| SecretKey::from_bytes(&key)), read_file(&path)?);
    match (kept, filed) {
        (Some(key), None) => Ok(key),
        (None, None) => put(secrets, SecretKey::generate()).await,
        // A crash came between taking it over and removing it.
        (Some(key), Some(filed)) if key.to_bytes() == filed.to_bytes() => {
            remove_file(&path)?;
            Ok(key)
        }
        (Some(key), Some(filed)) => Err(GossipError::TwoIdentities {
            path,
            kept: key.public().to_string(),
            filed: filed.public().to_string(),
            place: secrets.rests_in().as_str(),
        }),
        (None, Some(filed)) => {
            let key = put(secrets, filed).await?;
            remove_file(&path)?;
            let place = secrets.rests_in().as_str();
            tracing::info!("the endpoint's key moved from {} to the {place}", path.display());
            Ok(key)
        }
    }
}

/// Puts the key in and makes sure that it comes out again.
async fn put(secrets: &dyn SecretStore, key: SecretKey) -> Result<SecretKey, GossipError> {
    let bytes = Zeroizing::new(key.to_bytes());
    let secret = Secret::new(bytes.to_vec());
    secrets.set(NAME, secret.clone()).await?;
    match secrets.get(NAME).await? {
        Some(kept) if kept == secret => Ok(key),
        _ => Err(GossipError::KeySecret),
    }
}

fn read_file(path: &Path) -> Result<Option<SecretKey>, GossipError> {
    let text = match fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        // But not a link to what is away.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() =>
        {
            return Ok(None);
        }
        Err(source) => {
            return Err(GossipError::KeyFile { path: path.into(), action: "read", source });
        }
    };
    let digits = str::from_utf8(&text).ok().map(|text| text.strip_suffix('\n').unwrap_or(text));
    match digits.and_then(hex::decode::<32>).map(Zeroizing::new) {
        Some(bytes) => Ok(Some(SecretKey::from_bytes(&bytes))),
        None => Err(GossipError::KeyFormat { path: path.into() }),
    }
}

fn remove_file(path: &Path) -> Result<(), GossipError> {
    // The draft that an earlier version may have left when it crashed at its first start.
    let _ = fs::remove_file(path.with_extension("key.new"));
    fs::remove_file(path).map_err(|source| GossipError::KeyFile {
        path: path.into(),
        action: "remove",
        source,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::pipeline::{MemorySecrets, SecretError};

    /// One that says of itself that it lasts, and can be broken.
    #[derive(Default)]
    struct Lasting {
        secrets: MemorySecrets,
        forgetful: bool,
    }

    type Answer<'a, T> = BoxFuture<'a, Result<T, SecretError>>;

    impl SecretStore for Lasting {
        fn rests_in(&self) -> RestingPlace {
            RestingPlace::File
        }
        fn get<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Secret>> {
            self.secrets.get(name)
        }
        fn set<'a>(&'a self, name: &'a str, secret: Secret) -> Answer<'a, ()> {
            match self.forgetful {
                true => Box::pin(async { Ok(()) }),
                false => self.secrets.set(name, secret),
            }
        }
        fn delete<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
            self.secrets.delete(name)
        }
        fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
            self.secrets.list(prefix)
        }
    }

    fn left_by_an_earlier_version(dir: &Path) -> SecretKey {
        let key = SecretKey::generate();
        fs::write(dir.join(FILE), format!("{}\n", hex::encode(&key.to_bytes()))).unwrap();
        key
    }

    #[tokio::test]
    async fn a_key_is_made_once_and_kept() {
        let (dir, secrets) = (tempfile::tempdir().unwrap(), Lasting::default());
        let first = load_or_create(&secrets, dir.path()).await.unwrap();
        let second = load_or_create(&secrets, dir.path()).await.unwrap();
        assert_eq!(first.to_bytes(), second.to_bytes());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing of it is on disk");
    }

    #[tokio::test]
    async fn in_memory_each_start_is_another_and_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let filed = left_by_an_earlier_version(dir.path());
        let first = load_or_create(&MemorySecrets::default(), dir.path()).await.unwrap();
        let second = load_or_create(&MemorySecrets::default(), dir.path()).await.unwrap();
        assert_ne!(first.to_bytes(), second.to_bytes());
        assert_ne!(first.to_bytes(), filed.to_bytes());
        assert!(dir.path().join(FILE).exists());
    }

    #[tokio::test]
    async fn the_file_of_an_earlier_version_is_taken_over_and_goes() {
        let (dir, secrets) = (tempfile::tempdir().unwrap(), Lasting::default());
        let filed = left_by_an_earlier_version(dir.path());
        let key = load_or_create(&secrets, dir.path()).await.unwrap();
        assert_eq!(key.to_bytes(), filed.to_bytes());
        assert!(!dir.path().join(FILE).exists());

        // As after a crash before the file was removed.
        fs::write(dir.path().join(FILE), format!("{}\n", hex::encode(&key.to_bytes()))).unwrap();
        let again = load_or_create(&secrets, dir.path()).await.unwrap();
        assert_eq!(again.to_bytes(), filed.to_bytes());
        assert!(!dir.path().join(FILE).exists());
    }

    #[tokio::test]
    async fn the_file_stays_until_the_key_was_read_back() {
        let dir = tempfile::tempdir().unwrap();
        left_by_an_earlier_version(dir.path());
        let forgetful = Lasting { forgetful: true, ..Lasting::default() };
        load_or_create(&forgetful, dir.path()).await.unwrap_err();
        assert!(dir.path().join(FILE).exists());
    }

    #[tokio::test]
    async fn of_two_identities_none_is_lost() {
        let (dir, secrets) = (tempfile::tempdir().unwrap(), Lasting::default());
        let kept = load_or_create(&secrets, dir.path()).await.unwrap();
        let filed = left_by_an_earlier_version(dir.path());
        let error = load_or_create(&secrets, dir.path()).await.unwrap_err().to_string();
        for id in [kept.public(), filed.public()] {
            assert!(error.contains(&id.to_string()), "{error}");
        }
        for key in [&kept, &filed] {
            assert!(!error.contains(&hex::encode(&key.to_bytes())), "{error}");
        }
        assert!(dir.path().join(FILE).exists());
        fs::remove_file(dir.path().join(FILE)).unwrap();
        let after = load_or_create(&secrets, dir.path()).await.unwrap();
        assert_eq!(after.to_bytes(), kept.to_bytes());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_link_to_what_is_away_is_no_first_start() {
        let (dir, secrets) = (tempfile::tempdir().unwrap(), Lasting::default());
        std::os::unix::fs::symlink("/nowhere/key", dir.path().join(FILE)).unwrap();
        let error = load_or_create(&secrets, dir.path()).await.unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
        assert!(secrets.get(NAME).await.unwrap().is_none(), "no new identity was made");
    }

    #[tokio::test]
    async fn what_is_damaged_is_an_error_and_stays() {
        let (dir, secrets) = (tempfile::tempdir().unwrap(), Lasting::default());
        for bad in ["", "abcd\n", &"0".repeat(63), &"G".repeat(64), &"0".repeat(66)] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            let error = load_or_create(&secrets, dir.path()).await.unwrap_err().to_string();
            assert!(error.contains(FILE), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "the content is not repeated");
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), bad);
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        secrets.set(NAME, Secret::new(b"too short".to_vec())).await.unwrap();
        let error = load_or_create(&secrets, dir.path()).await.unwrap_err().to_string();
        assert!(!error.contains("too short"), "{error}");
        assert_eq!(secrets.get(NAME).await.unwrap().unwrap().bytes(), b"too short");
    }
}
