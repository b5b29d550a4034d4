//! The rows.

use std::{path::Path, sync::Arc, time::Duration};

use clap::ValueEnum;
use futures_util::future::join_all;
use nostr_gateway_tests::{
    Namespace, Network, Testnet,
    figures::Row,
    load::{self, Latencies, Listener, Notes},
    proc::{cpu_seconds, private_bytes},
};
use tokio::time::{Instant, sleep};

use crate::swarm::{Setup, TOPIC, all_have, settle, stored};

/// Between two looks at how far the gateways are.
const LOOK: Duration = Duration::from_millis(100);
/// After the last event was sent, for those on their way.
const ARRIVE: Duration = Duration::from_secs(3);
/// When a connection to somebody frozen is given up.
const GIVEN_UP: Duration = Duration::from_secs(6);

/// What can be run.
#[derive(Clone, Copy, ValueEnum)]
pub enum Name {
    Latency,
    Twenty,
    Sustained,
    Late,
    Partition,
    Frozen,
    Memory,
}

impl Name {
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::Latency => "2 to 5 gateways, 100 events/s",
            Self::Twenty => "20 gateways, 100 events/s",
            Self::Sustained => "5 gateways, 2,000 events/s",
            Self::Late => "late joiner",
            Self::Partition => "partition, 3 | 3",
            Self::Frozen => "frozen member",
            Self::Memory => "50 topics, idle",
        }
    }
}

/// The lines of one row; in a quick run without a verdict.
pub async fn run(name: Name, setup: Setup) -> Vec<Row> {
    let mut rows = measure(name, &setup).await;
    if setup.quick {
        rows.iter_mut().for_each(|row| row.met = None);
    }
    rows
}

async fn measure(name: Name, setup: &Setup) -> Vec<Row> {
    match name {
        Name::Latency => {
            let mut rows = Vec::new();
            for gateways in 2..=setup.or(5, 3) {
                let goal = "p50 ≤ 3 ms, p99 ≤ 20 ms";
                rows.push(steady(setup, gateways, goal, 3.0, 20.0).await);
            }
            rows
        }
        Name::Twenty => {
            let goal = "p99 ≤ 150 ms, nothing lost";
            vec![steady(setup, setup.or(20, 6), goal, f64::INFINITY, 150.0).await]
        }
        Name::Sustained => vec![sustained(setup).await],
        Name::Late => vec![late(setup).await],
        Name::Partition => vec![partition(setup).await],
        Name::Frozen => vec![frozen(setup).await],
        Name::Memory => vec![memory(setup).await],
    }
}

/// Client → gateway → topic → gateway → client.
async fn steady(setup: &Setup, count: usize, goal: &'static str, p50: f64, p99: f64) -> Row {
    let notes = Notes::sign(setup.or(1_000, 200));
    let gateways = setup.swarm(count).await;
    let mut listeners = Vec::new();
    for gateway in &gateways[1..] {
        listeners.push(Listener::start(&gateway.topic_url(TOPIC), &notes).await);
    }
    let from = Instant::now();
    load::write(gateways[0].topic_url(TOPIC), notes.clone(), 0, 1, Some(100.0)).await;
    sleep(ARRIVE).await;
    let seen = Latencies::of(&listeners, from, Instant::now());
    let met = seen.percentile(0.5) <= p50 && seen.percentile(0.99) <= p99 && seen.missing == 0;
    Row::new(format!("{count} gateways, 100 events/s"), goal)
        .figure("p50 ms", seen.percentile(0.5))
        .figure("p99 ms", seen.percentile(0.99))
        .figure("max ms", seen.percentile(1.0))
        .figure("missing", seen.missing as f64)
        .met(met)
}

