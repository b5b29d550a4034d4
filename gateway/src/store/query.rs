//! What readers ask: scans for REQ, the log, single events.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    open,
    ranges::{Merge, Place, keys},
    writer::identifier,
};
use crate::{
    clock::unix_now,
    pipeline::{LogEntry, Presence, ScanSender, Scope, Seq, StoreError, scan::ScanStopped},
    protocol::{Event, EventId, Filter, PublicKey, TopicName, VerifiedEvent, kinds},
};

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(format!("the database failed: {error}"))
    }
}

/// What is held of an event, in one or two look-ups.
pub(super) fn presence(
    connection: &Connection,
    id: &EventId,
    topics: &[TopicName],
) -> Result<Presence, StoreError> {
    let Some(row) = row_of(connection, id)? else { return Ok(Presence::Unknown) };
    for topic in topics {
        let Some(topic) = topic_number(connection, topic)? else {
            return Ok(Presence::KnownElsewhere);
        };
        if !is_member(connection, row, topic)? {
            return Ok(Presence::KnownElsewhere);
        }
    }
    Ok(Presence::Known)
}

/// The topics of the version that this event would replace.
pub(super) fn topics_replaced(
    connection: &Connection,
    event: &Event,
) -> Result<Vec<TopicName>, StoreError> {
    let Some(identifier) = identifier(event) else { return Ok(Vec::new()) };
    let mut statement = connection.prepare_cached(
        "SELECT topics.name FROM events JOIN memberships ON memberships.event = events.row \
         JOIN topics USING (topic) \
         WHERE pubkey = ?1 AND kind = ?2 AND identifier = ?3 ORDER BY topics.name",
    )?;
    let parameters = params![event.pubkey.0, event.kind, identifier];
    let names = statement.query_map(parameters, |row| row.get::<_, String>(0))?;
    let mut topics = Vec::new();
    for name in names {
        topics.extend(TopicName::new(&name?).ok());
    }
    Ok(topics)
}

/// Bytes of JSON after which a page of the log ends.
const PAGE_BYTES: usize = 4 << 20;

/// Log entries after a position, oldest first.
pub(super) fn log_after(
    connection: &Connection,
    seq: Seq,
    max: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT log.seq, log.event, topics.name, origins.name, events.json \
         FROM log JOIN events ON events.row = log.event \
         JOIN origins ON origins.origin = log.origin \
         LEFT JOIN topics ON topics.topic = log.topic \
         WHERE log.seq > ?1 ORDER BY log.seq LIMIT ?2",
    )?;
    let mut rows =
        statement.query(params![seq.cast_signed(), i64::try_from(max).unwrap_or(i64::MAX)])?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES
        && let Some(row) = rows.next()?
    {
        let seq: i64 = row.get(0)?;
        let topic: Option<String> = row.get(2)?;
        let event = stored_event(row, 4)?.shared().clone();
        bytes += event.json().len();
        entries.push(LogEntry {
            seq: seq.cast_unsigned(),
            event,
            topic: topic.and_then(|name| TopicName::new(&name).ok()),
            first: seq == row.get::<_, i64>(1)?,
            origin: row.get::<_, Box<str>>(3)?.into(),
        });
    }
    Ok(entries)
}

/// The canonical JSON of those of these events that are in the topic.
pub(super) fn fetch(
    connection: &Connection,
    topic: &TopicName,
    ids: &[EventId],
) -> Result<Vec<Arc<str>>, StoreError> {
    let Some(topic) = topic_number(connection, topic)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for id in ids {
        if let Some(row) = row_of(connection, id)?
            && is_member(connection, row, topic)?
        {
            let json: Box<str> = connection
                .prepare_cached("SELECT json FROM events WHERE row = ?1")?
                .query_row([row], |row| row.get(0))?;
            found.push(json.into());
        }
    }
    Ok(found)
}

