//! Gateways behind routers: over an iroh relay, through a forwarded port, found by a pkarr relay
//! alone, and local ones together with a remote one.

use std::{path::Path, sync::Arc, time::Duration};

use nostr_gateway_tests::{
    Child, Gateway, GatewayBuilder, Lan, Mapping, Namespace, Network, RawClient, Testnet, events,
    eventually, report,
};
use nostr_sdk::Keys;
use serde_json::{Value, json};

use crate::{DHT_TESTNET, GATEWAY, IROH_RELAY, alone, namespaces};

/// Two that look for one another, over as many hops as it takes.
const MEETING: Duration = Duration::from_secs(60);

fn gateway(name: &str, namespace: Namespace) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).namespace(Arc::new(namespace)).topics(&["town"])
}

/// An event from a client of the one arrives at a client of the other, and back.
async fn carry_both_ways(a: &Gateway, b: &Gateway) {
    for (from, to) in [(a, b), (b, a)] {
        let mut reader = RawClient::connect(&to.topic_url("town")).await;
        let note = events::note(&Keys::generate(), "from one side to the other");
        RawClient::connect(&from.topic_url("town")).await.accept(&note).await;
        let id = json!({"ids": [note.id.to_hex()]});
        eventually("the event is on the other side", MEETING, async || {
            (reader.stored_ids(std::slice::from_ref(&id)).await.len() == 1).then_some(())
        })
        .await;
    }
}

/// What `peers` says of the only neighbor.
async fn neighbor(gateway: &Gateway) -> Value {
    eventually("there is a path to the neighbor", MEETING, async || {
        let peers = gateway.command(&["peers", "--json"]).await.json()["peers"].clone();
        assert!(peers.as_array().unwrap().len() <= 1, "{peers}");
        (!peers[0]["path"].is_null()).then(|| peers[0].clone())
    })
    .await
}

pub async fn start_iroh_relay(namespace: &Namespace) -> (Child, String) {
    let address = format!("{}:3340", namespace.address());
    let mut command = namespace.command(Path::new(IROH_RELAY));
    command.args(["--bind", &address]).env("RUST_LOG", "warn");
    let child = Child::spawn("iroh-relay", command);
    child.stdout_line(Duration::from_secs(20), |line| line == "ready").await;
    (child, format!("http://{address}"))
}

/// Neither can be reached from outside, and each destination sees another port of theirs: no hole can
/// be punched. Only the iroh relay's URL is in the DHT, since all addresses are private.
#[tokio::test(flavor = "multi_thread")]
async fn two_behind_nat_meet_over_an_iroh_relay_and_remember_it() {
    let scenario = "two_behind_nat_meet_over_an_iroh_relay_and_remember_it";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let relay = network.add("relay", 2, 1);
    let (relay, url) = start_iroh_relay(&relay).await;
    let (left, right) = (Lan::behind(&network, 3, 1), Lan::behind(&network, 4, 1));
    let behind = |name, lan: &Lan| {
        gateway(name, lan.add(&network, name, 2))
            .dht(&testnet)
            .set("discovery", "dht_private_addresses", "false")
            .set("endpoint", "iroh_relays", &format!("{url:?}"))
    };
    let a = behind("a", &left).start().await;
    let mut b = behind("b", &right).start().await;
    a.wait_for_neighbors("town", 1, MEETING).await;
    b.wait_for_neighbors("town", 1, MEETING).await;
    carry_both_ways(&a, &b).await;
    for (gateway, other) in [(&a, &b), (&b, &a)] {
        let neighbor = neighbor(gateway).await;
        assert_eq!(neighbor["id"], other.endpoint, "{neighbor}");
        assert_eq!(neighbor["path"], "relay", "{neighbor}");
        assert!(neighbor["address"].as_str().unwrap().starts_with(&url), "{neighbor}");
    }
    let ms = b.topic_status("town").await["first_neighbor_ms"].as_u64().unwrap();
    report(&format!("first neighbor over an iroh relay, both behind NAT: {ms} ms"));

    // Without the DHT, from memory: the way over the relay is part of it.
    b.log_line(MEETING, |line| line.contains("remembering a neighbor")).await;
    b.interrupt().await;
    let b = b.restart_with(|builder| builder.set("discovery", "dht", "false")).await;
    b.wait_for_neighbors("town", 1, MEETING).await;
    let topic = b.topic_status("town").await;
    assert_eq!(topic["neighbors"][0]["found_by"], "remembered", "{topic}");
    carry_both_ways(&a, &b).await;
    assert_eq!(neighbor(&b).await["path"], "relay");

    // It is the relay that carries them.
    drop(relay);
    eventually("without it they lose one another", MEETING, async || {
        (b.topic_status("town").await["state"] == "disconnected").then_some(())
    })
    .await;
}

