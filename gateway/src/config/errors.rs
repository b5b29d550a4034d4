//! What can be wrong with a configuration, and how it is said.

use std::fmt;

/// One thing that is wrong, before it is known who set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `relay.listen`, `upstream[0].urls[1]`.
    pub key: String,
    /// A sentence that continues after the key and a colon.
    pub text: String,
    /// Another key that takes part in it.
    pub with: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { key: key.into(), text: text.into(), with: None }
    }

    pub(super) fn with(mut self, key: &'static str) -> Self {
        self.with = Some(key);
        self
    }

    pub(super) fn involved(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.key.as_str()).chain(self.with)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// One line about something that has to be put right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// Where to put it right: a file (with a line, if one can be told), a variable, a flag.
    pub place: String,
    pub line: usize,
    pub message: String,
}

impl ConfigError {
    pub(super) fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), line: 0, message: message.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.message),
            line => write!(f, "{}:{line}: {}", self.place, self.message),
        }
    }
}

/// Everything that is wrong with a configuration, one line each, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<ConfigError>);

impl ConfigErrors {
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}
