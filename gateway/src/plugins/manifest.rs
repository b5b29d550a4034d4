//! `plugin.toml`: what a plugin is, what it applies to and what it may use.

use std::{collections::BTreeMap, fs::File, io::Read, ops::RangeInclusive, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    pipeline::{Direction, Origin},
    protocol::TopicName,
};

/// The manifest's name in a plugin's folder.
pub const FILE_NAME: &str = "plugin.toml";

/// The largest manifest, in bytes; a list of some thousand public keys fits.
pub const MAX_BYTES: u64 = 1024 * 1024;

const TIME_MS: RangeInclusive<u64> = 1..=5_000;
const MEMORY_MIB: RangeInclusive<u64> = 1..=1_024;
const OUTPUT_BYTES: RangeInclusive<u64> = 4_096..=16_777_216;
const KV_BYTES: RangeInclusive<u64> = 1_024..=67_108_864;
const KV_KEYS: RangeInclusive<u64> = 1..=1_000_000;

/// A plugin's manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Lowercase letters, digits and `-`, at most 64; unique in the directory.
    pub id: String,
    /// A semantic version, for people.
    pub version: String,
    pub world: World,
    /// The component, beside the manifest.
    pub file: String,
    /// Plugins with a lower order are asked first; among equals the id decides.
    #[serde(default)]
    pub order: i32,
    #[serde(default)]
    pub applies_to: AppliesTo,
    /// What the plugin may use. Nothing else is linked.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// What it also uses if that is granted, and runs without.
    #[serde(default)]
    pub optional_capabilities: Vec<Capability>,
    #[serde(default)]
    pub limits: LimitsOfCall,
    #[serde(default)]
    pub on_failure: OnFailure,
    /// The JSON schema of `config`, beside the manifest.
    #[serde(default)]
    pub config_schema: Option<String>,
    /// Handed to the plugin as it is, key by key.
    #[serde(default)]
    pub config: BTreeMap<String, serde_json::Value>,
}

/// What kind of plugin it is: the world its component implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum World {
    #[serde(rename = "event-filter")]
    EventFilter,
    #[serde(rename = "topic-policy")]
    TopicPolicy,
    #[serde(rename = "secret-rotation")]
    SecretRotation,
}

impl World {
    /// Whether a plugin of it is asked about events.
    pub const fn judges_events(self) -> bool {
        matches!(self, Self::EventFilter | Self::TopicPolicy)
    }

    /// The name, in manifests and in `wit/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventFilter => "event-filter",
            Self::TopicPolicy => "topic-policy",
            Self::SecretRotation => "secret-rotation",
        }
    }
}

/// An interface of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    Log,
    Config,
    Clock,
    Kv,
    Lookup,
}

impl Capability {
    /// Every one, in the order in which they are told.
    pub const ALL: &[Self] = &[Self::Log, Self::Config, Self::Clock, Self::Kv, Self::Lookup];

    /// The name, in manifests and of the interface in `wit/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Config => "config",
            Self::Clock => "clock",
            Self::Kv => "kv",
            Self::Lookup => "lookup",
        }
    }

    /// The capability with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name)
    }
}

/// What happens to an event on which the plugin failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is refused.
    #[default]
    Stop,
    /// It goes on to the next plugin.
    Pass,
}

/// `[applies_to]`: the events the plugin is asked about. An empty list is no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AppliesTo {
    /// Never empty.
    pub directions: Vec<Way>,
    pub origins: Vec<OriginKind>,
    pub kinds: Vec<u16>,
    /// One of the event's topics must be listed.
    pub topics: Vec<TopicName>,
}

impl Default for AppliesTo {
    fn default() -> Self {
        let (origins, kinds, topics) = (Vec::new(), Vec::new(), Vec::new());
        Self { directions: vec![Way::In], origins, kinds, topics }
    }
}

/// A kind of [`Direction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    In,
    ToTopics,
    ToUpstream,
}

impl From<Direction<'_>> for Way {
    fn from(direction: Direction<'_>) -> Self {
        match direction {
            Direction::In => Self::In,
            Direction::ToTopics => Self::ToTopics,
            Direction::ToUpstream(_) => Self::ToUpstream,
        }
    }
}

