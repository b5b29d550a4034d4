//! What is remembered of events that are not held.

use super::*;
use crate::pipeline::moderation::{Change, List, ModerationStore};

const ALWAYS: Span = Span { from: 0, until: u64::MAX };

async fn ids(store: &Store, part: Part) -> Vec<EventId> {
    let found = store.topic_ids(topic("x"), part, ALWAYS, 1_000).await.unwrap();
    assert_eq!(found.from, 0);
    found.ids.into_iter().map(|(_, id)| id).collect()
}

fn sorted(mut events: Vec<&VerifiedEvent>) -> Vec<EventId> {
    events.sort_by_key(|event| (event.created_at, event.id));
    events.into_iter().map(|event| event.id).collect()
}

/// Commits something, so that what was refused before is written.
async fn flush(store: &Arc<Store>) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
    write(store, &Author::new(9).verified(1, 1, &[], &count), &["elsewhere"]).await;
}

#[tokio::test]
async fn what_is_not_held_any_more_still_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let (one, two) = (Author::new(1), Author::new(2));
    let (old, new) = (one.verified(10, 0, &[], "old"), one.verified(20, 0, &[], "new"));
    let older = one.verified(5, 0, &[], "older");
    let deleted = one.verified(30, 1, &[], "deleted");
    let (banned, forgotten) = (one.verified(31, 1, &[], "banned"), two.verified(32, 1, &[], "bye"));
    for event in [&old, &new, &deleted, &banned, &forgotten] {
        assert!(matches!(write(&store, event, &["x"]).await, Committed::New(_)));
    }
    assert_eq!(write(&store, &older, &["x"]).await, Committed::Superseded);
    let deletion = one.verified(40, 5, &[&["e", &deleted.id.to_string()]], "");
    let vanish = two.verified(50, 62, &[&["relay", "ALL_RELAYS"]], "");
    write(&store, &deletion, &["x"]).await;
    write(&store, &vanish, &["x"]).await;
    let removed = {
        let (store, id) = (store.clone(), banned.id);
        tasks::blocking(move || store.remove(Removal::Event(id))).await.unwrap().unwrap()
    };
    assert_eq!(removed, 1);
    // What comes too late to be stored.
    let late = two.verified(33, 1, &[], "too late");
    assert_eq!(write(&store, &late, &["x"]).await, Committed::Vanished);
    assert_eq!(ids(&store, Part::Requests).await, sorted(vec![&deletion, &vanish]));
    assert_eq!(ids(&store, Part::Profiles).await, sorted(vec![&older, &old, &new]));
    let rest = sorted(vec![&deleted, &banned, &forgotten, &late]);
    assert_eq!(ids(&store, Part::Rest).await, rest);
    assert!(store.topic_ids(topic("y"), Part::Rest, ALWAYS, 9).await.unwrap().ids.is_empty());

    let asked = vec![new.id, old.id, banned.id];
    let gone = store.gone(topic("x"), asked.clone()).await.unwrap();
    assert_eq!(gone, [(10, old.id), (31, banned.id)]);
    assert!(store.gone(topic("y"), asked).await.unwrap().is_empty());

    // A ban that is lifted lets the event come again; nothing else does.
    let before = store.version(&topic("x"));
    let lift = Change { take: vec![(List::BannedEvents, banned.id.to_string())], put: vec![] };
    store.moderation().save(lift).await.unwrap();
    assert_ne!(store.version(&topic("x")), before);
    assert_eq!(ids(&store, Part::Rest).await, sorted(vec![&deleted, &forgotten, &late]));
    let allow = (List::AllowedEvents, deleted.id.to_string(), String::new());
    store.moderation().save(Change { take: vec![], put: vec![allow] }).await.unwrap();
    assert_eq!(ids(&store, Part::Rest).await, sorted(vec![&forgotten, &late]));
    store.close().await;
}