async fn sustained(setup: &Setup) -> Row {
    let (rate, seconds) = (setup.or(2_000, 500), setup.or(60, 4));
    let notes = Notes::sign(rate * seconds);
    let gateways = setup.swarm(5).await;
    let before: f64 = gateways.iter().map(cpu_seconds).sum();
    let from = Instant::now();
    let each = rate as f64 / gateways.len() as f64;
    let writers = gateways.iter().enumerate().map(|(n, gateway)| {
        load::write(gateway.topic_url(TOPIC), notes.clone(), n, gateways.len(), Some(each))
    });
    join_all(writers).await;
    let took = from.elapsed();
    let equal = all_have(&gateways, notes.count(), Instant::now(), LOOK).await;
    let cpu: f64 = gateways.iter().map(cpu_seconds).sum::<f64>() - before;
    let counts = join_all(gateways.iter().map(stored)).await;
    let exact = counts.iter().all(|count| *count == notes.count() as u64);
    let reached = notes.count() as f64 / took.as_secs_f64();
    let met = exact && equal <= Duration::from_secs(5) && reached >= rate as f64 * 0.98;
    Row::new(format!("5 gateways, {rate}/s for {seconds} s"), "the rate, stores equal ≤ 5 s after")
        .figure("events/s", reached)
        .figure("equal after s", equal.as_secs_f64())
        .figure("CPU s of all gateways", cpu)
        .met(met)
}

async fn late(setup: &Setup) -> Row {
    let notes = Notes::sign(setup.or(100_000, 10_000));
    // Counted on an interface where possible: what the gateway counts itself leaves out QUIC.
    let network = Network::available("bytes on the wire");
    let hosts = network
        .as_ref()
        .map(|network| [1, 2].map(|n| Arc::new(network.add(&format!("h{n}"), n, n))));
    let on = |builder: nostr_gateway_tests::GatewayBuilder, at: usize| match &hosts {
        Some(hosts) => builder.namespace(hosts[at].clone()),
        None => builder,
    };
    let a = on(setup.builder("A"), 0).start().await;
    let writers = (0..4).map(|n| load::write(a.topic_url(TOPIC), notes.clone(), n, 4, None));
    join_all(writers).await;
    let builder = on(setup.knowing("B", &[&a]).await, 1);
    hosts.iter().for_each(|hosts| count_udp(&hosts[1]));
    let from = Instant::now();
    let b = builder.start().await;
    let took = all_have([&b], notes.count(), from, Duration::from_millis(500)).await;
    let counted = b.metric("nostr_gateway_sync_bytes_total").await;
    let share = |bytes: u64| bytes as f64 / notes.bytes as f64;
    let wire = hosts.as_ref().map_or(counted, |hosts| udp_bytes(&hosts[1]));
    let wire = share(wire);
    Row::new(format!("late joiner, {} events", notes.count()), "≤ 30 s, ≤ 1.3 × the events' bytes")
        .figure("complete after s", took.as_secs_f64())
        .figure("wire × events", wire)
        .figure("counted × events", share(counted))
        .figure("MB of events", notes.bytes as f64 / 1e6)
        .met(took <= Duration::from_secs(30) && wire <= 1.3)
}

async fn partition(setup: &Setup) -> Row {
    let seconds = setup.or(60, 10);
    let network = Network::available("partition").expect("network namespaces (root)");
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(setup.dht_testnet.to_str().unwrap(), &dht).await;
    let hosts: Vec<_> = (2..=7).map(|n| Arc::new(network.add(&format!("h{n}"), n, 1))).collect();
    let mut gateways = Vec::new();
    for host in &hosts {
        gateways.push(setup.on_host(host, &testnet).await);
    }
    settle(&gateways).await;
    let across: Vec<_> =
        hosts[..3].iter().flat_map(|one| hosts[3..].iter().map(move |two| (one, two))).collect();
    across.iter().for_each(|(one, two)| network.part(one, two));
    let notes = Notes::sign(2 * 50 * seconds);
    let writers = [&gateways[0], &gateways[3]]
        .into_iter()
        .enumerate()
        .map(|(n, gateway)| load::write(gateway.topic_url(TOPIC), notes.clone(), n, 2, Some(50.0)));
    join_all(writers).await;
    sleep(Duration::from_secs(1)).await;
    let apart = join_all(gateways.iter().map(stored)).await;
    assert!(apart.iter().all(|count| *count < notes.count() as u64), "no partition: {apart:?}");
    across.iter().for_each(|(one, two)| network.heal(one, two));
    let equal = all_have(&gateways, notes.count(), Instant::now(), LOOK).await;
    Row::new(format!("partition of {seconds} s, 3 | 3"), "all equal ≤ 5 s after")
        .figure("equal after s", equal.as_secs_f64())
        .figure("events", notes.count() as f64)
        .met(equal <= Duration::from_secs(5))
}

