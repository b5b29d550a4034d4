//! `plugin.toml`: what a plugin is, what it applies to and what it may use.

mod check;
mod limits;
mod scope;
#[cfg(test)]
mod tests;
mod world;

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use serde::Deserialize;

pub use check::is_id;
pub use limits::LimitsOfCall;
pub use scope::{AppliesTo, OnFailure, OriginKind, Way};
pub use world::{Capability, World};

/// The manifest's name in a plugin's folder.
pub const FILE_NAME: &str = "plugin.toml";

/// The largest manifest, in bytes; a list of some thousand public keys fits.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// A plugin's manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Lowercase letters, digits and `-`, at most 64; unique in the directory.
    pub id: String,
    /// A semantic version, for people.
    pub version: String,
    pub world: World,
    /// The component, beside the manifest. Empty when there is a program instead.
    #[serde(default)]
    pub file: String,
    /// In place of a component, a program that runs outside of the sandbox, and its arguments. Empty
    /// when there is a component.
    #[serde(default)]
    pub program: Vec<String>,
    /// Plugins with a lower order are asked first; among equals the id decides.
    #[serde(default)]
    pub order: i32,
    #[serde(default)]
    pub applies_to: AppliesTo,
    /// What the plugin may use. Nothing else is linked. A program's is [`Capability::Program`], which
    /// its manifest need not list.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// What it also uses if that is granted, and runs without.
    #[serde(default)]
    pub optional_capabilities: Vec<Capability>,
    #[serde(default = "LimitsOfCall::unsaid")]
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
        let mut manifest: Self =
            toml_edit::de::from_str(text).map_err(|error| described(&error, text))?;
        manifest.limits.complete(manifest.is_program());
        manifest.check()?;
        if manifest.is_program() {
            manifest.capabilities = vec![Capability::Program];
        }
        Ok(manifest)
    }

    /// Whether it is a program outside of the sandbox.
    pub fn is_program(&self) -> bool {
        !self.program.is_empty()
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

/// Names the line of a mistake in a TOML text.
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
