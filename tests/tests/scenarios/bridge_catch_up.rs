//! Streams are complete: by paging and by negentropy, whatever happened in between.

use std::time::Duration;

use nostr_gateway_tests::{
    Front, GatewayBuilder, IndependentRelay, RawClient, ScriptedRelay, events, eventually,
    ordinary, report,
    scripted::{Counts, Script},
};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{
    GATEWAY, alone,
    bridge::{FLOW, builder, has_exactly, shown, stream},
};

/// Sent again at a second connection: what overlaps, and what was on its way.
const OVERLAP: u64 = 1_200;

/// How many pages were asked for: REQs that reach back.
fn pages(counts: &Counts) -> usize {
    counts.asked.iter().filter(|asked| asked[0] == "REQ" && asked[2]["until"].is_u64()).count()
}

/// 3,000 events of ordinary sizes, up to 14 in a second, in pages of 50; then what was missed while the
/// gateway was away, and what came late to the relay.
#[tokio::test(flavor = "multi_thread")]
async fn paging_brings_everything_and_goes_on_where_it_was() {
    let _alone = alone().await;
    let now = events::now();
    // An hour back, so that what comes later is not what overlaps.
    let mut all = ordinary(3_000, now - 3_600);
    // As many in one second as a page has, at a place where no page begins.
    let keys = Keys::generate();
    let crowd = |n: u64| events::event(&keys, 1, &format!("all at once {n}"), &[], now - 4_000);
    all.extend((0..45).map(crowd));
    let script = Script { max_limit: 50, ..Script::default() };
    let relay = ScriptedRelay::holding(script, &all).await;
    let gateway = builder("A").table(&stream("s", &relay.url(), "down", "")).start().await;
    let topic = gateway.topic_url("town");
    has_exactly("the topic", &topic, &all, FLOW).await;
    // It came in pages, each with what the last one had of its second.
    let counts = relay.counts();
    assert!(counts.told < all.len() as u64 * 2, "{} events were sent", counts.told);
    assert!(pages(&counts) < all.len() / 50 * 2 + 20, "{} pages", pages(&counts));
    // Live.
    let live = events::note(&keys, "new on the relay");
    RawClient::connect(&relay.url()).await.accept(&live).await;
    all.push(live);
    has_exactly("the topic", &topic, &all, FLOW).await;
    // The cursor is written down every few seconds, and at the end.
    let mut gateway = gateway;
    gateway.interrupt().await;
    let missed: Vec<Event> = (0..120)
        .map(|n| events::event(&keys, 1, &format!("missed {n}"), &[], now + n / 40))
        .collect();
    let late: Vec<Event> =
        (0..30).map(|n| events::event(&keys, 1, &format!("late {n}"), &[], now - 60 - n)).collect();
    for event in missed.iter().chain(&late) {
        relay.hold(event);
    }
    all.extend(missed);
    all.extend(late);
    let before = relay.counts().told;
    let gateway = gateway.restart().await;
    let topic = gateway.topic_url("town");
    has_exactly("the topic after a restart", &topic, &all, FLOW).await;
    let again = relay.counts().told - before;
    assert!(again < OVERLAP, "it began anew: {again} events were sent again");
    // Late ones come with a reconnection alone, too.
    let late = events::event(&keys, 1, "later still", &[], now - 200);
    relay.hold(&late);
    all.push(late);
    relay.hang_up();
    has_exactly("the topic after a reconnection", &topic, &all, FLOW).await;
    let (stream, relay_of) = shown(&gateway, "s").await;
    report(&format!("{again} events overlapped; the stream is shown as {stream}"));
    assert!(relay_of["url"].as_str().unwrap().contains(&relay.url()[5..]), "{relay_of}");
}

/// SIGKILL while it reads the past: what it has is not read again, and the rest comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_while_catching_up_goes_on_there() {
    let _alone = alone().await;
    let all = ordinary(2_500, events::now() - 3_600);
    // 50 pages in about fifteen seconds.
    let script = Script { max_limit: 50, delay: Duration::from_millis(300), ..Script::default() };
    let relay = ScriptedRelay::holding(script, &all).await;
    let mut gateway = builder("A").table(&stream("s", &relay.url(), "down", "")).start().await;
    eventually("most of the past was sent", FLOW, async || {
        (relay.counts().told >= 1_800).then_some(())
    })
    .await;
    gateway.kill9().await;
    relay.change(|script| script.delay = Duration::ZERO);
    let before = relay.counts().told;
    assert!(before < 2_500, "too fast for this scenario: {before}");
    let gateway = gateway.restart().await;
    has_exactly("the topic", &gateway.topic_url("town"), &all, FLOW).await;
    let again = relay.counts().told - before;
    report(&format!("killed after {before} of 2500 events; then {again} were sent"));
    assert!(again < 2_200, "it began anew: {again} events were sent again");
}

