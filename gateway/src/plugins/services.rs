//! What plugins use of the rest of the gateway.

use std::{sync::Arc, time::Duration};

use super::kv::Kv;
use crate::{metrics::Metrics, pipeline::Lookup};

/// Given to every chain that is loaded. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    pub metrics: Arc<Metrics>,
    /// What plugins remember; outlives the chain.
    pub kv: Arc<Kv>,
    pub lookup: Arc<dyn Lookup>,
    /// How long all plugins together may take for one event.
    pub budget: Duration,
}
