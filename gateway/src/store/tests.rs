//! The store through its own interface, on real files.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::*;
use crate::{
    pipeline::{Committed, Origin, ScanItem},
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
    let (done, outcome) = oneshot::channel();
    let write = Write {
        event: event.clone(),
        topics: topics.iter().map(|name| topic(name)).collect(),
        private: false,
        under_way: 1,
        vanish: event.kind == kinds::VANISH,
        origin: client(),
        done: Box::new(move |result| drop(done.send(result))),
    };
    let store = store.clone();
    tasks::blocking(move || store.write(write)).await.unwrap().unwrap();
    outcome.await.unwrap().unwrap()
}

async fn topics_affected(store: &Arc<Store>, event: &VerifiedEvent) -> Vec<TopicName> {
    let (store, event) = (store.clone(), event.clone());
    tasks::blocking(move || store.topics_affected(&event)).await.unwrap().unwrap()
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
    let (found, _) = query(&store, &[r#"{"limit":3}"#], Scope::All).await;
    assert_eq!(found.len(), 3);
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
