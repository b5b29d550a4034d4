//! The newest-first walk over all events, for filters with very many ranges.
//!
//! Its index holds kind and author, so what does not match costs a fraction of opening a range. It
//! goes on only while it pays.

use rusqlite::{CachedStatement, Connection};

use super::{
    conditions::Conditions,
    merge::{Place, next_page},
    plan::Effort,
    stop::{QueryEnd, Stop},
};

pub(super) const WALK: &str = "SELECT created_at, row, kind, author FROM events INDEXED BY events_by_time \
     WHERE (created_at, kind, author, row) < (?1, ?2, ?3, ?4) AND created_at >= ?5 \
     ORDER BY created_at DESC, kind DESC, author DESC, row DESC";

#[derive(Clone, Copy)]
struct Entry {
    place: Place,
    kind: u16,
    author: u32,
}

pub(super) struct Walk<'q> {
    conditions: &'q Conditions<'q>,
    statement: CachedStatement<'q>,
    /// Read but not yet taken; newest last.
    page: Vec<Entry>,
    /// The last entry that was read: its `created_at`, kind, author and row, the order of the index.
    after: (i64, i64, i64, i64),
    page_size: usize,
    exhausted: bool,
    /// Rows that may still be read; `None` when there is no better way.
    credit: Option<i64>,
    rows_per_match: i64,
}

/// What a walk comes to.
pub(super) enum Walked {
    Second,
    End,
    /// It does not pay: everything up to and including this second is still to be found.
    GaveUp(i64),
}

impl<'q> Walk<'q> {
    /// With an effort, it gives up where it does not pay.
    pub fn new(
        connection: &'q Connection,
        conditions: &'q Conditions<'q>,
        until: i64,
        wanted: usize,
        effort: Option<Effort>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            conditions,
            statement: connection.prepare_cached(WALK)?,
            page: Vec::new(),
            after: (until, i64::MAX, i64::MAX, i64::MAX),
            page_size: match effort {
                Some(effort) => usize::try_from(effort.walk_ahead).unwrap_or(1).max(1),
                None => wanted.clamp(4, 512) + 4,
            },
            exhausted: false,
            credit: effort.map(|effort| effort.walk_ahead),
            rows_per_match: effort.map_or(0, |effort| effort.rows_per_match),
        })
    }

    #[cfg(test)]
    pub fn describe(&self) -> Option<String> {
        self.statement.expanded_sql()
    }

    /// All matching places of the next second that has any.
    pub fn next_second(
        &mut self,
        places: &mut Vec<Place>,
        stop: &impl Stop,
    ) -> Result<Walked, QueryEnd> {
        places.clear();
        loop {
            if self.page.is_empty() {
                if !self.exhausted {
                    self.read_page(stop)?;
                }
                if self.page.is_empty() {
                    return Ok(if places.is_empty() { Walked::End } else { Walked::Second });
                }
            }
            while let Some(entry) = self.page.last() {
                let Entry { place, kind, author } = *entry;
                if places.first().is_some_and(|first| first.created_at != place.created_at) {
                    return Ok(Walked::Second);
                }
                let matches =
                    self.conditions.allows_kind(kind) && self.conditions.allows_author(author);
                if let Some(credit) = &mut self.credit {
                    *credit += if matches { self.rows_per_match } else { -1 };
                    if *credit < 0 && places.is_empty() {
                        return Ok(Walked::GaveUp(place.created_at));
                    }
                }
                self.page.pop();
                if matches {
                    places.push(place);
                }
            }
        }
    }

    fn read_page(&mut self, stop: &impl Stop) -> Result<(), QueryEnd> {
        let (created_at, kind, author, row) = self.after;
        let since = self.conditions.since;
        let mut rows = self.statement.query([created_at, kind, author, row, since])?;
        while self.page.len() < self.page_size {
            let Some(row) = rows.next()? else {
                self.exhausted = true;
                break;
            };
            let place = Place { created_at: row.get(0)?, row: row.get(1)? };
            self.page.push(Entry { place, kind: row.get(2)?, author: row.get(3)? });
            stop.check_time()?;
        }
        drop(rows);
        if let Some(Entry { place, kind, author }) = self.page.last() {
            self.after = (place.created_at, i64::from(*kind), i64::from(*author), place.row);
        }
        let in_one_second =
            self.page.first().is_some_and(|newest| newest.place.created_at == self.after.0);
        self.page_size = next_page(self.page_size, in_one_second);
        self.page.reverse();
        Ok(())
    }
}
