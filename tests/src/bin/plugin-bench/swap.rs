//! How long events wait while plugins change.

use std::{
    fs,
    path::Path,
    time::Duration,
};

use nostr_gateway_tests::{Gateway, figures::Row};
use tokio::time::{Instant, sleep};

use crate::{
    load::{self, Answered, Frames, Stop, Times},
    setup::{Setup, fixture, fixture_manifest, plugins},
};

/// Events a second that the plugin refuses, and that it lets pass and the store keeps.
const REFUSED: f64 = 400.0;
const STORED: f64 = 200.0;
/// Between two swaps.
const PAUSE: Duration = Duration::from_millis(1_500);
/// A swap begins when the file is there, and may have ended this long before the gateway's figures
/// were seen to say so; what follows from it may take as long.
const AROUND: Duration = Duration::from_millis(300);
/// What a swap may cost an event.
const GOAL_MS: f64 = 5.0;

pub async fn rows(setup: &Setup) -> Vec<Row> {
    let builder = setup.builder();
    let manifest = fixture(&builder, "a", "[config]\nsay = \"version 0\"\n");
    let gateway = builder.start().await;
    let (swaps, quiet) = (setup.or(10_u32, 2), Duration::from_secs(setup.or(15, 3)));
    // Long enough for all swaps, and for a gateway that takes its time.
    let seconds = quiet.as_secs_f64() + f64::from(swaps) * 2.0 * 4.0;
    let refused = Frames::sign((seconds * REFUSED) as usize, 1, Some("say"));
    let stored = Frames::sign((seconds * STORED) as usize, 1, None);

    let stop = Stop::default();
    let refused =
        tokio::spawn(load::steady(gateway.url(), refused, REFUSED, false, stop.clone()));
    let stored = tokio::spawn(load::steady(gateway.url(), stored, STORED, true, stop.clone()));
    // Not what the first events cost.
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    sleep(quiet).await;
    let quiet = began..Instant::now();
    // First with another configuration alone, then with another component too.
    let mut kinds = Vec::new();
    for with_component in [false, true] {
        let mut spans = Vec::new();
        for _ in 0..swaps {
            let at = Instant::now();
            if with_component {
                other_component(&manifest.with_file_name("fixtures.wasm"));
            }
            let version = spans.len() + kinds.len() * 100 + 1;
            replace(
                &manifest,
                fixture_manifest("a", &format!("[config]\nsay = \"version {version}\"\n")).as_bytes(),
            );
            wait(&gateway, kinds.len() as u64 * u64::from(swaps) + spans.len() as u64 + 1).await;
            sleep(AROUND).await;
            spans.push(at..Instant::now());
            sleep(PAUSE).await;
        }
        kinds.push(spans);
    }
    stop.set();
    let (refused, stored) = (refused.await.unwrap(), stored.await.unwrap());

    let mut rows = Vec::new();
    for (what, answers) in [("refused", refused), ("stored", stored)] {
        let within = |spans: &[std::ops::Range<Instant>]| {
            let is_within = |answer: &&Answered| spans.iter().any(|span| span.contains(&answer.at));
            Times::of(answers.iter().filter(is_within).copied())
        };
        let without = within(std::slice::from_ref(&quiet));
        rows.push(
            Row::new(format!("{what}, no swap"), "")
                .figure("p50 ms", without.percentile(0.5))
                .figure("p99 ms", without.percentile(0.99))
                .figure("longest ms", without.longest()),
        );
        for (spans, with) in kinds.iter().zip(["configuration", "component"]) {
            let times = within(spans);
            let more = times.longest() - without.longest();
            rows.push(
                Row::new(
                    format!("{what}, {} swaps, {with}", spans.len()),
                    "no event waits 5 ms longer",
                )
                .figure("p50 ms", times.percentile(0.5))
                .figure("p99 ms", times.percentile(0.99))
                .figure("longest ms", times.longest())
                .met(more <= GOAL_MS),
            );
        }
    }
    rows
}

/// Waits for so many swaps.
async fn wait(gateway: &Gateway, swaps: u64) {
    let metric = r#"nostr_gateway_plugin_swaps_total{plugin="a",result="taken""#;
    let end = Instant::now() + Duration::from_secs(60);
    while gateway.metric(metric).await < swaps {
        assert!(Instant::now() < end, "swap {swaps} does not come");
        // Each look costs the gateway time that is not the swap's.
        sleep(Duration::from_millis(200)).await;
    }
}

/// The same component with other bytes, so that it is compiled anew: an empty custom section more.
fn other_component(path: &Path) {
    let mut bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(_) => fs::read(plugins().join("fixtures/fixtures.wasm")).unwrap(),
    };
    bytes.extend([0, 2, 1, b'x']);
    replace(path, &bytes);
}

/// Puts a file into place as editors and package managers do.
fn replace(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("draft");
    fs::write(&draft, bytes).unwrap();
    fs::rename(draft, path).unwrap();
}
