use keyring_core::mock;

use super::*;

/// A keyring in memory, which outlives what uses it.
fn credentials() -> Arc<CredentialStore> {
    mock::Store::new().unwrap()
}

fn open(credentials: &Arc<CredentialStore>, dir: &Path) -> Result<Keyring, SecretsError> {
    let index = Index::read(dir).unwrap().unwrap_or_else(|| Index::new(dir));
    Keyring::with(credentials.clone(), index, None)
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

#[test]
fn secrets_come_back_and_go() {
    let (dir, credentials) = (tempfile::tempdir().unwrap(), credentials());
    let mut keyring = open(&credentials, dir.path()).unwrap();
    assert!(
        Index::read(dir.path()).unwrap().is_none(),
        "nothing is noted before something is kept"
    );
    assert_eq!(keyring.get("a").unwrap(), None);
    keyring.set("a", &secret("one")).unwrap();
    keyring.set("b", &secret("\0\u{ff}binary")).unwrap();
    keyring.set("a", &secret("two")).unwrap();
    drop(keyring);
    let mut keyring = open(&credentials, dir.path()).unwrap();
    assert_eq!(keyring.get("a").unwrap(), Some(secret("two")));
    assert_eq!(keyring.get("b").unwrap(), Some(secret("\0\u{ff}binary")));
    assert_eq!(keyring.names(), ["a", "b"]);
    keyring.delete("a").unwrap();
    keyring.delete("a").unwrap();
    assert_eq!(keyring.get("a").unwrap(), None);
    assert_eq!(keyring.names(), ["b"]);
}

#[test]
fn two_data_directories_do_not_meet() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let credentials = credentials();
    let mut first = open(&credentials, one.path()).unwrap();
    let mut second = open(&credentials, other.path()).unwrap();
    first.set("endpoint", &secret("first")).unwrap();
    second.set("endpoint", &secret("second")).unwrap();
    assert_eq!(first.get("endpoint").unwrap(), Some(secret("first")));
    second.delete("endpoint").unwrap();
    assert_eq!(first.get("endpoint").unwrap(), Some(secret("first")));
}

#[test]
fn a_keyring_that_lost_a_secret_is_not_a_first_start() {
    let (dir, credentials) = (tempfile::tempdir().unwrap(), credentials());
    open(&credentials, dir.path()).unwrap().set("endpoint", &secret("key")).unwrap();
    let emptied: Arc<CredentialStore> = mock::Store::new().unwrap();
    let error = open(&emptied, dir.path()).err().unwrap();
    assert!(matches!(error, SecretsError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("keyring.json"), "{error}");
}

#[test]
fn a_secret_that_never_arrived_is_none() {
    let (dir, credentials) = (tempfile::tempdir().unwrap(), credentials());
    let mut keyring = open(&credentials, dir.path()).unwrap();
    let entry = keyring.entry("a").unwrap();
    let cred: &mock::Cred = entry.as_any().downcast_ref().unwrap();
    cred.set_error(Error::NoStorageAccess("locked meanwhile".into()));
    let error = keyring.set("a", &secret("hidden")).unwrap_err().to_string();
    assert!(error.contains("locked meanwhile") && !error.contains("hidden"), "{error}");
    drop(keyring);
    let mut keyring = open(&credentials, dir.path()).unwrap();
    assert_eq!(keyring.get("a").unwrap(), None);
    keyring.set("a", &secret("at last")).unwrap();
    assert_eq!(keyring.get("a").unwrap(), Some(secret("at last")));
}

#[test]
fn the_longest_secret_fits_what_windows_keeps() {
    let longest = crate::pipeline::secrets::MAX_SECRET_BYTES;
    assert!(BASE64_NOPAD.encode_len(longest) <= 2_560);
}

#[test]
fn a_damaged_index_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(super::super::index::FILE);
    for bad in ["", "{}", r#"{"id":"x","moving":false,"names":{}}"#, "null"] {
        std::fs::write(&path, bad).unwrap();
        let error = Index::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("keyring.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
    }
}