/// What was in a topic while it was private does not show when its name is that of a public one.
#[tokio::test]
async fn what_a_topic_had_when_it_was_private_stays_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let private = PrivateTopics::new([(topic("x"), [])]);
    store.private_are(private.clone());
    let then = author.verified(10, 1, &[], "then");
    let (profile, newer) = (author.verified(11, 0, &[], ""), author.verified(12, 0, &[], ""));
    let refused = author.verified(13, 1, &[], "refused");
    for event in [&then, &profile, &newer] {
        write_as(&store, event, &["x"], true).await;
    }
    store.refused(&refused, &[topic("x")], Gone::Refused);
    flush(&store).await;
    let all = vec![then.id, profile.id, newer.id, refused.id];
    assert_eq!(ids(&store, Part::Rest).await, [then.id, refused.id]);
    assert_eq!(ids(&store, Part::Profiles).await, [profile.id, newer.id]);
    assert_eq!(store.fetch(topic("x"), all.clone()).await.unwrap().len(), 2);
    assert_eq!(store.gone(topic("x"), all.clone()).await.unwrap().len(), 2);
    let reader = Viewer::new([].into(), true, &private);
    let seen = async |viewer: &Viewer| {
        let (filter, viewer) = (Filter::parse("{}").unwrap(), Arc::new(viewer.clone()));
        let IdSet::All(ids) =
            store.ids(filter, Scope::Topic(topic("x")), viewer, 99).await.unwrap()
        else {
            panic!("they are few");
        };
        ids.len()
    };
    assert_eq!(seen(&reader).await, 2);
    store.close().await;

    let store = open(&dir).await;
    let now = author.verified(20, 1, &[], "now");
    write(&store, &now, &["x"]).await;
    assert_eq!(ids(&store, Part::Rest).await, [now.id]);
    assert!(ids(&store, Part::Profiles).await.is_empty());
    assert!(store.fetch(topic("x"), all.clone()).await.unwrap().is_empty());
    assert!(store.gone(topic("x"), all).await.unwrap().is_empty());
    let public = Viewer::new([].into(), true, &PrivateTopics::default());
    let IdSet::All(seen) = store
        .ids(Filter::parse("{}").unwrap(), Scope::Topic(topic("x")), Arc::new(public), 99)
        .await
        .unwrap()
    else {
        panic!("they are few");
    };
    assert_eq!(seen, [(20, now.id)]);
    // What comes again in public is remembered as everything else is.
    store.refused(&refused, &[topic("x")], Gone::Refused);
    flush(&store).await;
    assert_eq!(store.gone(topic("x"), vec![refused.id]).await.unwrap(), [(13, refused.id)]);
    store.close().await;
}

#[tokio::test]
async fn what_was_evicted_is_forgotten_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    for n in 0..5 {
        store.refused(&author.verified(n, 1, &[], ""), &[topic("x")], Gone::Evicted);
        store.refused(&author.verified(n, 1, &[], "y"), &[topic("y")], Gone::Evicted);
        store.refused(&author.verified(n, 0, &[], ""), &[topic("x")], Gone::Refused);
    }
    flush(&store).await;
    let (path, writes) = (dir.path().join("gateway.db"), store.writes.clone());
    let before = ["x", "y"].map(|name| store.version(&topic(name)));
    let forgotten = tasks::blocking(move || {
        let reader = crate::store::open::reader(&path).unwrap();
        [Some("x"), None]
            .map(|topic| crate::store::gone::forget_evicted(&reader, &writes, topic).unwrap())
    });
    assert_eq!(forgotten.await.unwrap(), [5, 5]);
    assert_eq!(["x", "y"].map(|name| store.version(&topic(name))), before.map(|at| at + 1));
    assert!(ids(&store, Part::Rest).await.is_empty());
    assert_eq!(ids(&store, Part::Profiles).await.len(), 5);
    store.close().await;
}

#[tokio::test]
async fn refusals_are_remembered_as_long_as_the_rules_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let refused: Vec<_> = (1..50).map(|n| author.verified(n, 1, &[], "refused")).collect();
    let tell = async |store: &Arc<Store>, rules| {
        let store = store.clone();
        tasks::blocking(move || store.rules_are(rules)).await.unwrap().unwrap();
    };
    for (rules, expected) in [(1, 0), (1, refused.len()), (2, 0)] {
        let store = open(&dir).await;
        tell(&store, rules).await;
        assert_eq!(ids(&store, Part::Rest).await.len(), expected);
        let before = store.version(&topic("x"));
        for event in &refused {
            store.refused(event, &[topic("x")], Gone::Refused);
        }
        flush(&store).await;
        assert_eq!(store.version(&topic("x")) > before, expected == 0, "what is known is no news");
        assert_eq!(ids(&store, Part::Rest).await, sorted(refused.iter().collect()));
        store.close().await;
    }
}

