//! Networks of namespaces: other programs, and the machines of docker-compose.yml.

use std::{fs, path::Path, sync::Arc, time::Duration};

use nostr_gateway_tests::{
    Child, Gateway, GatewayBuilder, Namespace, Network, RawClient, Testnet, events, eventually,
    http,
};
use nostr_sdk::Keys;
use serde_json::json;

use crate::{DHT_TESTNET, GATEWAY, PKARR_RELAY, STOCK_NODE, alone};

/// A stock node starts with several DHT round trips and may have to wait for the next minute.
pub const MEETING: Duration = Duration::from_secs(90);

pub fn stock_node(namespace: &Namespace, topic: &str) -> Child {
    let mut command = namespace.command(Path::new(STOCK_NODE));
    command.args(["--topic", topic, "--bind", &format!("{}:0", namespace.address())]);
    command.env("RUST_LOG", "info");
    Child::spawn("stock node", command)
}

async fn has_line(node: &Child, line: &str) {
    node.stdout_line(Duration::from_secs(20), |text| text == line).await;
}

/// Without any gateway: when this fails, the test network is at fault.
#[tokio::test(flavor = "multi_thread")]
async fn stock_nodes_meet_in_the_private_dht() {
    let Some(network) = Network::available("stock_nodes_meet_in_the_private_dht") else { return };
    let _alone = alone().await;
    let dht = network.add("dht", 1, 1);
    let _testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let (first, second) = (network.add("a", 2, 1), network.add("b", 3, 1));
    let mut first = stock_node(&first, "meeting");
    let second = stock_node(&second, "meeting");
    for node in [&first, &second] {
        node.stdout_line(MEETING, |line| line == "joined").await;
    }
    first.write_line("hello").await;
    has_line(&second, "received hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_node_exchanges_events_with_a_gateway() {
    let scenario = "a_stock_node_exchanges_events_with_a_gateway";
    let Some(network) = Network::available(scenario) else { return };
    let _alone = alone().await;
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let (ours, theirs) = (Arc::new(network.add("a", 2, 1)), network.add("s", 3, 1));
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .dht(&testnet)
        .namespace(ours)
        .topics(&["meeting"])
        .start()
        .await;
    let mut node = stock_node(&theirs, "meeting");
    node.stdout_line(MEETING, |line| line == "joined").await;
    gateway.wait_for_neighbors("meeting", 1, MEETING).await;

    let mut client = RawClient::connect(&gateway.topic_url("meeting")).await;
    assert!(client.req("live", &[json!({})]).await.is_empty());
    let keys = Keys::generate();
    let theirs = events::note(&keys, "from a stock node");
    node.write_line(&events::json(&theirs)).await;
    assert_eq!(client.live("live").await, events::value(&theirs));

    // The gateway's frame is the plain event: what a node without our ALPN understands.
    let ours = events::note(&keys, "from a gateway");
    client.accept(&ours).await;
    has_line(&node, &format!("received {}", events::json(&ours))).await;
}

/// The services of docker-compose.yml, with its settings and the pkarr relay's shipped file.
#[tokio::test(flavor = "multi_thread")]
async fn the_compose_topology_carries_an_event() {
    let scenario = "the_compose_topology_carries_an_event";
    let Some(network) = Network::available(scenario) else { return };
    let _alone = alone().await;
    // The same last numbers as in docker-compose.yml.
    let dht = network.add("dht", 2, 2);
    let pkarr = network.add("pkarr", 3, 2);
    let _testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let cache = tempfile::tempdir().unwrap();
    let pkarr_relay = start_pkarr_relay(&pkarr, cache.path()).await;
    let a = start_as_in_compose(&network, "a", 10).await;
    let b = start_as_in_compose(&network, "b", 11).await;

    a.wait_for_neighbors("global", 1, MEETING).await;
    b.wait_for_neighbors("global", 1, MEETING).await;
    let mut at_b = RawClient::connect(&b.topic_url("global")).await;
    assert!(at_b.req("live", &[json!({"kinds": [1]})]).await.is_empty());
    let note = events::note(&Keys::generate(), "across the private network");
    let mut at_a = RawClient::connect(&a.topic_url("global")).await;
    at_a.accept(&note).await;
    assert_eq!(at_b.live("live").await, events::value(&note));

    // Both told the pkarr relay where they are.
    for gateway in [&a, &b] {
        let id: iroh::EndpointId = gateway.endpoint.parse().unwrap();
        let path = format!("/{}", id.to_z32());
        let relay = format!("{}:8080", pkarr.address());
        eventually("the pkarr relay knows the gateway", MEETING, async || {
            (http::get(&relay, &path).await.status == 200).then_some(())
        })
        .await;
    }
    drop(pkarr_relay);
}

/// The pkarr relay with the shipped configuration; only its cache is somewhere else.
pub async fn start_pkarr_relay(namespace: &Namespace, cache: &Path) -> Child {
    let config = fs::read_to_string(repository("config/pkarr-relay.toml")).unwrap();
    let shipped = r#"path = "/var/lib/pkarr-relay""#;
    assert!(config.contains(shipped), "{config}");
    let config = config.replace(shipped, &format!("path = {:?}", cache.to_str().unwrap()));
    let file = cache.join("pkarr-relay.toml");
    fs::write(&file, config).unwrap();
    let mut command = namespace.command(Path::new(PKARR_RELAY));
    command.arg("--config").arg(&file).env("RUST_LOG", "info");
    let child = Child::spawn("pkarr-relay", command);
    child.stdout_line(Duration::from_secs(20), |line| line == "ready").await;
    let address = format!("{}:8080", namespace.address());
    assert_eq!(http::get(&address, "/").await.status, 200);
    child
}

/// A gateway with the environment that docker-compose.yml gives it.
async fn start_as_in_compose(network: &Network, label: &str, number: u8) -> Gateway {
    let namespace = Arc::new(network.add(label, number, 2));
    let mut builder = GatewayBuilder::new(GATEWAY, label)
        .namespace(namespace)
        .unset("topics", "join")
        .unset("topics", "default");
    for (section, key) in [
        ("relay", "listen"),
        ("endpoint", "bind"),
        ("endpoint", "iroh_relays"),
        ("discovery", "dht"),
        ("discovery", "mdns"),
    ] {
        builder = builder.unset(section, key);
    }
    for (name, value) in compose_environment() {
        builder = builder.env(&name, &value.replace("172.30.77.", &network.address_prefix()));
    }
    builder.start().await
}

/// The block `x-gateway-environment` of docker-compose.yml: one `NAME: 'value'` a line.
fn compose_environment() -> Vec<(String, String)> {
    let compose = fs::read_to_string(repository("docker-compose.yml")).unwrap();
    let variables: Vec<_> = compose
        .lines()
        .skip_while(|line| !line.starts_with("x-gateway-environment:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.trim().split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect();
    assert!(variables.len() > 3, "docker-compose.yml has no x-gateway-environment block");
    variables
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
