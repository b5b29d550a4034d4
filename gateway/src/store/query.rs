//! What readers ask: scans for REQ, the log, single events.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    memory::Memory,
    open,
    ranges::{Merge, Place, keys},
};
use crate::{
    clock::unix_now,
    pipeline::{LogEntry, ScanSender, Scope, Seq, StoreError, Viewer, scan::ScanStopped},
    protocol::{EventId, Filter, TopicName, VerifiedEvent, kinds},
};

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(format!("the database failed: {error}"))
    }
}

/// Bytes of JSON after which a page of the log ends.
const PAGE_BYTES: usize = 4 << 20;

/// Log entries after a position, oldest first: the events' own rows and the later joins, merged.
pub(super) fn log_after(
    connection: &Connection,
    seq: Seq,
    max: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    // Both statements must see the same commit.
    let snapshot = connection.unchecked_transaction()?;
    let after = seq.cast_signed();
    let mut firsts = snapshot.prepare_cached(
        "SELECT row, row, topics.name, origins.name, private, json FROM events \
         JOIN origins USING (origin) LEFT JOIN topics USING (topic) \
         WHERE row > ?1 ORDER BY row",
    )?;
    let mut joins = snapshot.prepare_cached(
        "SELECT seq, event, topics.name, origins.name, private, json FROM joins \
         JOIN events ON events.row = joins.event \
         JOIN origins ON origins.origin = joins.origin \
         JOIN topics ON topics.topic = joins.topic \
         WHERE seq > ?1 ORDER BY seq",
    )?;
    let (mut firsts, mut joins) = (firsts.query([after])?, joins.query([after])?);
    let (mut first, mut join) = (log_entry(firsts.next()?)?, log_entry(joins.next()?)?);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while entries.len() < max && bytes < PAGE_BYTES {
        let join_is_next = match (&first, &join) {
            (Some(first), Some(join)) => join.seq < first.seq,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => break,
        };
        let next = if join_is_next {
            std::mem::replace(&mut join, log_entry(joins.next()?)?)
        } else {
            std::mem::replace(&mut first, log_entry(firsts.next()?)?)
        };
        bytes += next.as_ref().map_or(0, |entry| entry.event.json().len());
        entries.extend(next);
    }
    Ok(entries)
}

fn log_entry(row: Option<&Row<'_>>) -> Result<Option<LogEntry>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let (seq, event): (i64, i64) = (row.get(0)?, row.get(1)?);
    let topic: Option<String> = row.get(2)?;
    Ok(Some(LogEntry {
        seq: seq.cast_unsigned(),
        event: stored_event(row, 5)?.shared().clone(),
        topic: topic.and_then(|name| TopicName::new(&name).ok()),
        first: seq == event,
        private: row.get(4)?,
        origin: row.get::<_, Box<str>>(3)?.into(),
    }))
}

/// The canonical JSON of those of these events that are in the topic.
pub(super) fn fetch(
    connection: &Connection,
    topic: &TopicName,
    ids: &[EventId],
) -> Result<Vec<Arc<str>>, StoreError> {
    let Some(topic) = topic_number(connection, topic)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for place in places_of(connection, ids)? {
        if is_member(connection, topic, place.created_at, place.row)? {
            let json: Box<str> = connection
                .prepare_cached("SELECT json FROM events WHERE row = ?1")?
                .query_row([place.row], |row| row.get(0))?;
            found.push(json.into());
        }
    }
    Ok(found)
}

/// Those of the ids that are not in the topic.
pub(super) fn missing(
    connection: &Connection,
    topic: &TopicName,
    ids: Vec<EventId>,
) -> Result<Vec<EventId>, StoreError> {
    let Some(topic) = topic_number(connection, topic)? else { return Ok(ids) };
    let mut missing = Vec::new();
    for id in ids {
        let held = match place_of(connection, &id)? {
            Some(place) => is_member(connection, topic, place.created_at, place.row)?,
            None => false,
        };
        if !held {
            missing.push(id);
        }
    }
    Ok(missing)
}

