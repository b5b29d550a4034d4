//! Everything that matches a filter and may be seen, newest first.

use rusqlite::{CachedStatement, Connection, Row};

use super::{
    check::Check,
    conditions::Conditions,
    merge::Place,
    plan::{Effort, Plan, Planner, Source},
    stop::{QueryEnd, Stop},
    walk::Walked,
};
use crate::{pipeline::Viewer, store::memory::Memory};

pub(super) const ID_OF: &str = "SELECT id FROM events WHERE row = ?1";

/// How the caller wants the matches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// How many it will probably take.
    pub events: usize,
    /// It reads the JSON.
    pub text: bool,
    /// Events of one second come with the lowest id first (NIP-01); else in any order.
    pub in_order: bool,
    /// Unix seconds: what has expired by then is not there (NIP-40).
    pub now: u64,
    pub effort: Effort,
}

pub(super) struct Matches<'q> {
    planner: Planner<'q>,
    plan: Option<Plan<'q>>,
    check: Check<'q>,
    ids: Option<CachedStatement<'q>>,
    /// The candidates of one second that are still to be checked; the next is the last.
    second: Vec<Place>,
    created_at: i64,
    /// Candidates that this plan has yielded.
    candidates: u64,
}

impl<'q> Matches<'q> {
    pub fn new(
        connection: &'q Connection,
        memory: &'q Memory,
        conditions: &'q Conditions<'q>,
        viewer: &'q Viewer,
        wanted: Wanted,
        stop: &impl Stop,
    ) -> Result<Self, QueryEnd> {
        let Wanted { events, text, in_order, now, effort } = wanted;
        let planner = Planner { connection, memory, conditions, wanted: events, in_order, effort };
        let ids = if in_order { Some(connection.prepare_cached(ID_OF)?) } else { None };
        let mut matches = Self {
            planner,
            plan: None,
            check: Check::new(connection, conditions, viewer, now, text)?,
            ids,
            second: Vec::new(),
            created_at: 0,
            candidates: 0,
        };
        matches.choose(conditions.until, false, stop)?;
        Ok(matches)
    }

    fn choose(&mut self, until: i64, again: bool, stop: &impl Stop) -> Result<(), QueryEnd> {
        self.plan = self.planner.plan(until, again, stop)?;
        self.candidates = 0;
        if let Some(plan) = &self.plan {
            self.check.driven_by(plan.driver);
        }
        Ok(())
    }

    /// The next match: its row, and what `take` makes of it. `None` after the last.
    pub fn next<T>(
        &mut self,
        stop: &impl Stop,
        take: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<(i64, T)>, QueryEnd> {
        loop {
            while let Some(place) = self.second.pop() {
                stop.check()?;
                if let Some(taken) = self.check.take(place, &take)? {
                    return Ok(Some((place.row, taken)));
                }
            }
            if !self.next_second(stop)? {
                return Ok(None);
            }
            if self.second.len() > 1 {
                self.sort(stop)?;
            }
        }
    }

    fn next_second(&mut self, stop: &impl Stop) -> Result<bool, QueryEnd> {
        loop {
            let Some(plan) = &mut self.plan else { return Ok(false) };
            if plan.patience.is_some_and(|patience| self.candidates > patience) {
                self.choose(self.created_at - 1, true, stop)?;
                continue;
            }
            match &mut plan.source {
                Source::Merge(merge) => merge.next_second(&mut self.second, stop)?,
                // One by one: they come in an order of their own.
                Source::Words(words) => {
                    let row = words.next_row(|| stop.check_time())?;
                    self.second.extend(row.map(|row| Place { created_at: 0, row }));
                }
                Source::Walk(walk) => {
                    if let Walked::GaveUp(until) = walk.next_second(&mut self.second, stop)? {
                        self.choose(until, true, stop)?;
                        continue;
                    }
                }
            }
            let Some(place) = self.second.first() else { return Ok(false) };
            self.created_at = place.created_at;
            self.candidates += self.second.len() as u64;
            return Ok(true);
        }
    }

    /// Lowest id first. A second may hold very many events: nothing but their ids is read here.
    fn sort(&mut self, stop: &impl Stop) -> Result<(), QueryEnd> {
        let Some(statement) = &mut self.ids else { return Ok(()) };
        let mut found: Vec<([u8; 32], Place)> = Vec::with_capacity(self.second.len());
        for place in self.second.drain(..) {
            stop.check()?;
            let mut rows = statement.query([place.row])?;
            if let Some(row) = rows.next()? {
                found.push((row.get(0)?, place));
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        self.second.extend(found.into_iter().map(|(_, place)| place));
        Ok(())
    }
}