/// An iroh relay under a certificate of its own, which also tells endpoints how they look from outside.
async fn start_certified_iroh_relay(namespace: &Namespace, certificate: &Path) -> (Child, String) {
    let address = namespace.address();
    let mut command = namespace.command(Path::new(IROH_RELAY));
    command.arg("--bind").arg(format!("{address}:3340"));
    command.arg("--https").arg(format!("{address}:3443")).arg("--certificate").arg(certificate);
    command.env("RUST_LOG", "warn");
    let child = Child::spawn("iroh-relay", command);
    child.stdout_line(Duration::from_secs(20), |line| line == "ready").await;
    (child, format!("https://{address}:3443"))
}

/// Each is behind a router of its own that lets nothing in and shows the same port to all. They meet over
/// the iroh relay, punch a hole, and no longer need it.
#[tokio::test(flavor = "multi_thread")]
async fn two_behind_cone_nat_get_from_an_iroh_relay_to_a_direct_way() {
    let scenario = "two_behind_cone_nat_get_from_an_iroh_relay_to_a_direct_way";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let relay = network.add("relay", 2, 1);
    let folder = tempfile::tempdir().unwrap();
    let certificate = folder.path().join("ca.pem");
    let (relay, url) = start_certified_iroh_relay(&relay, &certificate).await;
    let routers =
        [3, 4].map(|number| Lan::mapped(&network, number, 1, Mapping::EndpointIndependent));
    let behind = |name, lan: &Lan, number| {
        gateway(name, lan.add(&network, name, number))
            .dht(&testnet)
            .set("discovery", "dht_private_addresses", "false")
            .set("endpoint", "iroh_relays", &format!("{url:?}"))
    };
    let with_ca = |builder: GatewayBuilder| {
        builder.set("endpoint", "ca_file", &format!("{:?}", certificate.display().to_string()))
    };
    // Nobody else vouches for that relay.
    let lost = behind("c", &routers[0], 3).start().await;
    let a = with_ca(behind("a", &routers[0], 2)).start().await;
    let b = with_ca(behind("b", &routers[1], 2)).start().await;
    for gateway in [&a, &b] {
        gateway.wait_for_neighbors("town", 1, MEETING).await;
    }
    carry_both_ways(&a, &b).await;
    let begun = std::time::Instant::now();
    for (gateway, other) in [(&a, &routers[1]), (&b, &routers[0])] {
        eventually("a hole is punched", MEETING, async || {
            let neighbor = neighbor(gateway).await;
            let through = format!("{}:", other.outside());
            let is_direct = neighbor["path"] == "direct";
            (is_direct && neighbor["address"].as_str()?.starts_with(&through)).then_some(())
        })
        .await;
    }
    report(&format!("both behind cone NAT: a direct way {:?} after they met", begun.elapsed()));
    assert_eq!(lost.status().await["iroh_relays"], json!([]), "it cannot know the relay");

    drop(relay);
    // Longer than a connection over it would live.
    tokio::time::sleep(Duration::from_secs(8)).await;
    for gateway in [&a, &b] {
        assert_eq!(neighbor(gateway).await["path"], "direct");
        assert_eq!(gateway.topic_status("town").await["state"], "joined");
    }
    carry_both_ways(&a, &b).await;
}

