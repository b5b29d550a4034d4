//! The column `private` of `events`: for whom an event is on `/`, and since when.
//!
//! 0 was public from the start; 1 is in private topics alone; anything above was so until that log
//! position, which made it public. (No event becomes public at position 1: its own row comes first.)
//! So each log entry can tell what held when it was made.

use rusqlite::{Connection, params};

use crate::{
    pipeline::{Audience, Seq},
    protocol::TopicName,
};

const PRIVATE: i64 = 1;

/// Whether an event with this column is in private topics alone now.
pub(super) fn is_private(column: i64) -> bool {
    column == PRIVATE
}

/// The column's value that is not for a topic's members: a public topic may have been private once, or
/// its name that of a private one.
pub(super) fn hidden(topic_is_private: bool) -> i64 {
    // No event has -1.
    if topic_is_private { -1 } else { PRIVATE }
}

/// Whether it was, once the step at this position was done.
fn was_private_after(column: i64, position: i64) -> bool {
    is_private(column) || column > position
}

/// The audience of an event's first entry.
pub(super) fn first_audience(column: i64, row: i64) -> Audience {
    Audience::first(was_private_after(column, row))
}

/// The audience of a later entry. `before` are the topics that the event was part of by then; it is
/// asked for them only when it was private.
pub(super) fn later_audience<E>(
    column: i64,
    position: i64,
    before: impl FnOnce() -> Result<Vec<TopicName>, E>,
) -> Result<Audience, E> {
    if column == position && !is_private(column) {
        Ok(Audience::Everybody { but: before()? })
    } else if was_private_after(column, position) {
        Ok(Audience::Readers { but: before()? })
    } else {
        Ok(Audience::Nobody)
    }
}

/// Whether a held event is in private topics alone.
pub(super) fn of_row(connection: &Connection, row: i64) -> rusqlite::Result<bool> {
    let column = connection
        .prepare_cached("SELECT private FROM events WHERE row = ?1")?
        .query_row([row], |found| found.get(0))?;
    Ok(is_private(column))
}

/// Notes that the step at this position made the event public.
pub(super) fn make_public(connection: &Connection, row: i64, at: Seq) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE events SET private = ?2 WHERE row = ?1")?
        .execute(params![row, at.cast_signed()])?;
    Ok(())
}
