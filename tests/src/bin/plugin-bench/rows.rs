//! The rows.

use std::{fs, time::Duration};

use clap::ValueEnum;
use nostr_gateway_tests::{Gateway, figures::Row};
use tokio::time::Instant;

use crate::{
    alone, hostile,
    load::{self, Frames, connect},
    setup::{Calls, Setup, blocklist, copied, fixture},
    swap,
};

/// What can be run.
#[derive(Clone, Copy, ValueEnum)]
pub enum Name {
    Call,
    Alone,
    Chain,
    Swap,
    Traps,
    Hostile,
}

impl Name {
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::Call => "a call in the running gateway",
            Self::Alone => "calls alone, one core",
            Self::Chain => "publishing through five plugins",
            Self::Swap => "swaps under load",
            Self::Traps => "1,000 traps",
            Self::Hostile => "beside hostile plugins",
        }
    }
}

/// The lines of one row; in a quick run without a verdict.
pub async fn run(name: Name, setup: Setup) -> Vec<Row> {
    let mut rows = match name {
        Name::Call => call(&setup).await,
        Name::Alone => alone::rows(&setup),
        Name::Chain => chain(&setup).await,
        Name::Swap => swap::rows(&setup).await,
        Name::Traps => vec![traps(&setup).await],
        Name::Hostile => hostile::rows(&setup).await,
    };
    if setup.quick {
        rows.iter_mut().for_each(|row| row.met = None);
    }
    rows
}

/// Publishes all of them over four connections. Returns events per second.
async fn publish(gateway: &Gateway, frames: &Frames) -> f64 {
    const CLIENTS: usize = 4;
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(load::flood(gateway.url(), frames.clone(), n, CLIENTS, 64)))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    frames.len() as f64 / began.elapsed().as_secs_f64()
}

/// What the gateway itself measures while events are published.
async fn call(setup: &Setup) -> Vec<Row> {
    let frames = Frames::sign(setup.or(50_000, 2_000), 1, None);
    let goal = "p50 ≤ 2 µs, p99 ≤ 6 µs";
    let mut rows = Vec::new();
    let choices: &[&str] = match setup.plugin {
        Some(_) => &["given"],
        None => &["fixtures", "blocklist"],
    };
    for choice in choices {
        let builder = setup.builder();
        let mut id = (*choice).to_owned();
        match (&setup.plugin, *choice) {
            (Some(folder), _) => id = copied(&builder, folder),
            (None, "fixtures") => drop(fixture(&builder, choice, "")),
            (None, _) => blocklist(&builder, choice, 1_000, 10),
        }
        let gateway = builder.start().await;
        publish(&gateway, &frames).await;
        let calls = Calls::of(&gateway, &id).await;
        assert_eq!(calls.count() as usize, frames.len());
        let (p50, p99) = (calls.at_most_us(0.5), calls.at_most_us(0.99));
        let row = Row::new(format!("a call: {id}"), goal)
            .figure("p50 at most µs", p50)
            .figure("p99 at most µs", p99)
            // With the time in which the system gave the core to somebody else.
            .figure("mean µs", calls.mean_us());
        rows.push(row.met(p50 <= 2.0 && p99 <= 6.0));
    }
    rows
}

/// Each round is three gateways of their own, with the same events.
async fn chain(setup: &Setup) -> Vec<Row> {
    let frames = Frames::sign(setup.or(20_000, 1_000), 1, None);
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..setup.or(5, 1) {
        // Whichever comes first may be at an advantage.
        for turn in 0..rates.len() {
            let choice = (turn + round) % rates.len();
            let builder = setup.builder();
            for n in 1..=5 {
                match choice {
                    0 => {}
                    1 => drop(fixture(&builder, &format!("fixtures-{n}"), "")),
                    _ => blocklist(&builder, &format!("blocklist-{n}"), 1_000, 10),
                }
            }
            let gateway = builder.start().await;
            rates[choice].push(publish(&gateway, &frames).await);
        }
    }
    let [without, small, lists] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    let row = |name, with: f64| {
        let costs = (1.0 - with / without) * 100.0;
        Row::new(name, "costs ≤ 20 %")
            .figure("events/s without", without)
            .figure("with", with)
            .figure("costs %", costs)
            .met(costs <= 20.0)
    };
    vec![
        row("publishing through five filters", small),
        row("publishing through five blocklists", lists),
    ]
}

async fn traps(setup: &Setup) -> Row {
    let builder = setup.builder();
    fixture(&builder, "a", "");
    let gateway = builder.start().await;
    let mut socket = connect(&gateway.url()).await;
    let mut trap = async |times: usize| {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let (time, text) = load::one_by_one(&mut socket, &load::frame(1, "panic")).await;
            assert!(text.contains("error: plugin a failed"), "{text}");
            took += time;
            // Never two in a row: there would be a pause.
            let (_, text) = load::one_by_one(&mut socket, &load::frame(1, "hold:2")).await;
            assert!(text.contains("blocked: held 2"), "{text}");
        }
        took
    };
    let times = setup.or(1_000, 50);
    // The first ones fill what is kept for the next.
    trap(times / 10).await;
    let before = resident_kib(gateway.pid());
    let took = trap(times).await;
    let after = resident_kib(gateway.pid());
    Row::new(format!("{times} traps"), "memory flat: less than 1 MiB more")
        .figure("resident before KiB", before)
        .figure("after KiB", after)
        .figure("mean ms until OK", took.as_secs_f64() * 1e3 / times as f64)
        .met(after <= before + 1_024.0)
}

fn resident_kib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
