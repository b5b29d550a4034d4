//! Where secrets rest: a real keyring, a locked one, none, the encrypted file, memory. The identity
//! stays what it was, or the gateway does not start.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nostr_gateway::protocol::private::{admin_key::AdminKey, derive::EpochKeys, invite::Invite};
use nostr_gateway_tests::{Gateway, GatewayBuilder, Keyring, Testnet, eventually, http};
use serde_json::json;

use crate::{
    DHT_TESTNET, GATEWAY, alone,
    bad_start::refuses_to_start,
    circles::{becomes, epoch, invite, notes, publish, reaches_epoch},
};

const SOON: Duration = Duration::from_secs(40);

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

    fn is_not_in(&self, what: &str, text: &[u8]) {
        self.sought().are_not_in(what, text);
    }

    fn sought(&self) -> Sought {
        let mut sought = Sought::default();
        sought.bytes("the endpoint's key", &self.bytes);
        sought
    }

    /// Looks for it everywhere but in memory.
    async fn is_nowhere(&self, gateway: &Gateway, data_dir: &Path, config: &Path) {
        self.sought().are_nowhere(gateway, data_dir, config).await;
    }
}

/// What must stand nowhere, in all forms in which it might be written down.
#[derive(Default)]
struct Sought {
    forms: Vec<(String, Vec<u8>)>,
}

impl Sought {
    /// As they are, in hexadecimal, in base64 wherever in a longer text they begin, and as a list of
    /// numbers.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 32 && bytes.iter().any(|byte| *byte != bytes[0]), "{name}");
        let mut forms = vec![
            bytes.to_vec(),
            data_encoding::HEXLOWER.encode(bytes).into_bytes(),
            data_encoding::HEXUPPER.encode(bytes).into_bytes(),
            format!("{bytes:?}").trim_matches(['[', ']']).as_bytes().to_vec(),
            bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(",").into_bytes(),
        ];
        for skip in 0..3 {
            let whole = &bytes[skip..skip + (bytes.len() - skip) / 3 * 3];
            forms.push(data_encoding::BASE64.encode(whole).into_bytes());
            forms.push(data_encoding::BASE64URL.encode(whole).into_bytes());
        }
        self.forms.extend(forms.into_iter().map(|form| (name.to_owned(), form)));
    }

    /// Something printed, or a good part of it.
    fn text(&mut self, name: &str, text: &str) {
        let (start, end) = (text.len() / 3, text.len() / 3 + 32);
        self.forms.push((name.to_owned(), text.as_bytes()[start..end].to_vec()));
        let upper = text[start..end].to_uppercase();
        self.forms.push((name.to_owned(), upper.into_bytes()));
    }

    /// What all derivations of an epoch begin with, and what comes of it.
    fn epoch(&mut self, invite: &Invite) {
        let keys = EpochKeys::derive(&invite.topic, invite.epoch, &invite.secret);
        for (what, bytes) in [
            ("secret", invite.secret.expose()),
            ("discovery secret", &*keys.discovery_secret),
            ("encryption key", &*keys.encryption),
            ("nonce key", &*keys.nonce),
            ("proof key", &*keys.proof),
        ] {
            self.bytes(&format!("the {what} of epoch {}", invite.epoch), bytes);
        }
        self.bytes("the topic's key", invite.topic_key.expose());
        self.bytes("an invite's key", &invite.key.to_bytes());
    }

    fn find(&self, text: &[u8]) -> Option<&str> {
        // Files have millions of bytes, and nearly none of them begins anything.
        let mut begins = vec![false; 1 << 16];
        let start = |form: &[u8]| usize::from(u16::from_be_bytes([form[0], form[1]]));
        self.forms.iter().for_each(|(_, form)| begins[start(form)] = true);
        (0..text.len().saturating_sub(1)).filter(|at| begins[start(&text[*at..])]).find_map(|at| {
            let found = self.forms.iter().find(|(_, form)| text[at..].starts_with(form));
            found.map(|(name, _)| name.as_str())
        })
    }

    fn are_not_in(&self, what: &str, text: &[u8]) {
        if let Some(name) = self.find(text) {
            panic!("{name} stands in {what}");
        }
    }

    /// Looks everywhere but in memory.
    async fn are_nowhere(&self, gateway: &Gateway, data_dir: &Path, config: &Path) {
        for (what, text) in written(gateway, data_dir, config).await {
            self.are_not_in(&what, &text);
        }
    }
}

