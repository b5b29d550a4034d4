//! Scans, counts and sets of ids against a naive filter in memory, on random events and filters.
//!
//! The case that fails is printed with its seed; the same seed makes the same case.

mod plans;
mod world;

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    thread,
};

use rusqlite::Connection;

use super::{
    conditions::Conditions,
    matches::{Matches, Wanted},
    plan::Effort,
    stop::{Bounds, QueryEnd},
};
use crate::{
    pipeline::{IdSet, PrivateTopics, Scope, StoreError, Viewer},
    protocol::{Filter, VerifiedEvent, signing::Author},
    store::{memory::Memory, open},
};
use world::{Dice, Held, SHAPES, World, empty_store, topic, write};

impl World {
    /// What the filter finds without its limit.
    fn naive<'w>(
        &'w self,
        filter: &Filter,
        scope: &Scope,
        viewer: &Viewer,
    ) -> Vec<&'w VerifiedEvent> {
        let in_scope = |held: &Held| match scope {
            Scope::Topic(name) => {
                held.topics.contains(name.as_str())
                    && (!held.private || viewer.may_read_topic(name))
            }
            Scope::All => {
                !held.private || held.topics.iter().any(|name| viewer.may_read_topic(&topic(name)))
            }
        };
        self.held
            .iter()
            .filter(|held| filter.matches(&held.event) && in_scope(held))
            .map(|held| &held.event)
            .filter(|event| !event.is_expired(1_000_000_000) && viewer.may_read(event))
            .collect()
    }

    fn try_cases(&self, seed: u64, cases: u64) {
        let connection = self.connection();
        let forgetful = Memory::new(0);
        for case in 0..cases {
            let mut dice = Dice(seed ^ case << 20);
            let filters: Vec<_> =
                (0..=dice.roll(8).saturating_sub(5)).map(|_| self.filter(&mut dice)).collect();
            let viewer = self.viewer(&mut dice);
            let scope = match dice.roll(8) {
                0 => Scope::Topic(topic("x")),
                1 => Scope::Topic(topic("secret")),
                2 if dice.one_in(8) => Scope::Topic(topic("nowhere")),
                _ => Scope::All,
            };
            let memory = if dice.one_in(8) { &forgetful } else { &*self.store.memory };
            let effort = if dice.one_in(3) { Effort::USUAL } else { small(&mut dice) };
            let asked =
                Asked { connection: &connection, memory, scope: &scope, viewer: &viewer, effort };
            if let Err(wrong) = self.try_case(&asked, &filters, &mut dice) {
                let texts: Vec<_> =
                    filters.iter().map(|f| serde_json::to_string(f).unwrap()).collect();
                panic!(
                    "{wrong}\n  store {:?}, seed {seed}, case {case}\n  {scope:?}, {viewer:?}\n  \
                     {effort:?}\n  {texts:#?}",
                    self.shape.name
                );
            }
        }
    }

    fn try_case(
        &self,
        asked: &Asked<'_>,
        filters: &[Filter],
        dice: &mut Dice,
    ) -> Result<(), String> {
        let Asked { connection, memory, scope, viewer, effort } = *asked;
        let stop = Bounds::new(|| false, None, u64::MAX);
        let found: Vec<_> = filters.iter().map(|f| self.naive(f, scope, viewer)).collect();

        let (mut expected, mut seen, mut cut) = (Vec::new(), HashSet::new(), false);
        for (filter, found) in filters.iter().zip(&found) {
            let limit = filter.limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap());
            cut |= found.len() > limit;
            let taken = found.iter().take(limit).filter(|event| seen.insert(event.id));
            expected.extend(taken.map(|event| event.json().clone()));
        }
        let sent = RefCell::new(Vec::new());
        let send = |json| {
            sent.borrow_mut().push(json);
            Ok::<_, QueryEnd>(())
        };
        let answer =
            super::scan::run(connection, memory, filters, scope, viewer, effort, &stop, send);
        let (_, complete) = answer.map_err(|end| format!("scan: {end:?}"))?;
        same("scan", &sent.into_inner(), &expected)?;
        if complete && cut {
            return Err("the scan claims to be complete".into());
        }
        let below = |(filter, found): (&Filter, &Vec<_>)| {
            filter.matches_nothing() || filter.limit.is_none_or(|limit| limit > found.len() as u64)
        };
        if !complete && filters.iter().zip(&found).all(below) {
            return Err("the scan does not know that it is complete".into());
        }

        let failed = |error: StoreError| error.to_string();
        let all: HashSet<_> = found.iter().flatten().map(|event| event.id).collect();
        let counted = super::count::run(connection, memory, filters, scope, viewer, effort, &stop)
            .map_err(failed)?;
        same("count", &counted.count, &(all.len() as u64))?;

        let limit = filters[0].limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap());
        let mut expected: Vec<_> =
            found[0].iter().take(limit).map(|event| (event.created_at, event.id)).collect();
        // As many as allowed, or one more than that.
        let max = match dice.roll(3) {
            0 => expected.len().saturating_sub(1),
            1 => expected.len(),
            _ => 1_000,
        };
        let filter = &filters[0];
        let ids = super::ids::run(connection, memory, filter, scope, viewer, max, effort, &stop)
            .map_err(failed)?;
        match ids {
            IdSet::TooMany if expected.len() > max => Ok(()),
            IdSet::TooMany => Err("too many ids".into()),
            IdSet::All(mut ids) => {
                ids.sort_unstable();
                expected.sort_unstable();
                same("ids", &ids, &expected)
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Asked<'a> {
    connection: &'a Connection,
    memory: &'a Memory,
    scope: &'a Scope,
    viewer: &'a Viewer,
    effort: Effort,
}

/// Bounds so small that everything is given up in the middle of a small store.
fn small(dice: &mut Dice) -> Effort {
    Effort {
        walk_ahead: 1 + dice.roll(8) as i64,
        rows_per_match: dice.roll(4) as i64,
        few_ranges: dice.roll(4),
        few_candidates: dice.roll(4) as u64,
        sample: dice.roll(6),
        patience: dice.roll(12) as u64,
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}:\n  found    {found:?}\n  expected {expected:?}"))
}

#[test]
fn the_planner_finds_what_a_naive_filter_finds_in_the_same_order() {
    const SEED: u64 = 20_240_325;
    const CASES: u64 = 6_000;
    let threads: Vec<_> = SHAPES
        .iter()
        .zip(SEED..)
        .map(|(shape, seed)| {
            #[allow(clippy::disallowed_methods, reason = "a test that uses all cores")]
            thread::spawn(move || World::new(shape, &mut Dice(seed)).try_cases(seed, CASES))
        })
        .collect();
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Where nothing matches, no row is looked at: the clock is asked for what is read of the index, too.
#[test]
fn a_bound_in_time_holds_where_no_row_is_reached() {
    let (dir, store) = empty_store();
    let public = PrivateTopics::default();
    for n in 0..2_000_u64 {
        let author = Author::new(u8::try_from(n % 50).unwrap() + 1);
        // All of one second, as a flood would be.
        let event = author.verified(1_000, 1, &[&["t", "x"]], &n.to_string());
        write(&store, &event, &[], &public);
    }
    let connection = open::reader(&dir.path().join("gateway.db")).unwrap();
    let viewer = Viewer::default();
    for filter in [
        // A walk over the index of time, the ranges of a tag, and both to be compared.
        r#"{"kinds":[7,8,9,10,11,12,13,14,15,16]}"#,
        r##"{"#t":["x"],"#e":["y"]}"##,
        "{}",
    ] {
        let filter = Filter::parse(filter).unwrap();
        let conditions = Conditions::new(&connection, &store.memory, &filter, None).unwrap();
        let looks = Cell::new(0);
        let gone = || {
            looks.set(looks.get() + 1);
            looks.get() > 5
        };
        let stop = Bounds::new(gone, None, u64::MAX);
        let wanted = Wanted {
            events: 1,
            text: false,
            in_order: true,
            now: 2_000,
            effort: Effort { walk_ahead: 1_000_000, ..Effort::USUAL },
        };
        let read = || -> Result<(), QueryEnd> {
            let memory = Memory::new(0);
            let mut matches =
                Matches::new(&connection, &memory, &conditions, &viewer, wanted, &stop)?;
            while matches.next(&stop, |_| Ok(()))?.is_some() {}
            Ok(())
        };
        assert!(matches!(read(), Err(QueryEnd::Stopped)), "{filter:?}");
        assert_eq!(looks.get(), 6, "it ends at once: {filter:?}");
    }
}
