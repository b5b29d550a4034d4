use std::{fs, sync::Arc};

use futures_util::future::join_all;
use keyring_core::{CredentialStore, mock};
use tempfile::TempDir;

use super::*;
use crate::pipeline::{RestingPlace, Secret};

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// A data directory, and a keyring beside it.
struct World {
    dir: TempDir,
    credentials: Arc<CredentialStore>,
    config: SecretsConfig,
}

impl World {
    fn new() -> Self {
        let config = SecretsConfig { timeout_ms: 5_000, ..SecretsConfig::default() };
        Self { dir: tempfile::tempdir().unwrap(), credentials: mock::Store::new().unwrap(), config }
    }

    fn opening(&self, choice: StoreChoice) -> Opening {
        let config = SecretsConfig { store: choice, ..self.config.clone() };
        Opening::new(&config, self.dir.path(), None)
    }

    async fn start(&self, choice: StoreChoice) -> Result<Arc<dyn SecretStore>, SecretsError> {
        let credentials = self.credentials.clone();
        let open = move |_: &Path, index| Keyring::with(credentials, index, None);
        self.opening(choice).open(open).await
    }

    /// With a keyring that says why it cannot be used.
    async fn start_locked(
        &self,
        choice: StoreChoice,
    ) -> Result<Arc<dyn SecretStore>, SecretsError> {
        let open = |_: &Path, _| Err(SecretsError::Keyring("is locked".to_owned()));
        self.opening(choice).open(open).await
    }

    fn key_file(&mut self, text: &str) -> PathBuf {
        let path = self.dir.path().join("elsewhere.key");
        fs::write(&path, text).unwrap();
        self.config.key_file = path.clone();
        path
    }

