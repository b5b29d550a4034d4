//! `grants.toml` in the data directory: what the operator allows each plugin.
//!
//! It stands there and not with the plugins, so that what comes in a plugin's folder cannot grant
//! itself anything.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::manifest::{self, Capability, MAX_BYTES};

/// The file's name in the data directory.
pub const FILE_NAME: &str = "grants.toml";

/// What stands above the entries.
const HEAD: &str = "\
# What plugins may use beside log, config and clock, which every plugin has that lists them; and which
# plugins are switched off. `nostr-gateway plugin` writes this file anew; it may also be edited, and
# counts from then on.
";

/// The grants of all plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Granted {
    plugins: BTreeMap<String, OfPlugin>,
    /// Whatever a manifest lists counts as granted.
    #[serde(skip)]
    is_everything: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OfPlugin {
    grant: Vec<Capability>,
    enabled: bool,
}

impl Default for OfPlugin {
    fn default() -> Self {
        Self { grant: Vec::new(), enabled: true }
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GrantedError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {why}", path.display())]
    Wrong { path: PathBuf, why: String },
    #[error("{} cannot be written: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
}

impl Granted {
    /// Whatever a manifest lists counts as granted.
    pub fn everything() -> Self {
        Self { is_everything: true, ..Self::default() }
    }

    /// The file of a data directory; without one nothing is granted.
    ///
    /// # Errors
    /// When it is there and cannot be understood.
    pub fn read(data_dir: &Path) -> Result<Self, GrantedError> {
        let path = data_dir.join(FILE_NAME);
        let bytes = match manifest::read_bounded(&path, MAX_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(GrantedError::Read { path, error }),
            Ok(bytes) => bytes,
        };
        let wrong = |why: String| GrantedError::Wrong { path: path.clone(), why };
        let bytes = bytes.ok_or_else(|| wrong(format!("it is larger than {MAX_BYTES} bytes")))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
        toml_edit::de::from_str(text)
            .map_err(|error| wrong(manifest::described(&error, text).to_string()))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub fn write(&self, data_dir: &Path) -> Result<(), GrantedError> {
        let path = data_dir.join(FILE_NAME);
        let draft = data_dir.join(format!("{FILE_NAME}.new"));
        let written = fs::write(&draft, self.text())
            .and_then(|()| super::install::give_to_owner_of(data_dir, &draft))
            .and_then(|()| fs::rename(&draft, &path));
        written.map_err(|error| GrantedError::Write { path, error })
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (id, of) in &self.plugins {
            // An id, or a folder's name as TOML writes texts; JSON's are among them.
            let id = serde_json::Value::from(id.as_str());
            let _ = writeln!(text, "\n[{id}]");
            if !of.grant.is_empty() {
                let names: Vec<_> = of.grant.iter().map(|c| format!("{:?}", c.name())).collect();
                let _ = writeln!(text, "grant = [{}]", names.join(", "));
            }
            if !of.enabled {
                let _ = writeln!(text, "enabled = false");
            }
        }
        text
    }

    /// Whether the operator lets it run.
    pub fn is_enabled(&self, id: &str) -> bool {
        self.plugins.get(id).is_none_or(|of| of.enabled)
    }

    /// What of these the plugin may not use.
    pub fn missing(&self, id: &str, wanted: &[Capability]) -> Vec<Capability> {
        let granted = self.plugins.get(id).map(|of| of.grant.as_slice()).unwrap_or_default();
        let mut missing = Vec::new();
        for capability in wanted {
            let has =
                self.is_everything || is_harmless(*capability) || granted.contains(capability);
            if !has && !missing.contains(capability) {
                missing.push(*capability);
            }
        }
        missing
    }

    /// What was granted, beside what every plugin has.
    pub fn of(&self, id: &str) -> &[Capability] {
        self.plugins.get(id).map(|of| of.grant.as_slice()).unwrap_or_default()
    }

    /// Allows a plugin these, beside what it may use already.
    pub fn allow(&mut self, id: &str, capabilities: &[Capability]) {
        let of = self.plugins.entry(id.to_owned()).or_default();
        for capability in capabilities {
            if !is_harmless(*capability) && !of.grant.contains(capability) {
                of.grant.push(*capability);
            }
        }
        self.tidy(id);
    }

    /// Switches a plugin on or off.
    pub fn enable(&mut self, id: &str, enabled: bool) {
        self.plugins.entry(id.to_owned()).or_default().enabled = enabled;
        self.tidy(id);
    }

    /// Takes back everything said about a plugin.
    pub fn forget(&mut self, id: &str) {
        self.plugins.remove(id);
    }

    fn tidy(&mut self, id: &str) {
        if self.plugins.get(id) == Some(&OfPlugin::default()) {
            self.plugins.remove(id);
        }
    }
}

/// What any plugin may do that lists it: lines in the log, as many as the host lets through; its own
/// configuration; the time.
pub const fn is_harmless(capability: Capability) -> bool {
    matches!(capability, Capability::Log | Capability::Config | Capability::Clock)
}

/// Capabilities as `--grant` takes them.
pub fn listed(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(|capability| capability.name()).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_harmless_needs_no_grant() {
        let granted = Granted::default();
        let harmless = [Capability::Log, Capability::Config, Capability::Clock];
        assert!(granted.missing("a", &harmless).is_empty());
        assert!(granted.is_enabled("a"));
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Granted::read(dir.path()).unwrap(), Granted::default());
        let mut granted = Granted::default();
        granted.enable("off", false);
        granted.enable("on", false);
        granted.enable("on", true);
        granted.enable("a \"folder\"\n", false);
        granted.write(dir.path()).unwrap();
        let read = Granted::read(dir.path()).unwrap();
        assert_eq!(read, granted);
        assert!(!read.is_enabled("off") && read.is_enabled("on"));
        assert!(!read.is_enabled("a \"folder\"\n"));
        let mut none = read;
        none.forget("off");
        assert!(none.is_enabled("off"));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "[a]\ngrant = [\"everything\"]\n").unwrap();
        let error = Granted::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("grants.toml: line 2: unknown variant `everything`"), "{error}");
        fs::write(dir.path().join(FILE_NAME), "[a]\nallow = 1\n").unwrap();
        assert!(Granted::read(dir.path()).is_err());
    }
}
