//! Where secrets rest: a real keyring, a locked one, none, the encrypted file, memory. The identity
//! stays what it was, or the gateway does not start.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{Gateway, GatewayBuilder, Keyring, http};

use crate::{GATEWAY, bad_start::refuses_to_start};

/// Gnome's prompts and a slow machine fit in; a test that waits for it is still short.
const TIMEOUT_MS: &str = "3000";

fn builder(store: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, store)
        .topics(&["town"])
        .set("secrets", "store", &format!("{store:?}"))
        .set("secrets", "timeout_ms", TIMEOUT_MS)
        // Whatever the machine has: there is no bus unless a scenario starts one.
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .env("RUST_LOG", "trace,iroh=info,noq=info,mio=info")
}

/// The key that an earlier version left, and the endpoint id that it makes.
struct LeftKey {
    bytes: [u8; 32],
    id: String,
}

impl LeftKey {
    fn write(builder: &GatewayBuilder) -> Self {
        let key = iroh::SecretKey::generate();
        let bytes = key.to_bytes();
        fs::create_dir_all(builder.data_dir()).unwrap();
        let text = format!("{}\n", data_encoding::HEXLOWER.encode(&bytes));
        fs::write(builder.data_dir().join("endpoint.key"), text).unwrap();
        Self { bytes, id: key.public().to_string() }
    }

    /// As it is, in hexadecimal and in base64.
    fn forms(&self) -> [Vec<u8>; 3] {
        let hex = data_encoding::HEXLOWER.encode(&self.bytes);
        let base64 = data_encoding::BASE64_NOPAD.encode(&self.bytes);
        [self.bytes.to_vec(), hex.into_bytes(), base64.into_bytes()]
    }

    fn is_not_in(&self, what: &str, text: &[u8]) {
        for form in self.forms() {
            let found = text.windows(form.len()).any(|window| window == form);
            assert!(!found, "the endpoint's key stands in {what}");
        }
    }

    /// Looks for it everywhere but in memory.
    async fn is_nowhere(&self, gateway: &Gateway, data_dir: &Path, config: &Path) {
        for file in files(data_dir) {
            self.is_not_in(&file.display().to_string(), &fs::read(&file).unwrap());
        }
        self.is_not_in("the log", gateway.log().join("\n").as_bytes());
        for path in ["/metrics", "/status", "/health"] {
            self.is_not_in(path, http::get(&gateway.admin, path).await.body.as_bytes());
        }
        let mut show = Command::new(GATEWAY);
        for required in ["NOSTR_GATEWAY_REQUIRE_KEYRING", "NOSTR_GATEWAY_REQUIRE_NETNS"] {
            show.env_remove(required);
        }
        show.arg("--config").arg(config).arg("--data-dir").arg(data_dir).args(["config", "show"]);
        let show = show.output().unwrap();
        assert!(show.status.success(), "{show:?}");
        self.is_not_in("config show", &show.stdout);
    }
}

/// All files under a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    // What is neither is the control socket.
    let found = entries.filter(|path| path.is_dir() || path.is_file());
    found.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Which of the files about secrets are there.
fn secret_files(builder: &GatewayBuilder) -> Vec<&'static str> {
    let all = ["endpoint.key", "keyring.json", "secrets.age", "secrets.key"];
    all.into_iter().filter(|name| builder.data_dir().join(name).exists()).collect()
}

