//! What is decided on an event's own row: what no index says.

use rusqlite::{CachedStatement, Connection, Row, types::Type};

use super::{
    conditions::Conditions,
    lookup::{self, topic_number},
    merge::Place,
    plan::Driver,
};
use crate::{
    pipeline::{StoreError, Viewer},
    protocol::{EventId, VerifiedEvent, kinds},
    store::privacy,
};

/// Columns of the row that a [`Check`] lets through.
pub(super) const ID_COLUMN: usize = 5;
pub(super) const JSON_COLUMN: usize = 6;

pub(super) const WITHOUT_TEXT: &str =
    "SELECT author, kind, created_at, expires_at, private, id FROM events WHERE row = ?1";
pub(super) const WITH_TEXT: &str =
    "SELECT author, kind, created_at, expires_at, private, id, json FROM events WHERE row = ?1";
pub(super) const TAGGED: &str =
    "SELECT 1 FROM tags WHERE key = ?1 AND created_at = ?2 AND event = ?3";

/// Tag values that are looked up one by one. With more, reading the event is cheaper.
const MAX_PROBES: usize = 4;

/// Decides event by event whether the filter matches it and the viewer may see it.
pub(super) struct Check<'q> {
    connection: &'q Connection,
    conditions: &'q Conditions<'q>,
    viewer: &'q Viewer,
    now: i64,
    event: CachedStatement<'q>,
    has_text: bool,
    /// Tag conditions that are looked up in the index before the event is read.
    probes: Vec<usize>,
    tagged: CachedStatement<'q>,
    /// Whether being in the topic is still to be checked.
    ask_topic: bool,
    /// Whether the id is still to be checked.
    ask_id: bool,
    member: CachedStatement<'q>,
    /// Numbers of the private topics that the viewer may read, once they are needed.
    readable: Option<Vec<i64>>,
}

impl<'q> Check<'q> {
    /// `text` is whether the caller takes the JSON.
    pub fn new(
        connection: &'q Connection,
        conditions: &'q Conditions<'q>,
        viewer: &'q Viewer,
        now: u64,
        text: bool,
    ) -> rusqlite::Result<Self> {
        let has_text = text || !conditions.tags.is_empty();
        let event = connection.prepare_cached(if has_text { WITH_TEXT } else { WITHOUT_TEXT })?;
        Ok(Self {
            connection,
            conditions,
            viewer,
            now: now.cast_signed(),
            event,
            has_text,
            probes: Vec::new(),
            tagged: connection.prepare_cached(TAGGED)?,
            ask_topic: true,
            ask_id: false,
            member: connection.prepare_cached(lookup::MEMBER)?,
            readable: None,
        })
    }

    /// The candidates come from another index from now on: what it implies need not be looked up.
    pub fn driven_by(&mut self, driver: Driver) {
        self.ask_topic = driver != Driver::Topic;
        self.ask_id = driver == Driver::Words;
        let tags = self.conditions.tags.iter().enumerate();
        self.probes = tags
            // A row that words were found in comes without its time, which a look-up needs.
            .filter(|_| driver != Driver::Words)
            .filter(|(n, tag)| driver != Driver::Tag(*n) && tag.keys.len() <= MAX_PROBES)
            .map(|(n, _)| n)
            .collect();
    }

    /// Takes what the caller wants of the row, if the event is to be shown.
    pub fn take<T>(
        &mut self,
        place: Place,
        take: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        for n in &self.probes {
            let Some(tag) = self.conditions.tags.get(*n) else { continue };
            let mut held = false;
            for key in &tag.keys {
                held = held || self.tagged.exists([*key, place.created_at, place.row])?;
            }
            if !held {
                return Ok(None);
            }
        }
        let mut rows = self.event.query([place.row])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let kind: u16 = row.get(1)?;
        if !self.conditions.allows_kind(kind) || !self.conditions.allows_author(row.get(0)?) {
            return Ok(None);
        }
        if row.get::<_, Option<i64>>(3)?.is_some_and(|at| at <= self.now) {
            return Ok(None);
        }
        let created_at: i64 = row.get(2)?;
        if created_at < self.conditions.since || created_at > self.conditions.until {
            return Ok(None);
        }
        if self.ask_id
            && let Some(ids) = &self.conditions.filter.ids
            && ids.binary_search(&EventId(row.get(ID_COLUMN)?)).is_err()
        {
            return Ok(None);
        }
        let sees_all = self.viewer.sees_all();
        match self.conditions.topic {
            Some(topic) => {
                if self.ask_topic && !self.member.exists([topic, created_at, place.row])? {
                    return Ok(None);
                }
                // The topic may be public now, and have been private when the event came.
                if !sees_all
                    && privacy::is_private(row.get(4)?)
                    && !readable(&mut self.readable, self.connection, self.viewer)?.contains(&topic)
                {
                    return Ok(None);
                }
            }
            // One that is in private topics alone is shown to their readers (DESIGN, "Origin").
            None => {
                if !sees_all && privacy::is_private(row.get(4)?) {
                    let readable = readable(&mut self.readable, self.connection, self.viewer)?;
                    let mut reads = false;
                    for topic in readable {
                        reads = reads || self.member.exists([*topic, created_at, place.row])?;
                    }
                    if !reads {
                        return Ok(None);
                    }
                }
            }
        }
        if !self.conditions.tags.is_empty() {
            let json = text(row)?;
            if !self.conditions.tags.iter().all(|tag| tag.holds(json)) {
                return Ok(None);
            }
        }
        if !sees_all && kinds::is_for_parties_only(kind) {
            let shown = if self.has_text {
                may_read(self.viewer, text(row)?)?
            } else {
                let mut whole = self.connection.prepare_cached(WITH_TEXT)?;
                let mut rows = whole.query([place.row])?;
                match rows.next()? {
                    Some(row) => may_read(self.viewer, text(row)?)?,
                    None => false,
                }
            };
            if !shown {
                return Ok(None);
            }
        }
        Ok(Some(take(row)?))
    }
}

/// The canonical JSON of a row [`WITH_TEXT`].
pub(super) fn text<'r>(row: &'r Row<'_>) -> rusqlite::Result<&'r str> {
    row.get_ref(JSON_COLUMN)?.as_str().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(JSON_COLUMN, Type::Text, Box::new(error))
    })
}

fn may_read(viewer: &Viewer, json: &str) -> Result<bool, StoreError> {
    let event = VerifiedEvent::from_store(json)
        .map_err(|error| StoreError(format!("the database holds a broken event: {error}")))?;
    Ok(viewer.may_read(&event))
}

/// The numbers of the private topics that the viewer may read, looked up once.
fn readable<'n>(
    known: &'n mut Option<Vec<i64>>,
    connection: &Connection,
    viewer: &Viewer,
) -> rusqlite::Result<&'n [i64]> {
    if known.is_none() {
        let mut numbers = Vec::new();
        for topic in viewer.private_topics() {
            numbers.extend(topic_number(connection, topic)?);
        }
        *known = Some(numbers);
    }
    Ok(known.as_deref().unwrap_or_default())
}
