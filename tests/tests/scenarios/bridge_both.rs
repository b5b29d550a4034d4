//! Gateways and relays in both directions: everything arrives everywhere, and nothing goes round.

use std::time::Duration;

use nostr_gateway_tests::{
    Gateway, IndependentRelay, RawClient, ScriptedRelay, events, report,
    restarts::restart_and_compare, scripted::Script,
};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{
    alone,
    bridge::{FLOW, beside, builder, has_exactly, meet, settled, stream},
};

const QUIET: Duration = Duration::from_secs(4);

async fn publish(url: &str, count: usize, word: &str) -> Vec<Event> {
    let keys = Keys::generate();
    let mut client = RawClient::connect(url).await;
    let mut published = Vec::new();
    for n in 0..count {
        let event = events::note(&keys, &format!("{word} {n}"));
        client.accept(&event).await;
        published.push(event);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    published
}

/// Events that a gateway sent into its topics by gossip, whole or announced.
async fn gossiped(gateways: [&Gateway; 2]) -> u64 {
    let mut sum = 0;
    for gateway in gateways {
        sum += gateway.metric("nostr_gateway_frames_sent_total").await;
    }
    sum
}

/// Two gateways bridge the same relay into the same topic, both ways. Each event reaches each part, and
/// the relay is sent what it has not: once.
#[tokio::test(flavor = "multi_thread")]
async fn two_bridges_of_one_relay_neither_loop_nor_double() {
    const EACH: usize = 150;
    let _alone = alone().await;
    let relay = ScriptedRelay::start(Script::with_negentropy()).await;
    let both = stream("s", &relay.url(), "both", "");
    let a = builder("A").table(&both).start().await;
    let b = beside("B", &a).await.table(&both).start().await;
    meet([&a, &b]).await;
    let (url_a, url_b, url_relay) = (a.topic_url("town"), b.topic_url("town"), relay.url());
    let (of_a, of_b, of_relay) = tokio::join!(
        publish(&url_a, EACH, "at A"),
        publish(&url_b, EACH, "at B"),
        publish(&url_relay, EACH, "at the relay"),
    );
    let all = [of_a.clone(), of_b.clone(), of_relay.clone()].concat();
    has_exactly("A", &url_a, &all, FLOW).await;
    has_exactly("B", &url_b, &all, FLOW).await;
    has_exactly("the relay", &relay.url(), &all, FLOW).await;

    // EVENTs at the relay, those of its own clients included.
    let sent = settled("EVENT at the relay", QUIET, async || relay.counts().verb("EVENT")).await;
    let counts = relay.counts();
    let times = |events: &[Event]| -> u64 {
        events.iter().map(|event| counts.events.get(&event.id.to_hex()).copied().unwrap_or(0)).sum()
    };
    let (from_a, from_b, own) = (times(&of_a), times(&of_b), times(&of_relay));
    report(&format!(
        "{EACH} events at each of A, B and the relay: the relay was sent {from_a} of A's, {from_b} of \
         B's; {own} of its own"
    ));
    assert_eq!(sent, from_a + from_b + own);
    // An event of its own is never sent back.
    assert_eq!(own, EACH as u64);
    // The other bridge takes what is on the relay by then as there. On a busy machine the wait for that
    // may be too short for some.
    let doubled = (from_a + from_b) - 2 * EACH as u64;
    assert!(doubled <= EACH as u64 / 5, "{doubled} of {} were sent twice", 2 * EACH);

    // Each connection brought each event once, and later nothing more.
    let told = settled("what the relay sends", QUIET, async || relay.counts().told).await;
    assert!(told <= 3 * 2 * 3 * EACH as u64 / 2, "the relay sent {told}");
    let before = (gossiped([&a, &b]).await, relay.counts().messages());
    tokio::time::sleep(QUIET).await;
    assert_eq!(relay.counts().messages() - before.1, 0, "the relay is left in peace");
    assert!(gossiped([&a, &b]).await - before.0 <= 4, "the topic is quiet");

    // After a reconnection as well.
    relay.hang_up();
    let late = publish(&url_b, 5, "after it").await;
    let all = [all, late].concat();
    has_exactly("the relay", &relay.url(), &all, FLOW).await;
    has_exactly("A", &url_a, &all, FLOW).await;
    let again = settled("EVENT at the relay", QUIET, async || relay.counts().verb("EVENT")).await;
    assert!(again - sent <= 15, "{} EVENTs for 5 events after a reconnection", again - sent);
}

/// The relays of one stream share what is known: what one brings goes to the other, and not back.
#[tokio::test(flavor = "multi_thread")]
async fn the_relays_of_one_stream_become_equal() {
    let _alone = alone().await;
    let past = |word: &str| -> Vec<Event> {
        let keys = Keys::generate();
        let at = events::now() - 5_000;
        (0..100).map(|n| events::event(&keys, 1, &format!("{word} {n}"), &[], at + n)).collect()
    };
    let (old_one, old_two) = (past("one"), past("two"));
    let one = ScriptedRelay::holding(Script::default(), &old_one).await;
    let two = ScriptedRelay::holding(Script::default(), &old_two).await;
    let table = format!(
        "[[upstream]]\nname = \"s\"\nurls = [{:?}, {:?}]\ndirection = \"both\"\ntopics = [\"town\"]\n\
         history = \"all\"\n",
        one.url(),
        two.url()
    );
    let gateway = builder("A").table(&table).start().await;
    let (url_one, url_two, url_a) = (one.url(), two.url(), gateway.topic_url("town"));
    let (new_one, new_two, new_a) = tokio::join!(
        publish(&url_one, 50, "live at one"),
        publish(&url_two, 50, "live at two"),
        publish(&url_a, 50, "at the gateway"),
    );
    let all = [old_one, old_two, new_one.clone(), new_two.clone(), new_a].concat();
    has_exactly("the topic", &url_a, &all, FLOW).await;
    let wanted = events::ids(&all);
    for relay in [&one, &two] {
        nostr_gateway_tests::eventually("both relays have all", FLOW, async || {
            (relay.ids() == wanted).then_some(())
        })
        .await;
        settled("EVENT", QUIET, async || relay.counts().verb("EVENT")).await;
    }
    // Each was sent what it had not, once: 50 by its own client, 100 + 50 of the other, 50 of A's.
    for relay in [&one, &two] {
        assert_eq!(relay.counts().verb("EVENT"), 250);
    }
    // Published at both: neither is sent it again.
    let shared = events::note(&Keys::generate(), "at both");
    RawClient::connect(&url_one).await.accept(&shared).await;
    RawClient::connect(&url_two).await.accept(&shared).await;
    for relay in [&one, &two] {
        let sent = settled("EVENT", QUIET, async || relay.counts().verb("EVENT")).await;
        assert!((251..=252).contains(&sent), "{sent}");
    }
}

/// Changed in the file, applied without a restart: what is unchanged keeps its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_touches_only_what_it_changes() {
    let _alone = alone().await;
    let (one, two) = (
        ScriptedRelay::start(Script::default()).await,
        ScriptedRelay::start(Script::default()).await,
    );
    let table = stream("one", &one.url(), "down", "");
    let gateway = builder("A").table(&table).start().await;
    let url = gateway.topic_url("town");
    let mut all = publish(&one.url(), 3, "before").await;
    has_exactly("the topic", &url, &all, FLOW).await;
    let file = gateway.config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\n{}", stream("two", &two.url(), "down", ""))).unwrap();
    all.extend(publish(&two.url(), 3, "of the new stream").await);
    has_exactly("the topic", &url, &all, FLOW).await;
    assert_eq!(one.counts().connections, 1, "the other stream was left alone");
    // An error keeps what is in effect, and says why.
    std::fs::write(&file, format!("{text}\n[[upstream]]\nname = \"x\"\nurls = [7]\n")).unwrap();
    gateway
        .log_line(FLOW, |line| line.contains("config.toml") && line.to_lowercase().contains("urls"))
        .await;
    all.extend(publish(&two.url(), 3, "with a broken file").await);
    has_exactly("the topic", &url, &all, FLOW).await;
    assert_eq!((one.counts().connections, two.counts().connections), (1, 1));
    // Taken out again: its connection ends.
    std::fs::write(&file, &text).unwrap();
    nostr_gateway_tests::eventually("it leaves the relay", FLOW, async || {
        (two.counts().open == 0).then_some(())
    })
    .await;
    assert_eq!(one.counts().connections, 1, "the other stream was left alone");
}