/// All that a gateway has written down or tells whoever asks, each with where it stands.
async fn written(gateway: &Gateway, data_dir: &Path, config: &Path) -> Vec<(String, Vec<u8>)> {
    let mut written = Vec::new();
    for file in files(data_dir) {
        // A write-ahead log may go at any moment.
        if let Ok(bytes) = fs::read(&file) {
            written.push((file.display().to_string(), bytes));
        }
    }
    written.push(("the log".to_owned(), gateway.log().join("\n").into_bytes()));
    for path in ["/metrics", "/status", "/health", "/peers", "/topics", "/plugins"] {
        let answer = http::get(&gateway.admin, path).await;
        written.push((path.to_owned(), answer.body.into_bytes()));
    }
    let mut show = Command::new(GATEWAY);
    for required in ["NOSTR_GATEWAY_REQUIRE_KEYRING", "NOSTR_GATEWAY_REQUIRE_NETNS"] {
        show.env_remove(required);
    }
    show.arg("--config").arg(config).arg("--data-dir").arg(data_dir).args(["config", "show"]);
    let show = show.output().unwrap();
    assert!(show.status.success(), "{show:?}");
    written.push(("config show".to_owned(), show.stdout));
    written
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

/// A private topic whose secret is gone is there no more, and not forgotten either: it says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_secret_is_gone_has_failed_and_says_why() {
    let state = r#"nostr_gateway_topic_state{topic="den",state="failed""#;
    let mut gateway = builder("memory").topics(&[]).start().await;
    gateway.command(&["topic", "create", "den", "--private"]).await.succeeded();
    assert_eq!(gateway.metric(state).await, 0);
    gateway.interrupt().await;
    let mut gateway = gateway.restart().await;
    let why = "its secret is not in the secret store any more";
    let topic = gateway.topic_status("den").await;
    assert_eq!((&topic["state"], &topic["reason"]), (&json!("failed"), &json!(why)), "{topic}");
    assert_eq!((&topic["private"], &topic["neighbors"]), (&json!(true), &json!([])), "{topic}");
    assert_eq!(gateway.metric(state).await, 1);
    for command in [&["topic", "list"][..], &["topic", "show", "den"], &["status"]] {
        let told = gateway.command(command).await;
        assert!(told.stdout.contains(&format!("failed: {why}")), "{told:?}");
    }
    // Nothing else can be done with it than to leave it.
    for command in [&["topic", "sync", "den"][..], &["topic", "invite", "den"]] {
        gateway.command(command).await.refuses(1, &["not in the topic"]);
    }
    gateway.command(&["topic", "leave", "den", "--forget-admin-key"]).await.succeeded();
    let topics = gateway.status().await["topics"].clone();
    assert_eq!(topics, json!([]));
    assert_eq!(gateway.metric(state).await, 0);
    gateway.interrupt().await;
    assert_eq!(gateway.restart().await.status().await["topics"], json!([]));
}

