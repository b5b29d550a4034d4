//! Scans, counts and sets of ids against a naive filter in memory, on random events and filters.
//!
//! The case that fails is printed with its seed; the same seed makes the same case.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    thread,
};

use rusqlite::Connection;

use super::{
    plan::Effort,
    stop::{Bounds, QueryEnd},
};
use crate::{
    metrics::Metrics,
    pipeline::{EventWriter, IdSet, Origin, PrivateTopics, Scope, StoreError, Viewer, Write},
    protocol::{EventId, Filter, PublicKey, TopicName, VerifiedEvent, hex},
    store::{StorageConfig, Store, memory::Memory, open},
};

/// A small generator, so that a failure can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea and Flood 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn roll(&mut self, sides: usize) -> usize {
        usize::try_from(self.next() % sides as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.roll(list.len())]
    }

    fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }

    /// Some of the list, sorted and each once, as filters have them.
    fn some<T: Clone + Ord>(&mut self, list: &[T], most: usize) -> Vec<T> {
        let some: BTreeSet<T> = (0..=self.roll(most)).map(|_| self.pick(list).clone()).collect();
        some.into_iter().collect()
    }
}

/// What a store of random events looks like.
struct Shape {
    name: &'static str,
    events: usize,
    authors: usize,
    /// How many different seconds there are.
    seconds: usize,
    kinds: &'static [u16],
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "mixed",
        events: 150,
        authors: 6,
        seconds: 60,
        kinds: &[1, 1, 1, 4, 6, 7, 1_000],
    },
    Shape { name: "ties", events: 150, authors: 4, seconds: 3, kinds: &[1, 7] },
    Shape {
        name: "many authors",
        events: 250,
        authors: 80,
        seconds: 10_000,
        kinds: &[1, 6, 7, 16],
    },
    Shape { name: "replaced", events: 250, authors: 5, seconds: 200, kinds: &[0, 1, 3, 5, 30_000] },
    Shape { name: "guarded", events: 120, authors: 5, seconds: 50, kinds: &[1, 4, 1_059] },
    Shape {
        name: "many kinds",
        events: 200,
        authors: 10,
        seconds: 1_000,
        kinds: &[1, 2, 6, 8, 9, 11, 16, 42, 43, 44, 1_000, 1_111, 1_311, 9_735],
    },
];

const START: u64 = 1_000;
const LETTERS: [char; 5] = ['e', 'p', 't', 'T', 'd'];

/// One event that the store holds.
struct Held {
    event: VerifiedEvent,
    topics: BTreeSet<&'static str>,
    private: bool,
}

struct World {
    shape: &'static Shape,
    dir: tempfile::TempDir,
    store: Store,
    /// Newest first, of one second the lowest id first.
    held: Vec<Held>,
    authors: Vec<PublicKey>,
    values: Vec<String>,
    private: PrivateTopics,
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

impl World {
    fn new(shape: &'static Shape, dice: &mut Dice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let metrics = Arc::new(Metrics::default());
        let store =
            runtime.block_on(Store::open(dir.path(), &StorageConfig::default(), metrics)).unwrap();
        let authors: Vec<_> = (0..shape.authors).map(|_| PublicKey(dice.bytes())).collect();
        let long = "long ".repeat(40);
        let mut values = vec!["a".into(), "b".into(), String::new(), "q\"\\".into()];
        values.extend([format!("{long}1"), format!("{long}2"), authors[0].to_string()]);
        let private =
            PrivateTopics::new([(topic("secret"), [authors[0]]), (topic("other"), [authors[1]])]);
        let mut world = Self { shape, dir, store, held: Vec::new(), authors, values, private };
        world.fill(dice);
        world
    }

    fn event(&mut self, dice: &mut Dice) -> VerifiedEvent {
        let id = hex::encode(&dice.bytes());
        let mut tags: Vec<[String; 2]> = (0..dice.roll(4))
            .map(|_| [dice.pick(&LETTERS).to_string(), dice.pick(&self.values).clone()])
            .collect();
        if dice.one_in(12) {
            let at = if dice.one_in(2) { 2 } else { 99_999_999_999_u64 };
            tags.push(["expiration".into(), at.to_string()]);
        }
        let json = serde_json::json!({
            "id": id,
            "pubkey": dice.pick(&self.authors).to_string(),
            "created_at": START + dice.roll(self.shape.seconds) as u64,
            "kind": dice.pick(self.shape.kinds),
            "tags": tags,
            "content": "[\"t\",\"a\"]",
            "sig": hex::encode(&[0; 64]),
        });
        // Later events may refer to this one.
        if dice.one_in(8) {
            self.values.push(id);
        }
        VerifiedEvent::from_store(&json.to_string()).unwrap()
    }