/// A kind of [`Origin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OriginKind {
    Client,
    Gossip,
    Fetch,
    Import,
    Upstream,
}

impl From<&Origin> for OriginKind {
    fn from(origin: &Origin) -> Self {
        match origin {
            Origin::Client { .. } => Self::Client,
            Origin::Gossip { .. } => Self::Gossip,
            Origin::Fetch { .. } | Origin::Sync { .. } => Self::Fetch,
            Origin::Import => Self::Import,
            Origin::Upstream { .. } => Self::Upstream,
        }
    }
}

impl AppliesTo {
    /// Whether the plugin is to be asked about such an event.
    pub fn covers(
        &self,
        direction: Direction<'_>,
        kind: u16,
        origin: &Origin,
        topics: &[TopicName],
    ) -> bool {
        self.directions.contains(&direction.into())
            && (self.origins.is_empty() || self.origins.contains(&origin.into()))
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && (self.topics.is_empty() || topics.iter().any(|topic| self.topics.contains(topic)))
    }
}

/// `[limits]`: what one instance may take. There is one instance per worker thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsOfCall {
    /// The longest call, in milliseconds that its thread runs.
    pub time_ms: u64,
    /// The linear memory, in MiB.
    pub memory_mib: u64,
    /// The most a plugin may hand to the host in one go — its verdict, one log message — in bytes.
    pub output_bytes: u64,
    /// What it may remember, all instances together: bytes, and keys.
    pub kv_bytes: u64,
    pub kv_keys: u64,
}

impl Default for LimitsOfCall {
    fn default() -> Self {
        Self {
            time_ms: 50,
            memory_mib: 64,
            output_bytes: 262_144,
            kv_bytes: 1_048_576,
            kv_keys: 10_000,
        }
    }
}

/// What is wrong with a manifest. The text stands after the file's name.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is not UTF-8 text")]
    Encoding,
    #[error("{0}")]
    Missing(String),
    #[error("line {line}: {message}")]
    Line { line: usize, message: String },
    #[error("{key}: {message}")]
    Value { key: &'static str, message: String },
}

