//! Machine-readable reasons, as they stand in OK and CLOSED messages (NIP-01).

use std::{borrow::Cow, fmt};

/// The single word before the colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    Duplicate,
    Pow,
    Blocked,
    RateLimited,
    Invalid,
    Restricted,
    AuthRequired,
    Mute,
    Error,
    Unsupported,
    /// A newer version of a replaceable event is stored. Not in NIP-01; strfry says the same.
    Replaced,
}

impl Prefix {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Pow => "pow",
            Self::Blocked => "blocked",
            Self::RateLimited => "rate-limited",
            Self::Invalid => "invalid",
            Self::Restricted => "restricted",
            Self::AuthRequired => "auth-required",
            Self::Mute => "mute",
            Self::Error => "error",
            Self::Unsupported => "unsupported",
            Self::Replaced => "replaced",
        }
    }

    /// The prefix with this word, if it is one of ours.
    pub fn parse(word: &str) -> Option<Self> {
        const ALL: [Prefix; 11] = [
            Prefix::Duplicate,
            Prefix::Pow,
            Prefix::Blocked,
            Prefix::RateLimited,
            Prefix::Invalid,
            Prefix::Restricted,
            Prefix::AuthRequired,
            Prefix::Mute,
            Prefix::Error,
            Prefix::Unsupported,
            Prefix::Replaced,
        ];
        ALL.into_iter().find(|prefix| prefix.as_str() == word)
    }
}

/// Why something was refused, written `prefix: text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub prefix: Prefix,
    pub text: Cow<'static, str>,
}

impl Reason {
    pub fn new(prefix: Prefix, text: impl Into<Cow<'static, str>>) -> Self {
        Self { prefix, text: text.into() }
    }

    pub fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Prefix::Invalid, text)
    }

    pub fn blocked(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Prefix::Blocked, text)
    }

    pub fn restricted(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Prefix::Restricted, text)
    }

    pub fn error(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Prefix::Error, text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.prefix.as_str(), self.text)
    }
}
