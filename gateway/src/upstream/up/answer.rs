//! What a relay's OK means for the event that it answers.

/// What is to be done with an event that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The relay has it now.
    Taken,
    /// The relay had it, or a newer version of it.
    Known,
    /// The relay wants no more for the moment.
    Slower,
    /// Something went wrong there that may not go wrong again.
    Again,
    Refused(Refusal),
}

/// Why a relay does not take an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Because of whom it came from: the relay does not let us write.
    Restricted,
    /// It wants us to authenticate, and we do not or it does not help.
    AuthRequired,
    Blocked,
    Invalid,
    Pow,
    /// Larger than the relay takes; it was not sent.
    TooLong,
    /// A plugin here did not let it go.
    Plugin,
    /// It went wrong too often.
    Error,
    /// No answer came, too often.
    Silent,
    Other,
}

impl Refusal {
    /// All names.
    pub const NAMES: [&str; 10] = [
        "restricted",
        "auth-required",
        "blocked",
        "invalid",
        "pow",
        "too-long",
        "plugin",
        "error",
        "silent",
        "other",
    ];

    /// For metrics and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restricted => "restricted",
            Self::AuthRequired => "auth-required",
            Self::Blocked => "blocked",
            Self::Invalid => "invalid",
            Self::Pow => "pow",
            Self::TooLong => "too-long",
            Self::Plugin => "plugin",
            Self::Error => "error",
            Self::Silent => "silent",
            Self::Other => "other",
        }
    }

    /// Whether it is about the gateway rather than about the event: others will fare the same.
    pub const fn is_about_us(self) -> bool {
        matches!(self, Self::Restricted | Self::AuthRequired)
    }
}

/// Reads an OK by the prefix of its message (NIP-01, NIP-42).
pub fn read(accepted: bool, message: &str) -> Answer {
    let prefix = message.split_once(':').map(|(prefix, _)| prefix.trim().to_ascii_lowercase());
    let prefix = prefix.as_deref().unwrap_or_default();
    match (accepted, prefix) {
        // Some relays answer a known event with true, some with false. "replaced" is strfry's and ours.
        (_, "duplicate" | "replaced") => Answer::Known,
        (true, _) => Answer::Taken,
        (false, "rate-limited") => Answer::Slower,
        (false, "error") => Answer::Again,
        (false, "restricted") => Answer::Refused(Refusal::Restricted),
        (false, "auth-required") => Answer::Refused(Refusal::AuthRequired),
        (false, "blocked" | "deleted" | "mute") => Answer::Refused(Refusal::Blocked),
        (false, "invalid") => Answer::Refused(Refusal::Invalid),
        (false, "pow") => Answer::Refused(Refusal::Pow),
        (false, _) => Answer::Refused(Refusal::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_their_prefix() {
        use Answer::*;
        for (accepted, message, answer) in [
            (true, "", Taken),
            (true, "duplicate: already have this event", Known),
            (false, "duplicate: have this event", Known),
            (false, "Replaced: have newer event", Known),
            (false, "rate-limited: slow there chief", Slower),
            (false, "error: could not connect to the database", Again),
            (false, "restricted: not allowed to write", Refused(Refusal::Restricted)),
            (
                false,
                "auth-required: we only accept events from registered users",
                Refused(Refusal::AuthRequired),
            ),
            (false, "blocked: you are banned", Refused(Refusal::Blocked)),
            (false, "deleted: user requested deletion", Refused(Refusal::Blocked)),
            (false, "invalid: event creation date is too far off", Refused(Refusal::Invalid)),
            (false, "pow: difficulty 25>=24", Refused(Refusal::Pow)),
            (false, "no", Refused(Refusal::Other)),
            (false, "", Refused(Refusal::Other)),
            (true, "pow: difficulty 25>=24", Taken),
        ] {
            assert_eq!(read(accepted, message), answer, "{accepted} {message}");
        }
    }
}
