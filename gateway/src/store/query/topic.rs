//! What one topic has: for the comparison with other gateways.

use rusqlite::{Connection, Row, params};

use super::lookup::topic_number;
use crate::{
    pipeline::{Span, StoreError, TopicIds},
    protocol::{EventId, TopicName, kinds::Part},
    store::{gone, privacy},
};

/// Newest first, by the topic's own index: nothing of other topics is looked at.
pub(super) const REST: &str = "SELECT memberships.created_at, events.id FROM memberships \
         CROSS JOIN events ON events.row = memberships.event \
         WHERE memberships.topic = ?1 AND memberships.part = ?5 \
         AND memberships.created_at BETWEEN ?2 AND ?3 AND events.private <> ?4 \
         ORDER BY memberships.created_at DESC";

/// The same for the two parts that are small: by an index that has nothing else.
pub(super) const SMALL: &str = "SELECT memberships.created_at, events.id \
         FROM memberships INDEXED BY memberships_of_part \
         CROSS JOIN events ON events.row = memberships.event \
         WHERE memberships.topic = ?1 AND memberships.part = ?5 AND memberships.part < 2 \
         AND memberships.created_at BETWEEN ?2 AND ?3 AND events.private <> ?4 \
         ORDER BY memberships.created_at DESC";

pub(super) const GONE: &str = "SELECT created_at, id FROM gone \
         WHERE topic = ?1 AND part = ?5 AND created_at BETWEEN ?2 AND ?3 AND cause < ?4 ORDER BY created_at DESC";

/// How many times `max` a single second may hold.
const CROWDED: usize = 8;

/// See [`crate::pipeline::EventReader::topic_ids`]. Events that have expired count until they are
/// removed: to others they are gone already. Unless the topic `is_private`, it has nothing of what it
/// had when it was.
pub(in crate::store) fn topic_ids(
    connection: &Connection,
    topic: &TopicName,
    is_private: bool,
    part: Part,
    span: Span,
    max: usize,
) -> Result<TopicIds, StoreError> {
    let snapshot = connection.unchecked_transaction()?;
    let Some(topic) = topic_number(&snapshot, topic)? else {
        return Ok(TopicIds { ids: Vec::new(), from: span.from });
    };
    let until = i64::try_from(span.until).unwrap_or(i64::MAX);
    let mut from = i64::try_from(span.from).unwrap_or(i64::MAX);
    let mut ids = Vec::new();
    let private = privacy::hidden(is_private);
    // What one query leaves out for the sake of `max`, the next ones need not read.
    let mut read = |sql: &str, hidden: i64| -> rusqlite::Result<()> {
        let mut statement = snapshot.prepare_cached(sql)?;
        let mut rows = statement.query(params![topic, from, until, hidden, part.number()])?;
        from = newest(&mut rows, max, from, &mut ids)?;
        Ok(())
    };
    read(if part == Part::Rest { REST } else { SMALL }, private)?;
    read(GONE, gone::causes_below(is_private))?;
    let mut ids: Vec<_> = ids.into_iter().filter(|(at, _)| *at >= from).collect();
    ids.sort_unstable();
    ids.dedup();
    // Together they may be more again.
    if let Some(cut) = ids.len().checked_sub(max + 1).and_then(|at| ids.get(at))
        && ids.last().is_some_and(|newest| newest.0 > cut.0)
    {
        from = cut.0 + 1;
        ids.retain(|(at, _)| *at >= from);
    }
    let ids = ids.into_iter().map(|(at, id)| (at.cast_unsigned(), id)).collect();
    Ok(TopicIds { ids, from: from.cast_unsigned() })
}

/// Takes the newest `max` rows and not a part of a second, and returns from where on all are there.
fn newest(
    rows: &mut rusqlite::Rows<'_>,
    max: usize,
    from: i64,
    ids: &mut Vec<(i64, EventId)>,
) -> rusqlite::Result<i64> {
    let first = ids.len();
    while let Some(row) = rows.next()? {
        let next = pair(row)?;
        let taken = ids.len() - first;
        if taken >= max {
            let newest = ids.get(first).map_or(next.0, |newest| newest.0);
            if next.0 < newest || taken >= max.saturating_mul(CROWDED) {
                // The second of this row may have begun before it.
                return Ok((next.0 + 1).min(newest));
            }
        }
        ids.push(next);
    }
    Ok(from)
}

fn pair(row: &Row<'_>) -> rusqlite::Result<(i64, EventId)> {
    Ok((row.get(0)?, EventId(row.get(1)?)))
}