impl Manifest {
    /// Reads a manifest from a file.
    ///
    /// # Errors
    /// When the file is unreadable, larger than [`MAX_BYTES`] or says something that is not allowed.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        Self::parse(&Self::read_text(path)?)
    }

    /// Reads a manifest's text.
    ///
    /// # Errors
    /// When the file is unreadable, larger than [`MAX_BYTES`] or not text.
    pub fn read_text(path: &Path) -> Result<String, ManifestError> {
        let bytes = read_bounded(path, MAX_BYTES)?.ok_or(ManifestError::TooLarge)?;
        String::from_utf8(bytes).map_err(|_| ManifestError::Encoding)
    }

    /// Reads a manifest from its text.
    ///
    /// # Errors
    /// Names the line or the key, and what is allowed there.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self =
            toml_edit::de::from_str(text).map_err(|error| described(&error, text))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What its component may import.
    pub fn linked(&self) -> Vec<Capability> {
        [self.capabilities.as_slice(), &self.optional_capabilities].concat()
    }

    /// The values of `[config]` as the plugin sees them: JSON texts.
    pub fn config_json(&self) -> BTreeMap<String, String> {
        let json = |(key, value): (&String, &serde_json::Value)| {
            (key.clone(), plain_dates(value.clone()).to_string())
        };
        self.config.iter().map(json).collect()
    }

    /// `[config]` as one JSON object.
    pub fn config_values(&self) -> serde_json::Value {
        let values = self.config.iter();
        values.map(|(key, value)| (key.clone(), plain_dates(value.clone()))).collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        let wrong = |key, message| Err(ManifestError::Value { key, message });
        if !is_id(&self.id) {
            return wrong(
                "id",
                "want 1 to 64 lowercase letters, digits and hyphens, and a letter first".to_owned(),
            );
        }
        if semver::Version::parse(&self.version).is_err() {
            return wrong("version", "want a semantic version such as 1.0.0".to_owned());
        }
        let schema = self.config_schema.as_deref().map(|name| ("config_schema", name));
        for (key, name) in [("file", self.file.as_str())].into_iter().chain(schema) {
            if name.is_empty() || name.contains(['/', '\\', '\0']) || name == ".." {
                return wrong(key, "want the name of a file in the plugin's own folder".to_owned());
            }
        }
        let limits = &self.limits;
        for (key, value, range) in [
            ("limits.time_ms", limits.time_ms, TIME_MS),
            ("limits.memory_mib", limits.memory_mib, MEMORY_MIB),
            ("limits.output_bytes", limits.output_bytes, OUTPUT_BYTES),
            ("limits.kv_bytes", limits.kv_bytes, KV_BYTES),
            ("limits.kv_keys", limits.kv_keys, KV_KEYS),
        ] {
            if !range.contains(&value) {
                let (least, most) = range.into_inner();
                return wrong(key, format!("{value} is not between {least} and {most}"));
            }
        }
        let directions = &self.applies_to.directions;
        if directions.is_empty() {
            return wrong(
                "applies_to.directions",
                "want at least one of \"in\", \"to-topics\", \"to-upstream\"".to_owned(),
            );
        }
        if self.world != World::EventFilter && directions != &[Way::In] {
            return wrong(
                "applies_to.directions",
                format!(
                    "a plugin of the world {} judges nothing on its way out",
                    self.world.name()
                ),
            );
        }
        let is_pure =
            |capability: &Capability| matches!(capability, Capability::Log | Capability::Config);
        if self.world == World::SecretRotation && !self.capabilities.iter().all(is_pure) {
            return wrong(
                "capabilities",
                "a plugin of the world secret-rotation may have \"log\" and \"config\" only"
                    .to_owned(),
            );
        }
        if !self.config.is_empty() && !self.capabilities.contains(&Capability::Config) {
            return wrong(
                "config",
                "the plugin cannot see this without \"config\" in capabilities".to_owned(),
            );
        }
        Ok(())
    }
}

/// The whole file, or nothing when it is larger than `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> std::io::Result<Option<Vec<u8>>> {
    // Opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("that is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    let fits = u64::try_from(bytes.len()).is_ok_and(|length| length <= max);
    Ok(fits.then_some(bytes))
}