/// A fixed UDP port, forwarded by the router, is how the one behind it is reached: it may not dial the
/// other, and nobody else helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_port_is_reached_by_its_outside_address() {
    let scenario = "a_forwarded_port_is_reached_by_its_outside_address";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let home = Lan::behind(&network, 3, 1);
    let inside = home.add(&network, "a", 2);
    let outside = network.add("b", 4, 1);
    home.forward(4_433, &inside);
    home.never_dials(outside.address());
    let bind = format!("{:?}", format!("{}:4433", inside.address()));
    let forwarded = format!("{}:4433", home.outside());
    let a = gateway("a", inside)
        .dht(&testnet)
        .set("endpoint", "bind", &bind)
        .set("endpoint", "external_addresses", &format!("[{forwarded:?}]"))
        .start()
        .await;
    let addresses = a.status().await["addresses"].clone();
    assert!(addresses.as_array().unwrap().contains(&json!(forwarded)), "{addresses}");
    let b = gateway("b", outside).dht(&testnet).start().await;
    b.wait_for_neighbors("town", 1, MEETING).await;
    carry_both_ways(&a, &b).await;
    let neighbor = neighbor(&b).await;
    assert_eq!((&neighbor["path"], &neighbor["address"]), (&json!("direct"), &json!(forwarded)));
}

/// Neither has a DHT or mDNS: one knows the other's endpoint id, and the pkarr relay where that is.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_found_through_a_pkarr_relay_alone() {
    let scenario = "an_endpoint_is_found_through_a_pkarr_relay_alone";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    // The pkarr relay keeps its packets in a DHT that no gateway asks.
    let dht = network.add("dht", 1, 1);
    let _testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let pkarr = network.add("pkarr", 2, 1);
    let cache = tempfile::tempdir().unwrap();
    let relay = namespaces::start_pkarr_relay(&pkarr, cache.path()).await;
    let url = format!("\"http://{}:8080\"", pkarr.address());
    let with_relay = |name, number| {
        gateway(name, network.add(name, number, 1)).set("endpoint", "pkarr_relay", &url).set(
            "discovery",
            "dht_private_addresses",
            "true",
        )
    };
    let a = with_relay("a", 3).start().await;
    let peers = format!("[{:?}]", a.endpoint);
    // Without the relay an id leads nowhere.
    let lost = gateway("c", network.add("c", 5, 1)).set("discovery", "peers", &peers).start().await;
    let b = with_relay("b", 4).set("discovery", "peers", &peers).start().await;
    b.wait_for_neighbors("town", 1, MEETING).await;
    let topic = b.topic_status("town").await;
    assert_eq!(topic["neighbors"][0]["found_by"], "configured", "{topic}");
    carry_both_ways(&a, &b).await;
    // It asks for five seconds before that is in vain.
    eventually("it is alone", MEETING, async || {
        let topic = lost.topic_status("town").await;
        (topic["state"] == "alone" && topic["neighbors"] == json!([])).then_some(())
    })
    .await;
    drop(relay);
}

/// Two on one local network, of which one has no DHT, and one elsewhere: one topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_network_and_a_remote_gateway_are_one_topic() {
    let scenario = "a_local_network_and_a_remote_gateway_are_one_topic";
    let _alone = alone().await;
    let Some(network) = Network::available(scenario) else { return };
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let home = Lan::behind(&network, 3, 1);
    let local = |name, number| {
        gateway(name, home.add(&network, name, number)).set("discovery", "mdns", "true")
    };
    let a = local("a", 2).start().await;
    let b = local("b", 3).dht(&testnet).start().await;
    let c = gateway("c", network.add("c", 4, 1)).dht(&testnet).start().await;
    for gateway in [&a, &b, &c] {
        gateway.wait_for_neighbors("town", 1, MEETING).await;
    }
    let found = |status: Value, of: &Gateway| {
        let neighbors = status["neighbors"].as_array().unwrap().clone();
        neighbors.iter().find(|n| n["id"] == of.endpoint).map(|n| n["found_by"].clone())
    };
    // Whichever saw the other first; to that one it comes.
    let seen = [found(a.topic_status("town").await, &b), found(b.topic_status("town").await, &a)];
    assert!(seen.contains(&Some(json!("mdns"))), "{seen:?}");
    carry_both_ways(&a, &c).await;
    carry_both_ways(&b, &c).await;
    carry_both_ways(&a, &b).await;
}
