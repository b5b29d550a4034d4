//! Stores of random events, and random filters for them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use crate::{
    metrics::Metrics,
    pipeline::{EventReader, EventWriter, Origin, PrivateTopics, Viewer, Write},
    protocol::{EventId, Filter, PublicKey, TopicName, VerifiedEvent, hex, search::Search},
    store::{StorageConfig, Store, open},
};

/// A small generator, so that a failure can be repeated from its seed.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea and Flood 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        usize::try_from(self.next() % sides as u64).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.roll(list.len())]
    }

    pub fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }

    /// Some of the list, sorted and each once, as filters have them.
    pub fn some<T: Clone + Ord>(&mut self, list: &[T], most: usize) -> Vec<T> {
        let some: BTreeSet<T> = (0..=self.roll(most)).map(|_| self.pick(list).clone()).collect();
        some.into_iter().collect()
    }
}

/// What a store of random events looks like.
pub(super) struct Shape {
    pub name: &'static str,
    events: usize,
    authors: usize,
    /// How many different seconds there are.
    seconds: usize,
    kinds: &'static [u16],
}

pub(super) const SHAPES: &[Shape] = &[
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
const WORDS: [&str; 7] = ["ant", "bee", "bees", "cat", "category", "dog", "\u{1f98a}"];

/// One event that the store holds.
pub(super) struct Held {
    pub event: VerifiedEvent,
    pub topics: BTreeSet<&'static str>,
    pub private: bool,
}

pub(super) struct World {
    pub shape: &'static Shape,
    dir: tempfile::TempDir,
    pub store: Store,
    /// Newest first, of one second the lowest id first.
    pub held: Vec<Held>,
    authors: Vec<PublicKey>,
    values: Vec<String>,
    private: PrivateTopics,
}

pub(super) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub(super) fn empty_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let metrics = Arc::new(Metrics::default());
    let opened = runtime.block_on(Store::open(dir.path(), &StorageConfig::default(), metrics));
    (dir, opened.unwrap())
}

/// Stores an event, whatever comes of it.
pub(super) fn write(
    store: &Store,
    event: &VerifiedEvent,
    topics: &[&str],
    private: &PrivateTopics,
) {
    let (done, outcome) = crossbeam_channel::bounded(1);
    let topics: Vec<_> = topics.iter().map(|name| topic(name)).collect();
    let write = Write {
        under_way: 1,
        private: private.hide(&topics),
        event: event.clone(),
        topics,
        vanish: false,
        origin: Origin::Client {
            connection: 1,
            address: [127, 0, 0, 1].into(),
            viewer: Arc::default(),
        },
        done: Box::new(move |result| done.send(result).unwrap()),
    };
    store.write(write).unwrap();
    outcome.recv().unwrap().unwrap();
}

impl World {
    pub fn new(shape: &'static Shape, dice: &mut Dice) -> Self {
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

    pub fn event(&mut self, dice: &mut Dice) -> VerifiedEvent {
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
            "content": self.content(dice),
            "sig": hex::encode(&[0; 64]),
        });
        // Later events may refer to this one.
        if dice.one_in(8) {
            self.values.push(id);
        }
        VerifiedEvent::from_store(&json.to_string()).unwrap()
    }

    /// What looks like a tag and is none, and words.
    fn content(&self, dice: &mut Dice) -> String {
        let mut content = String::from("[\"t\",\"a\"]");
        for _ in 0..dice.roll(6) {
            content.push(' ');
            content.push_str(dice.pick::<&str>(&WORDS));
        }
        content
    }

    pub fn fill(&mut self, dice: &mut Dice) {
        const TOPICS: [&[&str]; 7] =
            [&[], &[], &["x"], &["x", "y"], &["secret"], &["other", "secret"], &["secret", "x"]];
        let mut written: BTreeMap<EventId, (VerifiedEvent, BTreeSet<&'static str>)> =
            BTreeMap::new();
        for _ in 0..self.shape.events {
            let event = self.event(dice);
            // Some come again, by further topics.
            for _ in 0..=usize::from(dice.one_in(6)) {
                let topics = *dice.pick(&TOPICS);
                write(&self.store, &event, topics, &self.private);
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
        self.wait_for_the_index(&connection);
    }

    /// Until everything is indexed, and what was replaced is taken out.
    fn wait_for_the_index(&self, connection: &Connection) {
        let search = self.store.memory.search.get().unwrap();
        let head = *self.store.head().borrow();
        let begun = Instant::now();
        let removed = || -> i64 {
            connection.query_row("SELECT count(*) FROM removed_rows", [], |row| row.get(0)).unwrap()
        };
        while search.cursor() < head || removed() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the index does not follow");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connection(&self) -> Connection {
        open::reader(&self.dir.path().join("gateway.db")).unwrap()
    }

    pub fn filter(&self, dice: &mut Dice) -> Filter {
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
        if dice.one_in(8) {
            filter.search = Some(self.search(dice));
        }
        filter
    }

    /// Words, phrases, beginnings of words, and what must not be there (NIP-50).
    fn search(&self, dice: &mut Dice) -> Search {
        let mut text = if dice.one_in(6) { String::from("language:en ") } else { String::new() };
        let mut excluded = false;
        for _ in 0..=dice.roll(3) {
            let word = *dice.pick(&WORDS);
            text += if excluded { "-" } else { "" };
            text += &match dice.roll(4) {
                0 => format!("\"{word} {}\" ", dice.pick(&WORDS)),
                1 if word.len() > 3 => format!("{}* ", word.get(..3).unwrap_or(word)),
                _ => format!("{word} "),
            };
            excluded = dice.one_in(3);
        }
        Search::parse(text).unwrap()
    }

    pub fn viewer(&self, dice: &mut Dice) -> Viewer {
        match dice.roll(4) {
            0 | 1 => Viewer::default(),
            2 => Viewer::new([self.authors[0]].into(), false, &self.private),
            _ => Viewer::new(BTreeSet::new(), true, &self.private),
        }
    }
}
