//! relay → gateway → topic → gateway → relay, and what may not go this way.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, ScriptedRelay, events, eventually,
    ordinary, scripted::Script,
};
use nostr_sdk::{Event, Keys, PublicKey};
use serde_json::json;

use crate::{
    GATEWAY, alone,
    bridge::{FLOW, beside, builder, difference, has_exactly_of, meet, stream},
};

/// Published at the first relay, one by one and in this order.
async fn at_first(relay: &IndependentRelay, events: &[Event]) {
    let mut client = RawClient::connect(&relay.url()).await;
    for event in events {
        client.accept(event).await;
    }
}

struct Chain {
    first: IndependentRelay,
    a: Gateway,
    b: Gateway,
    /// A gateway in no topic: as a relay, one that knows NIP-09 and NIP-62.
    second: Gateway,
}

impl Chain {
    /// Waits until A, B and the second relay hold exactly these, requests aside: which deletions a
    /// relay keeps after it acted on them is its own business.
    async fn ends_equal(&self, step: &str, wanted: &[Event]) {
        let filter = json!({"kinds": [0, 1, 3, 6, 7, 10_002, 30_023, 30_078]});
        for (name, url) in [
            ("A", self.a.topic_url("town")),
            ("B", self.b.topic_url("town")),
            ("the second relay", self.second.url()),
        ] {
            has_exactly_of(&format!("{step}: {name}"), &url, &filter, wanted, FLOW).await;
        }
    }
}

/// Deletions, replacements, a vanish and a restart of each part; then the ends hold the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_relays_and_gateways_ends_equal() {
    let _alone = alone().await;
    let now = events::now();
    let [alice, bob, carol] = [(); 3].map(|()| Keys::generate());
    let past = ordinary(300, now - 3_600);
    let first = IndependentRelay::start(&past).await;
    let second = GatewayBuilder::new(GATEWAY, "second").start().await;
    // B knows A by this address, also after A's restart: they may have met too shortly for A to remember B.
    let bind = format!("{:?}", free_udp_address().to_string());
    let a = builder("A").set("endpoint", "bind", &bind);
    let a = a.table(&stream("in", &first.url(), "down", "")).start().await;
    let out = stream("out", &second.url(), "up", "history = \"all\"");
    let b = beside("B", &a).await.table(&out).start().await;
    meet([&a, &b]).await;
    let mut chain = Chain { first, a, b, second };
    let mut held = past;
    chain.ends_equal("the past", &held).await;

    // Live: notes, a profile and an article in two versions each, and a deletion.
    let note = |keys: &Keys, text: &str| events::event(keys, 1, text, &[], now - 500);
    let profile = |n: u64| events::event(&alice, 0, &format!("{{\"n\":{n}}}"), &[], now - 400 + n);
    let article =
        |n: u64| events::event(&alice, 30_023, &format!("v{n}"), &[&["d", "a"]], now - 400 + n);
    let regretted = note(&alice, "regretted");
    let (of_bob, of_carol) = (note(&bob, "of Bob"), note(&carol, "of Carol"));
    at_first(
        &chain.first,
        &[regretted.clone(), of_bob.clone(), of_carol.clone(), profile(1), article(1)],
    )
    .await;
    held.extend([regretted.clone(), of_bob.clone(), of_carol.clone(), profile(1), article(1)]);
    chain.ends_equal("live", &held).await;
    let id = regretted.id.to_hex();
    let deletion = events::event(&alice, 5, "", &[&["e", &id], &["k", "1"]], now - 300);
    at_first(&chain.first, &[deletion, profile(2), article(2)]).await;
    held.retain(|event| ![regretted.id, profile(1).id, article(1).id].contains(&event.id));
    held.extend([profile(2), article(2)]);
    chain.ends_equal("deleted and replaced", &held).await;

    // Each part is away once while something happens on the first relay.
    chain.a.interrupt().await;
    let while_a = note(&bob, "while A is away");
    at_first(&chain.first, &[while_a.clone(), profile(3)]).await;
    chain.a = chain.a.restart().await;
    held.retain(|event| event.id != profile(2).id);
    held.extend([while_a, profile(3)]);
    chain.ends_equal("A was away", &held).await;

    chain.b.kill9().await;
    let while_b = note(&carol, "while B is away");
    let id = while_b.id.to_hex();
    let gone = events::event(&carol, 5, "", &[&["e", &id]], now - 200);
    let kept = note(&carol, "kept while B is away");
    at_first(&chain.first, &[while_b, kept.clone(), gone]).await;
    chain.b = chain.b.restart().await;
    held.push(kept);
    chain.ends_equal("B was away", &held).await;

    chain.second.interrupt().await;
    let while_second = note(&bob, "while the second relay is away");
    at_first(&chain.first, &[while_second.clone(), article(3)]).await;
    has_exactly_of(
        "A",
        &chain.a.topic_url("town"),
        &json!({"kinds": [30_023]}),
        &[article(3)],
        FLOW,
    )
    .await;
    chain.second = chain.second.restart_in_place().await;
    held.retain(|event| event.id != article(2).id);
    held.extend([while_second, article(3)]);
    chain.ends_equal("the second relay was away", &held).await;

    chain.first.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    chain.first.restart().await;
    // Everything of Bob goes, by his request to all relays (NIP-62).
    let vanish = events::event(&bob, 62, "", &[&["relay", "ALL_RELAYS"]], now);
    let last = note(&carol, "the last");
    at_first(&chain.first, &[vanish.clone(), last.clone()]).await;
    held.retain(|event| event.pubkey != bob.public_key());
    held.push(last);
    chain.ends_equal("vanished", &held).await;

    // And stays away, whoever sends it again.
    RawClient::connect(&chain.second.url()).await.refuse(&of_bob, "blocked").await;
    let found = difference(&chain.b.url(), &json!({"authors": [hex(bob.public_key())]}), &[]).await;
    let rest: Vec<_> = found.only_there.iter().filter(|id| **id != vanish.id.to_hex()).collect();
    assert!(rest.is_empty(), "{rest:?}");
}

