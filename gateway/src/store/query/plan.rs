//! Which index answers a filter.
//!
//! Every condition that an index knows could yield the candidates; the others are then checked on each.
//! The best is the one with the fewest candidates *where the answer lies*, at the newest end: so where
//! it is not known beforehand, each is read a little, and the one that reaches furthest back in time
//! wins. Since all yield newest first, a choice that turns out badly is changed on the way.

use rusqlite::{Connection, OptionalExtension};

use super::{
    conditions::Conditions,
    lookup::places_of,
    merge::{Index, Key, Merge, author_kind},
    stop::{QueryEnd, Stop},
    walk::Walk,
};
use crate::store::{memory::Memory, newest::Bound, search::Candidates};

/// What the candidates are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    Ids,
    Author,
    Kind,
    /// One of the tag conditions.
    Tag(usize),
    Topic,
    Time,
    /// The words of a search (NIP-50).
    Words,
}

pub(super) enum Source<'q> {
    Merge(Merge<'q>),
    Walk(Walk<'q>),
    Words(Candidates),
}

pub(super) struct Plan<'q> {
    pub driver: Driver,
    pub source: Source<'q>,
    /// Candidates after which to choose again; `None` when there is no choice.
    pub patience: Option<u64>,
}

/// How much is tried before something else is. Measured; tests make it small to see every path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Rows that a walk may read before its first match, and for each match.
    pub walk_ahead: i64,
    pub rows_per_match: i64,
    /// With more ranges than this, a walk is tried first.
    pub few_ranges: usize,
    /// So few candidates are taken without comparing.
    pub few_candidates: u64,
    /// Candidates that are read of each index to compare them.
    pub sample: usize,
    /// Candidates after which the comparison is made again.
    pub patience: u64,
}

impl Effort {
    pub const USUAL: Self = Self {
        walk_ahead: 128,
        rows_per_match: 12,
        few_ranges: 8,
        few_candidates: 64,
        sample: 128,
        patience: 2_000,
    };
}

/// A share of all events, 1 in so many, above which kinds are not worth to be looked for.
const COMMON_KINDS: u64 = 16;

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(super) struct Planner<'q> {
    pub connection: &'q Connection,
    pub memory: &'q Memory,
    pub conditions: &'q Conditions<'q>,
    /// How many events the caller will probably take.
    pub wanted: usize,
    /// Whether their order matters.
    pub in_order: bool,
    pub effort: Effort,
}

/// The ranges of the filter's authors or kinds, with a bound of the newest in each.
struct Ranges {
    driver: Driver,
    index: Index,
    list: Vec<(Key, i64)>,
    /// How many events they hold about, and how many there are in all; `None` when not known.
    share: Option<(u64, u64)>,
}

