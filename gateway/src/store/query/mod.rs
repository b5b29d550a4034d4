//! What readers ask: scans for REQ, counts, sets of ids, the log, single events.
//!
//! A filter is answered in three steps, each in a file of its own. [`plan`] chooses which index to
//! read, [`merge`] and [`walk`] read it newest first and no further than needed, and [`check`] decides
//! on the event's row what the index does not. [`matches`] puts them together; [`scan`], [`count`] and
//! [`ids`] are the three that ask.

mod check;
mod conditions;
mod count;
mod ids;
mod log;
mod lookup;
mod matches;
mod merge;
mod plan;
mod scan;
mod stop;
mod topic;
mod walk;

#[cfg(test)]
mod tests;

pub(super) use count::count;
pub(super) use ids::ids;
pub(super) use log::{fetch, log_after, missing};
pub(super) use lookup::{is_member, topic_number};
pub(super) use scan::scan;
pub(super) use topic::topic_ids;

use crate::pipeline::StoreError;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(format!("the database failed: {error}"))
    }
}
