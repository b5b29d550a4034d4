//! Names of topics.

use std::{fmt, sync::Arc};

/// The longest name, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 128;

/// A topic's name: 1 to 128 bytes of UTF-8 without control characters or surrounding white space.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

/// Why a text is no topic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicNameError {
    #[error("a topic name must not be empty")]
    Empty,
    #[error("a topic name has at most {MAX_NAME_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    #[error("a topic name has no control characters and no white space at its ends")]
    Characters,
}

impl TopicName {
    pub fn new(name: &str) -> Result<Self, TopicNameError> {
        if name.is_empty() {
            return Err(TopicNameError::Empty);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(TopicNameError::TooLong(name.len()));
        }
        if name.trim() != name || name.chars().any(char::is_control) {
            return Err(TopicNameError::Characters);
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for TopicName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for TopicName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_clean() {
        assert!(TopicName::new("global").is_ok());
        assert!(TopicName::new("föö bar/baz").is_ok());
        assert_eq!(TopicName::new(""), Err(TopicNameError::Empty));
        assert_eq!(TopicName::new(" a"), Err(TopicNameError::Characters));
        assert_eq!(TopicName::new("a\nb"), Err(TopicNameError::Characters));
        assert_eq!(TopicName::new(&"x".repeat(129)), Err(TopicNameError::TooLong(129)));
    }
}
