//! `[admin]`: metrics and state, for the operator.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port of the listener for `/metrics`, `/status` and `/health`.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 4870)) }
    }
}
