//! The ladder of discovery: each step alone with the earlier ones broken, with lost packets, and after
//! a partition.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, Namespace, Network, Testnet, eventually, report,
};
use serde_json::{Value, json};

use crate::{DHT_TESTNET, GATEWAY, alone};

const MEETING: Duration = Duration::from_secs(60);

/// A join that takes longer than this has failed.
const JOIN: Duration = Duration::from_secs(15);

/// Nobody is there.
const DEAD_DHT: u8 = 200;

fn gateway(name: &str, namespace: &Arc<Namespace>) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).namespace(namespace.clone()).topics(&["town"])
}

/// Always at the same port, so that those who remember it find it again.
fn at_a_fixed_port(builder: GatewayBuilder, namespace: &Namespace) -> GatewayBuilder {
    let address = format!("{}:4433", namespace.address());
    builder.set("endpoint", "bind", &format!("{address:?}"))
}

/// A DHT whose nodes do not answer.
fn with_a_dead_dht(builder: GatewayBuilder, network: &Network) -> GatewayBuilder {
    let nobody = format!("[\"{}:6881\"]", network.host(DEAD_DHT));
    builder.set("discovery", "dht", "true").set("discovery", "dht_bootstrap", &nobody)
}

async fn meet(gateway: &Gateway) -> Value {
    gateway.wait_for_neighbors("town", 1, MEETING).await;
    gateway.topic_status("town").await
}

