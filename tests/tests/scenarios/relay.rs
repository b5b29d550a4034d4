//! NIP-01 as clients see it, over raw sockets.

use std::time::{Duration, Instant};

use nostr_gateway_tests::{Gateway, GatewayBuilder, PATIENCE, RawClient, events, eventually};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::GATEWAY;

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "relay").topics(&["one", "two"]).start().await
}

fn hex_ids(events: &[&Event]) -> Vec<String> {
    events.iter().map(|event| event.id.to_hex()).collect()
}

fn one(keys: &Keys, kind: u16, content: &str, created_at: u64) -> Event {
    events::event(keys, kind, content, &[], created_at)
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_decide_what_is_kept() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let now = events::now();

    // Regular: all are kept.
    let (old, new) = (one(&keys, 1, "old", now - 10), one(&keys, 1, "new", now));
    client.accept(&new).await;
    client.accept(&old).await;
    assert_eq!(client.stored_ids(&[json!({"kinds": [1]})]).await, hex_ids(&[&new, &old]));

    // Replaceable: the newest per author and kind, whatever the order of arrival.
    for kind in [0, 3, 10_002, 19_999] {
        let (old, new) = (one(&keys, kind, "old", now - 10), one(&keys, kind, "new", now));
        let other = one(&Keys::generate(), kind, "somebody else's", now - 20);
        client.accept(&other).await;
        client.accept(&old).await;
        client.accept(&new).await;
        let older = one(&keys, kind, "older", now - 11);
        client.refuse(&older, "replaced").await;
        let stored = client.stored_ids(&[json!({"kinds": [kind]})]).await;
        assert_eq!(stored, hex_ids(&[&new, &other]), "kind {kind}");
    }

    // Addressable: the newest per author, kind and d tag; no d tag is an empty one.
    for kind in [30_000, 39_999] {
        let with = |d: &str, at| events::event(&keys, kind, "", &[&["d", d, "rest"]], at);
        let (a_old, a_new, b) = (with("a", now - 9), with("a", now - 5), with("b", now - 8));
        let none = one(&keys, kind, "no d tag", now - 7);
        let empty = with("", now - 6);
        for event in [&a_old, &a_new, &b, &none, &empty] {
            client.accept(event).await;
        }
        let stored = client.stored_ids(&[json!({"kinds": [kind]})]).await;
        assert_eq!(stored, hex_ids(&[&a_new, &empty, &b]), "kind {kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_events_pass_and_are_not_kept() {
    let gateway = gateway().await;
    let mut reader = RawClient::connect(&gateway.url()).await;
    let mut writer = RawClient::connect(&gateway.url()).await;
    assert!(reader.req("live", &[json!({"kinds": [20_001]})]).await.is_empty());
    let event = one(&Keys::generate(), 20_001, "passing", events::now());
    writer.accept(&event).await;
    assert_eq!(reader.live("live").await, events::value(&event));
    assert!(writer.stored_ids(&[json!({"kinds": [20_001]})]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_timestamps_are_settled_by_the_lowest_id() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let now = events::now();
    let by_id = |keys: &Keys, kind, tags: &[&[&str]]| {
        let mut events: Vec<Event> =
            (0..4).map(|n| events::event(keys, kind, &format!("{n}"), tags, now)).collect();
        events.sort_by_key(|event| event.id.to_hex());
        events
    };
    for (kind, tags) in [(10_002, &[][..]), (30_023, &[&["d", "same"][..]][..])] {
        // The lowest id arrives last, first, and in between.
        for order in [[3, 2, 1, 0], [0, 1, 2, 3], [2, 0, 3, 1]] {
            let keys = Keys::generate();
            let events = by_id(&keys, kind, tags);
            for n in order {
                client.publish(&events[n]).await;
            }
            let filter = json!({"kinds": [kind], "authors": [keys.public_key().to_hex()]});
            assert_eq!(client.stored_ids(&[filter]).await, hex_ids(&[&events[0]]), "{order:?}");
        }
    }

    // And in what is sent: newest first, then by id.
    let keys = Keys::generate();
    let events = by_id(&keys, 1, &[]);
    let newest = one(&keys, 1, "newest", now + 1);
    for event in [&events[2], &events[0], &newest, &events[3], &events[1]] {
        client.accept(event).await;
    }
    let author = keys.public_key().to_hex();
    let expected = hex_ids(&[&newest, &events[0], &events[1], &events[2], &events[3]]);
    assert_eq!(client.stored_ids(&[json!({"authors": [author]})]).await, expected);
    let two = client.stored_ids(&[json!({"authors": [author], "limit": 2})]).await;
    assert_eq!(two, expected[..2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_what_they_say() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let at = events::now() - 1_000;
    let a1 = one(&alice, 1, "a1", at);
    let a2 = one(&alice, 7, "a2", at + 1);
    let b1 = one(&bob, 1, "b1", at + 2);
    let b2 = one(&bob, 7, "b2", at + 3);
    for event in [&a1, &a2, &b1, &b2] {
        client.accept(event).await;
    }
    let (alice, bob) = (alice.public_key().to_hex(), bob.public_key().to_hex());
    for (filters, expected) in [
        (vec![json!({})], vec![&b2, &b1, &a2, &a1]),
        (vec![json!({"ids": [a2.id.to_hex(), b1.id.to_hex()]})], vec![&b1, &a2]),
        (vec![json!({"authors": [alice]})], vec![&a2, &a1]),
        (vec![json!({"authors": [alice, bob], "kinds": [1]})], vec![&b1, &a1]),
        (vec![json!({"kinds": [1, 7], "limit": 3})], vec![&b2, &b1, &a2]),
        // Both bounds are inclusive.
        (vec![json!({"since": at + 1, "until": at + 2})], vec![&b1, &a2]),
        (vec![json!({"since": at + 3})], vec![&b2]),
        (vec![json!({"until": at})], vec![&a1]),
        (vec![json!({"since": at + 2, "until": at + 1})], vec![]),
        (vec![json!({"ids": [a1.id.to_hex()], "kinds": [7]})], vec![]),
        (vec![json!({"ids": []})], vec![]),
    ] {
        let stored = client.stored_ids(&filters).await;
        assert_eq!(stored, hex_ids(&expected), "{filters:?}");
    }

    // Several filters: every event once, however many match it.
    let filters = [json!({"kinds": [1]}), json!({"authors": [bob]}), json!({"since": at + 2})];
    let mut stored = client.stored_ids(&filters).await;
    stored.sort();
    assert_eq!(stored, events::ids([&a1, &b1, &b2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_single_letter_tag_is_indexed() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let letters: Vec<String> = ('a'..='z').chain('A'..='Z').map(String::from).collect();
    let other = events::event(&keys, 1, "other", &[&["a", "other value"]], events::now());
    client.accept(&other).await;
    let tagged: Vec<Vec<String>> =
        letters.iter().map(|letter| vec![letter.clone(), format!("value of {letter}")]).collect();
    let tags: Vec<Vec<&str>> =
        tagged.iter().map(|tag| tag.iter().map(String::as_str).collect()).collect();
    let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
    let event = events::event(&keys, 1, "all letters", &tags, events::now());
    client.accept(&event).await;
    for letter in &letters {
        let name = format!("#{letter}");
        let values = json!([format!("value of {letter}"), "unused"]);
        let stored = client.stored_ids(&[json!({&name: values, "kinds": [1]})]).await;
        assert_eq!(stored, hex_ids(&[&event]), "{name}");
        // Letters of the other case are other tags.
        let swapped = letter.chars().map(|c| {
            if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
        });
        let value = format!("value of {}", swapped.collect::<String>());
        assert!(client.stored_ids(&[json!({&name: [value]})]).await.is_empty(), "{name}");
    }
    // Two tags in one filter must both match.
    let both = json!({"#a": ["value of a"], "#B": ["value of B"]});
    assert_eq!(client.stored_ids(&[both]).await, hex_ids(&[&event]));
    let one_of_two = json!({"#a": ["value of a"], "#B": ["value of b"]});
    assert!(client.stored_ids(&[one_of_two]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_replaced_closed_and_belong_to_a_connection() {
    let gateway = gateway().await;
    let (mut first, mut second) =
        (RawClient::connect(&gateway.url()).await, RawClient::connect(&gateway.url()).await);
    let mut writer = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();

    // The same id on two connections: two subscriptions.
    assert!(first.req("same", &[json!({"kinds": [1]})]).await.is_empty());
    assert!(second.req("same", &[json!({"kinds": [7]})]).await.is_empty());
    let note = events::note(&keys, "a note");
    writer.accept(&note).await;
    assert_eq!(first.live("same").await["id"], note.id.to_hex());
    second.expect_silence().await;

    // A REQ with the id of an open subscription takes its place. limit 0 asks for live events alone.
    assert!(first.req("same", &[json!({"kinds": [7], "limit": 0})]).await.is_empty());
    writer.accept(&events::note(&keys, "nobody asks for notes now")).await;
    let like = one(&keys, 7, "+", events::now());
    writer.accept(&like).await;
    assert_eq!(first.live("same").await["id"], like.id.to_hex());
    assert_eq!(second.live("same").await["id"], like.id.to_hex());
    first.expect_silence().await;

    // CLOSE ends one connection's subscription alone.
    first.send(&json!(["CLOSE", "same"])).await;
    first.send(&json!(["CLOSE", "never opened"])).await;
    first.expect_silence().await;
    let again = one(&keys, 7, "🤙", events::now());
    writer.accept(&again).await;
    assert_eq!(second.live("same").await["id"], again.id.to_hex());
    first.expect_silence().await;

    // Ids have 1 to 64 characters, not bytes.
    let longest = "ü".repeat(64);
    assert_eq!(first.req(&longest, &[json!({"ids": [again.id.to_hex()]})]).await.len(), 1);
    first.send(&json!(["REQ", "x".repeat(65), {}])).await;
    assert_eq!(first.next().await[0], "NOTICE");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_or_doubled_between_stored_and_live() {
    const EVENTS: usize = 300;
    let gateway = gateway().await;
    let keys = Keys::generate();
    let all: Vec<Event> =
        (0..EVENTS).map(|n| one(&keys, 1, &format!("{n}"), events::now())).collect();
    let url = gateway.url();
    let publisher = tokio::spawn({
        let (url, all) = (url.clone(), all.clone());
        async move {
            let mut client = RawClient::connect(&url).await;
            for event in &all {
                client.accept(event).await;
            }
        }
    });
    // Readers that subscribe at different moments of the publishing.
    let mut readers = Vec::new();
    for _ in 0..20 {
        let url = url.clone();
        readers.push(tokio::spawn(async move {
            let mut client = RawClient::connect(&url).await;
            let stored = client.req("s", &[json!({"kinds": [1], "limit": 5000})]).await;
            let mut seen: Vec<Value> = stored.into_iter().map(|mut e| e["id"].take()).collect();
            while seen.len() < EVENTS {
                seen.push(client.live("s").await["id"].take());
            }
            client.expect_silence().await;
            seen
        }));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    publisher.await.unwrap();
    for reader in readers {
        let mut seen: Vec<String> =
            reader.await.unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        seen.sort();
        assert_eq!(seen, events::ids(&all));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_copy_is_a_duplicate() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let event = events::note(&Keys::generate(), "once");
    assert_eq!(client.publish(&event).await, (true, String::new()));
    let (accepted, message) = client.publish(&event).await;
    assert!(accepted && message.starts_with("duplicate: "), "{message}");

    // Two copies at the same time, from two connections: one is stored, the other a duplicate.
    let mut other = RawClient::connect(&gateway.url()).await;
    let event = events::note(&Keys::generate(), "twice at once");
    let answers = tokio::join!(client.publish(&event), other.publish(&event));
    let (mut first, mut second) = answers;
    if first.1 > second.1 {
        std::mem::swap(&mut first, &mut second);
    }
    assert_eq!(first, (true, String::new()));
    assert!(second.0 && second.1.starts_with("duplicate: "), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_relays_of_their_own() {
    let gateway = gateway().await;
    let mut root = RawClient::connect(&gateway.url()).await;
    let mut topic_one = RawClient::connect(&gateway.topic_url("one")).await;
    let mut topic_two = RawClient::connect(&gateway.topic_url("two")).await;
    for client in [&mut root, &mut topic_one, &mut topic_two] {
        assert!(client.req("live", &[json!({})]).await.is_empty());
    }
    let keys = Keys::generate();

    // Published to one topic: seen there and on /, not in the other.
    let event = events::note(&keys, "for topic one");
    topic_one.accept(&event).await;
    assert_eq!(topic_one.live("live").await["id"], event.id.to_hex());
    assert_eq!(root.live("live").await["id"], event.id.to_hex());
    topic_two.expect_silence().await;
    assert!(topic_two.stored_ids(&[json!({})]).await.is_empty());

    // Published to the second as well: news there, and nowhere else.
    let (accepted, message) = topic_two.publish(&event).await;
    assert!(accepted && message.starts_with("duplicate: "), "{message}");
    assert_eq!(topic_two.live("live").await["id"], event.id.to_hex());
    root.expect_silence().await;
    topic_one.expect_silence().await;
    assert_eq!(topic_two.stored_ids(&[json!({})]).await, hex_ids(&[&event]));

    // Published on / with the topic's name as a tag.
    let tagged = events::event(&keys, 1, "by its tag", &[&["t", "two"]], events::now());
    root.accept(&tagged).await;
    assert_eq!(topic_two.live("live").await["id"], tagged.id.to_hex());
    topic_one.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_news_once_on_the_root_and_once_in_each_topic() {
    let gateway = gateway().await;
    let mut root = RawClient::connect(&gateway.url()).await;
    let mut one_topic = RawClient::connect(&gateway.topic_url("one")).await;
    let mut two = RawClient::connect(&gateway.topic_url("two")).await;
    for client in [&mut root, &mut one_topic, &mut two] {
        assert!(client.req("live", &[json!({})]).await.is_empty());
    }
    let keys = Keys::generate();
    // Ephemeral and stored events alike.
    for kind in [20_001, 1] {
        let event = one(&keys, kind, "by two ways", events::now());
        one_topic.accept(&event).await;
        assert_eq!(one_topic.live("live").await["id"], event.id.to_hex());
        assert_eq!(root.live("live").await["id"], event.id.to_hex());
        two.accept(&event).await;
        assert_eq!(two.live("live").await["id"], event.id.to_hex());
        two.accept(&event).await;
        for client in [&mut root, &mut one_topic, &mut two] {
            client.expect_silence().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_goes_to_the_topics_of_the_old_one() {
    let gateway = gateway().await;
    let mut root = RawClient::connect(&gateway.url()).await;
    let mut topic = RawClient::connect(&gateway.topic_url("two")).await;
    let keys = Keys::generate();
    let (old, new) =
        (one(&keys, 0, "old", events::now() - 10), one(&keys, 0, "new", events::now()));
    topic.accept(&old).await;
    assert!(topic.req("live", &[json!({"limit": 0})]).await.is_empty());
    // Published on the root, it would go to the default topic alone.
    root.accept(&new).await;
    assert_eq!(topic.live("live").await["id"], new.id.to_hex());
    assert_eq!(topic.stored_ids(&[json!({"kinds": [0]})]).await, hex_ids(&[&new]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_req_ends_the_subscription_that_it_was_to_replace() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(client.req("a", &[json!({})]).await.is_empty());
    client.send(&json!(["REQ", "a", {"kinds": "1"}])).await;
    let closed = client.next().await;
    assert_eq!((&closed[0], &closed[1]), (&json!("CLOSED"), &json!("a")));
    client.accept(&one(&Keys::generate(), 1, "not for a", events::now())).await;
    client.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_falls_behind_misses_nothing_and_holds_up_nobody() {
    const COUNT: usize = 4_000;
    let gateway = gateway().await;
    let mut slow = RawClient::connect(&gateway.url()).await;
    let mut other = RawClient::connect(&gateway.url()).await;
    let mut writer = RawClient::connect(&gateway.url()).await;
    for client in [&mut slow, &mut other] {
        assert!(client.req("live", &[json!({"kinds": [1]})]).await.is_empty());
    }
    // Far more than the buffers of the sockets and the queue of the connection hold.
    let keys = Keys::generate();
    let filler = "x".repeat(4_000);
    let events: Vec<Event> =
        (0..COUNT).map(|n| one(&keys, 1, &format!("{n} {filler}"), events::now())).collect();
    let mut log: Vec<Value> = Vec::new();
    for chunk in events.chunks(200) {
        for event in chunk {
            writer.send_event(event).await;
        }
        for event in chunk {
            assert!(writer.ok(&event.id.to_hex()).await.0);
        }
        for _ in chunk {
            log.push(other.live("live").await["id"].take());
        }
    }
    // Whoever keeps up and whoever does not get the same, in the order of the log.
    let mut got: Vec<Value> = Vec::new();
    while got.len() < COUNT {
        got.push(slow.live("live").await["id"].take());
    }
    slow.expect_silence().await;
    assert!(got == log, "another order, or others");
    let mut got: Vec<&str> = got.iter().map(|id| id.as_str().unwrap()).collect();
    got.sort_unstable();
    assert_eq!(got, events::ids(&events));
}

/// Nobody waits for a client that does not read, and it does not stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_closed_when_patience_is_at_its_end() {
    let gateway =
        GatewayBuilder::new(GATEWAY, "silent").set("relay", "reader_patience_s", "3").start().await;
    let mut silent = RawClient::connect(&gateway.url()).await;
    let mut other = RawClient::connect(&gateway.url()).await;
    let mut writer = RawClient::connect(&gateway.url()).await;
    for client in [&mut silent, &mut other] {
        assert!(client.req("live", &[json!({"kinds": [1]})]).await.is_empty());
    }
    assert_eq!(gateway.metric("nostr_gateway_connections").await, 3);
    // Far more than the buffers of the sockets hold.
    let (keys, filler) = (Keys::generate(), "x".repeat(100_000));
    let publish = async |writer: &mut RawClient, other: &mut RawClient, count: usize| {
        for n in 0..count {
            let event = one(&keys, 1, &format!("{n} {filler}"), events::now());
            writer.accept(&event).await;
            assert_eq!(other.live("live").await["id"], event.id.to_hex());
        }
    };
    publish(&mut writer, &mut other, 300).await;
    let begun = Instant::now();
    eventually("the client that does not read is put out", PATIENCE, async || {
        (gateway.metric("nostr_gateway_connections").await == 2).then_some(())
    })
    .await;
    // Not another time as long for a farewell that it would not read either.
    assert!(begun.elapsed() < Duration::from_millis(5_500), "{:?}", begun.elapsed());
    // The others go on.
    publish(&mut writer, &mut other, 3).await;
    assert_eq!(gateway.metric("nostr_gateway_connections").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_right_before_the_close_goes_its_way() {
    let gateway = gateway().await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let event = events::note(&Keys::generate(), &format!("{n}"));
        ids.push(event.id.to_hex());
        let mut client = RawClient::connect(&gateway.url()).await;
        client.send_event(&event).await;
        client.send_frame(Message::Close(None)).await;
    }
    let mut reader = RawClient::connect(&gateway.url()).await;
    nostr_gateway_tests::eventually("all are stored", PATIENCE, async || {
        let stored = reader.stored_ids(&[json!({"ids": ids})]).await;
        (stored.len() == ids.len()).then_some(())
    })
    .await;
}