/// A gateway joins by an invite and is let in.
async fn joins(gateway: &Gateway, invite: &str) {
    gateway.command(&["topic", "join", invite]).await.succeeded();
    eventually("a member lets it in", SOON, async || (epoch(gateway).await > 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_of_a_private_topic_is_written_down() {
    let _alone = alone().await;
    let dht = Testnet::on_loopback(DHT_TESTNET).await;
    let builders = [(); 2].map(|()| builder("file").dht(&dht));
    let keys = builders.each_ref().map(LeftKey::write);
    let [a, b] = builders.clone();
    let (a, b) = (a.start().await, b.start().await);
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    let first = invite(&a, false).await;
    joins(&b, &first).await;
    let mut all = notes(3, "before");
    publish(&a, &all).await;
    becomes(&b, &all).await;
    // One that nobody uses, and one that is refused.
    let unused = invite(&a, true).await;
    let mistyped =
        format!("{}{}", &first[..first.len() - 1], if first.ends_with('q') { 'p' } else { 'q' });
    b.command(&["topic", "join", &mistyped]).await.refuses(2, &["mistyped"]);
    a.command(&["topic", "rotate", "den", "--grace", "1s"]).await.succeeded();
    reaches_epoch(&b, 2).await;
    let second = invite(&a, false).await;
    let exported = a.command(&["topic", "export-admin", "den"]).await.stdout.trim().to_owned();
    b.command(&["topic", "import-admin", &exported]).await.succeeded();
    let more = notes(3, "after");
    publish(&b, &more).await;
    all.extend(more);
    becomes(&a, &all).await;

    let mut sought = Sought::default();
    for text in [&first, &unused, &second] {
        sought.epoch(&Invite::parse(text).unwrap());
        sought.text("an invite", text);
    }
    sought.text("a mistyped invite", &mistyped);
    let admin = AdminKey::parse(&exported).unwrap();
    sought.bytes("the admin's key", &admin.key.to_bytes());
    sought.text("the admin's key, as printed", &exported);
    for key in &keys {
        sought.bytes("the endpoint's key", &key.bytes);
    }
    // What is no secret is found by the same search: it looks where things stand.
    let (mut open, mut roster) = (Sought::default(), Sought::default());
    open.text("an endpoint id", &a.endpoint);
    roster.bytes("the admin's public key", &admin.topic().admin);
    let mut gateways = [(a, &builders[0]), (b, &builders[1])];
    for (gateway, builder) in &gateways {
        let (data_dir, config) = (builder.data_dir(), builder.config_file());
        let written = written(gateway, &data_dir, &config).await;
        let has = |sought: &Sought, what: &str| {
            let mut places = written.iter().filter(|(place, _)| place.contains(what));
            places.any(|(_, text)| sought.find(text).is_some())
        };
        for what in ["the log", "/status", "/peers"] {
            assert!(has(&open, what), "{what}");
        }
        assert!(has(&roster, "gateway.db"), "the roster is in the database");
        assert!(written.iter().any(|(place, _)| place.ends_with("search.db")));
        assert!(gateway.log().iter().any(|line| line.contains("TRACE")), "the log tells all");
        for (place, text) in &written {
            sought.are_not_in(place, text);
        }
    }
    // What an orderly end leaves, and what the next start reads.
    for (gateway, _) in &mut gateways {
        assert!(gateway.interrupt().await.success());
    }
    for (gateway, builder) in gateways {
        let gateway = gateway.restart().await;
        assert_eq!(epoch(&gateway).await, 2);
        sought.are_nowhere(&gateway, &builder.data_dir(), &builder.config_file()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyring_holds_the_secrets_of_a_private_topic() {
    let scenario = "the_keyring_holds_the_secrets_of_a_private_topic";
    let Some(keyring) = Keyring::available(scenario) else { return };
    let _alone = alone().await;
    let dht = Testnet::on_loopback(DHT_TESTNET).await;
    let session = keyring.unlocked().await;
    let builders = [(); 2]
        .map(|()| session.for_gateway(builder("keyring").dht(&dht)).env("RUST_LOG", "debug"));
    let [a, b] = builders.clone();
    let (mut a, mut b) = (a.start().await, b.start().await);
    let entries = || session.entries("nostr-gateway");
    assert_eq!(entries(), 2, "the identities");
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    joins(&b, &invite(&a, false).await).await;
    assert_eq!(entries(), 4);
    let mut all = notes(3, "before");
    publish(&a, &all).await;
    becomes(&b, &all).await;
    a.command(&["topic", "rotate", "den", "--grace", "0s"]).await.succeeded();
    reaches_epoch(&b, 2).await;

    // Both crash, and have nothing but their disks and the keyring.
    a.kill9().await;
    b.kill9().await;
    let (a, b) = (a.restart().await, b.restart().await);
    for gateway in [&a, &b] {
        rests_in(gateway, "keyring").await;
        assert_eq!(epoch(gateway).await, 2);
        becomes(gateway, &all).await;
    }
    let more = notes(2, "after the crash");
    publish(&b, &more).await;
    all.extend(more);
    becomes(&a, &all).await;
    for builder in &builders {
        assert_eq!(secret_files(builder), ["keyring.json"]);
    }
    let index = |builder: &GatewayBuilder| {
        fs::read_to_string(builder.data_dir().join("keyring.json")).unwrap()
    };
    let mut sought = Sought::default();
    sought.epoch(&Invite::parse(&invite(&a, true).await).unwrap());
    for (gateway, builder) in [(&a, &builders[0]), (&b, &builders[1])] {
        assert!(index(builder).contains("topic/"));
        sought.are_nowhere(gateway, &builder.data_dir(), &builder.config_file()).await;
    }
    sought.are_not_in("the keyring's files", &keyring.files());

    // Whoever leaves takes its entry along.
    b.command(&["topic", "leave", "den"]).await.succeeded();
    assert_eq!(entries(), 3);
    a.command(&["topic", "leave", "den", "--forget-admin-key"]).await.succeeded();
    assert_eq!(entries(), 2, "the identities are left");
    for builder in &builders {
        assert!(!index(builder).contains("topic/"), "{}", index(builder));
    }
}