/// Paused and resumed by command, over a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_stream_is_silent_until_it_is_resumed() {
    let _alone = alone().await;
    let relay = ScriptedRelay::start(Script::default()).await;
    let gateway = builder("A").table(&stream("s", &relay.url(), "both", "")).start().await;
    let mut all = publish(&relay.url(), 2, "before").await;
    let url = gateway.topic_url("town");
    has_exactly("the topic", &url, &all, FLOW).await;
    gateway.command(&["upstream", "pause", "s"]).await.succeeded();
    nostr_gateway_tests::eventually("it leaves the relay", FLOW, async || {
        (relay.counts().open == 0).then_some(())
    })
    .await;
    let mut gateway = gateway;
    gateway.interrupt().await;
    let gateway = gateway.restart().await;
    all.extend(publish(&relay.url(), 2, "paused").await);
    all.extend(publish(&gateway.topic_url("town"), 2, "paused, at the gateway").await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let list = gateway.command(&["upstream", "list"]).await;
    assert!(list.stdout.contains("paused"), "{list:?}");
    assert_eq!(relay.counts().connections, 1 + 2, "its own clients connected alone");
    gateway.command(&["upstream", "resume", "s"]).await.succeeded();
    has_exactly("the topic", &gateway.topic_url("town"), &all, FLOW).await;
    nostr_gateway_tests::eventually("the relay has them too", FLOW, async || {
        (relay.ids() == events::ids(&all)).then_some(())
    })
    .await;
    gateway
        .command(&["upstream", "pause", "elsewhere"])
        .await
        .refuses(1, &["elsewhere", "upstream list"]);
}

/// The relay is restarted again and again while events are published on both sides. Afterwards both are
/// equal. `BRIDGE_RESTARTS` and `BRIDGE_EVENTS` say how often, and how many events.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_equal_after_many_restarts_of_the_relay() {
    let _alone = alone().await;
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
    };
    let (restarts, count) = (number("BRIDGE_RESTARTS", 6), number("BRIDGE_EVENTS", 2_000));
    let mut relay = IndependentRelay::start(&[]).await;
    let gateway = builder("A").table(&stream("s", &relay.url(), "both", "")).start().await;
    let took = restart_and_compare(&mut relay, &gateway, "town", (restarts, count), FLOW).await;
    report(&format!("{restarts} restarts, {count} events on two sides: {took:?}"));
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(client.count(&[json!({})]).await, count as u64);
}
