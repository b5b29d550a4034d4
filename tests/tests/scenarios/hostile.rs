//! Peers that send nonsense: it is counted and dropped, and the topic goes on.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use distributed_topic_tracker::{TopicId, salt, signing_keypair, unix_minute};
use futures_util::StreamExt;
use iroh::{
    Endpoint, EndpointAddr, RelayMode,
    address_lookup::memory::MemoryLookup,
    endpoint::{Connection, presets},
    protocol::Router,
};
use iroh_gossip::{
    api::{Event as GossipEvent, GossipReceiver, GossipSender},
    net::Gossip,
};
use mainline::{Dht, MutableItem};
use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, Testnet, events, eventually};
use nostr_sdk::Keys;
use serde_json::json;

use crate::{DHT_TESTNET, GATEWAY, alone};

const FRAMES_DROPPED: &str = "nostr_gateway_frames_dropped_total";
const RECORDS_DROPPED: &str = "nostr_gateway_dht_records_dropped_total";
const REFUSED: &str = r#"nostr_gateway_events_total{origin="gossip",outcome="refused""#;
const SOON: Duration = Duration::from_secs(20);

/// A member of a topic that says whatever it is told to.
pub struct Peer {
    pub sender: GossipSender,
    receiver: GossipReceiver,
    pub router: Router,
}

impl Peer {
    pub async fn join(gateway: &Gateway, topic: &str) -> Self {
        let status = gateway.status().await;
        let addresses = status["addresses"].as_array().unwrap().iter();
        let id = gateway.endpoint.parse().unwrap();
        let address = addresses
            .map(|address| address.as_str().unwrap().parse::<SocketAddr>().unwrap())
            .fold(EndpointAddr::new(id), EndpointAddr::with_ip_addr);
        let endpoint = Endpoint::builder(presets::Minimal)
            .relay_mode(RelayMode::Disabled)
            .clear_ip_transports()
            .bind_addr("127.0.0.1:0")
            .unwrap()
            .address_lookup(MemoryLookup::from_endpoint_info([address]))
            .bind()
            .await
            .unwrap();
        let gossip = Gossip::builder().spawn(endpoint.clone());
        let router = Router::builder(endpoint).accept(iroh_gossip::ALPN, gossip.clone()).spawn();
        let topic = TopicId::new(topic.to_owned()).hash().into();
        let joined = tokio::time::timeout(SOON, gossip.subscribe_and_join(topic, vec![id])).await;
        let (sender, receiver) = joined.expect("it joins").unwrap().split();
        Self { sender, receiver, router }
    }

    /// A connection of its own, beside those of gossip.
    pub async fn connect(&self, gateway: &Gateway, alpn: &[u8]) -> Connection {
        let status = gateway.status().await;
        let address = status["addresses"][0].as_str().unwrap().parse::<SocketAddr>().unwrap();
        let gateway = EndpointAddr::new(gateway.endpoint.parse().unwrap()).with_ip_addr(address);
        self.router.endpoint().connect(gateway, alpn).await.unwrap()
    }

    async fn say(&self, frame: impl Into<Bytes>) {
        self.sender.broadcast(frame.into()).await.unwrap();
    }

