//! How SQLite carries out what the planner asks, as it was reviewed: nothing scans, nothing sorts.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::world::{Dice, empty_store, topic, write};
use crate::{
    pipeline::{EventReader, PrivateTopics},
    protocol::{Filter, VerifiedEvent, hex},
    store::{
        Store, kv, lookup as asked, open,
        query::{
            check,
            conditions::Conditions,
            log, lookup, matches,
            merge::Index,
            plan::{self, Effort, Planner, Source},
            stop::Bounds,
            topic as part, walk,
        },
        search, upkeep,
    },
};

/// Every statement of this folder.
const STATEMENTS: &[(&str, &str)] = &[
    ("range of an author and kind", Index::AuthorKind.sql()),
    ("range of a kind", Index::Kind.sql()),
    ("range of a tag value", Index::Tag.sql()),
    ("range of a topic", Index::Topic.sql()),
    ("walk over everything", walk::WALK),
    ("kinds of an author, one by one", plan::NEXT_KIND),
    ("place of an id", lookup::ID),
    ("number of a topic", lookup::TOPIC),
    ("whether an event is in a topic", lookup::MEMBER),
    ("whether an event has a tag value", check::TAGGED),
    ("an event without its text", check::WITHOUT_TEXT),
    ("an event", check::WITH_TEXT),
    ("id of an event", matches::ID_OF),
    ("text of an event", log::TEXT),
    ("log: events", log::FIRSTS),
    ("log: later topics", log::JOINS),
    ("log: topics before", log::JOINED_BEFORE),
    ("plugins: events of an author", asked::OF_AUTHOR),
    ("plugins: events of an author and kind", asked::OF_AUTHOR_AND_KIND),
    ("plugins: events of a kind", asked::OF_KIND),
    ("plugins: events since", asked::SINCE),
    ("plugins: newest of an author and kind", asked::NEWEST),
    ("plugins: what one remembers", kv::LOAD),
    ("comparison: most of a topic", part::REST),
    ("comparison: a small part of a topic", part::SMALL),
    ("comparison: what is gone from a topic", part::GONE),
];

/// What upkeep asks in the background, beside what its rules make.
const UPKEEP: &[(&str, &str)] = &[
    ("expiry", upkeep::EXPIRED),
    ("retention: size of an event", upkeep::SIZE),
    ("log entries of events that are gone", upkeep::JOINS_SQL),
];

/// The files that hold them.
const SOURCES: &[&str] = &[
    include_str!("../check.rs"),
    include_str!("../conditions.rs"),
    include_str!("../count.rs"),
    include_str!("../ids.rs"),
    include_str!("../log.rs"),
    include_str!("../lookup.rs"),
    include_str!("../matches.rs"),
    include_str!("../merge.rs"),
    include_str!("../plan.rs"),
    include_str!("../scan.rs"),
    include_str!("../topic.rs"),
    include_str!("../walk.rs"),
    include_str!("../../kv.rs"),
    include_str!("../../lookup.rs"),
];

fn id(n: u64) -> String {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&Dice(n).next().to_be_bytes());
    hex::encode(&bytes)
}

fn author(n: u64) -> String {
    id(1_000_000 + n)
}

/// 2,000 events of 500 authors, a second apart; the first ten authors write ten times as often.
fn store() -> (tempfile::TempDir, Store) {
    let (dir, store) = empty_store();
    let kinds = [1, 1, 1, 1, 6, 7, 7, 30_023];
    for n in 0..2_000_u64 {
        let by = if n % 2 == 0 { n / 2 % 10 } else { n / 2 % 500 };
        let hashtag = if n % 3 == 0 { "common" } else { "rare" };
        let answered = id(n.saturating_sub(7 + n % 5));
        let mut tags = vec![["e", &answered], ["d", &answered]];
        if hashtag == "common" || n % 500 == 1 {
            tags.push(["t", hashtag]);
        }
        let json = serde_json::json!({
            "id": id(n), "pubkey": author(by), "created_at": 1_000_000 + n,
            "kind": kinds[usize::try_from(n / 2 % 8).unwrap()], "tags": tags, "content": "some words",
            "sig": hex::encode(&[0; 64]),
        });
        let event = VerifiedEvent::from_store(&json.to_string()).unwrap();
        let topics: &[&str] = if n % 4 == 0 { &["x"] } else { &[] };
        write(&store, &event, topics, &PrivateTopics::default());
    }
    let (head, begun) = (*store.head().borrow(), Instant::now());
    while store.memory.search.get().unwrap().cursor() < head {
        assert!(begun.elapsed() < Duration::from_secs(60), "the index does not follow");
        std::thread::sleep(Duration::from_millis(5));
    }
    (dir, store)
}

