//! The store through its own interface, on real files.

mod gone;
mod plugins;

use std::sync::{Arc, atomic::AtomicU64};

use tokio::sync::oneshot;

use super::*;
use crate::{
    pipeline::{Audience, Committed, Origin, ScanItem},
    protocol::{Event, VerifiedEvent, kinds, signing::Author},
};

async fn open(dir: &tempfile::TempDir) -> Arc<Store> {
    let metrics = Arc::new(Metrics::default());
    Arc::new(Store::open(dir.path(), &StorageConfig::default(), metrics).await.unwrap())
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn client() -> Origin {
    Origin::Client { connection: 1, address: [127, 0, 0, 1].into(), viewer: Arc::default() }
}

async fn write(store: &Arc<Store>, event: &VerifiedEvent, topics: &[&str]) -> Committed {
    write_as(store, event, topics, false).await
}

async fn write_as(
    store: &Arc<Store>,
    event: &VerifiedEvent,
    topics: &[&str],
    private: bool,
) -> Committed {
    let (done, outcome) = oneshot::channel();
    let write = Write {
        event: event.clone(),
        topics: topics.iter().map(|name| topic(name)).collect(),
        private,
        under_way: 1,
        vanish: event.kind == kinds::VANISH,
        origin: client(),
        done: Box::new(move |result| drop(done.send(result))),
    };
    let store = store.clone();
    tasks::blocking(move || store.write(write)).await.unwrap().unwrap();
    outcome.await.unwrap().unwrap()
}

async fn affected(store: &Arc<Store>, event: &VerifiedEvent) -> Affected {
    let (store, event) = (store.clone(), event.clone());
    tasks::blocking(move || store.affected(&event)).await.unwrap().unwrap()
}

async fn topics_affected(store: &Arc<Store>, event: &VerifiedEvent) -> Vec<TopicName> {
    affected(store, event).await.topics
}

async fn query(store: &Store, filters: &[&str], scope: Scope) -> (Vec<Event>, Seq) {
    let filters = filters.iter().map(|filter| Filter::parse(filter).unwrap()).collect();
    let mut scan = store.scan(filters, scope, Arc::default());
    let mut events = Vec::new();
    loop {
        match scan.next().await.unwrap() {
            ScanItem::Events(texts) => {
                events.extend(texts.iter().map(|json| Event::parse(json).unwrap()));
            }
            ScanItem::End { at, .. } => return (events, at),
            ScanItem::Failed(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn the_newest_version_is_kept_and_ties_go_to_the_lowest_id() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let mut tied = [author.verified(20, 0, &[], "a"), author.verified(20, 0, &[], "b")];
    tied.sort_by_key(|event| event.id);
    let [low, high] = tied;
    let (old, new) = (author.verified(10, 0, &[], "old"), author.verified(30, 0, &[], "new"));

    assert!(matches!(write(&store, &old, &["x"]).await, Committed::New(_)));
    assert!(matches!(write(&store, &high, &["y"]).await, Committed::New(_)));
    assert_eq!(write(&store, &old, &[]).await, Committed::Superseded);
    assert!(matches!(write(&store, &low, &["y"]).await, Committed::New(_)));
    assert_eq!(write(&store, &high, &[]).await, Committed::Superseded);
    assert_eq!(query(&store, &["{}"], Scope::All).await.0, [(*low).clone()]);
    assert!(query(&store, &["{}"], Scope::Topic(topic("x"))).await.0.is_empty());
    assert_eq!(topics_affected(&store, &new).await, [topic("y")]);
    assert!(matches!(write(&store, &new, &["y", "z"]).await, Committed::New(_)));
    assert_eq!(topics_affected(&store, &old).await, [topic("y"), topic("z")]);
    assert_eq!(query(&store, &["{}"], Scope::Topic(topic("y"))).await.0, [(*new).clone()]);
    let other = Author::new(2).verified(40, 0, &[], "");
    assert!(topics_affected(&store, &other).await.is_empty());

    // Addressable: one for each `d` tag, and a missing one is the empty one.
    let address = |at, d: &[&[&str]]| author.verified(at, 30_000, d, "");
    for event in [address(1, &[]), address(2, &[&["d"]]), address(3, &[&["d", ""]])] {
        assert!(matches!(write(&store, &event, &[]).await, Committed::New(_)));
    }
    assert!(matches!(write(&store, &address(1, &[&["d", "a"]]), &[]).await, Committed::New(_)));
    let (found, _) = query(&store, &[r#"{"kinds":[30000]}"#], Scope::All).await;
    assert_eq!(found.iter().map(|event| event.created_at).collect::<Vec<_>>(), [3, 1]);
    store.close().await;
}

#[tokio::test]
async fn a_second_topic_is_a_log_entry_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let event = Author::new(1).verified(1, 1, &[], "");
    let Committed::New(first) = write(&store, &event, &["a", "b"]).await else { panic!() };
    assert_eq!(write(&store, &event, &["b"]).await, Committed::Duplicate);
    let Committed::Joined(third) = write(&store, &event, &["c"]).await else { panic!() };
    assert_eq!(third, first + 2);
    for entries in [store.recent_log_after(0).unwrap(), store.log_after(0, 10).await.unwrap()] {
        let seen: Vec<_> = entries
            .iter()
            .map(|entry| (entry.seq, entry.topic.clone().unwrap(), entry.first, &*entry.origin))
            .collect();
        let expected = [
            (first, topic("a"), true, "client"),
            (first + 1, topic("b"), false, "client"),
            (third, topic("c"), false, "client"),
        ];
        assert_eq!(seen, expected);
    }
    let ids = vec![event.id];
    assert_eq!(store.fetch(topic("c"), ids.clone()).await.unwrap(), [event.json().clone()]);
    assert!(store.fetch(topic("d"), ids.clone()).await.unwrap().is_empty());
    assert!(store.missing(topic("a"), ids.clone()).await.unwrap().is_empty());
    assert_eq!(store.missing(topic("d"), ids.clone()).await.unwrap(), ids);
    store.close().await;
}

#[tokio::test]
async fn positions_are_never_reused_even_after_the_newest_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let mut last = 0;
    for at in 1..4 {
        let store = open(&dir).await;
        assert_eq!(store.stored_at_start(), u64::from(at > 1));
        assert_eq!(*store.head().borrow(), last);
        let Committed::New(seq) = write(&store, &author.verified(at, 0, &[], ""), &[]).await else {
            panic!()
        };
        assert!(seq > last);
        last = seq;
        // The replaced event's entry is skipped.
        let entries = store.log_after(0, 10).await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [seq]);
        store.close().await;
    }
}

#[tokio::test]
async fn expired_events_are_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    write(&store, &author.verified(1, 1, &[&["expiration", "2"]], "gone"), &[]).await;
    let huge = author.verified(1, 1, &[&["expiration", &u64::MAX.to_string()]], "stays");
    write(&store, &huge, &[]).await;
    assert_eq!(query(&store, &["{}"], Scope::All).await.0, [(*huge).clone()]);
    store.close().await;
}

#[tokio::test]
async fn a_scan_ends_with_its_client_although_nothing_matches() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    for n in 0..500 {
        write(&store, &author.verified(1, 1, &[&["t", "x"]], &n.to_string()), &["x"]).await;
    }
    let filter = Filter::parse(r##"{"#t":["x"],"kinds":[9999],"limit":1}"##).unwrap();
    for _ in 0..1_000 {
        drop(store.scan(vec![filter.clone(); 100], Scope::All, Arc::default()));
    }
    // Read to their end, these scans would look at fifty million rows first.
    let next = query(&store, &[r#"{"limit":1}"#], Scope::All);
    let (found, _) = tokio::time::timeout(std::time::Duration::from_secs(5), next).await.unwrap();
    assert_eq!(found.len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let long = "x".repeat(500_000);
    for at in 0..60 {
        write(&store, &author.verified(at, 1, &[], &long), &[]).await;
    }
    let all = || vec![Filter::parse("{}").unwrap()];
    let mut stuck: Vec<_> = (0..4).map(|_| store.scan(all(), Scope::All, Arc::default())).collect();
    let started = std::time::Instant::now();
    let (found, _) = query(&store, &[r#"{"limit":3}"#], Scope::All).await;
    assert_eq!(found.len(), 3);
    // Who waits for a reader need not wait as long as a lone client may.
    assert!(started.elapsed() < std::time::Duration::from_millis(1_500), "{:?}", started.elapsed());
    // There was no reader for that query until one of the scans had been given up.
    let mut ends = Vec::new();
    for scan in &mut stuck {
        let mut end = None;
        while let Some(item) = scan.next().await {
            end = Some(item);
        }
        ends.push(end);
    }
    assert!(ends.iter().any(|end| matches!(end, Some(ScanItem::Failed(_)))), "{ends:?}");
    store.close().await;
}

/// What the first version wrote, with its own statements.
const FIRST_VERSION: &str = include_str!("../../../migrations/0001_events.sql");

/// A database of the first version, without events.
fn first_version(dir: &tempfile::TempDir) -> rusqlite::Connection {
    let old = rusqlite::Connection::open(dir.path().join("gateway.db")).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
    old.execute_batch(FIRST_VERSION).unwrap();
    let migrations = sqlx::migrate!("../migrations");
    let first = migrations.iter().next().unwrap();
    old.execute_batch(
        "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, \
         installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, \
         checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)",
    )
    .unwrap();
    let applied = "INSERT INTO _sqlx_migrations \
         (version, description, success, checksum, execution_time) VALUES (1, ?1, 1, ?2, 0)";
    old.execute(applied, (&*first.description, &*first.checksum)).unwrap();
    old
}

fn insert_old(old: &rusqlite::Connection, row: i64, event: &Event, identifier: Option<&str>) {
    old.execute(
        "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL, ?7)",
        rusqlite::params![
            row,
            event.id.0,
            event.pubkey.0,
            event.created_at.cast_signed(),
            event.kind,
            identifier,
            &**event.json(),
        ],
    )
    .unwrap();
}

#[tokio::test]
async fn a_database_of_the_first_version_is_converted() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let tagged = author.verified(20, 1, &[&["t", "word"], &["p", &"ab".repeat(32)]], "a note");
    let profile = Author::new(2).verified(30, 0, &[], "a profile");
    {
        let old = first_version(&dir);
        old.execute_batch(
            "INSERT INTO topics VALUES (1, 'x'), (2, 'y'); \
             INSERT INTO origins VALUES (1, 'client'), (2, 'topic/y'); \
             INSERT INTO log VALUES (3, 3, 1, 1), (4, 3, 2, 2), (5, 5, NULL, 1), (9, 9, 1, 1); \
             DELETE FROM log WHERE seq = 9; \
             INSERT INTO memberships VALUES (1, 20, 3), (2, 20, 3);",
        )
        .unwrap();
        insert_old(&old, 3, &tagged, None);
        insert_old(&old, 5, &profile, Some(""));
    }
    for _ in 0..2 {
        let store = open(&dir).await;
        assert_eq!(store.stored_at_start(), 2);
        for (filter, expected) in [
            ("{}", vec![profile.id, tagged.id]),
            (r##"{"#t":["word"]}"##, vec![tagged.id]),
            (r#"{"kinds":[0]}"#, vec![profile.id]),
        ] {
            let (found, _) = query(&store, &[filter], Scope::All).await;
            assert_eq!(
                found.iter().map(|event| event.id).collect::<Vec<_>>(),
                expected,
                "{filter}"
            );
        }
        let (found, _) = query(&store, &["{}"], Scope::Topic(topic("y"))).await;
        assert_eq!(found, [(*tagged).clone()]);
        let log = store.log_after(0, 10).await.unwrap();
        let log: Vec<_> = log
            .iter()
            .map(|entry| (entry.seq, entry.topic.clone(), entry.first, &*entry.origin))
            .collect();
        let (x, y) = (Some(topic("x")), Some(topic("y")));
        assert_eq!(
            log,
            [(3, x, true, "client"), (4, y, false, "topic/y"), (5, None, true, "client")]
        );
        store.close().await;
    }
    let store = open(&dir).await;
    // Its version is found and replaced, and no position is given again.
    let newer = Author::new(2).verified(31, 0, &[], "a newer profile");
    assert_eq!(write(&store, &newer, &[]).await, Committed::New(10));
    assert_eq!(write(&store, &profile, &[]).await, Committed::Superseded);
    assert_eq!(write(&store, &tagged, &["x"]).await, Committed::Duplicate);
    store.close().await;
}

#[tokio::test]
async fn what_is_deleted_makes_no_room_for_older_versions_and_vanishing_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let (first, second) = (author.verified(10, 0, &[], "1"), author.verified(20, 0, &[], "2"));
    write(&store, &first, &[]).await;
    write(&store, &second, &[]).await;
    let deletion = author.verified(25, 5, &[&["e", &second.id.to_string()]], "");
    assert!(matches!(write(&store, &deletion, &[]).await, Committed::New(_)));
    assert_eq!(write(&store, &first, &[]).await, Committed::Deleted);
    let third = author.verified(30, 0, &[], "3");
    assert!(matches!(write(&store, &third, &[]).await, Committed::New(_)));

    // NIP-62: to delete a request to vanish has no effect, before and after it.
    let vanish = author.verified(40, 62, &[&["relay", "ALL_RELAYS"]], "");
    let undo = |at| author.verified(at, 5, &[&["e", &vanish.id.to_string()]], "");
    assert!(matches!(write(&store, &undo(39), &[]).await, Committed::New(_)));
    assert!(matches!(write(&store, &vanish, &[]).await, Committed::New(_)));
    assert!(matches!(write(&store, &undo(41), &[]).await, Committed::New(_)));
    let (found, _) = query(&store, &["{}"], Scope::All).await;
    assert_eq!(found.iter().map(|event| event.kind).collect::<Vec<_>>(), [5, 62]);
    assert_eq!(write(&store, &third, &[]).await, Committed::Vanished);
    store.close().await;
}

/// The first version kept requests to delete and to vanish, and did nothing.
#[tokio::test]
async fn what_the_first_version_was_asked_is_done_with_the_conversion() {
    let dir = tempfile::tempdir().unwrap();
    let (author, leaving, other) = (Author::new(1), Author::new(2), Author::new(3));
    let note = author.verified(10, 1, &[], "deleted");
    let kept = author.verified(11, 1, &[], "kept");
    let profile = author.verified(12, 0, &[], "deleted by its address");
    let address = format!("0:{}:", author.pubkey());
    let deletion = author.verified(20, 5, &[&["e", &note.id.to_string()], &["a", &address]], "");
    let foreign = other.verified(20, 5, &[&["e", &kept.id.to_string()]], "");
    let (early, late) = (leaving.verified(10, 1, &[], "x"), leaving.verified(40, 1, &[], "y"));
    let vanish = leaving.verified(30, 62, &[&["relay", "ALL_RELAYS"]], "");
    let elsewhere = other.verified(30, 62, &[&["relay", "wss://relay.example"]], "");
    {
        let old = first_version(&dir);
        old.execute_batch("INSERT INTO origins VALUES (1, 'client')").unwrap();
        let all = [&deletion, &note, &kept, &foreign, &early, &vanish, &late, &elsewhere];
        for (row, event) in (1..).zip(all) {
            old.execute("INSERT INTO log VALUES (?1, ?1, NULL, 1)", [row]).unwrap();
            insert_old(&old, row, event, None);
        }
        old.execute("INSERT INTO log VALUES (20, 20, NULL, 1)", []).unwrap();
        insert_old(&old, 20, &profile, Some(""));
    }
    for _ in 0..2 {
        let store = open(&dir).await;
        let (found, _) = query(&store, &["{}"], Scope::All).await;
        let mut found: Vec<_> = found.iter().map(|event| event.id).collect();
        let mut expected =
            [&deletion, &kept, &foreign, &vanish, &late, &elsewhere].map(|event| event.id);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(write(&store, &note, &[]).await, Committed::Deleted);
        assert_eq!(write(&store, &profile, &[]).await, Committed::Deleted);
        assert_eq!(write(&store, &early, &[]).await, Committed::Vanished);
        store.close().await;
    }
}

/// An event that was private becomes news to further readers step by step, whether the log is read
/// from memory or from the file.
#[tokio::test]
async fn the_log_tells_for_whom_an_event_is_news() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let all = || Audience::Everybody { but: vec![] };
    let readers = |but: &[&str]| Audience::Readers { but: but.iter().map(|t| topic(t)).collect() };
    let everybody =
        |but: &[&str]| Audience::Everybody { but: but.iter().map(|t| topic(t)).collect() };
    let (secret, known, open_to_all) = (
        author.verified(1, 1, &[], "1"),
        author.verified(2, 1, &[], "2"),
        author.verified(3, 1, &[], "3"),
    );
    write_as(&store, &secret, &["a", "b"], true).await;
    write_as(&store, &open_to_all, &["town", "a"], false).await;
    write_as(&store, &known, &["b"], true).await;
    write_as(&store, &secret, &["c"], true).await;
    // Published on `/`, in no topic, and then in a public one.
    assert!(matches!(write_as(&store, &secret, &[], false).await, Committed::Joined(_)));
    assert_eq!(write_as(&store, &secret, &[], false).await, Committed::Duplicate);
    write_as(&store, &secret, &["town"], false).await;
    write_as(&store, &known, &["c", "town"], false).await;
    write_as(&store, &known, &["a"], true).await;

    let expected = [
        (&secret, Some("a"), readers(&[])),
        (&secret, Some("b"), readers(&["a"])),
        (&open_to_all, Some("town"), all()),
        (&open_to_all, Some("a"), Audience::Nobody),
        (&known, Some("b"), readers(&[])),
        (&secret, Some("c"), readers(&["a", "b"])),
        (&secret, None, everybody(&["a", "b", "c"])),
        (&secret, Some("town"), Audience::Nobody),
        (&known, Some("c"), everybody(&["b"])),
        (&known, Some("town"), Audience::Nobody),
        (&known, Some("a"), Audience::Nobody),
    ];
    let expected: Vec<_> = (1..)
        .zip(expected)
        .map(|(seq, (event, name, audience))| (seq, event.id, name.map(topic), audience))
        .collect();
    for entries in [store.recent_log_after(0).unwrap(), store.log_after(0, 100).await.unwrap()] {
        let seen: Vec<_> = entries
            .into_iter()
            .map(|entry| (entry.seq, entry.event.id, entry.topic, entry.audience))
            .collect();
        assert_eq!(seen, expected);
    }
    store.close().await;
}

#[tokio::test]
async fn what_acts_on_something_public_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let (author, private) = (Author::new(1), Author::new(2));
    write_as(&store, &author.verified(1, 0, &[], ""), &["family"], false).await;
    let secret = private.verified(1, 0, &[], "");
    write_as(&store, &secret, &["family"], true).await;
    let of = |public| Affected { topics: vec![topic("family")], public };
    let vanish = &[&["relay", "ALL_RELAYS"][..]];
    for (author, public) in [(&author, true), (&private, false)] {
        assert_eq!(affected(&store, &author.verified(2, 0, &[], "")).await, of(public));
        assert_eq!(affected(&store, &author.verified(2, 62, vanish, "")).await, of(public));
    }
    let deletion = private.verified(2, 5, &[&["e", &secret.id.to_string()]], "");
    assert_eq!(affected(&store, &deletion).await, of(false));
    write_as(&store, &secret, &[], false).await;
    assert_eq!(affected(&store, &deletion).await, of(true));
    assert_eq!(
        affected(&store, &Author::new(3).verified(1, 0, &[], "")).await,
        Affected::default()
    );
    store.close().await;
}

#[tokio::test]
async fn what_is_kept_stays_when_its_author_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let notes: Vec<_> = (1..=4).map(|at| author.verified(at, 1, &[], "")).collect();
    for note in &notes {
        write(&store, note, &[]).await;
    }
    let mut keep = [notes[1].id, notes[3].id];
    keep.sort();
    let removal = Removal::Author { key: author.pubkey(), keep: keep.into() };
    let removing = store.clone();
    let removed = tasks::blocking(move || removing.remove(removal)).await.unwrap().unwrap();
    assert_eq!(removed, 2);
    let (found, _) = query(&store, &["{}"], Scope::All).await;
    assert_eq!(found.iter().map(|event| event.created_at).collect::<Vec<_>>(), [4, 2]);
    store.close().await;
}