/// Those of the ids that are not in the topic.
pub(super) fn missing(
    connection: &Connection,
    topic: &TopicName,
    mut ids: Vec<EventId>,
) -> Result<Vec<EventId>, StoreError> {
    let Some(topic) = topic_number(connection, topic)? else { return Ok(ids) };
    let mut failed = None;
    ids.retain(|id| {
        let present = row_of(connection, id)
            .and_then(|row| row.map_or(Ok(false), |row| is_member(connection, row, topic)));
        match present {
            Ok(present) => !present,
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    });
    failed.map_or(Ok(ids), |error| Err(error.into()))
}

/// Runs the filters against one snapshot and says where in the log it was taken.
pub(super) fn scan(
    connection: &Connection,
    filters: &[Filter],
    scope: &Scope,
    visible: &dyn Fn(&Event) -> bool,
    out: &ScanSender,
) {
    match run_scan(connection, filters, scope, visible, out) {
        Ok(at) => out.end(at),
        Err(ScanEnd::Stopped) => {}
        Err(ScanEnd::Failed(error)) => {
            tracing::error!(%error, "a query failed");
            out.fail(error);
        }
    }
}

enum ScanEnd {
    Stopped,
    Failed(StoreError),
}

impl From<rusqlite::Error> for ScanEnd {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<StoreError> for ScanEnd {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<ScanStopped> for ScanEnd {
    fn from(_: ScanStopped) -> Self {
        Self::Stopped
    }
}

fn run_scan(
    connection: &Connection,
    filters: &[Filter],
    scope: &Scope,
    visible: &dyn Fn(&Event) -> bool,
    out: &ScanSender,
) -> Result<Seq, ScanEnd> {
    // The first read of the transaction fixes the snapshot that all filters and the position share.
    let snapshot = connection.unchecked_transaction()?;
    let at = open::head(&snapshot)?;
    let topic = match scope {
        Scope::All => None,
        Scope::Topic(name) => match topic_number(&snapshot, name)? {
            Some(number) => Some(number),
            None => return Ok(at),
        },
    };
    let now = unix_now();
    let mut sent = HashSet::new();
    for filter in filters {
        let mut left = filter.limit.unwrap_or(u64::MAX);
        if left == 0 || filter.matches_nothing() {
            continue;
        }
        let ids = match &filter.ids {
            Some(ids) => Some(places_of(&snapshot, ids)?),
            None => None,
        };
        let wanted = usize::try_from(left).unwrap_or(usize::MAX / 2).min(10_000);
        let mut merge = Merge::new(&snapshot, keys(filter, ids, topic), filter, wanted)?;
        let mut places = Vec::new();
        while left > 0 {
            out.check()?;
            merge.next_second(&mut places)?;
            if places.is_empty() {
                break;
            }
            for row in in_order(&snapshot, &places)? {
                if left == 0 {
                    break;
                }
                out.check()?;
                if let Some(topic) = topic
                    && !is_member(&snapshot, row, topic)?
                {
                    continue;
                }
                let Some(json) = load(&snapshot, row, filter, visible, now)? else { continue };
                left -= 1;
                if sent.insert(row) {
                    out.event(json)?;
                }
            }
        }
    }
    Ok(at)
}

/// The rows of one second, lowest id first (NIP-01). A second may hold very many events: nothing but
/// their ids is read here.
fn in_order(connection: &Connection, places: &[Place]) -> rusqlite::Result<Vec<i64>> {
    if let [place] = places {
        return Ok(vec![place.row]);
    }
    let mut statement = connection.prepare_cached("SELECT id FROM events WHERE row = ?1")?;
    let mut rows = Vec::with_capacity(places.len());
    for place in places {
        let id: Option<[u8; 32]> = statement.query_row([place.row], |row| row.get(0)).optional()?;
        rows.extend(id.map(|id| (id, place.row)));
    }
    rows.sort_unstable();
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// An event that the filter matches and that may be shown.
fn load(
    connection: &Connection,
    row: i64,
    filter: &Filter,
    visible: &dyn Fn(&Event) -> bool,
    now: u64,
) -> Result<Option<Arc<str>>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT pubkey, kind, expires_at, json FROM events WHERE row = ?1")?;
    let mut rows = statement.query([row])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let expires_at: Option<i64> = row.get(2)?;
    if expires_at.is_some_and(|at| at.cast_unsigned() <= now) {
        return Ok(None);
    }
    let kind: u16 = row.get(1)?;
    // Before the text is read: most rows that do not match differ in one of these.
    let excluded = filter.kinds.as_ref().is_some_and(|kinds| kinds.binary_search(&kind).is_err())
        || match &filter.authors {
            Some(authors) => authors.binary_search(&PublicKey(row.get(0)?)).is_err(),
            None => false,
        };
    if excluded {
        return Ok(None);
    }
    // Ids and times are exact in every range; tags are not.
    let guarded = kinds::is_for_parties_only(kind);
    if guarded || !filter.tags.is_empty() {
        let event = stored_event(row, 3)?;
        let shown = filter.matches(&event) && (!guarded || visible(&event));
        return Ok(shown.then(|| event.json().clone()));
    }
    Ok(Some(row.get::<_, Box<str>>(3)?.into()))
}

fn stored_event(row: &Row<'_>, column: usize) -> Result<VerifiedEvent, StoreError> {
    let json = row.get_ref(column)?.as_str().map_err(|error| StoreError(error.to_string()))?;
    VerifiedEvent::from_store(json)
        .map_err(|error| StoreError(format!("the database holds a broken event: {error}")))
}

fn row_of(connection: &Connection, id: &EventId) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT row FROM events WHERE id = ?1")?
        .query_row([id.0], |row| row.get(0))
        .optional()
}

fn places_of(connection: &Connection, ids: &[EventId]) -> rusqlite::Result<Vec<Place>> {
    let mut statement =
        connection.prepare_cached("SELECT created_at, row FROM events WHERE id = ?1")?;
    let mut places = Vec::new();
    for id in ids {
        let place = statement
            .query_row([id.0], |row| Ok(Place { created_at: row.get(0)?, row: row.get(1)? }));
        places.extend(place.optional()?);
    }
    places.sort_unstable();
    Ok(places)
}

fn topic_number(connection: &Connection, name: &TopicName) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT topic FROM topics WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()
}

fn is_member(connection: &Connection, event: i64, topic: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM memberships WHERE event = ?1 AND topic = ?2")?
        .exists([event, topic])
}
