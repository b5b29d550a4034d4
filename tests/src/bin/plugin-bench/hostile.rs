//! What others feel of a plugin that misbehaves, and how soon it is stopped.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, events, figures::Row};
use nostr_sdk::Keys;
use tokio::time::{Instant, sleep};

use crate::{
    load::{self, Frames, Stop, Times, connect},
    setup::{Setup, fixture, store_fixture},
};

/// Notes a second of somebody whom the plugin is not asked about.
const NOTES: f64 = 100.0;

/// Contents that make a fixture misbehave, and what they stand for.
const BAD: [(&str, &str); 6] = [
    ("loop", "endless loop"),
    ("bomb", "memory bomb"),
    ("recurse", "deep recursion"),
    ("giant", "giant return"),
    ("flood:very loud", "log flood"),
    ("panic", "panic"),
];

pub async fn rows(setup: &Setup) -> Vec<Row> {
    let seconds = setup.or(6, 1);
    let scope = "[applies_to]\nkinds = [7]\n";
    let mut rows = Vec::new();
    let builder = setup.builder();
    fixture(&builder, "bad", scope);
    let gateway = builder.start().await;
    rows.push(beside(&gateway, "nothing", None, "reject:well", seconds).await);
    for (content, what) in BAD {
        rows.push(beside(&gateway, what, Some(content), "reject:well", seconds).await);
    }

    let builder = setup.builder();
    store_fixture(&builder, "bad", scope);
    let gateway = builder.start().await;
    let author = prolific(&gateway).await;
    rows.push(beside(&gateway, "kv flood", Some("flood"), "get x", seconds).await);
    let asks = format!("asks {author}");
    rows.push(beside(&gateway, "slow lookup", Some(&asks), "get x", seconds).await);
    judge(&mut rows);
    rows
}

/// Publishes notes at a steady rate, and all the time what the plugin misbehaves on.
async fn beside(gateway: &Gateway, what: &str, bad: Option<&str>, good: &str, seconds: u64) -> Row {
    let stop = Stop::default();
    let notes = Frames::sign((seconds as f64 * NOTES) as usize, 1, None);
    let notes = tokio::spawn(load::steady(gateway.url(), notes, NOTES, true, stop));
    let mut socket = connect(&gateway.url()).await;
    let (mut longest, mut calls) = (Duration::ZERO, 0.0);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let Some(bad) = bad else {
            sleep(end - Instant::now()).await;
            continue;
        };
        let (took, _) = load::one_by_one(&mut socket, &load::frame(7, bad)).await;
        longest = longest.max(took);
        calls += 1.0;
        // After two failures in a row it would rest.
        let (_, text) = load::one_by_one(&mut socket, &load::frame(7, good)).await;
        assert!(text.contains("blocked: "), "{text}");
    }
    let times = Times::of(notes.await.unwrap());
    Row::new(format!("beside: {what}"), GOAL)
        .figure("p50 ms", times.percentile(0.5))
        .figure("p99 ms", times.percentile(0.99))
        .figure("longest ms", times.longest())
        .figure("bad calls", calls)
        .figure("longest of them ms", longest.as_secs_f64() * 1e3)
}

const GOAL: &str = "p99 within 5 ms of nothing's";

/// Compares with the first.
fn judge(rows: &mut [Row]) {
    let p99 = |row: &Row| row.figures.iter().find(|(label, _)| *label == "p99 ms").unwrap().1;
    let quiet = p99(&rows[0]);
    for row in &mut rows[1..] {
        row.met = Some(p99(row) <= quiet + 5.0);
    }
}

/// An author of whom much is held, so that each question costs what a question may.
async fn prolific(gateway: &Gateway) -> String {
    let keys = Keys::generate();
    let mut socket = connect(&gateway.url()).await;
    for n in 0..1_000 {
        let event = events::event(&keys, 1, &format!("note {n}"), &[], events::now() - n);
        let frame = format!(r#"["EVENT",{}]"#, events::json(&event));
        let (_, text) = load::one_by_one(&mut socket, &frame).await;
        assert!(text.contains(",true"), "{text}");
    }
    keys.public_key().to_hex()
}