async fn frozen(setup: &Setup) -> Row {
    const BEFORE: u64 = 10;
    let seconds = setup.or(60, 12);
    let rate = 200;
    let notes = Notes::sign(rate * (BEFORE + seconds) as usize);
    let gateways = setup.swarm(5).await;
    let mut listeners = Vec::new();
    for gateway in &gateways[1..4] {
        listeners.push(Listener::start(&gateway.topic_url(TOPIC), &notes).await);
    }
    let from = Instant::now();
    let url = gateways[0].topic_url(TOPIC);
    let writer = tokio::spawn(load::write(url, notes.clone(), 0, 1, Some(rate as f64)));
    sleep(Duration::from_secs(BEFORE)).await;
    let freezing = Instant::now();
    gateways[4].signal("STOP");
    writer.await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let between = |from, until| Latencies::of(&listeners, from, until);
    let before = between(from, freezing);
    let first = between(freezing, freezing + GIVEN_UP);
    let after = between(freezing + GIVEN_UP, Instant::now());
    let thawed = Instant::now();
    gateways[4].signal("CONT");
    let equal = all_have(&gateways, notes.count(), thawed, LOOK).await;
    let unharmed =
        after.missing == 0 && after.percentile(0.99) <= (2.0 * before.percentile(0.99)).max(20.0);
    Row::new(
        format!("5 gateways, one frozen {seconds} s"),
        "p99 of the others unharmed after 6 s, equal ≤ 5 s",
    )
    .figure("p99 ms before", before.percentile(0.99))
    .figure("p99 ms in the first 6 s", first.percentile(0.99))
    .figure("p99 ms after 6 s", after.percentile(0.99))
    .figure("missing", (before.missing + after.missing) as f64)
    .figure("equal after s", equal.as_secs_f64())
    .met(unharmed && equal <= Duration::from_secs(5))
}

async fn memory(setup: &Setup) -> Row {
    let names: Vec<String> = (0..setup.or(50, 5)).map(|n| format!("topic{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let testnet = Testnet::on_loopback(setup.dht_testnet.to_str().unwrap()).await;
    let mut gateways = Vec::new();
    for name in ["A", "B"] {
        gateways.push(setup.builder(name).topics(&names).dht(&testnet).start().await);
    }
    for name in &names {
        gateways[0].wait_for_neighbors(name, 1, Duration::from_secs(120)).await;
    }
    sleep(Duration::from_secs(setup.or(30, 2))).await;
    let megabytes = private_bytes(gateways[0].pid()) as f64 / 1e6;
    Row::new(format!("{} topics, idle", names.len()), "≤ 150 MB private")
        .figure("private MB", megabytes)
        .met(megabytes <= 150.0)
}

/// Counts from now on what goes in and out of a host, IP headers included: UDP, so that our own
/// questions for metrics are not among it.
fn count_udp(host: &Namespace) {
    let chain = |hook: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority 0; meta l4proto udp counter name wire; }}"
        )
    };
    host.nft(&format!(
        "table inet wire {{ counter wire {{ }}\n{}\n{}\n}}\n",
        chain("input"),
        chain("output")
    ));
}

/// What was counted since.
fn udp_bytes(host: &Namespace) -> u64 {
    let output = host.command(Path::new("nft")).args(["list", "counters"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, bytes) = text.split_once(" bytes ").unwrap_or_else(|| panic!("no counter: {text}"));
    bytes.split_whitespace().next().unwrap().parse().unwrap()
}
