//! Scans, counts and sets of ids against a naive filter in memory, on random events and filters.
//!
//! The case that fails is printed with its seed; the same seed makes the same case.

mod plans;
mod world;

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
    thread,
    time::Instant,
};

use rusqlite::Connection;

use super::{
    conditions::Conditions,
    matches::{Matches, Wanted},
    plan::Effort,
    stop::{Bounds, QueryEnd},
};
use crate::{
    pipeline::{Count, IdSet, PrivateTopics, Scope, StoreError, Viewer},
    protocol::{
        Event, Filter, VerifiedEvent, message,
        search::{Search, Term},
        signing::Author,
    },
    store::{memory::Memory, open, search},
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
        let says = |held: &Held| filter.words().is_none_or(|search| says(&held.event, search));
        self.held
            .iter()
            .filter(|held| filter.matches(&held.event) && in_scope(held) && says(held))
            .map(|held| &held.event)
            .filter(|event| !event.is_expired(1_000_000_000) && viewer.may_read(event))
            .collect()
    }

    fn try_cases(&self, seed: u64, cases: u64) {
        let connection = self.connection();
        let forgetful = Memory::new(0);
        for case in 0..cases {
            let mut dice = Dice(seed ^ case << 20);
            let mut filters: Vec<_> =
                (0..=dice.roll(8).saturating_sub(5)).map(|_| self.filter(&mut dice)).collect();
            let searching = filters.iter().position(|filter| filter.words().is_some());
            if let Some(n) = searching {
                filters = vec![filters.swap_remove(n)];
            }
            let viewer = self.viewer(&mut dice);
            let scope = match dice.roll(8) {
                0 => Scope::Topic(topic("x")),
                1 => Scope::Topic(topic("secret")),
                2 if dice.one_in(8) => Scope::Topic(topic("nowhere")),
                _ => Scope::All,
            };
            let forgets = dice.one_in(8) && searching.is_none();
            let memory = if forgets { &forgetful } else { &*self.store.memory };
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
        let mut found: Vec<_> = filters.iter().map(|f| self.naive(f, scope, viewer)).collect();
        if filters[0].words().is_some() {
            // The best come first, and which those are the index knows alone. A limit takes them.
            let all = Filter { limit: None, ..filters[0].clone() };
            let (ranked, _) = asked.scan(&[all])?;
            let place: HashMap<_, _> = ranked.iter().zip(0..).collect();
            same("search", &place.len(), &ranked.len())?;
            let mut by_age: Vec<_> =
                ranked.iter().map(|json| Event::parse(json).unwrap()).collect();
            by_age.sort_by_key(|event| (Reverse(event.created_at), event.id));
            let ids = |event: &Event| event.id;
            let expected: Vec<_> = found[0].iter().map(|event| ids(event)).collect();
            same("search", &by_age.iter().map(ids).collect(), &expected)?;
            found[0].sort_by_key(|event| place[event.json()]);
        }

        let (mut expected, mut seen, mut cut) = (Vec::new(), HashSet::new(), false);
        for (filter, found) in filters.iter().zip(&found) {
            let limit = filter.limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap());
            cut |= found.len() > limit;
            let taken = found.iter().take(limit).filter(|event| seen.insert(event.id));
            expected.extend(taken.map(|event| event.json().clone()));
        }
        let (sent, complete) = asked.scan(filters)?;
        same("scan", &sent, &expected)?;
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

impl Asked<'_> {
    /// What a REQ is sent, and whether that was all.
    fn scan(&self, filters: &[Filter]) -> Result<(Vec<Arc<str>>, bool), String> {
        let Asked { connection, memory, scope, viewer, effort } = *self;
        let stop = Bounds::new(|| false, None, u64::MAX);
        let sent = RefCell::new(Vec::new());
        let send = |json| {
            sent.borrow_mut().push(json);
            Ok::<_, QueryEnd>(())
        };
        let answer =
            super::scan::run(connection, memory, filters, scope, viewer, effort, &stop, send);
        let (_, complete) = answer.map_err(|end| format!("scan: {end:?}"))?;
        Ok((sent.into_inner(), complete))
    }
}

/// Whether an event has the words that a search asks for, one after the other where they are a phrase.
fn says(event: &Event, search: &Search) -> bool {
    let mut text = String::new();
    search::words(event, &mut text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let has = |term: &Term| {
        let asked: Vec<&str> = term.words.split(' ').collect();
        words.windows(asked.len()).any(|some| {
            some.iter().zip(&asked).enumerate().all(|(n, (word, asked))| {
                word == asked || term.prefix && n + 1 == some.len() && word.starts_with(asked)
            })
        })
    };
    let mut terms = search.terms().iter().filter(|term| !term.words.is_empty());
    search.terms().iter().any(|term| !term.words.is_empty() && !term.excluded)
        && terms.all(|term| has(term) != term.excluded)
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

/// How many cases each store is asked.
fn cases() -> u64 {
    let wanted = std::env::var("PLANNER_CASES").ok().map(|text| text.parse().unwrap());
    wanted.unwrap_or(34_000)
}

#[test]
fn the_planner_finds_what_a_naive_filter_finds_in_the_same_order() {
    const SEED: u64 = 20_240_325;
    // As many at once as there are cores: the stores' own threads have little to do.
    let next = Arc::new(std::sync::Mutex::new(SHAPES.iter().zip(SEED..)));
    let threads: Vec<_> = (0..thread::available_parallelism().map_or(2, usize::from))
        .map(|_| {
            let next = next.clone();
            #[allow(clippy::disallowed_methods, reason = "a test that uses all cores")]
            thread::spawn(move || {
                loop {
                    let Some((shape, seed)) = next.lock().unwrap().next() else { return };
                    World::new(shape, &mut Dice(seed)).try_cases(seed, cases());
                }
            })
        })
        .collect();
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// NIP-45: an answer that is not exact says so.
#[test]
fn a_count_that_reaches_a_bound_says_that_it_is_approximate() {
    let (dir, store) = empty_store();
    for n in 0..50_u64 {
        let event = Author::new(1).verified(n, 1, &[], &n.to_string());
        write(&store, &event, &[], &PrivateTopics::default());
    }
    let connection = open::reader(&dir.path().join("gateway.db")).unwrap();
    let count = |filters: &[&str], until: Option<Instant>, rows: u64| {
        let filters: Vec<_> = filters.iter().map(|text| Filter::parse(text).unwrap()).collect();
        let stop = Bounds::new(|| false, until, rows);
        let (viewer, effort) = (Viewer::default(), Effort::USUAL);
        let scope = Scope::All;
        let Count { count, approximate } =
            super::count::run(&connection, &store.memory, &filters, &scope, &viewer, effort, &stop)
                .unwrap();
        (count, approximate, message::count("c", count, approximate))
    };
    let exact = |count| (count, false, format!(r#"["COUNT","c",{{"count":{count}}}]"#));
    let about =
        |count| (count, true, format!(r#"["COUNT","c",{{"count":{count},"approximate":true}}]"#));
    assert_eq!(count(&["{}"], None, 50), exact(50));
    assert_eq!(count(&["{}"], None, 49), about(49));
    assert_eq!(count(&[r#"{"kinds":[1]}"#], None, 10), about(10));
    // The bound is that of the whole question, and what was found before it counts.
    let two = [r#"{"since":40}"#, r#"{"until":9}"#];
    assert_eq!(count(&two, None, 20), exact(20));
    assert_eq!(count(&two, None, 15), about(15));
    let past = Instant::now();
    assert_eq!(count(&["{}"], Some(past), u64::MAX), about(0));
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
