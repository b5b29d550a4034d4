//! COUNT (NIP-45): how many events match.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    conditions::Conditions,
    lookup::topic_number,
    matches::{Matches, Wanted},
    plan::Effort,
    stop::{Bounds, QueryEnd, Stop},
};
use crate::{
    clock::unix_now,
    pipeline::{Count, Scope, StoreError, Viewer},
    protocol::Filter,
    store::memory::Memory,
};

/// After so long, what was found is the answer.
const LONGEST: Duration = Duration::from_secs(2);
/// After so many candidates, too.
const MAX_ROWS: u64 = 1_000_000;

/// How many different events match at least one of the filters. `gone` is whether nobody waits for
/// the answer any more.
pub(in crate::store) fn count(
    connection: &Connection,
    memory: &Memory,
    filters: &[Filter],
    scope: &Scope,
    viewer: &Viewer,
    gone: impl Fn() -> bool,
) -> Result<Count, StoreError> {
    let bounds = Bounds::new(gone, Some(Instant::now() + LONGEST), MAX_ROWS);
    run(connection, memory, filters, scope, viewer, Effort::USUAL, &bounds)
}

pub(super) fn run(
    connection: &Connection,
    memory: &Memory,
    filters: &[Filter],
    scope: &Scope,
    viewer: &Viewer,
    effort: Effort,
    stop: &impl Stop,
) -> Result<Count, StoreError> {
    let snapshot = connection.unchecked_transaction()?;
    let topic = match scope {
        Scope::All => None,
        Scope::Topic(name) => match topic_number(&snapshot, name)? {
            Some(number) => Some(number),
            None => return Ok(Count { count: 0, approximate: false }),
        },
    };
    let now = unix_now();
    let (mut count, mut counted) = (0, HashSet::new());
    for filter in filters.iter().filter(|filter| !filter.matches_nothing()) {
        let conditions = Conditions::new(&snapshot, memory, filter, topic)?;
        let wanted = Wanted { events: usize::MAX, text: false, in_order: false, now, effort };
        let mut each = || -> Result<(), QueryEnd> {
            let mut matches = Matches::new(&snapshot, memory, &conditions, viewer, wanted, stop)?;
            while let Some((row, ())) = matches.next(stop, |_| Ok(()))? {
                if filters.len() == 1 || counted.insert(row) {
                    count += 1;
                }
            }
            Ok(())
        };
        match each() {
            Ok(()) => {}
            Err(QueryEnd::OutOfBounds) => return Ok(Count { count, approximate: true }),
            Err(QueryEnd::Stopped) => return Err(StoreError("nobody waits".to_owned())),
            Err(QueryEnd::Failed(error)) => return Err(error),
        }
    }
    Ok(Count { count, approximate: false })
}