    /// Waits for a message of the gateway.
    async fn hear(&mut self, wanted: impl Fn(&[u8]) -> bool) {
        let listen = async {
            loop {
                match self.receiver.next().await.expect("the topic goes on").unwrap() {
                    GossipEvent::Received(message) if wanted(&message.content) => return,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(SOON, listen).await.expect("the gateway's message comes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_are_counted_and_dropped() {
    let _alone = alone().await;
    let gateway = GatewayBuilder::new(GATEWAY, "A").topics(&["town"]).start().await;
    let mut peer = Peer::join(&gateway, "town").await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(client.req("live", &[json!({})]).await.is_empty());

    // No frames at all.
    let event = events::note(&Keys::generate(), "cut off");
    let json = events::json(&event);
    let malformed: Vec<Vec<u8>> = vec![
        b"hello".to_vec(),
        b"[\"EVENT\",{}]".to_vec(),
        vec![0; 100],
        vec![0xff; 100],
        b"{\xff\xfe}".to_vec(),
        b"{}".to_vec(),
        b"{\"id\":1}".to_vec(),
        json.as_bytes()[..json.len() - 1].to_vec(),
        format!("{json} and more").into_bytes(),
        json.replace(r#""kind":1"#, r#""kind":1,"kind":1"#).into_bytes(),
        // Announcements: without ids, with half an id, with a type of tomorrow.
        vec![0x01],
        [&[0x01][..], &[7; 40]].concat(),
        [&[0x02][..], &[7; 32]].concat(),
    ];
    for frame in &malformed {
        peer.say(frame.clone()).await;
    }
    gateway.wait_for_metric(FRAMES_DROPPED, malformed.len() as u64, SOON).await;

    // Events, but not such as may come from a topic.
    let keys = Keys::generate();
    let now = events::now();
    let mut forged = events::value(&events::note(&keys, "original"));
    forged["content"] = json!("forged");
    let mut unsigned = events::value(&events::note(&keys, "unsigned"));
    unsigned["sig"] = json!("0".repeat(128));
    let party = keys.public_key().to_hex();
    let expired = (now - 5).to_string();
    let mut unwanted = vec![forged.to_string(), unsigned.to_string()];
    for event in [
        events::event(&keys, 4, "secret", &[&["p", &party]], now),
        events::event(&keys, 1059, "secret", &[&["p", &party]], now),
        events::event(&keys, 21_059, "secret", &[&["p", &party]], now),
        events::event(&keys, 22_242, "", &[], now),
        events::event(&keys, 27_235, "", &[], now),
        events::event(&keys, 1, "protected", &[&["-"]], now),
        events::event(&keys, 1, "expired", &[&["expiration", &expired]], now - 10),
        events::event(&keys, 1, "from the future", &[], now + 100_000),
    ] {
        unwanted.push(events::json(&event));
    }
    for frame in &unwanted {
        peer.say(frame.clone()).await;
    }
    let expected = (malformed.len() + unwanted.len()) as u64;
    eventually("all unwanted events are counted", SOON, async || {
        let counted = gateway.metric(FRAMES_DROPPED).await + gateway.metric(REFUSED).await;
        (counted >= expected).then_some(())
    })
    .await;

    // Events that are announced and cannot be fetched, because this peer has no such ALPN.
    peer.say([&[0x01][..], &[9; 32 * 100]].concat()).await;

    // The topic goes on, both ways, and nothing of all that was taken.
    let good = events::note(&keys, "good");
    peer.say(events::json(&good)).await;
    assert_eq!(client.live("live").await["id"], good.id.to_hex());
    let ours = events::note(&keys, "ours");
    let mut writer = RawClient::connect(&gateway.topic_url("town")).await;
    writer.accept(&ours).await;
    peer.hear(|content| content == events::json(&ours).as_bytes()).await;
    assert_eq!(client.live("live").await["id"], ours.id.to_hex());
    client.expect_silence().await;
    let mut stored = client.stored_ids(&[json!({})]).await;
    stored.sort();
    assert_eq!(stored, events::ids([&good, &ours]));
}

/// NIP-09 and NIP-62: "nothing comes back by any way in". Here a member of the topic tells it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_does_not_come_back_from_a_member() {
    const URL: &str = "wss://relay.example.org";
    let _alone = alone().await;
    let gateway = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .set("relay", "url", &format!("{URL:?}"))
        .start()
        .await;
    // Not in the topic: gossip does not pass on a second time what the gateway said itself.
    let mut client = RawClient::connect(&gateway.url()).await;
    let [alice, bob, carol, dave] = [(); 4].map(|()| Keys::generate());
    let now = events::now();
    let note = |keys: &Keys, ago| events::event(keys, 1, "from before", &[], now - ago);
    let article = |ago| events::event(&alice, 30_023, "text", &[&["d", "x"]], now - ago);
    let (regretted, unseen) = (note(&alice, 50), note(&alice, 49));
    let (version, older) = (article(50), article(60));
    let (of_bob, unseen_of_bob) = (note(&bob, 50), note(&bob, 40));
    let (of_carol, of_dave) = (note(&carol, 50), note(&dave, 50));
    for event in [&regretted, &version, &of_bob, &of_carol, &of_dave] {
        client.accept(event).await;
    }
    let address = format!("30023:{}:x", alice.public_key().to_hex());
    let (first, second) = (regretted.id.to_hex(), unseen.id.to_hex());
    let tags: [&[&str]; 3] = [&["e", &first], &["e", &second], &["a", &address]];
    client.accept(&events::event(&alice, 5, "", &tags, now - 20)).await;
    client.accept(&events::event(&bob, 62, "", &[&["relay", URL]], now - 30)).await;
    let mut stored = client.stored_ids(&[json!({"kinds": [1, 30_023]})]).await;
    stored.sort();
    assert_eq!(stored, events::ids([&of_carol, &of_dave]));
    assert!(client.req("live", &[json!({"kinds": [1, 62, 30_023], "limit": 0})]).await.is_empty());

    let peer = Peer::join(&gateway, "town").await;
    let gone = [&regretted, &unseen, &version, &older, &of_bob, &unseen_of_bob];
    for event in gone {
        peer.say(events::json(event)).await;
    }
    gateway.wait_for_metric(REFUSED, gone.len() as u64, SOON).await;
    // A request to vanish from this relay counts only when it is made here, whatever URL it names.
    let local = gateway.url();
    for url in [URL, local.as_str()] {
        let tags: [&[&str]; 1] = [&["relay", url]];
        peer.say(events::json(&events::event(&carol, 62, "", &tags, now - 10))).await;
    }
    gateway.wait_for_metric(REFUSED, gone.len() as u64 + 2, SOON).await;
    // One to all relays is carried out, and whoever made it does not come back either.
    let all = events::event(&dave, 62, "", &[&["relay", "ALL_RELAYS"]], now - 10);
    peer.say(events::json(&all)).await;
    assert_eq!(client.live("live").await["id"], all.id.to_hex());
    eventually("dave is gone", SOON, async || {
        let stored = client.stored_ids(&[json!({"kinds": [1, 30_023]})]).await;
        (stored == [of_carol.id.to_hex()]).then_some(())
    })
    .await;
    for event in [&of_dave, &note(&dave, 11)] {
        peer.say(events::json(event)).await;
    }
    gateway.wait_for_metric(REFUSED, gone.len() as u64 + 4, SOON).await;

    // What is newer than all that is taken.
    let newer = article(10);
    let again = note(&bob, 5);
    for event in [&newer, &again] {
        peer.say(events::json(event)).await;
        assert_eq!(client.live("live").await["id"], event.id.to_hex());
    }
    client.expect_silence().await;
    let mut stored = client.stored_ids(&[json!({"kinds": [1, 30_023]})]).await;
    stored.sort();
    assert_eq!(stored, events::ids([&of_carol, &newer, &again]));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_the_dht_is_counted_and_dropped() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let dht = Dht::builder().bootstrap(&testnet.bootstrap).build().unwrap().as_async();
    let topic = TopicId::new("town".to_owned());
    // Whoever knows the topic's name can write its record of a minute.
    let spoil = async |bytes: &[u8]| {
        for minute in [unix_minute(-1), unix_minute(0)] {
            let key = signing_keypair(&topic, minute);
            let item = MutableItem::new(key, bytes, i64::MAX, Some(&salt(&topic, minute)));
            let _ = dht.put_mutable(item, Some(i64::MAX)).await;
        }
    };
    spoil(b"garbage").await;
    let a = GatewayBuilder::new(GATEWAY, "A").dht(&testnet).topics(&["town"]).start().await;
    for garbage in [&b""[..], b"x", &[0; 32], &[0xff; 999]] {
        let before = a.metric(RECORDS_DROPPED).await;
        eventually("a spoilt record is counted", Duration::from_secs(60), async || {
            spoil(garbage).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            (a.metric(RECORDS_DROPPED).await > before).then_some(())
        })
        .await;
    }

    // Once the vandal stops, gateways find one another.
    let b = GatewayBuilder::new(GATEWAY, "B").dht(&testnet).topics(&["town"]).start().await;
    a.wait_for_neighbors("town", 1, Duration::from_secs(150)).await;
    let mut at_b = RawClient::connect(&b.topic_url("town")).await;
    assert!(at_b.req("live", &[json!({})]).await.is_empty());
    let event = events::note(&Keys::generate(), "in spite of it");
    RawClient::connect(&a.topic_url("town")).await.accept(&event).await;
    assert_eq!(at_b.live("live").await["id"], event.id.to_hex());
}
