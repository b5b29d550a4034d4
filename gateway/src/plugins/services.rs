//! What plugins use of the rest of the gateway.

use std::{io, sync::Arc, time::Duration};

use super::kv::Kv;
use crate::{
    metrics::Metrics,
    pipeline::{
        AuthorHeld, Cost, KvChange, KvPair, KvStore, Lookup, LookupError, StoreError, StreamScopes,
    },
    protocol::PublicKey,
};

/// Given to every chain that is loaded. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    pub metrics: Arc<Metrics>,
    /// What plugins remember; outlives the chain.
    pub kv: Arc<Kv>,
    pub lookup: Arc<dyn Lookup>,
    /// How long all plugins together may take for one event.
    pub budget: Duration,
    /// The streams that only some plugins judge.
    pub scopes: StreamScopes,
}

impl Services {
    /// For trying a plugin where no gateway runs: nothing is held and nothing is kept.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn none() -> io::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let kv = Kv::start(Arc::new(Nothing), metrics.clone())?;
        let budget = Duration::from_millis(100);
        Ok(Self { metrics, kv, lookup: Arc::new(Nothing), budget, scopes: StreamScopes::default() })
    }
}

struct Nothing;

impl KvStore for Nothing {
    fn load(&self, _: &str) -> Result<Vec<KvPair>, StoreError> {
        Ok(Vec::new())
    }

    fn save(&self, _: Vec<KvChange>) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Lookup for Nothing {
    fn author(&self, _: &PublicKey, _: u32, _: &mut Cost) -> Result<AuthorHeld, LookupError> {
        Ok(AuthorHeld::default())
    }

    fn how_many(
        &self,
        _: &[PublicKey],
        _: &[u16],
        _: u64,
        _: u32,
        _: &mut Cost,
    ) -> Result<u32, LookupError> {
        Ok(0)
    }

    fn follows(
        &self,
        _: &PublicKey,
        _: usize,
        _: &mut Cost,
    ) -> Result<Vec<PublicKey>, LookupError> {
        Ok(Vec::new())
    }

    fn is_followed(&self, _: &PublicKey, _: &PublicKey, _: &mut Cost) -> Result<bool, LookupError> {
        Ok(false)
    }

    fn newest_tags(
        &self,
        _: &PublicKey,
        _: u16,
        _: usize,
        _: &mut Cost,
    ) -> Result<Vec<Vec<String>>, LookupError> {
        Ok(Vec::new())
    }
}
