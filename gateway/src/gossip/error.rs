//! Why the gossip part cannot start.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::pipeline::{SecretError, StoreError};

/// What stops [`super::Gossip::start`]. Each text names the setting or the file to look at.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("{}: cannot {action} the endpoint's key: {source}", path.display())]
    KeyFile { path: PathBuf, action: &'static str, source: io::Error },
    #[error(
        "{}: not an endpoint key (64 hexadecimal digits and a line feed). Restore the file from a \
         backup, or remove it to take a new endpoint id",
        path.display()
    )]
    KeyFormat { path: PathBuf },
    #[error("the secret \"endpoint\" is not an endpoint's key; restore the secrets from a backup")]
    KeySecret,
    #[error(
        "{}: the key of endpoint {filed}, while the {place} of secrets has that of endpoint {kept}. \
         Move the file away to go on as the latter",
        path.display()
    )]
    TwoIdentities { path: PathBuf, kept: String, filed: String, place: &'static str },
    #[error(transparent)]
    Secrets(#[from] SecretError),
    #[error("endpoint.bind: cannot use UDP address {address}: {reason}")]
    Bind { address: SocketAddr, reason: String },
    #[error("{setting}: {reason}")]
    Setting { setting: &'static str, reason: String },
    #[error("the endpoint was closed while it started")]
    Closed,
    #[error("cannot read which topics were joined before: {0}")]
    Topics(#[from] StoreError),
}
