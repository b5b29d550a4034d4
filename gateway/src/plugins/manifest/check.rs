//! What a manifest may say.

use super::{Capability, LimitsOfCall, Manifest, ManifestError, World, limits, scope::Way};

/// The most arguments of a program, itself included, and the longest.
const MAX_ARGUMENTS: usize = 64;
const MAX_ARGUMENT_BYTES: usize = 4_096;

type Checked = Result<(), ManifestError>;

fn wrong<T>(key: &'static str, message: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Value { key, message: message.into() })
}

impl Manifest {
    pub(super) fn check(&self) -> Checked {
        if !is_id(&self.id) {
            return wrong(
                "id",
                "want 1 to 64 lowercase letters, digits and hyphens, and a letter first",
            );
        }
        if semver::Version::parse(&self.version).is_err() {
            return wrong("version", "want a semantic version such as 1.0.0");
        }
        if self.applies_to.directions.is_empty() {
            return wrong(
                "applies_to.directions",
                "want at least one of \"in\", \"to-topics\", \"to-upstream\"",
            );
        }
        if self.is_program() { self.check_program() } else { self.check_component() }
    }

    fn check_component(&self) -> Checked {
        let schema = self.config_schema.as_deref().map(|name| ("config_schema", name));
        for (key, name) in [("file", self.file.as_str())].into_iter().chain(schema) {
            if name.is_empty() || name.contains(['/', '\\', '\0']) || name == ".." {
                return wrong(key, "want the name of a file in the plugin's own folder");
            }
        }
        let limits = &self.limits;
        between("limits.time_ms", limits.time_ms, &limits::TIME_MS)?;
        between("limits.memory_mib", limits.memory_mib, &limits::MEMORY_MIB)?;
        between("limits.output_bytes", limits.output_bytes, &limits::OUTPUT_BYTES)?;
        between("limits.kv_bytes", limits.kv_bytes, &limits::KV_BYTES)?;
        between("limits.kv_keys", limits.kv_keys, &limits::KV_KEYS)?;
        if self.world != World::EventFilter && self.applies_to.directions != [Way::In] {
            let world = self.world.name();
            return wrong(
                "applies_to.directions",
                format!("a plugin of the world {world} judges nothing on its way out"),
            );
        }
        if self.linked().contains(&Capability::Program) {
            return wrong("capabilities", "\"program\" is what only a program has");
        }
        let is_pure =
            |capability: &Capability| matches!(capability, Capability::Log | Capability::Config);
        if self.world == World::SecretRotation && !self.linked().iter().all(is_pure) {
            return wrong(
                "capabilities",
                "a plugin of the world secret-rotation may have \"log\" and \"config\" only",
            );
        }
        if !self.config.is_empty() && !self.capabilities.contains(&Capability::Config) {
            return wrong(
                "config",
                "the plugin cannot see this without \"config\" in capabilities",
            );
        }
        Ok(())
    }

    /// What speaks strfry's protocol is told of new events, and nothing else.
    fn check_program(&self) -> Checked {
        if !self.file.is_empty() {
            return wrong("program", "want either this or file, a component");
        }
        if self.world != World::EventFilter {
            return wrong("world", "a program is an event-filter");
        }
        let is_right =
            |argument: &String| argument.len() <= MAX_ARGUMENT_BYTES && !argument.contains('\0');
        if self.program.len() > MAX_ARGUMENTS
            || self.program.first().is_some_and(String::is_empty)
            || !self.program.iter().all(is_right)
        {
            return wrong(
                "program",
                format!(
                    "want a program and its arguments, at most {MAX_ARGUMENTS} of at most \
                     {MAX_ARGUMENT_BYTES} bytes"
                ),
            );
        }
        let others = |capability: &Capability| *capability != Capability::Program;
        if self.linked().iter().any(others) || !self.optional_capabilities.is_empty() {
            return wrong(
                "capabilities",
                "a program has none of the sandbox's; it may do anything",
            );
        }
        if !self.config.is_empty() || self.config_schema.is_some() {
            return wrong(
                "config",
                "a program is not told this; give it arguments, or a file in its folder",
            );
        }
        if self.applies_to.directions != [Way::In] {
            return wrong("applies_to.directions", "a program judges nothing on its way out");
        }
        let limits = &self.limits;
        between("limits.time_ms", limits.time_ms, &limits::PROGRAM_TIME_MS)?;
        between("limits.output_bytes", limits.output_bytes, &limits::OUTPUT_BYTES)?;
        let (time_ms, output_bytes) = (limits.time_ms, limits.output_bytes);
        if *limits != (LimitsOfCall { time_ms, output_bytes, ..LimitsOfCall::default() }) {
            return wrong("limits", "of a program only time_ms and output_bytes are bounded");
        }
        Ok(())
    }
}

fn between(key: &'static str, value: u64, range: &std::ops::RangeInclusive<u64>) -> Checked {
    if range.contains(&value) {
        return Ok(());
    }
    wrong(key, format!("{value} is not between {} and {}", range.start(), range.end()))
}

/// Whether it can be a plugin's id.
pub fn is_id(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