impl<'q> Planner<'q> {
    /// The way to everything up to and including `until`. `again` is whether another way was given up.
    /// `None` when nothing matches.
    pub fn plan(
        &self,
        until: i64,
        again: bool,
        stop: &impl Stop,
    ) -> Result<Option<Plan<'q>>, QueryEnd> {
        let window = (self.conditions.since, until);
        // Words have an index of their own, which yields the best match first.
        if let Some(words) = self.conditions.filter.words() {
            let Some(search) = self.memory.search.get() else { return Ok(None) };
            let source = Source::Words(search.candidates(words, self.in_order)?);
            return Ok(Some(Plan { driver: Driver::Words, source, patience: None }));
        }
        if let Some(ids) = &self.conditions.filter.ids {
            let places = places_of(self.connection, ids)?;
            return Ok(merge(Driver::Ids, Merge::of_places(places, window), None));
        }
        let ranges = self.authors_or_kinds()?;
        if ranges.as_ref().is_some_and(|ranges| ranges.list.is_empty()) {
            return Ok(None);
        }
        let tags = (0..self.conditions.tags.len()).map(Driver::Tag);
        let others: Vec<Driver> =
            tags.chain(self.conditions.topic.map(|_| Driver::Topic)).collect();
        match (ranges, others.as_slice()) {
            (None, []) => Ok(self.walk(until, false)?),
            (Some(ranges), []) => {
                if ranges.list.len() > self.effort.few_ranges && !again {
                    Ok(self.walk(until, true)?)
                } else {
                    Ok(merge(ranges.driver, self.merge_of(ranges, window)?, None))
                }
            }
            (None, [driver]) => Ok(merge(*driver, self.ranges_of(*driver, window)?, None)),
            (Some(ranges), _) if self.are_few(&ranges) => {
                Ok(merge(ranges.driver, self.merge_of(ranges, window)?, None))
            }
            (Some(ranges), [driver]) if !again && is_common(&ranges) => {
                let wanted = u64::try_from(self.wanted).unwrap_or(u64::MAX);
                let expected = wanted.saturating_mul(COMMON_KINDS);
                let patience = expected.clamp(self.effort.patience / 4, self.effort.patience);
                Ok(merge(*driver, self.ranges_of(*driver, window)?, Some(patience)))
            }
            (ranges, others) => self.compare(ranges, others, window, stop),
        }
    }

    /// Takes the one that reaches furthest back with the same number of candidates.
    fn compare(
        &self,
        ranges: Option<Ranges>,
        others: &[Driver],
        window: (i64, i64),
        stop: &impl Stop,
    ) -> Result<Option<Plan<'q>>, QueryEnd> {
        let mut best = None;
        if let Some(ranges) = ranges {
            let driver = ranges.driver;
            let mut merge = self.merge_of(ranges, window)?;
            best = Some((merge.sample(self.effort.sample, stop)?, driver, merge));
        }
        for driver in others {
            let mut merge = self.ranges_of(*driver, window)?;
            let reach = merge.sample(self.effort.sample, stop)?;
            if best.as_ref().is_none_or(|(best, ..)| reach.rank() < best.rank()) {
                best = Some((reach, *driver, merge));
            }
        }
        Ok(best.and_then(|(_, driver, source)| merge(driver, source, Some(self.effort.patience))))
    }

    fn are_few(&self, ranges: &Ranges) -> bool {
        ranges.share.is_some_and(|(count, _)| count <= self.effort.few_candidates)
    }

    fn walk(&self, until: i64, must_pay: bool) -> rusqlite::Result<Option<Plan<'q>>> {
        let effort = must_pay.then_some(self.effort);
        let walk = Walk::new(self.connection, self.conditions, until, self.wanted, effort)?;
        Ok(Some(Plan { driver: Driver::Time, source: Source::Walk(walk), patience: None }))
    }

    fn merge_of(&self, ranges: Ranges, window: (i64, i64)) -> rusqlite::Result<Merge<'q>> {
        Merge::new(self.connection, ranges.index, ranges.list, window, self.wanted)
    }

    /// The ranges of a tag condition or the topic.
    fn ranges_of(&self, driver: Driver, window: (i64, i64)) -> rusqlite::Result<Merge<'q>> {
        let (index, keys) = match driver {
            Driver::Tag(n) => {
                let keys = self.conditions.tags.get(n).map(|tag| tag.keys.clone());
                (Index::Tag, keys.unwrap_or_default())
            }
            _ => (Index::Topic, self.conditions.topic.into_iter().collect()),
        };
        let list = keys.into_iter().map(|key| (key, i64::MAX));
        Merge::new(self.connection, index, list, window, self.wanted)
    }

    /// The ranges that the filter's authors and kinds are, if it has any.
    fn authors_or_kinds(&self) -> rusqlite::Result<Option<Ranges>> {
        let Conditions { filter, authors, .. } = self.conditions;
        let (driver, index) = match (authors, &filter.kinds) {
            (Some(_), _) => (Driver::Author, Index::AuthorKind),
            (None, Some(_)) => (Driver::Kind, Index::Kind),
            (None, None) => return Ok(None),
        };
        let (mut list, mut count) = (Vec::new(), 0);
        let mut unknown = false;
        let bounds = self.memory.newest.ask();
        let total = bounds.total();
        let mut add = |key, bound| match bound {
            Bound::Nothing => {}
            Bound::Held { newest, count: held } => {
                list.push((key, newest));
                count += held;
            }
            Bound::Unknown => {
                list.push((key, i64::MAX));
                unknown = true;
            }
        };
        match (authors, &filter.kinds) {
            (Some(authors), Some(kinds)) => {
                for author in authors {
                    bounds.of_each(*author, kinds, |kind, bound| {
                        add(author_kind(*author, kind), bound);
                    });
                }
            }
            (Some(authors), None) if total.is_some() => {
                for author in authors {
                    bounds.of_all(*author, |kind, bound| add(author_kind(*author, kind), bound));
                }
            }
            (Some(authors), None) => {
                // The writer must not wait for a query.
                drop(bounds);
                for author in authors {
                    for kind in kinds_of(self.connection, *author)? {
                        add(author_kind(*author, kind), Bound::Unknown);
                    }
                }
            }
            (None, kinds) => {
                for kind in kinds.iter().flatten() {
                    add(i64::from(*kind), bounds.of_kind(*kind));
                }
            }
        }
        let share = total.filter(|_| !unknown).map(|total| (count, total));
        Ok(Some(Ranges { driver, index, list, share }))
    }
}

/// Whether they are kinds that many events have: then checking them costs less than looking for them.
fn is_common(ranges: &Ranges) -> bool {
    ranges.driver == Driver::Kind
        && ranges.share.is_some_and(|(count, total)| count.saturating_mul(COMMON_KINDS) >= total)
}

#[allow(clippy::unnecessary_wraps, reason = "it ends every way to a plan")]
fn merge(driver: Driver, merge: Merge<'_>, patience: Option<u64>) -> Option<Plan<'_>> {
    Some(Plan { driver, source: Source::Merge(merge), patience })
}

pub(super) const NEXT_KIND: &str = "SELECT kind FROM events INDEXED BY events_by_author \
     WHERE author = ?1 AND kind > ?2 ORDER BY kind LIMIT 1";

/// The kinds of which an author has events: one look-up for each.
fn kinds_of(connection: &Connection, author: u32) -> rusqlite::Result<Vec<u16>> {
    let mut statement = connection.prepare_cached(NEXT_KIND)?;
    let (mut kinds, mut last) = (Vec::new(), -1_i64);
    while let Some(kind) =
        statement.query_row([i64::from(author), last], |row| row.get::<_, u16>(0)).optional()?
    {
        kinds.push(kind);
        last = i64::from(kind);
    }
    Ok(kinds)
}