async fn rests_in(gateway: &Gateway, place: &str) {
    assert_eq!(gateway.status().await["secrets"], place);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyring_of_a_desktop_holds_the_identity() {
    let Some(keyring) = Keyring::available("the_keyring_of_a_desktop_holds_the_identity") else {
        return;
    };
    let (builder, other) = (builder("auto"), builder("auto"));
    let left = LeftKey::write(&builder);
    {
        let session = keyring.unlocked().await;
        let mut gateway = session.for_gateway(builder.clone()).start().await;
        assert_eq!(gateway.endpoint, left.id, "the key of the earlier version was taken over");
        rests_in(&gateway, "keyring").await;
        assert_eq!(secret_files(&builder), ["keyring.json"]);
        left.is_nowhere(&gateway, &builder.data_dir(), &builder.config_file()).await;
        left.is_not_in("the keyring's files", &keyring.files());
        gateway.kill9().await;
        let mut gateway = gateway.restart().await;
        assert_eq!(gateway.endpoint, left.id);

        // Two gateways in one keyring are two.
        let other = session.for_gateway(other).start().await;
        rests_in(&other, "keyring").await;
        assert_ne!(other.endpoint, left.id);
        gateway.interrupt().await;
    }

    // Locked after the next login: no start under another identity.
    {
        let session = keyring.locked().await;
        for store in ["auto", "keyring", "file"] {
            let began = Instant::now();
            let builder = session.for_gateway(builder.clone());
            let builder = builder.set("secrets", "store", &format!("{store:?}"));
            refuses_to_start(&builder, 1, &["keyring.json", "nlock"]).await;
            assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
            assert_eq!(secret_files(&builder), ["keyring.json"]);
        }
    }
    // Nor when it is not there at all, or never answers.
    refuses_to_start(&builder, 1, &["keyring.json", "nlock"]).await;
    {
        let session = keyring.with_service_that_hangs().await;
        let builder = session.for_gateway(builder.clone());
        refuses_to_start(&builder, 1, &["keyring.json", "3000 ms", "secrets.timeout_ms"]).await;
    }

    // Unlocked again, all is as before; and whoever wants the file gets it there.
    let session = keyring.unlocked().await;
    let mut gateway = session.for_gateway(builder.clone()).start().await;
    assert_eq!(gateway.endpoint, left.id);
    gateway.interrupt().await;
    let in_file = session.for_gateway(builder.clone()).set("secrets", "store", r#""file""#);
    let gateway = in_file.start().await;
    assert_eq!(gateway.endpoint, left.id);
    rests_in(&gateway, "file").await;
    assert_eq!(secret_files(&builder), ["secrets.age", "secrets.key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_without_a_usable_keyring_takes_the_file() {
    let scenario = "a_first_start_without_a_usable_keyring_takes_the_file";
    let Some(keyring) = Keyring::available(scenario) else { return };
    for (which, session) in [
        ("locked", keyring.locked().await),
        ("no service", keyring.without_service().await),
        ("hangs", keyring.with_service_that_hangs().await),
    ] {
        let began = Instant::now();
        let builder = session.for_gateway(builder("auto"));
        let mut gateway = builder.clone().start().await;
        assert!(began.elapsed() < Duration::from_secs(15), "{which}: {:?}", began.elapsed());
        rests_in(&gateway, "file").await;
        assert_eq!(secret_files(&builder), ["secrets.age", "secrets.key"], "{which}");
        let warnings = |line: &&String| line.contains("WARN") && line.contains("the keyring");
        assert_eq!(gateway.log().iter().filter(warnings).count(), 1, "{which}: one line says why");
        gateway.interrupt().await;

        // It stays there, and the keyring is not asked again.
        let id = gateway.endpoint.clone();
        let gateway = gateway.restart().await;
        assert_eq!(gateway.endpoint, id, "{which}");
        assert_eq!(gateway.log().iter().filter(warnings).count(), 0, "{which}");

        let wanted = session.for_gateway(self::builder("keyring"));
        refuses_to_start(&wanted, 1, &["secrets.store", "\"file\""]).await;
        assert!(secret_files(&wanted).is_empty(), "{which}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_session_bus_it_starts_with_a_file() {
    let builder = builder("auto");
    let left = LeftKey::write(&builder);
    let mut gateway = builder.clone().start().await;
    assert_eq!(gateway.endpoint, left.id);
    rests_in(&gateway, "file").await;
    assert_eq!(secret_files(&builder), ["secrets.age", "secrets.key"]);
    let says =
        |line: &String| line.contains("secrets.key") && line.contains("whoever can read both");
    assert_eq!(gateway.log().iter().filter(|line| says(line)).count(), 1);
    left.is_nowhere(&gateway, &builder.data_dir(), &builder.config_file()).await;
    gateway.kill9().await;
    let mut gateway = gateway.restart().await;
    assert_eq!(gateway.endpoint, left.id);
    assert!(!gateway.log().iter().any(says), "it is said once");
    gateway.interrupt().await;

    // Without its key the file is not thrown away, and with it again all is as before.
    let (key, aside) = (builder.data_dir().join("secrets.key"), builder.data_dir().join("aside"));
    fs::rename(&key, &aside).unwrap();
    refuses_to_start(&builder, 1, &["secrets.age", "secrets.key_file"]).await;
    fs::rename(&aside, &key).unwrap();
    let gateway = gateway.restart().await;
    assert_eq!(gateway.endpoint, left.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_opens_the_file_and_is_never_shown() {
    let builder = builder("auto");
    fs::create_dir_all(builder.data_dir()).unwrap();
    let key_file = builder.data_dir().parent().unwrap().join("passphrase");
    fs::write(&key_file, "a marked passphrase\n").unwrap();
    let builder = builder.set("secrets", "key_file", &format!("{key_file:?}"));
    let mut gateway = builder.clone().start().await;
    rests_in(&gateway, "file").await;
    assert_eq!(secret_files(&builder), ["secrets.age"]);
    assert!(!gateway.log().iter().any(|line| line.contains("a marked passphrase")));
    for file in files(&builder.data_dir()) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        assert!(!text.contains("a marked passphrase"), "{}", file.display());
    }
    gateway.interrupt().await;

    fs::write(&key_file, "another marked passphrase").unwrap();
    let mut child = builder.spawn();
    child.exit(Duration::from_secs(30)).await;
    assert!(!child.stderr().iter().any(|line| line.contains("marked")), "{:#?}", child.stderr());
    refuses_to_start(&builder, 1, &["secrets.age", "another passphrase"]).await;
    fs::write(&key_file, "a marked passphrase").unwrap();
    let id = gateway.endpoint.clone();
    let mut gateway = gateway.restart().await;
    assert_eq!(gateway.endpoint, id);
    gateway.interrupt().await;

    // A key in place of a path is refused, and not repeated.
    let slip = builder.set("secrets", "key_file", r#""AGE-SECRET-KEY-1MARKED""#);
    let mut child = slip.spawn();
    assert_eq!(child.exit(Duration::from_secs(30)).await.code(), Some(2));
    assert!(!child.stderr().iter().any(|line| line.contains("1MARKED")), "{:#?}", child.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_every_start_is_another() {
    let builder = builder("memory");
    let mut gateway = builder.clone().start().await;
    rests_in(&gateway, "memory").await;
    assert!(secret_files(&builder).is_empty());
    assert!(gateway.log().iter().any(|line| line.contains("this endpoint id lasts until")));
    gateway.interrupt().await;
    let first = gateway.endpoint.clone();
    let gateway = gateway.restart().await;
    assert_ne!(gateway.endpoint, first);
}
