//! How long events wait while plugins change.

use std::{fs, ops::Range, path::Path, time::Duration};

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
const PAUSE: Duration = Duration::from_millis(1_000);
/// A swap begins when the file is there, and may have ended this long before the gateway's figures
/// were seen to say so; what follows from it may take as long.
const AROUND: Duration = Duration::from_millis(300);
/// What a swap may cost an event.
const GOAL_MS: f64 = 5.0;
const GOAL: &str = "a swap adds ≤ 5 ms to the longest";
/// What is looked at without a swap: about as long as a swap.
const WINDOW: Duration = Duration::from_millis(1_000);
/// The gateway looks twice a second.
const NOTICED: Duration = Duration::from_millis(500);

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Files that no plugin is made of.
    FilesAlone,
    /// A plugin's configuration.
    Configuration,
    /// Its component too, so that it is compiled.
    Component,
}

const KINDS: [Kind; 3] = [Kind::FilesAlone, Kind::Configuration, Kind::Component];

impl Kind {
    fn title(self, times: usize) -> String {
        match self {
            Self::FilesAlone => format!("{times} files written"),
            Self::Configuration => format!("{times} swaps, configuration"),
            Self::Component => format!("{times} swaps, component"),
        }
    }
}

pub async fn rows(setup: &Setup) -> Vec<Row> {
    let builder = setup.builder();
    let manifest = fixture(&builder, "a", "[config]\nsay = \"version 0\"\n");
    let gateway = builder.start().await;
    let (swaps, quiet) = (setup.or(10_u32, 2), Duration::from_secs(setup.or(15, 3)));
    // Long enough for all swaps, and for a gateway that takes its time.
    let seconds = quiet.as_secs_f64() + f64::from(swaps) * 3.0 * 4.0;
    let refused = Frames::sign((seconds * REFUSED) as usize, 1, Some("say"));
    let stored = Frames::sign((seconds * STORED) as usize, 1, None);

    let stop = Stop::default();
    let refused = tokio::spawn(load::steady(gateway.url(), refused, REFUSED, false, stop.clone()));
    let stored = tokio::spawn(load::steady(gateway.url(), stored, STORED, true, stop.clone()));
    // Not what the first events cost.
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    sleep(quiet).await;
    let quiet = began..Instant::now();
    // First the same files where nobody looks: what the disk is busy with delays commits too.
    let elsewhere = gateway.control_socket().with_file_name("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mut kinds = Vec::new();
    let mut taken = 0;
    for kind in KINDS {
        let folder = match kind {
            Kind::FilesAlone => &elsewhere,
            _ => manifest.parent().unwrap(),
        };
        let mut spans = Vec::new();
        for version in 1..=swaps {
            let at = Instant::now();
            if kind == Kind::Component {
                other_component(&folder.join("fixtures.wasm"));
            }
            let config = format!("[config]\nsay = \"{kind:?} {version}\"\n");
            replace(&folder.join("plugin.toml"), fixture_manifest("a", &config).as_bytes());
            if kind == Kind::FilesAlone {
                sleep(NOTICED).await;
            } else {
                taken += 1;
                wait(&gateway, taken).await;
            }
            sleep(AROUND).await;
            spans.push(at..Instant::now());
            sleep(PAUSE).await;
        }
        kinds.push((kind, spans));
    }
    stop.set();
    let (refused, stored) = (refused.await.unwrap(), stored.await.unwrap());

    let windows: Vec<_> = (0..u32::MAX)
        .map(|n| quiet.start + WINDOW * n)
        .take_while(|start| *start + WINDOW <= quiet.end)
        .map(|start| start..start + WINDOW)
        .collect();
    let mut rows = Vec::new();
    for (what, answers) in [("refused", refused), ("stored", stored)] {
        let without = Waits::within(&windows, &answers);
        rows.push(without.row(format!("{what}, no swap")));
        let mut compared = without.typical;
        for (kind, spans) in &kinds {
            let waits = Waits::within(spans, &answers);
            let row = waits.row(format!("{what}, {}", kind.title(spans.len())));
            if *kind == Kind::FilesAlone {
                compared = compared.max(waits.typical);
                rows.push(row);
            } else {
                rows.push(row.met(waits.typical <= compared + GOAL_MS));
            }
        }
    }
    rows
}

/// How long answers took within some spans of time.
struct Waits {
    times: Times,
    /// The longest of each span, and of these the one in the middle: what a busy disk or machine
    /// does now and then does not decide.
    typical: f64,
}

impl Waits {
    fn within(spans: &[Range<Instant>], answers: &[Answered]) -> Self {
        let of = |span: &Range<Instant>| {
            let span = span.clone();
            answers.iter().filter(move |answer| span.contains(&answer.at)).copied()
        };
        let mut longest: Vec<f64> =
            spans.iter().map(|span| Times::of(of(span)).longest()).collect();
        longest.sort_by(f64::total_cmp);
        Self { times: Times::of(spans.iter().flat_map(of)), typical: longest[longest.len() / 2] }
    }

    fn row(&self, name: String) -> Row {
        Row::new(name, GOAL)
            .figure("p50 ms", self.times.percentile(0.5))
            .figure("p99 ms", self.times.percentile(0.99))
            .figure("longest of a swap ms, median", self.typical)
            .figure("longest of all", self.times.longest())
    }
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
