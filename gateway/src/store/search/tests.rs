//! Search through the store's own interface, on real files.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::*;
use crate::{
    metrics::Metrics,
    pipeline::{EventReader, EventWriter, Origin, ScanItem, Scope, StoreError, Write},
    protocol::{Event, Filter, VerifiedEvent, kinds, signing::Author},
    store::{StorageConfig, Store},
    tasks,
};

async fn open_with(dir: &Path, config: StorageConfig) -> Arc<Store> {
    Arc::new(Store::open(dir, &config, Arc::new(Metrics::default())).await.unwrap())
}

async fn open(dir: &tempfile::TempDir) -> Arc<Store> {
    open_with(dir.path(), StorageConfig::default()).await
}

/// Commits the events and waits for the last one.
async fn write(store: &Arc<Store>, events: &[VerifiedEvent]) {
    let (store, events) = (store.clone(), events.to_vec());
    let outcomes = tasks::blocking(move || {
        let write = |event: VerifiedEvent| {
            let (done, outcome) = oneshot::channel();
            let write = Write {
                topics: Vec::new(),
                private: false,
                vanish: event.kind == kinds::VANISH,
                under_way: 0,
                event,
                origin: Origin::Client {
                    connection: 1,
                    address: [127, 0, 0, 1].into(),
                    viewer: Arc::default(),
                },
                done: Box::new(move |result| drop(done.send(result))),
            };
            store.write(write).unwrap();
            outcome
        };
        events.into_iter().map(write).collect::<Vec<_>>()
    });
    for outcome in outcomes.await.unwrap() {
        outcome.await.unwrap().unwrap();
    }
}

