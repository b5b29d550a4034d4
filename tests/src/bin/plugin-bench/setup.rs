//! Gateways with plugins.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nostr_gateway_tests::{Gateway, GatewayBuilder, http};
use sha2::{Digest, Sha256};

/// What a client may do as much of as it likes.
const UNLIMITED: [&str; 5] = [
    "messages_per_s",
    "bytes_per_s",
    "messages_per_s_per_ip",
    "bytes_per_s_per_ip",
    "events_per_minute_per_ip",
];

/// What all rows need.
#[derive(Clone)]
pub struct Setup {
    pub gateway: PathBuf,
    pub plugin: Option<PathBuf>,
    pub quick: bool,
}

impl Setup {
    /// The first when everything is measured, the second in a quick run.
    pub fn or<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A gateway without plugins.
    pub fn builder(&self) -> GatewayBuilder {
        let builder = GatewayBuilder::new(self.gateway.to_str().unwrap(), "A")
            .topics(&["town"])
            .set("topics", "default", r#"["town"]"#)
            .env("RUST_LOG", "warn");
        UNLIMITED.iter().fold(builder, |builder, rate| builder.set("rates", rate, "0"))
    }
}

pub fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")
}

/// The manifest of the fixture that does what an event's content says.
pub fn fixture_manifest(id: &str, more: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"fixtures.wasm\"\n\
         capabilities = [\"log\", \"config\", \"clock\"]\n{more}"
    )
}

/// Installs it. Returns where its manifest is.
pub fn fixture(builder: &GatewayBuilder, id: &str, more: &str) -> PathBuf {
    let folder = builder.plugin_folder(id);
    fs::copy(plugins().join("fixtures/fixtures.wasm"), folder.join("fixtures.wasm")).unwrap();
    let manifest = folder.join("plugin.toml");
    fs::write(&manifest, fixture_manifest(id, more)).unwrap();
    manifest
}

/// Installs the fixture that uses `kv` and `lookup`, with both granted.
pub fn store_fixture(builder: &GatewayBuilder, id: &str, more: &str) {
    let folder = builder.plugin_folder(id);
    let component = "fixtures-store.wasm";
    fs::copy(plugins().join("fixtures-store").join(component), folder.join(component)).unwrap();
    let manifest = format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"{component}\"\n\
         capabilities = [\"log\", \"kv\", \"lookup\"]\n{more}"
    );
    fs::write(folder.join("plugin.toml"), manifest).unwrap();
    let grants = format!("[{id}]\ngrant = [\"kv\", \"lookup\"]\n");
    fs::write(builder.data_dir().join("grants.toml"), grants).unwrap();
}

/// Installs the shipped blocklist under an id, with lists that match nobody.
pub fn blocklist(builder: &GatewayBuilder, id: &str, authors: usize, words: usize) {
    let folder = builder.plugin_folder(id);
    let component = "blocklist.wasm";
    fs::copy(plugins().join("blocklist").join(component), folder.join(component)).unwrap();
    let key = |n: usize| {
        let digest: String =
            Sha256::digest(n.to_be_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{digest:?}")
    };
    let authors: Vec<_> = (0..authors).map(key).collect();
    let words: Vec<_> = (0..words).map(|n| format!("\"casino number {n}\"")).collect();
    let manifest = format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"{component}\"\n\
         capabilities = [\"log\", \"config\"]\noptional_capabilities = [\"lookup\"]\n\
         [config]\nauthors = [{}]\nwords = [{}]\n",
        authors.join(", "),
        words.join(", ")
    );
    fs::write(folder.join("plugin.toml"), manifest).unwrap();
}

/// Installs a copy of a folder with a plugin. Returns its id.
pub fn copied(builder: &GatewayBuilder, from: &Path) -> String {
    let manifest = fs::read_to_string(from.join("plugin.toml")).unwrap();
    let id = manifest.lines().find_map(|line| line.strip_prefix("id = ")).unwrap();
    let id = id.trim_matches('"').to_owned();
    let folder = builder.plugin_folder(&id);
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    id
}

/// How long the calls of a plugin took, from the gateway's own figures.
pub struct Calls {
    /// Upper bound in seconds, and how many calls took no longer.
    buckets: Vec<(f64, f64)>,
    seconds: f64,
}

impl Calls {
    pub async fn of(gateway: &Gateway, id: &str) -> Self {
        let text = http::get(&gateway.admin, "/metrics").await.body;
        let plugin = format!("plugin=\"{id}\"");
        let name = "nostr_gateway_plugin_call_seconds";
        let mine = || text.lines().filter(|line| line.starts_with(name) && line.contains(&plugin));
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        let bound = |line: &str| {
            let after = line.split_once("le=\"")?.1;
            let bound = after.split('"').next()?;
            Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, value(line)))
        };
        let sum = mine().find(|line| line.starts_with(&format!("{name}_sum"))).map(value);
        Self { buckets: mine().filter_map(bound).collect(), seconds: sum.unwrap() }
    }

    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    pub fn mean_us(&self) -> f64 {
        self.seconds / self.count() * 1e6
    }

    /// So many microseconds, or fewer, took this share of the calls.
    pub fn at_most_us(&self, share: f64) -> f64 {
        let wanted = self.count() * share;
        self.buckets.iter().find(|(_, count)| *count >= wanted).unwrap().0 * 1e6
    }
}