    fn has(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}

fn refused(result: Result<Arc<dyn SecretStore>, SecretsError>) -> String {
    match result {
        Ok(store) => panic!("it started with {:?}", store.rests_in()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_file_keeps_what_many_put_in_at_once() {
    let world = World::new();
    let store = world.start(StoreChoice::File).await.unwrap();
    let put = |n: usize| {
        let store = store.clone();
        async move { store.set(&format!("topic/{n}"), secret(&format!("value {n}"))).await.unwrap() }
    };
    join_all((0..50).map(put)).await;
    store.set("endpoint", secret("a marked value")).await.unwrap();
    store.delete("topic/7").await.unwrap();
    drop(store);

    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::File);
    assert_eq!(store.get("topic/49").await.unwrap(), Some(secret("value 49")));
    assert_eq!(store.get("topic/7").await.unwrap(), None);
    assert_eq!(store.list("topic/").await.unwrap().len(), 49);
    assert_eq!(store.list("end").await.unwrap(), ["endpoint"]);

    let sealed = fs::read(world.path("secrets.age")).unwrap();
    for hidden in ["a marked value", "topic/49", &data_encoding::BASE64.encode(b"a marked value")] {
        assert!(
            !sealed.windows(hidden.len()).any(|window| window == hidden.as_bytes()),
            "{hidden}"
        );
    }
    let mut names: Vec<_> =
        fs::read_dir(world.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["secrets.age", "secrets.key"], "no draft is left over");
    #[cfg(unix)]
    for file in names {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(world.dir.path().join(&file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn a_file_that_does_not_open_stays_as_it_is() {
    let mut world = World::new();
    let key_file = world.key_file("correct horse\n");
    world.start(StoreChoice::Auto).await.unwrap().set("a", secret("x")).await.unwrap();
    assert!(!world.has("secrets.key"), "the given key is the only one");
    let sealed = fs::read(world.path("secrets.age")).unwrap();

    fs::write(&key_file, "battery staple").unwrap();
    let error = refused(world.start(StoreChoice::Auto).await);
    for word in ["secrets.age", "elsewhere.key", "another passphrase"] {
        assert!(error.contains(word), "{error}");
    }
    for secret in ["battery", "horse"] {
        assert!(!error.contains(secret), "{error}");
    }
    world.config.key_file = PathBuf::new();
    let error = refused(world.start(StoreChoice::File).await);
    assert!(error.contains("secrets.age") && error.contains("secrets.key_file"), "{error}");
    assert!(!world.has("secrets.key"), "no new key hides what is missing");
    world.config.key_file = world.path("nothing");
    let error = refused(world.start(StoreChoice::File).await);
    assert!(error.contains("nothing") && error.contains("secrets.key_file"), "{error}");
    assert_eq!(fs::read(world.path("secrets.age")).unwrap(), sealed);

    world.key_file("correct horse");
    for damaged in [&sealed[..sealed.len() - 1], &sealed[..40], b"", b"hello"] {
        fs::write(world.path("secrets.age"), damaged).unwrap();
        let error = refused(world.start(StoreChoice::Auto).await);
        assert!(error.contains("secrets.age") && error.contains("backup"), "{error}");
        assert_eq!(fs::read(world.path("secrets.age")).unwrap(), damaged);
    }
    fs::write(world.path("secrets.age"), sealed).unwrap();
    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), Some(secret("x")));
}

#[tokio::test]
async fn a_key_that_is_given_later_takes_over() {
    let mut world = World::new();
    world.start(StoreChoice::File).await.unwrap().set("a", secret("x")).await.unwrap();
    assert!(world.has("secrets.key"));
    world.key_file("correct horse");
    for _ in 0..2 {
        let store = world.start(StoreChoice::Auto).await.unwrap();
        assert_eq!(store.get("a").await.unwrap(), Some(secret("x")));
        assert!(!world.has("secrets.key"), "the old key opens nothing any more");
    }
}

#[tokio::test]
async fn a_systemd_credential_is_a_key_too() {
    let world = World::new();
    let credentials = tempfile::tempdir().unwrap();
    fs::write(credentials.path().join(key::CREDENTIAL), "from systemd").unwrap();
    let open = |directory| {
        let opening = Opening::new(&world.config, world.dir.path(), directory);
        opening.open(|_: &Path, _| unreachable!("a key was given, and so a file is wanted"))
    };
    let store = open(Some(credentials.path())).await.unwrap();
    store.set("a", secret("x")).await.unwrap();
    assert!(!world.has("secrets.key"));
    let error = refused(open(None).await);
    assert!(error.contains("systemd credential"), "{error}");
}

#[tokio::test]
async fn auto_prefers_a_keyring_that_works_and_stays_with_it() {
    let world = World::new();
    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::Keyring);
    store.set("endpoint", secret("key")).await.unwrap();
    // It was used: nothing else will do from now on, and nothing is begun elsewhere.
    for choice in [StoreChoice::Auto, StoreChoice::Keyring, StoreChoice::File] {
        let error = refused(world.start_locked(choice).await);
        for word in ["keyring.json", "is locked", "nlock"] {
            assert!(error.contains(word), "{choice:?}: {error}");
        }
        assert!(!world.has("secrets.age") && !world.has("secrets.key"), "{choice:?}");
    }
    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.get("endpoint").await.unwrap(), Some(secret("key")));
}

#[tokio::test]
async fn auto_takes_a_file_where_no_keyring_answers() {
    let mut world = World::new();
    let store = world.start_locked(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::File);
    store.set("endpoint", secret("key")).await.unwrap();
    // A keyring that appears later changes nothing.
    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::File);
    assert_eq!(store.get("endpoint").await.unwrap(), Some(secret("key")));

    let world_of_its_own = World::new();
    let error = refused(world_of_its_own.start_locked(StoreChoice::Keyring).await);
    assert!(error.contains("secrets.store") && error.contains("is locked"), "{error}");

    world.dir = tempfile::tempdir().unwrap();
    world.config.timeout_ms = 200;
    let began = std::time::Instant::now();
    let hangs = |_: &Path, _| {
        std::thread::sleep(Duration::from_secs(20));
        Err(SecretsError::Keyring("was waited for".to_owned()))
    };
    let store = world.opening(StoreChoice::Auto).open(hangs).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::File);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Three secrets, whose names come in this order.
const ALL: [(&str, &str); 3] = [("a", "one"), ("b", "two"), ("c", "three")];

async fn put_all(store: &dyn SecretStore) {
    for (name, value) in ALL {
        store.set(name, secret(value)).await.unwrap();
    }
}

async fn has_all(store: &dyn SecretStore) {
    for (name, value) in ALL {
        assert_eq!(store.get(name).await.unwrap(), Some(secret(value)), "{name}");
    }
    assert_eq!(store.list("").await.unwrap(), ["a", "b", "c"]);
}

#[tokio::test]
async fn secrets_move_when_another_place_is_chosen() {
    let world = World::new();
    put_all(&*world.start(StoreChoice::File).await.unwrap()).await;
    let store = world.start(StoreChoice::Keyring).await.unwrap();
    has_all(&*store).await;
    assert!(!world.has("secrets.age") && !world.has("secrets.key"));
    let store = world.start(StoreChoice::File).await.unwrap();
    has_all(&*store).await;
    assert!(!world.has("keyring.json"));
    // Nothing is left there, whatever its name.
    for entry in world.credentials.search(&Default::default()).unwrap() {
        assert!(matches!(entry.get_secret(), Err(keyring_core::Error::NoEntry)));
    }
    assert_eq!(world.start(StoreChoice::Auto).await.unwrap().rests_in(), RestingPlace::File);
}

#[tokio::test]
async fn a_move_to_the_keyring_that_breaks_off_leaves_the_file_in_force() {
    for next in [StoreChoice::Auto, StoreChoice::File, StoreChoice::Keyring] {
        let world = World::new();
        put_all(&*world.start(StoreChoice::File).await.unwrap()).await;
        // The keyring refuses the second of them.
        let mut index = Index::new(world.dir.path());
        index.note_moving(true).unwrap();
        let entry =
            world.credentials.build("nostr-gateway", &format!("{}/b", index.id()), None).unwrap();
        let refusing: &mock::Cred = entry.as_any().downcast_ref().unwrap();
        refusing.set_error(keyring_core::Error::NoStorageAccess("locked meanwhile".into()));
        let error = refused(world.start(StoreChoice::Keyring).await);
        assert!(error.contains("locked meanwhile"), "{error}");
        assert!(world.has("secrets.age"));
        assert!(!Index::read(world.dir.path()).unwrap().unwrap().is_empty(), "one has arrived");

        let store = world.start(next).await.unwrap();
        has_all(&*store).await;
        let in_file = next != StoreChoice::Keyring;
        assert_eq!(store.rests_in() == RestingPlace::File, in_file);
        assert_eq!((world.has("secrets.age"), world.has("keyring.json")), (in_file, !in_file));
    }
}

#[tokio::test]
async fn a_move_that_broke_off_before_its_last_step_is_finished() {
    let world = World::new();
    put_all(&*world.start(StoreChoice::File).await.unwrap()).await;
    let (sealed, key) = ("secrets.age", "secrets.key");
    let copies = [sealed, key].map(|file| fs::read(world.path(file)).unwrap());
    has_all(&*world.start(StoreChoice::Keyring).await.unwrap()).await;
    // As if the file had not been removed yet.
    fs::write(world.path(sealed), &copies[0]).unwrap();
    fs::write(world.path(key), &copies[1]).unwrap();
    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::Keyring);
    has_all(&*store).await;
    assert!(!world.has(sealed) && !world.has(key));
}

#[tokio::test]
async fn memory_touches_nothing() {
    let world = World::new();
    fs::write(world.path("keyring.json"), "damaged").unwrap();
    let store = world.start_locked(StoreChoice::Memory).await.unwrap();
    assert_eq!(store.rests_in(), RestingPlace::Memory);
    put_all(&*store).await;
    has_all(&*store).await;
    assert_eq!(fs::read_dir(world.dir.path()).unwrap().count(), 1);
    assert!(
        world.start_locked(StoreChoice::Memory).await.unwrap().list("").await.unwrap().is_empty()
    );
}

#[tokio::test]
async fn every_store_takes_the_same_names_and_sizes() {
    let world = World::new();
    let longest = Secret::new(vec![0xff; crate::pipeline::secrets::MAX_SECRET_BYTES]);
    let too_long = Secret::new(vec![0xff; crate::pipeline::secrets::MAX_SECRET_BYTES + 1]);
    for choice in [StoreChoice::Memory, StoreChoice::File, StoreChoice::Keyring] {
        let store = world.start(choice).await.unwrap();
        store.set("longest", longest.clone()).await.unwrap();
        assert_eq!(store.get("longest").await.unwrap(), Some(longest.clone()));
        store.set("longest", too_long.clone()).await.unwrap_err();
        store.set("Bad Name", longest.clone()).await.unwrap_err();
        store.get("").await.unwrap_err();
        assert_eq!(store.get("longest").await.unwrap(), Some(longest.clone()), "{choice:?}");
    }
}

#[tokio::test]
async fn nobody_waits_longer_than_the_limit() {
    let world = World::new();
    let mut worker = world.opening(StoreChoice::File).file().await.unwrap();
    worker.limit = Duration::from_millis(300);
    let (release, held) = std::sync::mpsc::sync_channel::<()>(0);
    let error = worker
        .call(move |_| {
            // Ends when the test does, at the latest.
            let _ = held.recv();
            Ok(())
        })
        .await
        .unwrap_err();
    assert!(error.to_string().contains("300 ms"), "{error}");
    // What came after it and was given up is never begun.
    worker.set("late", secret("x")).await.unwrap_err();
    drop(release);
    let free = async {
        while worker.get("late").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    free.await;
    assert_eq!(worker.get("late").await.unwrap(), None);
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_a_place_that_is_away_is_no_first_start() {
    use std::os::unix::fs::symlink;
    let away = Path::new("/nowhere/that/is/mounted");
    for (file, choice) in [
        ("secrets.age", StoreChoice::Auto),
        ("secrets.age", StoreChoice::File),
        ("secrets.age", StoreChoice::Keyring),
        ("secrets.key", StoreChoice::File),
        ("keyring.json", StoreChoice::Auto),
    ] {
        let world = World::new();
        symlink(away, world.path(file)).unwrap();
        let error = refused(world.start(choice).await);
        assert!(error.contains(file) && error.contains("symbolic link"), "{file}: {error}");
        assert_eq!(fs::read_link(world.path(file)).unwrap(), away, "it is left alone");
        let others = fs::read_dir(world.dir.path()).unwrap().count();
        assert_eq!(others, 1, "nothing was made beside it: {file} {choice:?}");
    }
    // Once it is back, everything is there.
    let (world, elsewhere) = (World::new(), tempfile::tempdir().unwrap());
    world.start(StoreChoice::File).await.unwrap().set("a", secret("x")).await.unwrap();
    let resting = elsewhere.path().join("secrets.age");
    fs::rename(world.path("secrets.age"), &resting).unwrap();
    symlink(&resting, world.path("secrets.age")).unwrap();
    let store = world.start(StoreChoice::Auto).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), Some(secret("x")));
}