/// A plugin that changes is no reason for events to wait: what it refused is forgotten bit by bit.
#[tokio::test]
async fn refusals_are_forgotten_in_slices_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    let mut kept = Vec::new();
    for n in 1..3_000 {
        let (event, topic) = (author.verified(n, 1, &[], ""), ["x", "y"][n as usize % 2]);
        let why = if n % 10 == 0 { Gone::Banned } else { Gone::Refused };
        store.refused(&event, &[self::topic(topic)], why);
        if why == Gone::Banned {
            kept.push(event);
        }
        // Only so many may wait.
        if n % 1_000 == 0 {
            flush(&store).await;
        }
    }
    flush(&store).await;
    let commits = store.metrics.store_commits.get();
    let told = store.clone();
    tasks::blocking(move || told.rules_are(7)).await.unwrap().unwrap();
    assert!(store.metrics.store_commits.get() > commits + 3, "several orders");
    // Those of even numbers are in x.
    assert_eq!(ids(&store, Part::Rest).await, sorted(kept.iter().collect()));
    store.close().await;
}

#[tokio::test]
async fn a_topic_remembers_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    for n in 0..100 {
        store.refused(&author.verified(n, 1, &[], ""), &[topic("x")], Gone::Refused);
        store.refused(&author.verified(n, 0, &[], ""), &[topic("x")], Gone::Refused);
    }
    flush(&store).await;
    let trimmed = {
        let (path, writes) = (dir.path().join("gateway.db"), store.writes.clone());
        tasks::blocking(move || {
            crate::store::gone::trim(&crate::store::open::reader(&path).unwrap(), &writes, 130)
        })
    };
    assert_eq!(trimmed.await.unwrap().unwrap(), 130);
    let rest = store.topic_ids(topic("x"), Part::Rest, ALWAYS, 1_000).await.unwrap();
    assert_eq!(
        rest.ids.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        (70..100).collect::<Vec<_>>()
    );
    assert_eq!(ids(&store, Part::Profiles).await.len(), 100);
    store.close().await;
}

#[tokio::test]
async fn a_range_is_the_newest_of_a_span_in_whole_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let author = Author::new(1);
    // Three in each second; every fifth is only remembered.
    for n in 0..300 {
        let event = author.verified(n / 3, 1, &[], &n.to_string());
        if n % 5 == 0 {
            store.refused(&event, &[topic("x")], Gone::Refused);
        } else {
            write(&store, &event, &["x"]).await;
        }
    }
    flush(&store).await;
    let mut until = 1_000;
    let (mut all, mut ranges) = (Vec::new(), 0);
    loop {
        let span = Span { from: 0, until };
        let found = store.topic_ids(topic("x"), Part::Rest, span, 50).await.unwrap();
        assert!(found.ids.len() <= 50 && found.ids.is_sorted());
        assert!(found.ids.iter().all(|(at, _)| (found.from..=until).contains(at)));
        all.extend(found.ids);
        ranges += 1;
        if found.from == 0 {
            break;
        }
        until = found.from - 1;
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 300);
    assert!((6..=10).contains(&ranges), "{ranges}");
    // A second that is more crowded than a range stays whole.
    let found = store.topic_ids(topic("x"), Part::Rest, Span { from: 7, until: 7 }, 2).await;
    assert_eq!(found.unwrap(), TopicIds { ids: all[21..24].to_vec(), from: 7 });
    store.close().await;
}