fn is_id(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub fn described(error: &toml_edit::de::Error, text: &str) -> ManifestError {
    let message = error.message().replace('\n', ", ");
    // A missing key has no line.
    if message.starts_with("missing field") {
        return ManifestError::Missing(message);
    }
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    ManifestError::Line { line: before.matches('\n').count() + 1, message }
}

/// TOML's dates have no JSON form of their own; the reader yields them as a table with one marked
/// key. Plugins see strings.
fn plain_dates(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    const MARK: &str = "$__toml_private_datetime";
    match value {
        Value::Object(mut table) => match table.remove(MARK) {
            Some(date) => date,
            None => table.into_iter().map(|(key, value)| (key, plain_dates(value))).collect(),
        },
        Value::Array(items) => items.into_iter().map(plain_dates).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
id = "a-1"
version = "1.0.0"
world = "event-filter"
file = "a.wasm"
"#;

    fn error(text: &str) -> String {
        Manifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let manifest = Manifest::parse(MINIMAL).unwrap();
        assert_eq!(manifest.order, 0);
        assert_eq!(manifest.on_failure, OnFailure::Stop);
        assert_eq!(manifest.limits, LimitsOfCall::default());
        assert!(manifest.capabilities.is_empty());
        let origin = Origin::Upstream { stream: "s".into(), url: "wss://example.com".into() };
        assert!(manifest.applies_to.covers(Direction::In, 1, &origin, &[]));
        assert!(!manifest.applies_to.covers(Direction::ToTopics, 1, &origin, &[]));
    }

    #[test]
    fn the_shipped_manifest_is_right() {
        let text = include_str!("../../../plugins/blocklist/plugin.toml");
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.id, "blocklist");
        assert_eq!(manifest.limits, LimitsOfCall::default());
    }

    #[test]
    fn an_error_names_line_or_key_and_what_is_allowed() {
        let with = |more: &str| error(&format!("{MINIMAL}{more}"));
        assert_eq!(error(""), "missing field `id`");
        assert_eq!(
            with("colour = 1"),
            "line 6: unknown field `colour`, expected one of `id`, `version`, `world`, `file`, \
             `order`, `applies_to`, `capabilities`, `optional_capabilities`, `limits`, `on_failure`, \
             `config_schema`, `config`"
        );
        assert_eq!(
            with("capabilities = [\"log\", \"net\"]"),
            "line 6: unknown variant `net`, expected one of `log`, `config`, `clock`, `kv`, \
             `lookup`"
        );
        assert_eq!(
            with("on_failure = \"ignore\""),
            "line 6: unknown variant `ignore`, expected `stop` or `pass`"
        );
        assert_eq!(
            with("[applies_to]\norigins = [\"relay\"]"),
            "line 7: unknown variant `relay`, expected one of `client`, `gossip`, `fetch`, \
             `upstream`"
        );
        assert_eq!(
            with("[applies_to]\nkinds = [70000]"),
            "line 7: invalid value: integer `70000`, expected u16"
        );
        assert_eq!(with("[applies_to]\ntopics = [\"\"]"), "line 7: a topic name must not be empty");
        assert_eq!(with("[limits]\ntime_ms = 0"), "limits.time_ms: 0 is not between 1 and 5000");
        assert_eq!(
            with("[limits]\nfuel = 3"),
            "line 7: unknown field `fuel`, expected one of `time_ms`, `memory_mib`, `output_bytes`, \
             `kv_bytes`, `kv_keys`"
        );
        assert_eq!(
            with("[applies_to]\ndirections = [\"out\"]"),
            "line 7: unknown variant `out`, expected one of `in`, `to-topics`, `to-upstream`"
        );
        assert_eq!(
            with("[applies_to]\ndirections = []"),
            "applies_to.directions: want at least one of \"in\", \"to-topics\", \"to-upstream\""
        );
        assert_eq!(
            with("[limits]\nkv_bytes = 3"),
            "limits.kv_bytes: 3 is not between 1024 and 67108864"
        );
        assert_eq!(
            with("[config]\nx = 1"),
            "config: the plugin cannot see this without \"config\" in capabilities"
        );
    }

    #[test]
    fn names_are_checked() {
        let replaced = |from: &str, to: &str| error(&MINIMAL.replace(from, to));
        assert_eq!(
            replaced("a-1", "../x"),
            "id: want 1 to 64 lowercase letters, digits and hyphens, and a letter first"
        );
        assert_eq!(
            replaced("a.wasm", "../a.wasm"),
            "file: want the name of a file in the plugin's own folder"
        );
        assert_eq!(replaced("1.0.0", "one"), "version: want a semantic version such as 1.0.0");
        assert_eq!(
            replaced("event-filter", "event-sink"),
            "line 4: unknown variant `event-sink`, expected one of `event-filter`, `topic-policy`, \
             `secret-rotation`"
        );
        let topics = "topic-policy\"\napplies_to.directions = [\"to-topics\"]\n#";
        assert_eq!(
            replaced("event-filter", topics),
            "applies_to.directions: a plugin of the world topic-policy judges nothing on its way out"
        );
        assert_eq!(
            replaced("event-filter", "secret-rotation\"\ncapabilities = [\"clock\"]\n#"),
            "capabilities: a plugin of the world secret-rotation may have \"log\" and \"config\" only"
        );
    }

    #[test]
    fn config_values_become_json() {
        let manifest = Manifest::parse(&format!(
            "{MINIMAL}capabilities = [\"config\"]\n[config]\nwords = [\"a\"]\nsince = 2026-01-02\n\
             nested.deep = 1.5"
        ))
        .unwrap();
        let json = manifest.config_json();
        assert_eq!(json["words"], r#"["a"]"#);
        assert_eq!(json["since"], r#""2026-01-02""#);
        assert_eq!(json["nested"], r#"{"deep":1.5}"#);
    }
}
