//! What plugins remember, and what they ask.

use std::time::{Duration, Instant};

use super::*;
use crate::{
    pipeline::{AuthorHeld, Cost, KvChange, KvPair, KvStore, Lookup, LookupError},
    protocol::PublicKey,
};

fn pair(key: &str, value: &[u8], expires_at: Option<u64>) -> KvPair {
    KvPair { key: key.to_owned(), value: value.to_vec(), expires_at }
}

fn set(plugin: &str, pair: KvPair) -> KvChange {
    KvChange::Set { plugin: plugin.into(), pair }
}

async fn load(store: &Arc<Store>, plugin: &'static str) -> Vec<KvPair> {
    let store = store.clone();
    let mut pairs = tasks::blocking(move || store.load(plugin)).await.unwrap().unwrap();
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    pairs
}

async fn save(store: &Arc<Store>, changes: Vec<KvChange>) {
    let store = store.clone();
    tasks::blocking(move || store.save(changes)).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_plugins_remember_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let (a, b) = (pair("a", b"\0\xff", None), pair("b", b"", Some(5)));
    let other = pair("a", b"other", Some(u64::MAX >> 1));
    let changes = vec![
        set("one", pair("a", b"before", Some(3))),
        set("one", a.clone()),
        set("one", b.clone()),
        set("one", pair("c", b"", None)),
        KvChange::Removed { plugin: "one".into(), key: "c".to_owned() },
        KvChange::Removed { plugin: "one".into(), key: "never there".to_owned() },
        set("two", other.clone()),
    ];
    save(&store, changes).await;
    assert_eq!(load(&store, "one").await, [a.clone(), b.clone()]);
    store.close().await;
    let store = open(&dir).await;
    assert_eq!(load(&store, "one").await, [a, b]);
    assert_eq!(load(&store, "two").await, [other]);
    assert!(load(&store, "three").await.is_empty());
    store.close().await;
    let closed = store.clone();
    let failed = tasks::blocking(move || closed.save(vec![])).await.unwrap();
    assert!(failed.is_err(), "nobody is there to commit it");
}

/// Asks on a thread of its own, with so many rows to spend, and says what it cost.
async fn look<T: Send + 'static>(
    store: &Arc<Store>,
    rows: u64,
    question: impl FnOnce(&Store, &mut Cost) -> Result<T, LookupError> + Send + 'static,
) -> (Result<T, LookupError>, u64) {
    let store = store.clone();
    let ask = move || {
        let mut cost = Cost::new(rows, Instant::now() + Duration::from_secs(60));
        let answer = question(&store, &mut cost);
        (answer, cost.read())
    };
    tasks::blocking(ask).await.unwrap()
}

#[tokio::test]
async fn questions_about_authors_are_answered_within_their_cost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let [alice, bob, carol] = [1, 2, 3].map(Author::new);
    let key = |author: &Author| author.pubkey();
    let (follows_bob, follows_carol) = (key(&bob).to_string(), key(&carol).to_string());
    for at in 1..=20 {
        write(&store, &alice.verified(at, 1, &[], ""), &[]).await;
        write(&store, &bob.verified(at, 7, &[], ""), &[]).await;
    }
    write(&store, &alice.verified(5, 3, &[&["p", &follows_carol]], ""), &[]).await;
    let list: &[&[&str]] = &[
        &["p", &follows_bob],
        &["p", "nobody"],
        &["p"],
        &["e", &follows_carol],
        &["p", &follows_bob, "wss://example.com"],
        &["p", &follows_carol],
    ];
    write(&store, &alice.verified(6, 3, list, ""), &[]).await;
    write(&store, &bob.verified(1, 0, &[], ""), &[]).await;

    let (a, b, c) = (key(&alice), key(&bob), key(&carol));
    let held = async |author, most| {
        look(&store, 100, move |s, cost| s.author(&author, most, cost)).await.0.unwrap()
    };
    let of = |events, profile, follows| AuthorHeld { events, profile, follows };
    assert_eq!(held(a, 1_000).await, of(21, false, true));
    assert_eq!(held(b, 1_000).await, of(21, true, false));
    assert_eq!(held(b, 10).await, of(10, true, false));
    assert_eq!(held(c, 1_000).await, of(0, false, false));

    let count = async |authors: Vec<PublicKey>, kinds: Vec<u16>, since, most| {
        let question =
            move |s: &Store, cost: &mut Cost| s.how_many(&authors, &kinds, since, most, cost);
        look(&store, 200, question).await.0.unwrap()
    };
    assert_eq!(count(vec![], vec![], 0, 100).await, 42);
    assert_eq!(count(vec![], vec![], 20, 100).await, 2);
    assert_eq!(count(vec![], vec![1, 7, 7], 11, 100).await, 20);
    assert_eq!(count(vec![a, b, a, c], vec![], 0, 100).await, 42);
    assert_eq!(count(vec![a], vec![], 19, 100).await, 2);
    assert_eq!(count(vec![a, b], vec![1, 3], 6, 100).await, 16);
    assert_eq!(count(vec![a, b], vec![1, 7], 0, 25).await, 25);
    assert_eq!(count(vec![a, b], vec![1, 7], 0, 0).await, 0);
    assert_eq!(count(vec![c], vec![1], 0, 9).await, 0);

    let follows = look(&store, 100, move |s, cost| s.follows(&a, 10, cost)).await.0.unwrap();
    assert_eq!(follows, [b, c], "the newest list, each once");
    let follows = look(&store, 100, move |s, cost| s.follows(&a, 1, cost)).await.0.unwrap();
    assert_eq!(follows, [b]);
    for (who, whom, expected) in
        [(a, b, true), (a, c, true), (a, a, false), (b, a, false), (c, a, false)]
    {
        let is =
            look(&store, 100, move |s, cost| s.is_followed(&who, &whom, cost)).await.0.unwrap();
        assert_eq!(is, expected);
    }

    let tags = |author, kind, most| {
        look(&store, 100, move |s, cost| s.newest_tags(&author, kind, most, cost))
    };
    assert_eq!(tags(a, 3, 100).await.0.unwrap(), list, "those of the newest, as they are");
    assert_eq!(tags(a, 3, 2).await.0.unwrap(), list[..2]);
    assert!(tags(b, 3, 100).await.0.unwrap().is_empty());
    assert!(tags(c, 10_000, 100).await.0.unwrap().is_empty());

    // What is too dear is given up, and no more is read than was paid for.
    for rows in [0, 1, 5, 20] {
        let (answer, read) = look(&store, rows, move |s, cost| s.author(&a, 1_000, cost)).await;
        assert!(matches!(answer, Err(LookupError::Cost)) && read == rows, "{answer:?} {read}");
        let (answer, _) = look(&store, rows, |s, cost| s.how_many(&[], &[], 0, 1_000, cost)).await;
        assert!(matches!(answer, Err(LookupError::Cost)), "{answer:?}");
    }
    let (answer, _) = look(&store, 1, move |s, cost| s.follows(&a, 10, cost)).await;
    assert!(matches!(answer, Err(LookupError::Cost)), "its text is longer than a row: {answer:?}");
    store.close().await;
}