/// What a comparison goes by: one topic's changes, whatever they are, and nothing that happens elsewhere.
#[tokio::test]
async fn a_topic_has_a_version_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let names = ["x", "y", "private", "quiet"].map(topic);
    let mut before = names.clone().map(|name| store.version(&name));
    let mut changes = |store: &Store, expected: [bool; 4], what: &str| {
        let now = names.clone().map(|name| store.version(&name));
        assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{what}");
        let changed = [0, 1, 2, 3].map(|n: usize| now[n] > before[n]);
        assert_eq!(changed, expected, "{what}");
        before = now;
    };
    const NONE: [bool; 4] = [false; 4];
    const X: [bool; 4] = [true, false, false, false];
    let author = Author::new(1);
    let event = |at, content: &str| author.verified(at, 1, &[], content);

    let (note, doomed, banned) = (event(1, "note"), event(2, "doomed"), event(3, "banned"));
    for event in [&note, &doomed, &banned] {
        write(&store, event, &["x"]).await;
        changes(&store, X, "an event");
    }
    write(&store, &note, &["x"]).await;
    changes(&store, NONE, "the same again");
    write(&store, &event(4, "in no topic"), &[]).await;
    changes(&store, NONE, "an event without a topic");
    write(&store, &note, &["y"]).await;
    changes(&store, [false, true, false, false], "a held event that came by another topic");

    let (old, new) = (author.verified(10, 0, &[], "old"), author.verified(20, 0, &[], "new"));
    write(&store, &old, &["x"]).await;
    changes(&store, X, "a profile");
    write(&store, &new, &["y"]).await;
    changes(&store, [true, true, false, false], "it went from there and came here");
    assert_eq!(write(&store, &old, &["x"]).await, Committed::Superseded);
    changes(&store, NONE, "it is gone already");
    let older = author.verified(5, 0, &[], "older");
    write(&store, &older, &["x"]).await;
    changes(&store, X, "another that is gone");

    let deletion = author.verified(30, 5, &[&["e", &doomed.id.to_string()]], "");
    write(&store, &deletion, &["y"]).await;
    changes(&store, [true, true, false, false], "a deletion that came by another topic");
    write(&store, &doomed, &["y"]).await;
    changes(&store, [false, true, false, false], "what was deleted is gone there too");
    let remove = |store: &Arc<Store>, id| {
        let store = store.clone();
        tasks::blocking(move || store.remove(Removal::Event(id)))
    };
    assert_eq!(remove(&store, banned.id).await.unwrap().unwrap(), 1);
    changes(&store, X, "the operator took it out");
    assert_eq!(remove(&store, banned.id).await.unwrap().unwrap(), 0);
    changes(&store, NONE, "there is nothing to take out");
    store.refused(&event(6, "refused"), &[topic("x")], Gone::Refused);
    write(&store, &event(7, "in no topic"), &[]).await;
    changes(&store, X, "a refused event");

    // Public for everybody now, so to be shown should the topic be public.
    let secret = event(8, "secret");
    write_as(&store, &secret, &["private"], true).await;
    changes(&store, [false, false, true, false], "an event of a private topic");
    write(&store, &secret, &[]).await;
    changes(&store, [false, false, true, false], "it became public");
    let lift = Change { take: vec![(List::BannedEvents, banned.id.to_string())], put: vec![] };
    store.moderation().save(lift).await.unwrap();
    changes(&store, [true; 4], "nobody knows where the ban held");
    let bans = Change { take: vec![], put: vec![(List::BannedEvents, "".into(), "".into())] };
    store.moderation().save(bans).await.unwrap();
    changes(&store, NONE, "a ban brings nothing back");
    let vanish = author.verified(50, 62, &[&["relay", "ALL_RELAYS"]], "");
    write(&store, &vanish, &["x"]).await;
    changes(&store, [true, true, true, false], "all that an author had");
    store.close().await;
}

/// The two small parts, of a file of an earlier version too.
#[tokio::test]
async fn the_parts_of_a_topic_are_found_by_its_own_index() {
    let dir = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let profile = author.verified(1, 0, &[], "");
    let relays = author.verified(2, 10_002, &[], "");
    let deletion = author.verified(3, 5, &[&["e", &"00".repeat(32)]], "");
    let (note, elsewhere) =
        (author.verified(4, 1, &[], ""), Author::new(2).verified(5, 0, &[], ""));
    for is_earlier in [false, true] {
        let store = open(&dir).await;
        for event in [&profile, &relays, &deletion, &note] {
            write(&store, event, &["x"]).await;
        }
        write(&store, &elsewhere, &["y"]).await;
        assert_eq!(ids(&store, Part::Requests).await, [deletion.id]);
        assert_eq!(ids(&store, Part::Profiles).await, [profile.id, relays.id]);
        assert_eq!(ids(&store, Part::Rest).await, [note.id]);
        store.close().await;
        if !is_earlier {
            // As if the last migration had not been.
            let file = rusqlite::Connection::open(dir.path().join("gateway.db")).unwrap();
            file.execute_batch(
                "DROP INDEX memberships_of_part; ALTER TABLE memberships DROP COLUMN part; \
                 DELETE FROM _sqlx_migrations WHERE version = 9",
            )
            .unwrap();
        }
    }
}
