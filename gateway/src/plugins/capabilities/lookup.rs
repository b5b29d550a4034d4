//! Capability `lookup`: questions to the store, at a bounded cost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::Trap;

use super::Host;
use crate::{
    pipeline::{Cost, Lookup, LookupError},
    plugins::bindings::nostr_gateway::plugin::lookup::{self, Author, Error, Query},
    protocol::{
        PublicKey,
        kinds::{Class, class},
    },
};

/// How far the events of an author are counted.
const MOST_OF_AUTHOR: u32 = 1_000;
/// How many authors or kinds a query may name.
const MOST_NAMED: usize = 100;

/// What one call of a plugin may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// Rows that a single question may read.
    rows_of_question: u64,
    rows: u64,
    time: Duration,
}

impl Allowance {
    /// For a call about one event.
    pub const CALL: Self =
        Self { rows_of_question: 2_000, rows: 5_000, time: Duration::from_millis(20) };
    /// For `init`, which may want to learn whom somebody's follows follow.
    pub const INIT: Self =
        Self { rows_of_question: 10_000, rows: 500_000, time: Duration::from_millis(1_500) };
}

/// The questions of one instance.
pub struct Lookups {
    /// `None` when nothing may be asked.
    store: Option<Arc<dyn Lookup>>,
    /// What is left in this call.
    left: Allowance,
    /// How long the answers took in this call.
    took: Duration,
}

impl Lookups {
    pub fn new(store: Option<Arc<dyn Lookup>>) -> Self {
        Self { store, left: Allowance::INIT, took: Duration::ZERO }
    }

    /// A call begins.
    pub fn begin(&mut self, allowance: Allowance) {
        self.left = allowance;
        self.took = Duration::ZERO;
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&dyn Lookup, &mut Cost) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Some(store) = &self.store else { return Err(Error::Unavailable) };
        if self.left.rows == 0 || self.left.time.is_zero() {
            return Err(Error::Cost);
        }
        let began = Instant::now();
        let rows = self.left.rows.min(self.left.rows_of_question);
        let mut cost = Cost::new(rows, began + self.left.time);
        let answer = question(&**store, &mut cost);
        let took = began.elapsed();
        // Nothing is for free.
        self.left.rows = self.left.rows.saturating_sub(cost.read().max(1));
        self.left.time = self.left.time.saturating_sub(took);
        self.took += took;
        answer
    }
}

impl Host {
    /// A question whose time counts as that of the call: while it is answered the guest does not run,
    /// so the epoch deadline would only see it afterwards, and not what the thread waited for.
    fn look<T>(
        &mut self,
        question: impl FnOnce(&dyn Lookup, &mut Cost) -> Result<T, Error>,
    ) -> wasmtime::Result<Result<T, Error>> {
        let answer = self.lookups.ask(question);
        if self.lookups.took >= self.deadline.limit() {
            return Err(Trap::Interrupt.into());
        }
        Ok(answer)
    }
}

impl From<LookupError> for Error {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Cost => Self::Cost,
            LookupError::Store(error) => {
                tracing::warn!(%error, "the store did not answer a plugin");
                Self::Unavailable
            }
        }
    }
}

impl lookup::Host for Host {
    fn get_author(&mut self, pubkey: String) -> wasmtime::Result<Result<Author, Error>> {
        self.look(|store, cost| {
            let held = store.author(&key(&pubkey)?, MOST_OF_AUTHOR, cost)?;
            Ok(Author { events: held.events, has_profile: held.profile, has_follows: held.follows })
        })
    }

    fn count(&mut self, query: Query, most: u32) -> wasmtime::Result<Result<u32, Error>> {
        self.look(|store, cost| {
            let Query { authors, kinds, since } = query;
            if authors.len() > MOST_NAMED || kinds.len() > MOST_NAMED {
                return Err(Error::Invalid);
            }
            let authors: Vec<_> =
                authors.iter().map(|author| key(author)).collect::<Result<_, _>>()?;
            Ok(store.how_many(&authors, &kinds, since.unwrap_or(0), most, cost)?)
        })
    }

    fn follows(&mut self, pubkey: String, whom: String) -> wasmtime::Result<Result<bool, Error>> {
        self.look(|store, cost| Ok(store.is_followed(&key(&pubkey)?, &key(&whom)?, cost)?))
    }

    fn list_follows(
        &mut self,
        pubkey: String,
        most: u32,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        self.look(|store, cost| {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let follows = store.follows(&key(&pubkey)?, most, cost)?;
            Ok(follows.iter().map(ToString::to_string).collect())
        })
    }

    fn list_tags(
        &mut self,
        pubkey: String,
        kind: u16,
        most: u32,
    ) -> wasmtime::Result<Result<Vec<Vec<String>>, Error>> {
        self.look(|store, cost| {
            // Of other kinds an author may have thousands, and some of them are for few to read.
            if class(kind) != Class::Replaceable {
                return Err(Error::Invalid);
            }
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            Ok(store.newest_tags(&key(&pubkey)?, kind, most, cost)?)
        })
    }
}

fn key(text: &str) -> Result<PublicKey, Error> {
    PublicKey::parse(text).ok_or(Error::Invalid)
}
