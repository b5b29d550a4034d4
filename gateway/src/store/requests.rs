//! Requests to delete (NIP-09) and to vanish (NIP-62), carried out.

use rusqlite::{Connection, OptionalExtension};

use super::{
    open, remove,
    tombstones::{self, Deleted},
    versions::Changed,
    writer::identifier,
};
use crate::{
    pipeline::Gone,
    protocol::{Event, EventId, kinds},
};

/// Carries a deletion request out, also for what is still to come. `gone` is told the ids.
pub(super) fn delete(
    connection: &Connection,
    changed: &Changed,
    request: &Event,
    mut gone: impl FnMut(&EventId),
) -> rusqlite::Result<()> {
    let by = &request.pubkey;
    for deleted in tombstones::named(request) {
        match deleted {
            Deleted::Id(id) => {
                if let Some(row) = open::row_of(connection, &id)? {
                    let event = remove::event(connection, row)?;
                    let allowed =
                        tombstones::may_delete(&event, by) && !tombstones::is_lasting(event.kind);
                    if !allowed {
                        continue;
                    }
                    // An older version must not take its place.
                    if let Some(identifier) = identifier(&event) {
                        let (by, at) = (&event.pubkey, event.created_at);
                        tombstones::delete_address(connection, by, event.kind, identifier, at)?;
                    }
                    remove::row(connection, changed, row, Gone::Deleted)?;
                }
                tombstones::delete_id(connection, &id, by)?;
                gone(&id);
            }
            Deleted::Address { kind, identifier } => {
                let until = request.created_at;
                remove::address(connection, changed, by, kind, identifier, until)?;
                tombstones::delete_address(connection, by, kind, identifier, until)?;
            }
        }
    }
    Ok(())
}

/// Carries a request to vanish out. It stays itself, if it is held.
pub(super) fn vanish(
    connection: &Connection,
    changed: &Changed,
    author: u32,
    request: &Event,
) -> rusqlite::Result<()> {
    let (key, until) = (&request.pubkey, request.created_at);
    tombstones::vanish(connection, key, until)?;
    remove::vanished(connection, changed, author, key, until, &[request.id])
}

/// What stands in `state` once it is done.
const CARRIED_OUT: i64 = 1;

/// Carries out what the first version only stored. Once, in one transaction. A request to vanish that
/// names single relays is left alone: whether this one is meant is asked when it comes.
pub(super) fn carry_out_stored(connection: &mut Connection) -> rusqlite::Result<()> {
    let done: Option<i64> = connection
        .query_row("SELECT value FROM state WHERE name = 'requests'", [], |row| row.get(0))
        .optional()?;
    if done == Some(CARRIED_OUT) {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    // Nobody has seen a version yet.
    let changed = Changed::default();
    let requests: Vec<(i64, u32)> = {
        let sql = "SELECT row, author FROM events WHERE kind IN (?1, ?2) ORDER BY row";
        let mut statement = transaction.prepare(sql)?;
        let rows = statement
            .query_map([kinds::DELETION, kinds::VANISH], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    for (row, author) in requests {
        let json: Option<Box<str>> = transaction
            .prepare_cached("SELECT json FROM events WHERE row = ?1")?
            .query_row([row], |found| found.get(0))
            .optional()?;
        // One that vanished by another, or that cannot be read, asks for nothing.
        let Some(Ok(request)) = json.map(|json| Event::parse(&json)) else { continue };
        match request.kind {
            kinds::DELETION => delete(&transaction, &changed, &request, |_| {})?,
            _ if request.asks_all_relays_to_vanish() => {
                vanish(&transaction, &changed, author, &request)?
            }
            _ => {}
        }
    }
    transaction.execute(
        "INSERT OR REPLACE INTO state (name, value) VALUES ('requests', ?1)",
        [CARRIED_OUT],
    )?;
    transaction.commit()
}