/// What clients ask, and whether in a topic.
fn shapes() -> Vec<(&'static str, serde_json::Value, bool)> {
    use serde_json::json;
    let ids = |some: std::ops::Range<u64>| some.map(id).collect::<Vec<_>>();
    let authors = |some: std::ops::Range<u64>| some.map(author).collect::<Vec<_>>();
    vec![
        ("everything", json!({}), false),
        ("since", json!({ "since": 1_001_900 }), false),
        ("ids", json!({ "ids": ids(0..20) }), false),
        ("kind", json!({ "kinds": [1], "limit": 100 }), false),
        ("kinds since", json!({ "kinds": [1, 6, 7], "since": 1_001_900, "limit": 500 }), false),
        ("author", json!({ "authors": authors(3..4), "limit": 20 }), false),
        ("author and kind", json!({ "authors": authors(3..4), "kinds": [1], "limit": 20 }), false),
        (
            "home feed: 500 authors, 5 kinds",
            json!({ "authors": authors(0..500), "kinds": [1, 6, 7, 16, 30_023], "limit": 100 }),
            false,
        ),
        ("hashtag", json!({ "#t": ["common"], "limit": 50 }), false),
        ("hashtag and common kind", json!({ "#t": ["common"], "kinds": [1], "limit": 50 }), false),
        ("thread: 200 × #e", json!({ "#e": ids(1_000..1_200), "limit": 500 }), false),
        (
            "hashtag and author who writes little",
            json!({ "#t": ["common"], "authors": authors(300..301), "limit": 20 }),
            false,
        ),
        (
            "rare hashtag and author who writes much",
            json!({ "#t": ["rare"], "authors": authors(3..4), "limit": 20 }),
            false,
        ),
        (
            "common hashtag and author who writes much",
            json!({ "#t": ["common"], "authors": authors(3..4), "limit": 20 }),
            false,
        ),
        ("search", json!({ "search": "words", "kinds": [1], "limit": 20 }), false),
        ("search of an author", json!({ "search": "words", "authors": authors(3..4) }), false),
        ("two tags", json!({ "#t": ["common"], "#e": ids(1_000..1_001) }), false),
        ("topic", json!({ "limit": 100 }), true),
        ("kind in a topic", json!({ "kinds": [1], "limit": 100 }), true),
        ("author in a topic", json!({ "authors": authors(3..4), "limit": 20 }), true),
        (
            "home feed in a topic",
            json!({ "authors": authors(0..500), "kinds": [1, 6, 7, 16, 30_023], "limit": 100 }),
            true,
        ),
        ("search in a topic", json!({ "search": "words", "limit": 20 }), true),
        ("hashtag in a topic", json!({ "#t": ["rare"], "limit": 50 }), true),
    ]
}

/// The lines of EXPLAIN QUERY PLAN.
fn explain(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nothing = vec![None::<i64>; statement.parameter_count()];
    let lines = statement
        .query_map(rusqlite::params_from_iter(nothing), |row| row.get::<_, String>(3))
        .unwrap();
    let lines: Vec<_> = lines.map(Result::unwrap).collect();
    for line in &lines {
        assert!(!line.contains("TEMP B-TREE"), "{sql}\nsorts: {line}");
        let may_scan = line.contains("INDEX") || sql == search::PARTS;
        assert!(!line.starts_with("SCAN") || may_scan, "{sql}\nscans: {line}");
    }
    lines
}

fn plans() -> String {
    let (dir, store) = store();
    let connection = open::reader(&dir.path().join("gateway.db")).unwrap();
    let words = Connection::open(search::path(dir.path())).unwrap();
    let topic = lookup::topic_number(&connection, &topic("x")).unwrap();
    let mut text = String::from("What answers each question\n");
    for (name, filter, in_topic) in shapes() {
        let filter = Filter::parse(&filter.to_string()).unwrap();
        let scope = topic.filter(|_| in_topic);
        let conditions = Conditions::new(&connection, &store.memory, &filter, scope).unwrap();
        let planner = Planner {
            connection: &connection,
            memory: &store.memory,
            conditions: &conditions,
            wanted: filter.limit.map_or(500, |limit| usize::try_from(limit).unwrap()),
            in_order: true,
            effort: Effort::USUAL,
        };
        write!(text, "\n{name}\n").unwrap();
        for again in [false, true] {
            let stop = Bounds::new(|| false, None, u64::MAX);
            let plan = planner.plan(conditions.until, again, &stop).unwrap().unwrap();
            let (asked, (ranges, sql)) = match &plan.source {
                Source::Merge(merge) => (&connection, merge.describe()),
                Source::Walk(walk) => (&connection, (1, walk.describe())),
                Source::Words(_) => (&words, (1, Some(search::matches_sql(0, true)))),
            };
            let when = if again { "if given up: " } else { "" };
            let what = match ranges {
                0 => "looked up before".to_owned(),
                1 => "one range".to_owned(),
                many => format!("{many} ranges"),
            };
            writeln!(text, "  {when}by {:?}, {what}", plan.driver).unwrap();
            for line in sql.iter().flat_map(|sql| explain(asked, sql)) {
                writeln!(text, "    {line}").unwrap();
            }
        }
    }
    text.push_str("\nEvery statement\n");
    let mut tell = |connection: &Connection, name: &str, sql: &str| {
        write!(text, "\n{name}\n  {sql}\n").unwrap();
        for line in explain(connection, sql) {
            writeln!(text, "    {line}").unwrap();
        }
    };
    for (name, sql) in STATEMENTS.iter().chain(UPKEEP) {
        tell(&connection, name, sql);
    }
    for (name, sql) in upkeep::statements(&connection, "x") {
        tell(&connection, &name, &sql);
    }
    tell(&words, "search: the parts of the index", search::PARTS);
    tell(&words, "search: ranked", &search::matches_sql(0, true));
    tell(&words, "search: to be counted", &search::matches_sql(0, false));
    text
}

/// Run with `UPDATE_SNAPSHOTS=1` to write the file anew after a change that is meant.
#[test]
fn the_plans_are_those_that_were_reviewed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/query/tests/plans.txt");
    let now = plans();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let reviewed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(now == reviewed, "the plans changed; they are now:\n{now}");
}

#[test]
fn no_statement_is_left_out() {
    let written: usize = SOURCES.iter().map(|source| source.matches("\"SELECT ").count()).sum();
    let different: BTreeSet<_> = STATEMENTS.iter().map(|(_, sql)| sql).collect();
    assert_eq!(written, different.len());
}