fn first_neighbor(topic: &Value) -> u64 {
    topic["first_neighbor_ms"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_the_ladder_holds_alone() {
    let scenario = "each_step_of_the_ladder_holds_alone";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let (here, there) = (Arc::new(network.add("a", 2, 1)), Arc::new(network.add("b", 3, 1)));
    let a = at_a_fixed_port(gateway("a", &here), &here)
        .dht(&testnet)
        .set("discovery", "mdns", "true")
        .start()
        .await;

    // The DHT alone.
    let mut met = gateway("dht", &there).dht(&testnet).start().await;
    let topic = meet(&met).await;
    report(&format!("first neighbor through the DHT: {} ms", first_neighbor(&topic)));
    // A look goes on after it found somebody.
    let topic = eventually("the look has ended", MEETING, async || {
        let topic = met.topic_status("town").await;
        topic["steps"].get("dht_lookup").is_some().then_some(topic)
    })
    .await;
    let lookup = &topic["steps"]["dht_lookup"];
    // Each may have seen the other's record first.
    let peers = a.command(&["peers", "--json"]).await.json()["peers"].clone();
    let seen = [&topic["neighbors"][0]["found_by"], &peers[0]["topics"]["town"]];
    assert!(lookup["ok"] == true && seen.contains(&&json!("dht")), "{topic} {peers}");
    assert!(topic["steps"].get("mdns").is_none() && topic["steps"].get("remembered").is_none());
    met.log_line(MEETING, |line| line.contains("remembering a neighbor")).await;
    met.interrupt().await;

    // The DHT is dead; the local network is not.
    let with_mdns = |builder: GatewayBuilder| {
        with_a_dead_dht(builder, &network).set("discovery", "mdns", "true")
    };
    let mut local = with_mdns(gateway("mdns", &there)).start().await;
    let topic = meet(&local).await;
    report(&format!("first neighbor by mDNS, with a dead DHT: {} ms", first_neighbor(&topic)));
    // Each may have seen the other first.
    let peers = a.command(&["peers", "--json"]).await.json()["peers"].clone();
    let seen = [&topic["neighbors"][0]["found_by"], &peers[0]["topics"]["town"]];
    assert!(seen.contains(&&json!("mdns")), "{topic} {peers}");
    dead_dht_is_told(&local).await;
    local.interrupt().await;

    // Neither; but one was a neighbor before.
    there.without_mdns(true);
    let mut met = met.restart_with(with_mdns).await;
    let topic = meet(&met).await;
    report(&format!("first neighbor from memory: {} ms", first_neighbor(&topic)));
    assert_eq!(topic["neighbors"][0]["found_by"], "remembered", "{topic}");
    let step = ended(&met, "remembered").await;
    assert!(step["ok"] == true && step["neighbors"] == 1, "{step}");
    assert!(met.metric("nostr_gateway_neighbors_found_total{by=\"remembered\"").await >= 1);
    met.interrupt().await;

    // Nothing is remembered either; the configuration names one.
    let peers = format!("[{:?}]", a.as_peer().await);
    let mut told =
        with_mdns(gateway("configured", &there)).set("discovery", "peers", &peers).start().await;
    let topic = meet(&told).await;
    assert_eq!(topic["neighbors"][0]["found_by"], "configured", "{topic}");
    assert!(topic["steps"].get("remembered").is_none(), "{topic}");
    let step = ended(&told, "configured").await;
    assert!(step["ok"] == true && step["neighbors"] == 1, "{step}");
    // Asking took until the other one was a neighbor.
    let (took, first) = (step["took_ms"].as_u64().unwrap(), first_neighbor(&topic));
    assert!(step["attempts"] == 1 && (1..=first + 1_000).contains(&took), "{step} {first}");
    told.interrupt().await;

    // Without any of them it is alone, says why, and goes on looking.
    let lost = with_mdns(gateway("lost", &there)).start().await;
    dead_dht_is_told(&lost).await;
    let topic = lost.topic_status("town").await;
    assert_eq!((&topic["state"], &topic["neighbors"]), (&json!("alone"), &json!([])), "{topic}");
    assert!(topic["steps"]["mdns"]["result"].as_str().unwrap().starts_with("sees 0"), "{topic}");
    there.without_mdns(false);
    lost.wait_for_neighbors("town", 1, MEETING).await;
}

/// A step that asks, once it has ended.
async fn ended(gateway: &Gateway, step: &str) -> Value {
    eventually("the step has ended", MEETING, async || {
        gateway.topic_status("town").await["steps"].get(step).cloned()
    })
    .await
}

/// Somebody is configured who is not there, and one who is seen on the local network does not answer:
/// each step that asked them says so, and how long it waited.
#[tokio::test(flavor = "multi_thread")]
async fn steps_that_ask_in_vain_have_failed() {
    let scenario = "steps_that_ask_in_vain_have_failed";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let (here, there) = (Arc::new(network.add("a", 2, 1)), Arc::new(network.add("b", 3, 1)));
    let mut gone = at_a_fixed_port(gateway("gone", &here), &here).start().await;
    let peers = format!("[{:?}]", gone.as_peer().await);
    // It goes without a word, and is seen on the local network a while longer.
    let silent = gateway("silent", &here).set("discovery", "mdns", "true").start().await;
    gone.kill9().await;
    let b = gateway("b", &there)
        .set("discovery", "mdns", "true")
        .set("discovery", "peers", &peers)
        .set("discovery", "timeout_ms", "2000");
    // All but mDNS is lost on the way.
    there.filter("deaf", "input", "udp dport != 5353 drop");
    let b = b.start().await;
    let begun = Instant::now();
    for step in ["configured", "mdns"] {
        let result = eventually("it has failed", MEETING, async || {
            let result = b.topic_status("town").await["steps"].get(step).cloned()?;
            (result["ok"] == false).then_some(result)
        })
        .await;
        let took = result["took_ms"].as_u64().unwrap();
        assert!((2_000..4_000).contains(&took), "{result}");
        assert!(result["failures"].as_u64() > Some(0) && result["error"].is_string(), "{result}");
        let text = result["result"].as_str().unwrap();
        assert!(text.contains("asked 1, none of them came within 2000 ms"), "{text}");
        let failed =
            format!("nostr_gateway_discovery_steps_total{{step={step:?},result=\"failed\"");
        assert!(b.metric(&failed).await > 0);
    }
    report(&format!(
        "asked in vain by the configuration and mDNS: told after {:?}",
        begun.elapsed()
    ));
    // It is not given up.
    there.filter("deaf", "input", "");
    b.wait_for_neighbors("town", 1, MEETING).await;
    assert_eq!(b.topic_status("town").await["neighbors"][0]["id"], silent.endpoint);
}

/// The step that fails says so, in `status`, in `topic show` and in the metrics.
async fn dead_dht_is_told(gateway: &Gateway) {
    eventually("the DHT fails", MEETING, async || {
        let step = gateway.topic_status("town").await["steps"]["dht_lookup"].clone();
        let failed = step["ok"] == false && step["failures"].as_u64() > Some(0);
        (failed && step["error"].is_string() && step["at"].is_u64()).then_some(())
    })
    .await;
    let shown = gateway.command(&["topic", "show", "town"]).await;
    assert!(shown.stdout.contains("failed"), "{shown:?}");
    let failures = "nostr_gateway_discovery_steps_total{step=\"dht_lookup\",result=\"failed\"";
    assert!(gateway.metric(failures).await >= 1);
    assert!(gateway.metric("nostr_gateway_discovery_step_last_timestamp_seconds").await > 0);
}

/// Both restart, and nothing but their memory is left.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_met_once_meet_again() {
    let scenario = "two_that_met_once_meet_again";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let (here, there) = (Arc::new(network.add("a", 2, 1)), Arc::new(network.add("b", 3, 1)));
    let mut a = at_a_fixed_port(gateway("a", &here), &here).start().await;
    let peers = format!("[{:?}]", a.as_peer().await);
    let mut b = gateway("b", &there).set("discovery", "peers", &peers).start().await;
    for gateway in [&a, &b] {
        gateway.log_line(MEETING, |line| line.contains("remembering a neighbor")).await;
    }
    a.kill9().await;
    b.kill9().await;
    // The one that has to be found comes last, after a while.
    let b = b.restart_with(|builder| builder.unset("discovery", "peers")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let a = a.restart().await;
    let topic = meet(&b).await;
    assert_eq!(topic["neighbors"][0]["found_by"], "remembered", "{topic}");
    assert_eq!(topic["neighbors"][0]["id"], a.endpoint);
}

/// Without a DHT, on a network of their own.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_local_network_neighbors_are_found_within_a_second() {
    let scenario = "on_a_local_network_neighbors_are_found_within_a_second";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let (here, there) = (Arc::new(network.add("a", 2, 1)), Arc::new(network.add("b", 3, 1)));
    let _a = gateway("a", &here).set("discovery", "mdns", "true").start().await;
    let mut took = Vec::new();
    for round in 0..7 {
        let b = gateway(&format!("b{round}"), &there).set("discovery", "mdns", "true");
        let mut b = b.start().await;
        took.push(first_neighbor(&meet(&b).await));
        b.interrupt().await;
    }
    report(&format!("first neighbor on a local network without a DHT, ms: {took:?}"));
    assert!(took.iter().all(|ms| *ms <= 1_000), "{took:?}");
}

/// 5 % of what arrives at any of them is lost. `NOSTR_GATEWAY_JOINS=100` makes the series longer.
#[tokio::test(flavor = "multi_thread")]
async fn joins_succeed_although_packets_are_lost() {
    let scenario = "joins_succeed_although_packets_are_lost";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let joins = number("NOSTR_GATEWAY_JOINS", 20);
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let (here, there) = (Arc::new(network.add("a", 2, 1)), Arc::new(network.add("b", 3, 1)));
    for host in [&dht, &here, &there] {
        network.lose(host, 5);
    }
    let _a = gateway("a", &here).dht(&testnet).start().await;
    let (mut took, mut failed) = (Vec::new(), 0);
    for round in 0..joins {
        let mut b = gateway(&format!("b{round}"), &there).dht(&testnet).start().await;
        let joined = joins_within(&b, JOIN).await;
        match joined {
            Some(ms) => took.push(ms),
            None => {
                failed += 1;
                let topic = b.topic_status("town").await;
                report(&format!("join {round} failed: {topic}"));
            }
        }
        b.interrupt().await;
    }
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    report(&format!(
        "{joins} joins through the DHT with 5 % of packets lost: {failed} failed; first neighbor \
         p50 {} ms, p95 {} ms, max {} ms",
        at(50),
        at(95),
        at(100)
    ));
    assert!(failed <= joins / 100, "{failed} of {joins}");
    assert!(at(50) <= 5_000, "{took:?}");
}

async fn joins_within(gateway: &Gateway, deadline: Duration) -> Option<u64> {
    let end = Instant::now() + deadline;
    while Instant::now() < end {
        if let Some(ms) = gateway.topic_status("town").await["first_neighbor_ms"].as_u64() {
            return Some(ms);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

/// `NOSTR_GATEWAY_PARTITION_S=60` makes the partition longer.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_partition_they_find_one_another_in_seconds() {
    let scenario = "after_a_partition_they_find_one_another_in_seconds";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let partition = Duration::from_secs(number("NOSTR_GATEWAY_PARTITION_S", 15));
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let (here, there) = (Arc::new(network.add("a", 2, 1)), Arc::new(network.add("b", 3, 1)));
    let a = gateway("a", &here).dht(&testnet).start().await;
    let b = gateway("b", &there).dht(&testnet).start().await;
    for gateway in [&a, &b] {
        gateway.log_line(MEETING, |line| line.contains("remembering a neighbor")).await;
    }
    there.cut_udp(true);
    for gateway in [&a, &b] {
        eventually("they lose one another", MEETING, async || {
            (gateway.topic_status("town").await["state"] == "disconnected").then_some(())
        })
        .await;
    }
    tokio::time::sleep(partition).await;
    there.cut_udp(false);
    let back = Instant::now();
    meet(&a).await;
    meet(&b).await;
    let took = back.elapsed();
    report(&format!("after a partition of {partition:?} they are neighbors again in {took:?}"));
    assert!(took <= Duration::from_secs(10), "{took:?}");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}
