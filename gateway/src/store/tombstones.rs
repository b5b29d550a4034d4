//! What was deleted and must not come back (NIP-09, NIP-62).

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    known::{Known, prefix},
    writer::identifier,
};
use crate::protocol::{Event, EventId, PublicKey, kinds};

/// Why an event may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tombstone {
    Deleted,
    Vanished,
}

/// What stands against an event. `known` are the ids held or deleted, `vanished` the authors that
/// asked to be forgotten: both spare the queries for nearly every event.
pub(super) fn find(
    connection: &Connection,
    event: &Event,
    known: &Known,
    vanished: &Known,
) -> rusqlite::Result<Option<Tombstone>> {
    let created_at = event.created_at.cast_signed();
    if vanished.may_contain(prefix(&event.pubkey.0))
        && vanished_until(connection, &event.pubkey)?.is_some_and(|until| created_at <= until)
    {
        return Ok(Some(Tombstone::Vanished));
    }
    if event.kind == kinds::GIFT_WRAP {
        for recipient in recipients(event) {
            if vanished.may_contain(prefix(&recipient.0))
                && vanished_until(connection, &recipient)?.is_some_and(|until| created_at <= until)
            {
                return Ok(Some(Tombstone::Vanished));
            }
        }
    }
    // Requests to delete (NIP-09) and to vanish (NIP-62) cannot be deleted.
    if is_lasting(event.kind) {
        return Ok(None);
    }
    if known.may_contain(prefix(&event.id.0)) {
        let mut statement =
            connection.prepare_cached("SELECT pubkey FROM deleted_ids WHERE id = ?1")?;
        let mut rows = statement.query([event.id.0])?;
        while let Some(row) = rows.next()? {
            if may_delete(event, &PublicKey(row.get(0)?)) {
                return Ok(Some(Tombstone::Deleted));
            }
        }
    }
    if let Some(identifier) = identifier(event) {
        let until: Option<i64> = connection
            .prepare_cached(
                "SELECT until FROM deleted_addresses \
                 WHERE pubkey = ?1 AND kind = ?2 AND identifier = ?3",
            )?
            .query_row(params![event.pubkey.0, event.kind, identifier], |row| row.get(0))
            .optional()?;
        if until.is_some_and(|until| created_at <= until) {
            return Ok(Some(Tombstone::Deleted));
        }
    }
    Ok(None)
}

/// Whether events of this kind cannot be deleted by a request.
pub(super) const fn is_lasting(kind: u16) -> bool {
    matches!(kind, kinds::DELETION | kinds::VANISH)
}

fn vanished_until(connection: &Connection, key: &PublicKey) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT until FROM vanished WHERE pubkey = ?1")?
        .query_row([key.0], |row| row.get(0))
        .optional()
}

/// Whether this key may delete the event: its author, or the recipient of a gift wrap, whose author
/// is a key that nobody keeps (NIP-59).
pub(super) fn may_delete(event: &Event, key: &PublicKey) -> bool {
    event.pubkey == *key
        || (event.kind == kinds::GIFT_WRAP && recipients(event).any(|recipient| recipient == *key))
}

fn recipients(event: &Event) -> impl Iterator<Item = PublicKey> {
    event.tag_values("p").filter_map(PublicKey::parse)
}

/// What a deletion request names: ids, and addresses of its own author.
pub(super) enum Deleted<'e> {
    Id(EventId),
    Address { kind: u16, identifier: &'e str },
}

/// The `e` and `a` tags of a deletion request (NIP-09). Addresses of others are left out: they name
/// their author, so it is known that they may not be deleted.
pub(super) fn named(request: &Event) -> impl Iterator<Item = Deleted<'_>> {
    request.tags.iter().filter_map(|tag| match tag.as_slice() {
        [name, value, ..] if name == "e" => EventId::parse(value).map(Deleted::Id),
        [name, value, ..] if name == "a" => {
            let mut parts = value.splitn(3, ':');
            let kind: u16 = parts.next()?.parse().ok()?;
            let pubkey = PublicKey::parse(parts.next()?)?;
            let identifier = parts.next().unwrap_or("");
            let class = kinds::class(kind);
            let addressable = class == kinds::Class::Addressable
                || (class == kinds::Class::Replaceable && identifier.is_empty());
            (pubkey == request.pubkey && addressable)
                .then_some(Deleted::Address { kind, identifier })
        }
        _ => None,
    })
}

pub(super) fn delete_id(
    connection: &Connection,
    id: &EventId,
    by: &PublicKey,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO deleted_ids (id, pubkey) VALUES (?1, ?2)")?
        .execute(params![id.0, by.0])?;
    Ok(())
}

pub(super) fn delete_address(
    connection: &Connection,
    by: &PublicKey,
    kind: u16,
    identifier: &str,
    until: u64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO deleted_addresses (pubkey, kind, identifier, until) \
             VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
        )?
        .execute(params![by.0, kind, identifier, until.cast_signed()])?;
    Ok(())
}

pub(super) fn vanish(connection: &Connection, key: &PublicKey, until: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO vanished (pubkey, until) VALUES (?1, ?2) \
             ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
        )?
        .execute(params![key.0, until.cast_signed()])?;
    Ok(())
}
