//! Ids to reconcile (NIP-77).

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{
    check::ID_COLUMN,
    conditions::Conditions,
    lookup::topic_number,
    matches::{Matches, Wanted},
    plan::Effort,
    stop::{Bounds, QueryEnd, Stop},
};
use crate::{
    clock::unix_now,
    pipeline::{IdSet, Scope, StoreError, Viewer},
    protocol::{EventId, Filter},
    store::memory::Memory,
};

/// A set that takes longer to collect is refused.
const LONGEST: Duration = Duration::from_secs(20);

/// `created_at` and id of what matches. `gone` is whether nobody waits for the answer any more.
pub(in crate::store) fn ids(
    connection: &Connection,
    memory: &Memory,
    filter: &Filter,
    scope: &Scope,
    viewer: &Viewer,
    max: usize,
    gone: impl Fn() -> bool,
) -> Result<IdSet, StoreError> {
    let bounds = Bounds::new(gone, Some(Instant::now() + LONGEST), u64::MAX);
    run(connection, memory, filter, scope, viewer, max, Effort::USUAL, &bounds)
}

#[allow(clippy::too_many_arguments, reason = "the question, and how hard to try")]
pub(super) fn run(
    connection: &Connection,
    memory: &Memory,
    filter: &Filter,
    scope: &Scope,
    viewer: &Viewer,
    max: usize,
    effort: Effort,
    stop: &impl Stop,
) -> Result<IdSet, StoreError> {
    let limit =
        filter.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut found = Vec::new();
    let snapshot = connection.unchecked_transaction()?;
    let topic = match scope {
        Scope::All => None,
        Scope::Topic(name) => match topic_number(&snapshot, name)? {
            Some(number) => Some(number),
            None => return Ok(IdSet::All(found)),
        },
    };
    if filter.matches_nothing() || limit == 0 {
        return Ok(IdSet::All(found));
    }
    let conditions = Conditions::new(&snapshot, memory, filter, topic)?;
    let wanted = Wanted {
        events: limit.min(max),
        text: false,
        // A limit takes the lowest ids of the last second.
        in_order: filter.limit.is_some(),
        now: unix_now(),
        effort,
    };
    let pair = |row: &rusqlite::Row<'_>| {
        Ok((row.get::<_, i64>(2)?.cast_unsigned(), EventId(row.get(ID_COLUMN)?)))
    };
    let mut collect = || -> Result<bool, QueryEnd> {
        let mut matches = Matches::new(&snapshot, memory, &conditions, viewer, wanted, stop)?;
        while found.len() < limit {
            match matches.next(stop, pair)? {
                None => break,
                Some(_) if found.len() == max => return Ok(false),
                Some((_, pair)) => found.push(pair),
            }
        }
        Ok(true)
    };
    match collect() {
        Ok(true) => Ok(IdSet::All(found)),
        Ok(false) => Ok(IdSet::TooMany),
        Err(QueryEnd::OutOfBounds) => Err(StoreError("the query took too long".to_owned())),
        Err(QueryEnd::Stopped) => Err(StoreError("nobody waits".to_owned())),
        Err(QueryEnd::Failed(error)) => Err(error),
    }
}