/// Waits until the index has seen everything that is committed.
async fn indexed(store: &Store) {
    let head = *store.head().borrow();
    let search = store.memory.search.get().unwrap();
    let started = Instant::now();
    while search.cursor() < head {
        assert!(started.elapsed() < Duration::from_secs(20), "{} of {head}", search.cursor());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn scan(store: &Store, filter: &str) -> Result<Vec<Event>, StoreError> {
    let filters = vec![Filter::parse(filter).unwrap()];
    let mut scan = store.scan(filters, Scope::All, Arc::default());
    let mut events = Vec::new();
    loop {
        match scan.next().await.unwrap() {
            ScanItem::Events(texts) => {
                events.extend(texts.iter().map(|json| Event::parse(json).unwrap()));
            }
            ScanItem::End { .. } => return Ok(events),
            ScanItem::Failed(error) => return Err(error),
        }
    }
}

/// The contents of what is found, best first.
async fn find(store: &Store, search: &str) -> Vec<String> {
    let filter = serde_json::json!({ "search": search }).to_string();
    scan(store, &filter).await.unwrap().into_iter().map(|event| event.content).collect()
}

async fn find_sorted(store: &Store, search: &str) -> Vec<String> {
    let mut found = find(store, search).await;
    found.sort();
    found
}

#[tokio::test]
async fn words_phrases_exclusions_and_beginnings() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let texts = [
        "The quick brown fox",
        "the brown, quick fox",
        "Über die Grüße der Füchse",
        "日本語の狐",
        "see https://foxes.example/den?x=1 now",
        "AND OR NOT",
    ];
    let events: Vec<_> =
        texts.iter().zip(1..).map(|(text, at)| author.verified(at, 1, &[], text)).collect();
    write(&store, &events).await;
    write(&store, &[author.verified(9, 7, &[], "fox reaction")]).await;
    indexed(&store).await;

    let [quick_brown, brown_quick, german, japanese, link, operators] = texts;
    let cases: [(&str, &[&str]); 21] = [
        ("fox", &[quick_brown, brown_quick]),
        ("QUICK fox", &[quick_brown, brown_quick]),
        (r#""quick brown""#, &[quick_brown]),
        (r#"fox -"quick brown""#, &[brown_quick]),
        ("fox -quick", &[]),
        ("fo*", &[]),
        ("fox*", &[quick_brown, brown_quick, link]),
        ("fox language:en domain:x.example", &[quick_brown, brown_quick]),
        ("uber gruße", &[german]),
        ("GRÜSSE", &[]),
        ("Fuchse", &[german]),
        ("狐", &[japanese]),
        ("日本", &[japanese]),
        ("本日", &[]),
        ("https://foxes.example/den", &[link]),
        ("den", &[link]),
        ("x", &[]),
        ("AND", &[operators]),
        ("not OR and", &[operators]),
        (r#"") OR words MATCH "fox"#, &[]),
        ("🦊", &[]),
    ];
    for (search, expected) in cases {
        let mut expected: Vec<_> = expected.iter().map(|text| (*text).to_owned()).collect();
        expected.sort();
        assert_eq!(find_sorted(&store, search).await, expected, "{search}");
    }
    // Nothing but extensions is no condition.
    assert_eq!(find(&store, "language:en").await.len(), texts.len() + 1);
    store.close().await;
}

#[tokio::test]
async fn the_best_match_comes_first_and_the_limit_after_ranking() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let filler = "and many other words that dilute it ".repeat(5);
    let texts = [
        format!("gateway {filler}"),
        "gateway gateway".to_owned(),
        format!("{filler} a gateway, that is a gateway"),
        filler.clone(),
    ];
    let events: Vec<_> =
        texts.iter().zip(1..).map(|(text, at)| author.verified(at, 1, &[], text)).collect();
    write(&store, &events).await;
    indexed(&store).await;
    let ranked = [texts[1].clone(), texts[2].clone(), texts[0].clone()];
    assert_eq!(find(&store, "gateway").await, ranked);
    let found = scan(&store, r#"{"search":"gateway","limit":1}"#).await.unwrap();
    assert_eq!(found[0].content, texts[1]);
    // The other conditions hold too, and what they leave out does not count for the limit.
    let found = scan(&store, r#"{"search":"gateway","until":1,"limit":1}"#).await.unwrap();
    assert_eq!(found[0].content, texts[0]);
    assert!(scan(&store, r#"{"search":"gateway","kinds":[0]}"#).await.unwrap().is_empty());
    // Of equals, the newest comes first.
    let equal: Vec<_> =
        (10..13).map(|at| author.verified(at, 1, &[&["n", &at.to_string()]], "same")).collect();
    write(&store, &equal).await;
    indexed(&store).await;
    let found = scan(&store, r#"{"search":"same"}"#).await.unwrap();
    assert_eq!(found.iter().map(|e| e.created_at).collect::<Vec<_>>(), [12, 11, 10]);
    store.close().await;
}

#[tokio::test]
async fn a_selective_filter_finds_what_lies_behind_many_matches() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let (rare, common) = (Author::new(1), Author::new(2));
    write(&store, &[rare.verified(1, 1, &[], "hello from afar")]).await;
    let many: Vec<_> =
        (0..4_500).map(|n| common.verified(2 + n, 1, &[], &format!("hello {n}"))).collect();
    write(&store, &many).await;
    indexed(&store).await;
    let filter = serde_json::json!({"search": "hello", "authors": [rare.pubkey()], "limit": 5});
    let found = scan(&store, &filter.to_string()).await.unwrap();
    assert_eq!(found.len(), 1);
    let all = scan(&store, r#"{"search":"hello"}"#).await.unwrap();
    assert_eq!(all.len(), 4_501);
    store.close().await;
}

/// Rows in the index, whatever the database holds.
fn rows_in_index(dir: &tempfile::TempDir) -> i64 {
    let index = index::reader(&path(dir.path())).unwrap();
    index.query_row("SELECT count(*) FROM part_0_docsize", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn what_is_removed_is_not_found_and_leaves_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let note = author.verified(1, 1, &[], "unwise words");
    let kept = author.verified(2, 1, &[], "wise words");
    let profile = author.verified(3, 0, &[], r#"{"name":"unwise"}"#);
    write(&store, &[note.clone(), kept, profile]).await;
    indexed(&store).await;
    assert_eq!((find(&store, "unwise").await.len(), rows_in_index(&dir)), (2, 3));
    let deletion = author.verified(4, 5, &[&["e", &note.id.to_string()]], "unwise");
    let replacement = author.verified(5, 0, &[], r#"{"name":"sage"}"#);
    write(&store, &[deletion, replacement]).await;
    assert!(find(&store, "unwise").await.is_empty(), "at once");
    indexed(&store).await;
    assert_eq!(find(&store, "sage").await.len(), 1);
    let started = Instant::now();
    while rows_in_index(&dir) != 2 {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", rows_in_index(&dir));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.close().await;
    let database = Connection::open(dir.path().join("gateway.db")).unwrap();
    let left: i64 =
        database.query_row("SELECT count(*) FROM removed_rows", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_index_survives_a_restart_and_is_made_again_when_it_is_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let events: Vec<_> =
        (0..2_000).map(|n| author.verified(n, 1, &[], &format!("word{n} common"))).collect();
    let store = open(&dir).await;
    write(&store, &events).await;
    indexed(&store).await;
    store.close().await;
    let cursor = |dir: &tempfile::TempDir| -> i64 {
        let index = index::reader(&path(dir.path())).unwrap();
        index.query_row("SELECT value FROM state WHERE name = 'cursor'", [], |r| r.get(0)).unwrap()
    };
    assert_eq!(cursor(&dir), 2_000);

    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("nothing", |_| {}),
        ("deleted", |path| std::fs::remove_file(path).unwrap()),
        ("not a database", |path| std::fs::write(path, "x".repeat(10_000)).unwrap()),
        ("of another database", |path| {
            let index = Connection::open(path).unwrap();
            index.execute("UPDATE state SET value = 7 WHERE name = 'instance'", []).unwrap();
        }),
    ];
    for (what, harm) in harms {
        harm(&path(dir.path()));
        let store = open(&dir).await;
        indexed(&store).await;
        assert_eq!(find(&store, "word7").await, ["word7 common"], "{what}");
        assert_eq!(rows_in_index(&dir), 2_000, "{what}");
        store.close().await;
    }
}

#[tokio::test]
async fn damage_that_shows_while_it_runs_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let note = |n: u64| author.verified(n, 1, &[], &format!("word{n} common"));
    let store = open(&dir).await;
    write(&store, &(0..500).map(note).collect::<Vec<_>>()).await;
    indexed(&store).await;
    // The structure record of FTS5 is row 10 of its data.
    let index = Connection::open(path(dir.path())).unwrap();
    index
        .execute("UPDATE part_0_data SET block = x'00000001FF7FFF7F00' WHERE id = 10", [])
        .unwrap();
    drop(index);
    write(&store, &[note(500)]).await;
    let started = Instant::now();
    while find_or_nothing(&store, "word500").await.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30), "it was not made again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(find(&store, "word7").await, ["word7 common"]);
    store.close().await;
}

async fn find_or_nothing(store: &Store, search: &str) -> Vec<Event> {
    let filter = serde_json::json!({ "search": search }).to_string();
    scan(store, &filter).await.inspect_err(|error| println!("{error}")).unwrap_or_default()
}

#[tokio::test]
async fn without_search_there_is_no_file_and_with_it_again_all_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let [first, second, third] =
        [1, 2, 3].map(|at| author.verified(at, 1, &[], &format!("note {at}")));
    let store = open(&dir).await;
    write(&store, std::slice::from_ref(&first)).await;
    indexed(&store).await;
    assert!(store.can_search());
    store.close().await;

    let off = StorageConfig { search: false, ..StorageConfig::default() };
    let store = open_with(dir.path(), off).await;
    assert!(!store.can_search());
    assert!(!path(dir.path()).exists());
    let deletion = author.verified(4, 5, &[&["e", &first.id.to_string()]], "");
    write(&store, &[second, deletion]).await;
    assert!(scan(&store, r#"{"search":"note"}"#).await.unwrap().is_empty());
    assert_eq!(scan(&store, r#"{"search":"language:en"}"#).await.unwrap().len(), 2);
    store.close().await;

    let store = open(&dir).await;
    write(&store, &[third]).await;
    indexed(&store).await;
    assert_eq!(find_sorted(&store, "note").await, ["note 2", "note 3"]);
    assert_eq!(rows_in_index(&dir), 2);
    store.close().await;
}

/// The writer has always more to do, and each event takes the place of another, so that there is always
/// something to be taken out of the index. It goes on following meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_keeps_up_while_a_busy_writer_replaces_events() {
    const ADDRESSES: u64 = 15_000;
    const VERSIONS: u64 = 3;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    // Nobody looks at the signature here.
    let version = |address: u64, version: u64| {
        let json = serde_json::json!({
            "id": format!("{:016x}{}", version * ADDRESSES + address, "0".repeat(48)), "pubkey": "ab".repeat(32),
            "created_at": version, "kind": 30_023, "tags": [["d", address.to_string()]],
            "content": format!("word{version}"), "sig": "0".repeat(128),
        });
        VerifiedEvent::from_store(&json.to_string()).unwrap()
    };
    let publishing = {
        let store = store.clone();
        tasks::thread("publishing", move || {
            for n in 0..ADDRESSES * VERSIONS {
                let write = Write {
                    topics: Vec::new(),
                    private: false,
                    vanish: false,
                    under_way: 4_096,
                    event: version(n % ADDRESSES, 1 + n / ADDRESSES),
                    origin: Origin::Client {
                        connection: 1,
                        address: [127, 0, 0, 1].into(),
                        viewer: Arc::default(),
                    },
                    done: Box::new(|_| ()),
                };
                // Waits while the writer's queue is full, and it is full.
                store.write(write).unwrap();
            }
        })
        .unwrap()
    };
    let (head, search) = (store.head(), store.memory.search.get().unwrap());
    let (mut reached, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
    while !publishing.is_finished() {
        let cursor = search.cursor();
        if cursor > reached || cursor == *head.borrow() {
            longest = longest.max(since.elapsed());
            (reached, since) = (cursor, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    longest = longest.max(since.elapsed());
    assert!(longest < Duration::from_secs(2), "the index stood still for {longest:?}");
    publishing.join().unwrap();
    indexed(&store).await;
    store.close().await;
}

/// A client may search before the thread of the index has made its file.
#[test]
fn a_search_right_after_the_start_waits_for_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let search = Search::new(path.clone());
    let follower = {
        let search = search.clone();
        tasks::thread("late", move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(index::Index::open(&path, 1, 0).unwrap());
            search.0.generation.fetch_add(1, Ordering::AcqRel);
        })
        .unwrap()
    };
    let words = search::Search::parse("anything").unwrap();
    let mut found = search.candidates(&words, true).unwrap();
    assert_eq!(found.next_row(|| Ok::<_, rusqlite::Error>(())).unwrap(), None);
    follower.join().unwrap();
}
