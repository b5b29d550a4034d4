//! Catching up: what a stream that begins, or begins again, costs.

use nostr_gateway_tests::{
    Front, IndependentRelay, ScriptedRelay, events, figures::Row, ordinary, scripted::Script,
};
use nostr_sdk::Event;
use serde_json::json;

use crate::setup::{Setup, TOPIC, file, has_stored, stream, verification_rate};

/// Of these one is missing.
const ONE_IN: usize = 100;
/// The longest time and what it may cost beside 1.5 times the missing events.
const GOAL_S: f64 = 3.0;
const GOAL_BYTES: u64 = 1_000_000;
const NIP77_GOAL: &str = "≤ 3 s, ≤ 1.5 × the missing bytes + 1 MB";
/// Share of the rate at which one core verifies.
const GOAL_SHARE: f64 = 0.35;

/// A gateway that has all but one in a hundred connects to a relay that has all.
pub async fn negentropy(setup: &Setup) -> Vec<Row> {
    let all = ordinary(setup.or(100_000, 2_000), events::now() - 3_600);
    let (_dir, path) = file(&all);
    let gateway = setup.builder("relay").start().await;
    gateway.command(&["import", &path, "--no-topics"]).await.succeeded();
    let of_gateway = from(setup, "another gateway", &gateway.url(), None, &all).await;
    drop(gateway);
    let independent = IndependentRelay::start(&all).await;
    // It has NIP-77 and no document to say so.
    let document = json!({"name": "front", "supported_nips": [1, 11, 77]});
    let url = independent.url();
    let of_independent = from(setup, "nostr-relay-builder", &url, Some(document), &all).await;
    vec![of_gateway, of_independent]
}

async fn from(
    setup: &Setup,
    whom: &str,
    relay: &str,
    document: Option<serde_json::Value>,
    all: &[Event],
) -> Row {
    let held = all.iter().enumerate().filter(|(n, _)| n % ONE_IN != 0).map(|(_, event)| event);
    let missing = all.iter().step_by(ONE_IN);
    let (count, bytes) = missing
        .fold((0, 0), |(count, bytes), event| (count + 1, bytes + events::json(event).len()));
    let (_dir, path) = file(held);
    let mut gateway = setup.builder("bridge").start().await;
    gateway.command(&["import", &path, "--topic", TOPIC]).await.succeeded();
    assert!(gateway.interrupt().await.success());
    let front = Front::start(relay, document).await;
    let gateway =
        gateway.restart_with(|builder| builder.table(&stream(&front.url(), "down"))).await;
    let done = has_stored(&gateway, count).await;
    let seconds = (done - front.connected().expect("it is connected")).as_secs_f64();
    let (down, up) = front.bytes();
    let wire = down + up;
    let most = bytes as u64 * 3 / 2 + GOAL_BYTES;
    Row::new(format!("{} events, {count} missing, from {whom}", all.len()), NIP77_GOAL)
        .figure("complete after s", seconds)
        .figure("MB on the wire", wire as f64 / 1e6)
        .figure("MB missing", bytes as f64 / 1e6)
        .figure("of the goal's bytes %", wire as f64 * 100.0 / most as f64)
        .met(seconds <= GOAL_S && wire <= most)
}

/// An empty gateway reads everything that a relay without NIP-77 has.
pub async fn paging(setup: &Setup) -> Vec<Row> {
    let all = ordinary(setup.or(100_000, 1_500), events::now() - 3_600);
    let rate = verification_rate(&all);
    let scripted = ScriptedRelay::holding(Script::default(), &all).await;
    let of_scripted = pages_of(setup, "a plain relay", &scripted.url(), &all, rate).await;
    drop(scripted);
    let independent = IndependentRelay::start(&all).await;
    let url = independent.url();
    let of_independent = pages_of(setup, "nostr-relay-builder", &url, &all, rate).await;
    vec![of_scripted, of_independent]
}

async fn pages_of(setup: &Setup, whom: &str, relay: &str, all: &[Event], rate: f64) -> Row {
    // Without NIP-77 in any case.
    let document = json!({"name": "front", "supported_nips": [1, 11]});
    let front = Front::start(relay, Some(document)).await;
    let table = stream(&front.url(), "down");
    let gateway = setup.builder("bridge").table(&table).start().await;
    let done = has_stored(&gateway, all.len()).await;
    let seconds = (done - front.connected().expect("it is connected")).as_secs_f64();
    let reached = all.len() as f64 / seconds;
    Row::new(
        format!("{} events by paging, from {whom}", all.len()),
        "≥ 0.35 × one core's verifications",
    )
    .figure("events/s", reached)
    .figure("one core verifies/s", rate)
    .figure("share", reached / rate)
    .met(reached / rate >= GOAL_SHARE)
}