fn hex(key: PublicKey) -> String {
    key.to_hex()
}

/// Where nobody listens at the moment.
fn free_udp_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// What never leaves, and never enters a public topic: tried in each direction, beside what may.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_cross_does_not_cross() {
    let _alone = alone().await;
    let now = events::now();
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let p = hex(bob.public_key());
    let barred = |at: u64| -> Vec<Event> {
        let mut all: Vec<Event> = [4, 13, 1_059, 24_133, 27_235, 22_242]
            .into_iter()
            .map(|kind| events::event(&alice, kind, "secret", &[&["p", &p]], at))
            .collect();
        // Protected (NIP-70): its author is not here to authenticate.
        all.push(events::event(&alice, 1, "protected", &[&["-"]], at));
        // Expired (NIP-40).
        let past = (at - 50).to_string();
        all.push(events::event(&alice, 1, "expired", &[&["expiration", &past]], at - 100));
        // A vanish from elsewhere.
        let url = ["relay", "wss://relay.example.org"];
        all.push(events::event(&alice, 62, "", &[&url], at));
        all
    };
    let from_relay = barred(now - 1_000);
    let mut held = from_relay.clone();
    let crosses = events::event(&alice, 1, "this one may", &[], now - 900);
    held.push(crosses.clone());
    let relay = ScriptedRelay::holding(Script::default(), &held).await;
    let gateway =
        builder("A").table(&stream("s", &relay.url(), "both", "history = \"all\"")).start().await;
    // A private topic beside it, whose events belong to its members.
    gateway.command(&["topic", "create", "circle", "--private"]).await.succeeded();
    let mut client = RawClient::connect(&gateway.url()).await;
    let wait = async |client: &mut RawClient, event: &Event| {
        let id = event.id.to_hex();
        eventually("what may cross does", FLOW, async || {
            let found = client.stored_ids(&[json!({"ids": [id]})]).await;
            (!found.is_empty()).then_some(())
        })
        .await;
    };
    wait(&mut client, &crosses).await;
    let live = barred(now);
    for event in &live {
        relay.tell(event);
    }
    let crosses = events::note(&alice, "this one may, live");
    relay.tell(&crosses);
    wait(&mut client, &crosses).await;
    let mut town = RawClient::connect(&gateway.topic_url("town")).await;
    let ids = |events: &[Event]| events.iter().map(|e| e.id.to_hex()).collect::<Vec<_>>();
    for event in from_relay.iter().chain(&live) {
        // Those that are for authenticated parties alone cannot be asked for; the export tells.
        let id = event.id.to_hex();
        assert!(
            event.kind.as_u16() == 4
                || event.kind.as_u16() == 1_059
                || town.stored_ids(&[json!({"ids": [id]})]).await.is_empty(),
            "kind {} entered the topic",
            event.kind
        );
    }
    let exported = gateway.command(&["export"]).await.stdout;
    for id in ids(&from_relay).iter().chain(&ids(&live)) {
        assert!(!exported.contains(id), "{id} is stored");
    }
    // Nor did it stop the author's other events, as a vanish for another relay would.
    assert_eq!(town.count(&[json!({"authors": [hex(alice.public_key())]})]).await, 2);

    // Up. What the gateway itself takes from a local client may stay here; it does not leave.
    let before = relay.counts().events.len();
    let carol = Keys::generate();
    let own: Vec<Event> = [4, 1_059, 24_133, 27_235, 13]
        .into_iter()
        .map(|kind| events::event(&carol, kind, "secret", &[&["p", &p]], now))
        .chain([
            events::event(&carol, 1, "protected", &[&["-"]], now),
            events::event(&carol, 62, "", &[&["relay", &gateway.url()]], now - 5_000),
        ])
        .collect();
    let mut answers = Vec::new();
    for event in &own {
        answers.push((event.kind, client.publish(event).await));
    }
    assert!(answers.iter().any(|(_, (accepted, _))| *accepted), "{answers:?}");
    let mut circle = RawClient::connect(&gateway.topic_url("circle")).await;
    let private = events::note(&carol, "among ourselves");
    circle.accept(&private).await;
    // Also when it is published outside: it belongs to the circle.
    let crosses = events::note(&carol, "this one may leave");
    town.accept(&crosses).await;
    eventually("what may leave does", FLOW, async || {
        relay.counts().events.contains_key(&crosses.id.to_hex()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sent = relay.counts().events;
    assert_eq!(sent.len() - before, 1, "{answers:?}: {sent:?}");
    assert!(!sent.contains_key(&private.id.to_hex()));
}
