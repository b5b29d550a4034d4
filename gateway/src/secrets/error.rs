//! Why secrets cannot be kept or found again.

use std::{io, path::PathBuf, time::Duration};

use crate::pipeline::SecretError;

/// What goes wrong with a store of secrets. Each text names the file or the setting to look at; none
/// holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("{}: cannot {action} it: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error(
        "{}: it is a symbolic link, and what it points to is not there. Bring that back (is a disk not \
         mounted?), or take the link away if nothing rests there any more",
        .0.display()
    )]
    Dangling(PathBuf),
    #[error("{}: {reason}. Restore it from a backup", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: cannot be opened with {key}: {hint}", path.display())]
    WrongKey { path: PathBuf, key: String, hint: &'static str },
    #[error(
        "{}: its key is missing: there is no secrets.key_file, no systemd credential, and no \
         secrets.key beside it. Restore the key from a backup",
        .0.display()
    )]
    NoKey(PathBuf),
    #[error("{}: {reason}", path.display())]
    KeyFile { path: PathBuf, reason: String },
    #[error("the keyring {0}")]
    Keyring(String),
    #[error("{what} did not answer within {} ms (secrets.timeout_ms): {why}", limit.as_millis())]
    Timeout { what: &'static str, limit: Duration, why: &'static str },
    #[error("{0} is busy with too many requests")]
    Busy(&'static str),
    #[error("{0} has ended")]
    Ended(&'static str),
    #[error(
        "the keyring no longer holds the secret {name:?} that {} names. Restore the keyring; or \
         remove this file to go on without what was in it, with a new endpoint id",
        index.display()
    )]
    Lost { name: String, index: PathBuf },
    #[error(
        "secrets.store: {reason}. Unlock the keyring or start its service, or set secrets.store to \
         \"file\""
    )]
    KeyringChosen { reason: Box<SecretsError> },
    #[error(
        "the secrets of this data directory rest in the keyring ({} says so), and {reason}. Unlock \
         the keyring and start again. To go on without them, with a new endpoint id, remove that file",
        index.display()
    )]
    KeyringNeeded { index: PathBuf, reason: Box<SecretsError> },
    #[error("{0} did not give back what was put in")]
    NotKept(&'static str),
    #[error(transparent)]
    Refused(#[from] SecretError),
}

impl From<SecretsError> for SecretError {
    fn from(error: SecretsError) -> Self {
        Self(error.to_string())
    }
}