/// More events in one second than a page has cannot be paged through (NIP-01 has seconds only): what is
/// before that second comes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_with_more_than_a_page_hides_nothing_before_it() {
    let now = events::now();
    let keys = Keys::generate();
    let note = |n: u64, at: u64| events::event(&keys, 1, &format!("{n}"), &[], at);
    let before: Vec<Event> = (0..100).map(|n| note(n, now - 9_000 - n)).collect();
    let crowd: Vec<Event> = (0..80).map(|n| note(n, now - 8_000)).collect();
    let after: Vec<Event> = (0..100).map(|n| note(n, now - 7_000 + n)).collect();
    let all = [before.clone(), crowd, after.clone()].concat();
    let script = Script { max_limit: 50, ..Script::default() };
    let relay = ScriptedRelay::holding(script, &all).await;
    let gateway = builder("A").table(&stream("s", &relay.url(), "down", "")).start().await;
    let wanted: Vec<String> = events::ids(before.iter().chain(&after));
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    eventually("everything around the crowded second", FLOW, async || {
        let stored = client.stored_ids(&[json!({"limit": 500})]).await;
        wanted.iter().all(|id| stored.contains(id)).then_some(())
    })
    .await;
    // It does not ask for that second for ever.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = relay.counts();
    assert!(counts.verb("REQ") < 40, "{:?}", counts.verbs);
}

/// Limits that a relay states are kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_says_of_its_limits_is_kept() {
    let all = ordinary(600, events::now() - 3_600);
    let limitation = json!({"max_limit": 30, "max_subscriptions": 2, "max_message_length": 4_096});
    let script = Script { max_limit: 30, ..Script::default() }.limits(limitation);
    let relay = ScriptedRelay::holding(script, &all).await;
    // More authors than fit a message.
    let authors: Vec<String> = (0..150).map(|_| Keys::generate().public_key().to_hex()).collect();
    let many = format!("filter = {{ authors = {authors:?} }}");
    let gateway = builder("A")
        .table(&stream("all", &relay.url(), "down", ""))
        .table(&stream("many", &relay.url(), "both", &many))
        .start()
        .await;
    has_exactly("the topic", &gateway.topic_url("town"), &all, FLOW).await;
    // Too long for this relay: it is not sent, and what fits is.
    let keys = Keys::generate();
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    client.accept(&events::note(&keys, &"long ".repeat(2_000))).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = relay.counts();
    assert!(counts.subscriptions <= 2, "{} subscriptions at once", counts.subscriptions);
    assert!(counts.longest <= 4_096, "a message of {} bytes", counts.longest);
    for asked in counts.asked.iter().filter(|asked| asked[0] == "REQ") {
        for filter in &asked.as_array().unwrap()[2..] {
            assert!(filter["limit"].as_u64().is_none_or(|limit| limit <= 30), "{asked}");
        }
    }
}

/// What is missing somewhere in a long past is found without reading it all again.
#[tokio::test(flavor = "multi_thread")]
async fn negentropy_finds_what_paging_would_not() {
    let _alone = alone().await;
    let now = events::now();
    let mut all = ordinary(4_000, now - 3_600);
    let scripted = ScriptedRelay::holding(Script::with_negentropy(), &all).await;
    let independent = IndependentRelay::start(&all).await;
    let document = json!({"name": "front", "supported_nips": [1, 11, 77]});
    let front = Front::start(&independent.url(), Some(document)).await;
    let mut of_scripted =
        builder("of scripted").table(&stream("s", &scripted.url(), "down", "")).start().await;
    let mut of_independent =
        builder("of independent").table(&stream("s", &front.url(), "down", "")).start().await;
    for gateway in [&of_scripted, &of_independent] {
        has_exactly("the topic", &gateway.topic_url("town"), &all, FLOW).await;
    }
    of_scripted.interrupt().await;
    of_independent.interrupt().await;
    let keys = Keys::generate();
    // One in a hundred, all over the past.
    let missing: Vec<Event> = (0..40)
        .map(|n| events::event(&keys, 1, &format!("hidden {n}"), &[], now - 3_700 - n * 30))
        .collect();
    for event in &missing {
        scripted.hold(event);
        independent.load(event).await;
    }
    all.extend(missing);
    let (told, down) = (scripted.counts().told, front.bytes().0);
    let of_scripted = of_scripted.restart().await;
    let of_independent = of_independent.restart().await;
    for gateway in [&of_scripted, &of_independent] {
        has_exactly("the topic after a restart", &gateway.topic_url("town"), &all, FLOW).await;
    }
    let (told, down) = (scripted.counts().told - told, front.bytes().0 - down);
    report(&format!("40 missing of 4040: {told} were sent; {down} bytes came from the relay"));
    assert!(told <= 60, "{told} events were sent for 40 that were missing");
    assert!(down < 400_000, "{down} bytes for 40 events");
    assert!(scripted.counts().verb("NEG-OPEN") >= 2);
}

/// A gateway is a relay with NIP-77 as well, with a cap on what it compares at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_catches_up_from_a_gateway_that_compares_little_at_once() {
    let _alone = alone().await;
    let all = ordinary(2_000, events::now() - 3_600);
    let source = GatewayBuilder::new(GATEWAY, "source")
        .set("relay", "max_negentropy_events", "300")
        .start()
        .await;
    let (_dir, path) = file(&all);
    source.command(&["import", &path, "--no-topics"]).await.succeeded();
    let gateway = builder("A").table(&stream("s", &source.url(), "down", "")).start().await;
    has_exactly("the topic", &gateway.topic_url("town"), &all, FLOW).await;
}

fn file(events: &[Event]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let lines: Vec<String> = events.iter().map(events::json).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}
