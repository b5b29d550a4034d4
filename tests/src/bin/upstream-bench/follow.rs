//! Following a thousand people at two hundred relays: what that takes of memory, and what it costs when
//! all relays are lost at one moment.

use std::time::Duration;

use nostr_gateway_tests::{
    Gateway, ScriptedRelay, events,
    figures::Row,
    proc::{cpu_seconds, private_bytes},
    scripted::Script,
};
use nostr_sdk::{Event, Keys};
use tokio::time::{Instant, sleep};

use crate::setup::{Setup, TOPIC, has_stored};

const RELAYS: usize = 200;
/// Authors who write to the same two relays.
const AUTHORS_EACH: usize = 5;
/// Notes of each author.
const NOTES: usize = 4;
const GOAL_BYTES: u64 = 100_000_000;
/// One core, for so many seconds.
const GOAL_CPU_S: f64 = 10.0;
/// How long it may take until all are connected; the bound of the measurement, no goal.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is still to be done after the last connection.
const SETTLE: Duration = Duration::from_secs(10);

pub async fn rows(setup: &Setup) -> Vec<Row> {
    let count = setup.or(RELAYS, 10);
    let settle = setup.or(SETTLE, Duration::from_secs(1));
    let mut relays = Vec::with_capacity(count);
    for _ in 0..count {
        relays.push(ScriptedRelay::start(Script::default()).await);
    }
    let me = Keys::generate();
    let (lists, notes) = fill(&relays, &me);
    let discover = ScriptedRelay::holding(Script::default(), &lists).await;

    let alone = setup.builder("alone").start().await;
    let without = private_bytes(alone.pid());
    drop(alone);

    let gateway = setup
        .builder("follower")
        .table(&format!(
            "[[upstream]]\nname = \"bench\"\nfollow = [\"{}\"]\ntopics = [{TOPIC:?}]\n\
             filter = {{ kinds = [1] }}\nmax_relays = {count}\ndiscover = [{:?}]\n\
             allow_private_relays = true\n",
            me.public_key().to_hex(),
            discover.url(),
        ))
        .start()
        .await;
    let started = Instant::now();
    all_connected(&relays, &gateway, 1).await;
    has_stored(&gateway, notes + lists.len()).await;
    let ready = started.elapsed();
    sleep(settle).await;
    let private = private_bytes(gateway.pid());
    let calm = cpu_seconds(&gateway);
    sleep(settle).await;
    let idle = (cpu_seconds(&gateway) - calm) / settle.as_secs_f64();

    let before = cpu_seconds(&gateway);
    let lost = Instant::now();
    relays.iter().for_each(ScriptedRelay::hang_up);
    all_connected(&relays, &gateway, 2).await;
    let back = lost.elapsed();
    sleep(settle).await;
    let storm = cpu_seconds(&gateway) - before;
    let after = private_bytes(gateway.pid());

    let most = private.max(after);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let memory = Row::new(format!("{count} relays, {} authors, calm", lists.len() - 1), "≤ 100 MB")
        .figure("private MB", megabytes(most))
        .figure("without the stream MB", megabytes(without))
        .figure("each relay kB", most.saturating_sub(without) as f64 / count as f64 / 1e3)
        .figure("all read after s", ready.as_secs_f64())
        .figure("% of a core", idle * 100.0)
        .met(most <= GOAL_BYTES);
    let storm = Row::new(format!("{count} relays lost at once"), "≤ 1 core for 10 s")
        .figure("CPU s", storm)
        .figure("all back after s", back.as_secs_f64())
        .figure("private MB after", megabytes(after))
        .met(storm <= GOAL_CPU_S);
    vec![memory, storm]
}

/// Lets people write to two neighboring relays each. Returns the lists, mine first, and how many notes
/// there are.
fn fill(relays: &[ScriptedRelay], me: &Keys) -> (Vec<Event>, usize) {
    let then = events::now() - 10_000;
    let (mut keys, mut lists, mut notes) = (Vec::new(), Vec::new(), 0);
    for at in 0..relays.len() {
        let both = [&relays[at], &relays[(at + 1) % relays.len()]];
        for _ in 0..AUTHORS_EACH {
            let author = Keys::generate();
            let urls = both.map(ScriptedRelay::url);
            let tags = [["r", &urls[0]], ["r", &urls[1]]];
            let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
            lists.push(events::event(&author, 10_002, "", &tags, then));
            for number in 0..NOTES {
                let at = then + number as u64;
                let note = events::event(&author, 1, &format!("note {number}"), &[], at);
                both.iter().for_each(|relay| relay.hold(&note));
                notes += 1;
            }
            keys.push(author.public_key().to_hex());
        }
    }
    let tags: Vec<[&str; 2]> = keys.iter().map(|key| ["p", key]).collect();
    let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
    lists.insert(0, events::event(me, 3, "", &tags, then));
    (lists, notes)
}

/// Waits until every relay was connected to so many times and is now.
async fn all_connected(relays: &[ScriptedRelay], gateway: &Gateway, times: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let missing = relays
            .iter()
            .map(ScriptedRelay::counts)
            .filter(|counts| counts.open == 0 || counts.connections < times)
            .count();
        if missing == 0 {
            return;
        }
        assert!(
            Instant::now() < end,
            "{missing} relays are not connected: {}",
            show(gateway).await
        );
        sleep(Duration::from_millis(100)).await;
    }
}

async fn show(gateway: &Gateway) -> String {
    gateway.command(&["upstream", "show", "bench"]).await.stdout
}
