//! REQ: the stored events that match, newest first.

use std::{collections::HashSet, sync::Arc};

use rusqlite::Connection;

use super::{
    check,
    conditions::Conditions,
    lookup::topic_number,
    matches::{Matches, Wanted},
    plan::Effort,
    stop::{Few, QueryEnd, Stop},
};
use crate::{
    clock::unix_now,
    pipeline::{ScanSender, Scope, Seq, Viewer},
    protocol::Filter,
    store::{memory::Memory, open},
};

/// Candidates that are looked at beyond a limit, to tell whether it cut anything (NIP-67).
const LOOK_FURTHER: u64 = 64;

/// Runs the filters against one snapshot and says where in the log it was taken.
pub(in crate::store) fn scan(
    connection: &Connection,
    memory: &Memory,
    filters: &[Filter],
    scope: &Scope,
    viewer: &Viewer,
    out: &ScanSender,
) {
    let send = |json| Ok(out.event(json)?);
    match run(connection, memory, filters, scope, viewer, Effort::USUAL, out, send) {
        Ok((at, complete)) => out.end(at, complete),
        Err(QueryEnd::Stopped | QueryEnd::OutOfBounds) => {}
        Err(QueryEnd::Failed(error)) => {
            tracing::error!(%error, "a query failed");
            out.fail(error);
        }
    }
}

/// Returns the snapshot's log position and whether every match was sent.
#[allow(clippy::too_many_arguments, reason = "the question, and where the answer goes")]
pub(super) fn run(
    connection: &Connection,
    memory: &Memory,
    filters: &[Filter],
    scope: &Scope,
    viewer: &Viewer,
    effort: Effort,
    stop: &impl Stop,
    send: impl Fn(Arc<str>) -> Result<(), QueryEnd>,
) -> Result<(Seq, bool), QueryEnd> {
    // The first read of the transaction fixes the snapshot that all filters and the position share.
    let snapshot = connection.unchecked_transaction()?;
    let at = open::head(&snapshot)?;
    let topic = match scope {
        Scope::All => None,
        Scope::Topic(name) => match topic_number(&snapshot, name)? {
            Some(number) => Some(number),
            None => return Ok((at, true)),
        },
    };
    let now = unix_now();
    let mut complete = true;
    let mut sent = HashSet::new();
    for filter in filters {
        if filter.matches_nothing() {
            continue;
        }
        let mut left = filter.limit.unwrap_or(u64::MAX);
        if left == 0 {
            complete = false;
            continue;
        }
        let conditions = Conditions::new(&snapshot, memory, filter, topic)?;
        let events = usize::try_from(left).unwrap_or(usize::MAX).min(10_000);
        let wanted = Wanted { events, text: true, in_order: true, now, effort };
        let mut matches = Matches::new(&snapshot, memory, &conditions, viewer, wanted, stop)?;
        while left > 0 {
            let next = matches.next(stop, |row| check::text(row).map(Arc::<str>::from))?;
            let Some((row, json)) = next else { break };
            left -= 1;
            if filters.len() == 1 || sent.insert(row) {
                send(json)?;
            }
        }
        if left == 0 && complete {
            let few = Few::new(stop, LOOK_FURTHER);
            complete = match matches.next(&few, |_| Ok(())) {
                Ok(further) => further.is_none(),
                Err(QueryEnd::OutOfBounds) => false,
                Err(end) => return Err(end),
            };
        }
    }
    // The index of words may be a little behind.
    let is_behind = || memory.search.get().is_none_or(|search| search.cursor() < at);
    if complete && filters.iter().any(|filter| filter.words().is_some()) && is_behind() {
        complete = false;
    }
    Ok((at, complete))
}