    fn fill(&mut self, dice: &mut Dice) {
        const TOPICS: [&[&str]; 7] =
            [&[], &[], &["x"], &["x", "y"], &["secret"], &["other", "secret"], &["secret", "x"]];
        let mut written: BTreeMap<EventId, (VerifiedEvent, BTreeSet<&'static str>)> =
            BTreeMap::new();
        let (done, outcomes) = crossbeam_channel::bounded(1);
        for _ in 0..self.shape.events {
            let event = self.event(dice);
            // Some come again, by further topics.
            for _ in 0..=usize::from(dice.one_in(6)) {
                let topics = *dice.pick(&TOPICS);
                let names: Vec<_> = topics.iter().map(|name| topic(name)).collect();
                let done = done.clone();
                let write = Write {
                    private: self.private.hide(&names),
                    event: event.clone(),
                    topics: names,
                    vanish: false,
                    origin: Origin::Client {
                        connection: 1,
                        address: [127, 0, 0, 1].into(),
                        viewer: Arc::default(),
                    },
                    done: Box::new(move |outcome| done.send(outcome).unwrap()),
                };
                self.store.write(write).unwrap();
                outcomes.recv().unwrap().unwrap();
                let entry = written.entry(event.id).or_insert_with(|| (event.clone(), [].into()));
                if topics.is_empty() {
                    entry.1.insert("");
                }
                entry.1.extend(topics);
            }
        }
        let connection = self.connection();
        let mut statement = connection.prepare("SELECT id FROM events").unwrap();
        let ids = statement.query_map([], |row| row.get::<_, [u8; 32]>(0)).unwrap();
        self.held = ids
            .map(|id| {
                let (event, mut topics) = written.remove(&EventId(id.unwrap())).unwrap();
                let public = topics.remove("") || topics.contains("x");
                Held { event, topics, private: !public }
            })
            .collect();
        self.held.sort_by_key(|held| (Reverse(held.event.created_at), held.event.id));
    }

    fn connection(&self) -> Connection {
        open::reader(&self.dir.path().join("gateway.db")).unwrap()
    }

    fn filter(&self, dice: &mut Dice) -> Filter {
        let mut filter = Filter::default();
        if dice.one_in(8) {
            let ids = (0..=dice.roll(9)).map(|_| dice.pick(&self.held).event.id);
            let ids: BTreeSet<EventId> = ids.collect();
            filter.ids = Some(ids.into_iter().collect());
        }
        if dice.one_in(3) {
            let most = if dice.one_in(2) { 4 } else { self.authors.len() };
            let mut authors = dice.some(&self.authors, most);
            if dice.one_in(10) {
                authors.push(PublicKey([0xff; 32]));
            }
            filter.authors = Some(authors);
        }
        if dice.one_in(3) {
            let mut kinds = dice.some(self.shape.kinds, self.shape.kinds.len());
            if dice.one_in(10) {
                kinds.push(65_535);
            }
            filter.kinds = Some(kinds);
        }
        for letter in LETTERS {
            if dice.one_in(7) {
                let most = if dice.one_in(4) { 12 } else { 2 };
                filter.tags.push((letter as u8, dice.some(&self.values, most)));
            }
        }
        filter.tags.sort();
        let time = |dice: &mut Dice| START + dice.roll(self.shape.seconds + 1) as u64;
        filter.since = dice.one_in(5).then(|| time(dice));
        filter.until = dice.one_in(5).then(|| time(dice));
        filter.limit = match dice.roll(4) {
            0 => None,
            1 => Some(dice.roll(4) as u64),
            _ => Some(dice.roll(40) as u64),
        };
        filter
    }

    fn viewer(&self, dice: &mut Dice) -> Viewer {
        match dice.roll(4) {
            0 | 1 => Viewer::default(),
            2 => Viewer::new([self.authors[0]].into(), false, &self.private),
            _ => Viewer::new(BTreeSet::new(), true, &self.private),
        }
    }

    /// What the filter finds without its limit.
    fn naive<'w>(
        &'w self,
        filter: &Filter,
        scope: &Scope,
        viewer: &Viewer,
    ) -> Vec<&'w VerifiedEvent> {
        let in_scope = |held: &Held| match scope {
            Scope::Topic(name) => held.topics.contains(name.as_str()),
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
