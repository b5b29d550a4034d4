//! Upkeep on real files, with a real writer. Rounds are run by hand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::*;
use crate::{
    pipeline::{Committed, EventReader, EventWriter, Origin, Presence, ScanItem, Scope, Write},
    protocol::{Event, Filter, TopicName, VerifiedEvent, kinds, signing::Author},
    store::Store,
};

struct Bench {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    upkeep: Option<Upkeep>,
    _stop: Sender<()>,
}

impl Bench {
    async fn new(storage: StorageConfig, rules: &[RetentionConfig]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::default());
        let store = Store::open(dir.path(), &storage, metrics.clone()).await.unwrap();
        let writes = store.writes.clone();
        let (upkeep, stop) =
            Upkeep::new(dir.path(), &storage, rules, writes, metrics, &store.door).unwrap();
        Self { dir, store: Arc::new(store), upkeep: Some(upkeep), _stop: stop }
    }

    async fn with(rules: &[RetentionConfig]) -> Self {
        Self::new(StorageConfig::default(), rules).await
    }

    async fn round(&mut self) {
        let mut upkeep = self.upkeep.take().unwrap();
        let upkeep = tasks::blocking(move || {
            upkeep.round().unwrap();
            upkeep
        });
        self.upkeep = Some(upkeep.await.unwrap());
    }

    async fn write_to(&self, events: Vec<VerifiedEvent>, topics: &[&str]) {
        let topics: Vec<_> = topics.iter().map(|name| TopicName::new(name).unwrap()).collect();
        let store = self.store.clone();
        let outcomes = tasks::blocking(move || {
            let write = |event: VerifiedEvent| {
                let (done, outcome) = oneshot::channel();
                let write = Write {
                    topics: topics.clone(),
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
            assert!(matches!(outcome.await.unwrap().unwrap(), Committed::New(_)));
        }
    }

    async fn write(&self, events: Vec<VerifiedEvent>) {
        self.write_to(events, &[]).await;
    }

    async fn held(&self) -> Vec<Event> {
        let filters = vec![Filter::parse("{}").unwrap()];
        let mut scan = self.store.scan(filters, Scope::All, Arc::default());
        let mut events = Vec::new();
        loop {
            match scan.next().await.unwrap() {
                ScanItem::Events(texts) => {
                    events.extend(texts.iter().map(|json| Event::parse(json).unwrap()));
                }
                ScanItem::End { .. } => return events,
                ScanItem::Failed(error) => panic!("{error}"),
            }
        }
    }

    /// Kind and age in hours of what is held, newest first.
    async fn ages(&self) -> Vec<(u16, u64)> {
        let age = |event: &Event| (unix_now().saturating_sub(event.created_at) + 1_800) / 3_600;
        self.held().await.iter().map(|event| (event.kind, age(event))).collect()
    }

    async fn presence(&self, event: &Event, topics: &[&str]) -> Presence {
        let topics: Vec<_> = topics.iter().map(|name| TopicName::new(name).unwrap()).collect();
        let (store, event) = (self.store.clone(), event.clone());
        tasks::blocking(move || store.presence(&event, &topics)).await.unwrap().unwrap()
    }

    fn rows(&self, table: &str) -> i64 {
        let database = open::reader(&self.dir.path().join("gateway.db")).unwrap();
        database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }
}

fn hours_old(author: u8, kind: u16, hours: u64) -> VerifiedEvent {
    let text = "x".repeat(100);
    Author::new(author).verified(unix_now() - hours * 3_600, kind, &[&["t", "x"]], &text)
}

#[tokio::test]
async fn what_is_too_old_goes_and_does_not_come_back() {
    let rule = RetentionConfig { max_age_s: 10 * 3_600, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    let events = [(1, 1), (1, 9), (1, 11), (7, 20), (0, 50), (3, 60), (10_002, 70)];
    bench.write(events.map(|(kind, hours)| hours_old(1, kind, hours)).to_vec()).await;
    bench.round().await;
    let kept = [(1, 1), (1, 9), (0, 50), (3, 60), (10_002, 70)];
    assert_eq!(bench.ages().await, kept);
    assert_eq!(bench.rows("tags"), 5);
    assert_eq!(bench.presence(&hours_old(1, 1, 11), &[]).await, Presence::PastRetention);
    assert_eq!(bench.presence(&hours_old(2, 1, 9), &[]).await, Presence::Unknown);
    assert_eq!(bench.presence(&hours_old(2, 0, 90), &[]).await, Presence::Unknown);
    bench.store.close().await;
}

#[tokio::test]
async fn a_rule_covers_its_kinds_and_its_topic() {
    let rules = [
        RetentionConfig { kinds: vec![0, 7], max_age_s: 10 * 3_600, ..Default::default() },
        RetentionConfig { topic: "cats".into(), max_events: 2, ..Default::default() },
    ];
    let mut bench = Bench::with(&rules).await;
    let of = |list: &[(u16, u64)]| -> Vec<VerifiedEvent> {
        list.iter().map(|(kind, hours)| hours_old(1, *kind, *hours)).collect()
    };
    bench.write(of(&[(1, 20), (7, 11), (0, 50)])).await;
    bench.write_to(of(&[(1, 1), (1, 4), (1, 2), (3, 6), (1, 3)]), &["cats"]).await;
    bench.write_to(of(&[(1, 5)]), &["dogs"]).await;
    bench.round().await;
    assert_eq!(bench.ages().await, [(1, 1), (1, 2), (1, 5), (3, 6), (1, 20)]);
    // Older ones for the topic are not let in any more; for others they are.
    let old = hours_old(2, 1, 5);
    assert_eq!(bench.presence(&old, &["cats"]).await, Presence::PastRetention);
    assert_eq!(bench.presence(&old, &["dogs"]).await, Presence::Unknown);
    assert_eq!(bench.presence(&hours_old(2, 1, 1), &["cats"]).await, Presence::Unknown);
    bench.store.close().await;
}

#[tokio::test]
async fn the_oldest_go_when_there_are_too_many_or_too_large() {
    let rule = RetentionConfig { max_events: 700, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    bench.write((1..=1_500).map(|hours| hours_old(1, 1, hours)).collect()).await;
    bench.round().await;
    let ages = bench.ages().await;
    assert_eq!((ages.len(), ages[699]), (700, (1, 700)));
    assert_eq!(bench.presence(&hours_old(2, 1, 800), &[]).await, Presence::PastRetention);
    bench.store.close().await;

    let size = hours_old(1, 1, 1).json().len() as u64;
    let rule = RetentionConfig { max_bytes: size * 700 + 5, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    bench.write((1..=1_500).map(|hours| hours_old(1, 1, hours)).collect()).await;
    bench.round().await;
    // A twentieth more goes, so that it need not be counted each time.
    let left = bench.ages().await.len();
    assert!((664..=666).contains(&left), "{left}");
    bench.write((0..20).map(|n| hours_old(2, 1, n)).collect()).await;
    bench.round().await;
    assert_eq!(bench.ages().await.len(), left + 20);
    // What came since is counted too.
    bench.write((20..40).map(|n| hours_old(3, 1, n)).collect()).await;
    bench.round().await;
    assert!((664..=666).contains(&bench.ages().await.len()));
    bench.store.close().await;
}

/// Whoever publishes waits for a few hundred removals at most, and not behind all of them.
#[tokio::test(flavor = "multi_thread")]
async fn publishing_goes_on_while_many_events_are_removed() {
    const MANY: u64 = 12_000;
    let rule = RetentionConfig { max_events: 100, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    let now = unix_now();
    let note = |at: u64| {
        // Nobody looks at the signature here.
        let id = |at: u64| format!("{at:016x}{}", "0".repeat(48));
        let json = serde_json::json!({
            "id": id(at), "pubkey": "ab".repeat(32), "created_at": at, "kind": 1,
            "tags": [["t", "x"], ["e", id(at - 1)]], "content": "x".repeat(200),
            "sig": "0".repeat(128),
        });
        VerifiedEvent::from_store(&json.to_string()).unwrap()
    };
    bench.write((0..MANY).map(|n| note(now - 2 * MANY + n)).collect()).await;

    let mut upkeep = bench.upkeep.take().unwrap();
    let (done, ended) = oneshot::channel();
    let round = tasks::thread("upkeep", move || {
        let begun = Instant::now();
        upkeep.round().unwrap();
        let _ = done.send((upkeep, begun.elapsed()));
    })
    .unwrap();
    let (mut published, mut slowest) = (0, Duration::ZERO);
    while !round.is_finished() {
        let begun = Instant::now();
        bench.write(vec![note(now + published)]).await;
        slowest = slowest.max(begun.elapsed());
        published += 1;
    }
    let (upkeep, took) = ended.await.unwrap();
    bench.upkeep = Some(upkeep);
    let held = bench.rows("events").unsigned_abs();
    assert!(held <= 100 + published, "{held} are left of {MANY} and {published}");
    // In one piece, the removal would be the slowest of them.
    assert!(published >= 50, "only {published} were published in {took:?}");
    assert!(slowest < took / 3 && slowest < Duration::from_secs(2), "{slowest:?} of {took:?}");
    bench.store.close().await;
}

#[tokio::test]
async fn the_database_keeps_to_its_size() {
    let most = 3 << 20;
    let storage = StorageConfig { max_bytes: most, ..Default::default() };
    let mut bench = Bench::new(storage, &[]).await;
    for block in 0..10 {
        let author = Author::new(1);
        let note = |n: u64| {
            let at = 1_700_000_000 + block * 1_000 + n;
            author.verified(at, 1, &[], &format!("{at} {}", "long ".repeat(200)))
        };
        bench.write((0..500).map(note).collect()).await;
        bench.round().await;
    }
    let held = bench.held().await;
    assert!((500..3_000).contains(&held.len()), "{}", held.len());
    assert_eq!(held[0].created_at, 1_700_009_499, "the newest stay");
    let used = compaction::file_size(&bench.upkeep.as_ref().unwrap().database).unwrap().used();
    assert!(used <= most, "{used}");
    bench.store.close().await;
}

/// Of a file that is mostly free, the end is given back while it is used.
#[tokio::test]
async fn the_file_shrinks_while_it_is_used() {
    let rule = RetentionConfig { max_events: 200, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    let author = Author::new(1);
    let note = |n: u64| {
        author.verified(1_700_000_000 + n, 1, &[], &format!("{n} {}", "long ".repeat(400)))
    };
    bench.write((0..2_000).map(note).collect()).await;
    let size =
        |bench: &Bench| compaction::file_size(&bench.upkeep.as_ref().unwrap().database).unwrap();
    let full = size(&bench);
    // With the least that is worth it out of reach, it stays as large.
    bench.round().await;
    assert_eq!(size(&bench).pages, full.pages);
    bench.upkeep.as_mut().unwrap().least_free = 100_000;
    bench.round().await;
    let shrunk = size(&bench);
    assert!(shrunk.pages < full.pages / 3, "{} of {}", shrunk.pages, full.pages);
    assert!(shrunk.free <= shrunk.used() / 2, "{} of {}", shrunk.free, shrunk.pages);
    // Another round leaves the rest to what comes next.
    bench.round().await;
    assert_eq!(size(&bench).pages, shrunk.pages);
    bench.write(vec![note(5_000)]).await;
    assert_eq!(bench.held().await.len(), 201);
    bench.store.close().await;
    let file = Connection::open(bench.dir.path().join("gateway.db")).unwrap();
    let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let bytes = std::fs::metadata(bench.dir.path().join("gateway.db")).unwrap().len();
    assert!(bytes < full.pages / 2, "{bytes} of {}", full.pages);
}

/// A file of a version whose files could not shrink is written anew once, and can from then on.
#[test]
fn a_file_that_cannot_shrink_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let file = Connection::open(dir.path().join("old.db")).unwrap();
    let free = 70 << 20;
    file.execute_batch("CREATE TABLE t (bytes BLOB); PRAGMA journal_mode = WAL").unwrap();
    file.execute("INSERT INTO t VALUES (zeroblob(?1))", [free]).unwrap();
    file.execute_batch("DELETE FROM t; INSERT INTO t VALUES ('kept')").unwrap();
    shrink_at_start(&file).unwrap();
    assert!(compaction::file_size(&file).unwrap().pages < 1 << 20);
    let mode: i64 = file.query_row("PRAGMA auto_vacuum", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, 2);
    let kept: String = file.query_row("SELECT bytes FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, "kept");
}

#[tokio::test]
async fn expired_events_leave_the_file_and_deletions_stay_in_force() {
    let kinds = vec![1, kinds::DELETION];
    let rule = RetentionConfig { kinds, max_age_s: 10 * 3_600, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    let author = Author::new(1);
    let soon = (unix_now() + 2).to_string();
    let expiring = author.verified(unix_now(), 1, &[&["expiration", &soon]], "");
    let note = author.verified(unix_now(), 1, &[], "deleted later");
    let deletion = Author::new(1).verified(
        unix_now() - 20 * 3_600,
        kinds::DELETION,
        &[&["e", &note.id.to_string()]],
        "",
    );
    bench.write(vec![expiring, note.clone(), deletion]).await;
    bench.round().await;
    // The request is old and goes; what it deleted does not come back.
    assert_eq!(bench.rows("events"), 1);
    assert_eq!(bench.presence(&note, &[]).await, Presence::Deleted);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    bench.round().await;
    assert_eq!(bench.rows("events"), 0);
    bench.store.close().await;
}

#[tokio::test]
async fn log_entries_of_events_that_are_gone_are_cleaned_up() {
    let rule = RetentionConfig { max_age_s: 10 * 3_600, ..Default::default() };
    let mut bench = Bench::with(&[rule]).await;
    bench.write_to(vec![hours_old(1, 1, 11), hours_old(1, 1, 2)], &["a", "b"]).await;
    assert_eq!(bench.rows("joins"), 2);
    bench.round().await;
    assert_eq!((bench.rows("joins"), bench.rows("memberships")), (1, 2));
    bench.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_stays_small_also_behind_a_long_reader() {
    let bench = Bench::with(&[]).await;
    let wal = bench.dir.path().join("gateway.db-wal");
    let text = "x".repeat(20_000);
    let mut at = 0;
    let mut notes = |count: u64| -> Vec<VerifiedEvent> {
        at += count;
        let author = Author::new(1);
        (at - count..at).map(|at| author.verified(at, 1, &[], &text)).collect()
    };
    // 60 MB in all.
    for _ in 0..10 {
        bench.write(notes(300)).await;
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    let size = || std::fs::metadata(&wal).unwrap().len();
    assert!(size() < 40 << 20, "{}", size());

    // A reader that keeps its snapshot: writing goes on, and afterwards the log is cut off.
    let reader = open::reader(&bench.dir.path().join("gateway.db")).unwrap();
    let snapshot = reader.unchecked_transaction().unwrap();
    let count = |connection: &Connection| -> i64 {
        connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&snapshot), 3_000);
    for _ in 0..5 {
        bench.write(notes(300)).await;
    }
    assert_eq!(count(&snapshot), 3_000);
    drop(snapshot);
    let started = Instant::now();
    while size() > 0 {
        assert!(started.elapsed() < Duration::from_secs(15), "{}", size());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(count(&reader), 4_500);
    bench.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_stays_small_behind_long_queries_without_a_pause() {
    let bench = Bench::with(&[]).await;
    let wal = bench.dir.path().join("gateway.db-wal");
    let text = "x".repeat(20_000);
    let notes = |batch: u64| -> Vec<VerifiedEvent> {
        let author = Author::new(1);
        let times = batch * 300..(batch + 1) * 300;
        times.map(|at| author.verified(at, 1, &[&["t", "x"]], &text)).collect()
    };
    bench.write(notes(0)).await;
    // The thread for long queries always has the next one waiting.
    let asking = |store: Arc<Store>| async move {
        let filter = Filter::parse(r##"{"#t":["x"]}"##).unwrap();
        loop {
            store.count(vec![filter.clone(); 5], Scope::All, Arc::default()).await.unwrap();
        }
    };
    let mut queries = tokio::task::JoinSet::new();
    for _ in 0..8 {
        queries.spawn(asking(bench.store.clone()));
    }
    // 240 MB in all.
    let mut largest = 0;
    for batch in 1..=40 {
        bench.write(notes(batch)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        largest = largest.max(std::fs::metadata(&wal).unwrap().len());
    }
    assert!(largest < 100 << 20, "{largest}");
    queries.shutdown().await;
    bench.store.close().await;
}