/// Runs the filters against one snapshot and says where in the log it was taken.
pub(super) fn scan(
    connection: &Connection,
    memory: &Memory,
    filters: &[Filter],
    scope: &Scope,
    viewer: &Viewer,
    out: &ScanSender,
) {
    match run_scan(connection, memory, filters, scope, viewer, out) {
        Ok(at) => out.end(at, false),
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
    memory: &Memory,
    filters: &[Filter],
    scope: &Scope,
    viewer: &Viewer,
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
        let mut merge =
            Merge::new(&snapshot, keys(&snapshot, memory, filter, ids, topic)?, filter, wanted)?;
        let mut places = Vec::new();
        while left > 0 {
            out.check()?;
            merge.next_second(&mut places)?;
            let Some(created_at) = places.first().map(|place| place.created_at) else { break };
            for row in in_order(&snapshot, &places)? {
                if left == 0 {
                    break;
                }
                out.check()?;
                if let Some(topic) = topic
                    && !is_member(&snapshot, topic, created_at, row)?
                {
                    continue;
                }
                let all = topic.is_none();
                let Some(json) = load(&snapshot, row, filter, viewer, all, now)? else { continue };
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

/// An event that the filter matches and that may be shown. `all` is whether it is looked for
/// everywhere, so that one of a private topic is guarded.
fn load(
    connection: &Connection,
    row: i64,
    filter: &Filter,
    viewer: &Viewer,
    all: bool,
    now: u64,
) -> Result<Option<Arc<str>>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT author, kind, created_at, expires_at, private, json FROM events WHERE row = ?1",
    )?;
    let mut rows = statement.query([row])?;
    let Some(found) = rows.next()? else { return Ok(None) };
    let expires_at: Option<i64> = found.get(3)?;
    if expires_at.is_some_and(|at| at.cast_unsigned() <= now) {
        return Ok(None);
    }
    let kind: u16 = found.get(1)?;
    // Before the text is read: most rows that do not match differ in one of these.
    if filter.kinds.as_ref().is_some_and(|kinds| kinds.binary_search(&kind).is_err()) {
        return Ok(None);
    }
    if all && found.get(4)? && !reads_one_topic(connection, viewer, found.get(2)?, row)? {
        return Ok(None);
    }
    // Ids and times are exact in every range; tags are not.
    let guarded = kinds::is_for_parties_only(kind);
    if guarded || !filter.tags.is_empty() || filter.authors.is_some() {
        let event = stored_event(found, 5)?;
        let shown = filter.matches(&event) && viewer.may_read(&event);
        return Ok(shown.then(|| event.json().clone()));
    }
    Ok(Some(found.get::<_, Box<str>>(5)?.into()))
}

/// Whether the viewer may read one of the private topics that the event is in.
fn reads_one_topic(
    connection: &Connection,
    viewer: &Viewer,
    created_at: i64,
    row: i64,
) -> rusqlite::Result<bool> {
    for topic in viewer.private_topics() {
        if let Some(topic) = topic_number(connection, topic)?
            && is_member(connection, topic, created_at, row)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn stored_event(row: &Row<'_>, column: usize) -> Result<VerifiedEvent, StoreError> {
    let json = row.get_ref(column)?.as_str().map_err(|error| StoreError(error.to_string()))?;
    VerifiedEvent::from_store(json)
        .map_err(|error| StoreError(format!("the database holds a broken event: {error}")))
}

fn place_of(connection: &Connection, id: &EventId) -> rusqlite::Result<Option<Place>> {
    connection
        .prepare_cached(
            "SELECT created_at, row FROM events WHERE substr(id, 1, 8) = ?1 AND id = ?2",
        )?
        .query_row(params![&id.0[..8], &id.0], |row| {
            Ok(Place { created_at: row.get(0)?, row: row.get(1)? })
        })
        .optional()
}

fn places_of(connection: &Connection, ids: &[EventId]) -> rusqlite::Result<Vec<Place>> {
    let mut places = Vec::new();
    for id in ids {
        places.extend(place_of(connection, id)?);
    }
    places.sort_unstable();
    Ok(places)
}

pub(super) fn topic_number(
    connection: &Connection,
    name: &TopicName,
) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT topic FROM topics WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()
}

pub(super) fn is_member(
    connection: &Connection,
    topic: i64,
    created_at: i64,
    event: i64,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM memberships WHERE topic = ?1 AND created_at = ?2 AND event = ?3",
        )?
        .exists([topic, created_at, event])
}
