//! What a private topic's outsiders get, and its former members: each of them writes down all that it
//! was sent.

use std::{collections::BTreeSet, time::Duration};

use distributed_topic_tracker::{
    EncryptedRecord, RotationHandle, TopicId as Place, encryption_keypair, salt, signing_keypair,
};
use futures_util::StreamExt;
use iroh_gossip::{TopicId, api::Event as GossipEvent};
use mainline::{Dht, async_dht::AsyncDht};
use nostr_gateway::protocol::private::{
    admission::Admission,
    derive::{EpochKeys, EpochSecret},
    invite::Invite,
    message::Message,
    proof::Role,
    seal::Sealer,
};
use nostr_gateway_tests::{RawClient, Testnet, events, eventually};
use nostr_sdk::Keys;
use serde_json::json;
use sha2::{Digest, Sha256, Sha512};

use crate::{
    DHT_TESTNET, alone,
    circles::{becomes, epoch, held, home, invite, joined, notes, publish, reaches_epoch},
    hostile_node::{Loot, Member, NOTHING, Node, ask, asks_by_name, framed, requests},
};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn outsiders_and_former_members_get_nothing() {
    let _alone = alone().await;
    let a = home(None).await;
    let text = invite(&a, false).await;
    let b = joined("B", None, &text).await;
    let before = notes(3, "before");
    publish(&a, &before).await;
    becomes(&b, &before).await;

    // A member like any other, for now. It gets what members get: the attempts below would too.
    let mut member = Member::invited(&text, &[&a, &b]).await;
    let connection = member.node.connect(&a).await;
    let (mut send, mut receive) = member.enter(&connection).await;
    send.write_all(&requests("den", &before[0])[0]).await.unwrap();
    send.finish().unwrap();
    let answer = receive.read_to_end(100_000).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("before 0"), "a member is served");

    // It is in the swarm, too, and records. What it says there counts only if it is sealed.
    let old = member.epochs.publishes_in().unwrap();
    let old_keys = member.epochs.keys(old).unwrap();
    let seal = Sealer::new(member.epochs.topic(), old.number, &old_keys);
    let swarm = TopicId::from_bytes(old_keys.gossip_topic);
    let bootstrap = vec![a.endpoint.parse().unwrap()];
    let joining = member.node.gossip.subscribe_and_join(swarm, bootstrap);
    let (sender, mut receiver) =
        tokio::time::timeout(SOON, joining).await.expect("a member joins").unwrap().split();
    let sealed = notes(1, "sealed by the member");
    let open = notes(2, "not sealed");
    sender.broadcast(events::json(&open[0]).into()).await.unwrap();
    let other = Sealer::new(member.epochs.topic(), 7, &old_keys);
    let wrong = other.seal(events::json(&open[1]).as_bytes()).unwrap();
    sender.broadcast(wrong.into()).await.unwrap();
    let good = seal.seal(events::json(&sealed[0]).as_bytes()).unwrap();
    sender.broadcast(good.into()).await.unwrap();
    becomes(&a, &[&before[..], &sealed].concat()).await;
    let unsealed = r#"nostr_gateway_frames_dropped_total{cause="not sealed for this epoch""#;
    a.wait_for_metric(unsealed, 2, SOON).await;
    let live = notes(1, "live");
    publish(&a, &live).await;
    let mut frames = Vec::new();
    while frames.is_empty() {
        let event = tokio::time::timeout(SOON, receiver.next()).await.expect("a frame comes");
        if let GossipEvent::Received(message) = event.unwrap().unwrap()
            && let Ok(frame) = seal.open(&message.content)
        {
            assert_eq!(frame, events::json(&live[0]).as_bytes());
            frames.push(message.content.to_vec());
        }
    }

    // It is left out.
    let left_out = member.node.endpoint.id().to_string();
    let rotate = ["topic", "rotate", "den", "--exclude", &left_out, "--grace", "0s"];
    a.command(&rotate).await.succeeded();
    reaches_epoch(&b, 2).await;
    let secret = notes(2, "for those who are left");
    publish(&a, &secret).await;
    let all = [&before[..], &sealed, &live, &secret].concat();
    becomes(&b, &all).await;

    let mut loot = Loot::default();
    let outsider = Node::new(&[&a, &b]).await;
    let fresh = Node::new(&[&a, &b]).await;
    let mut guesses = vec![
        old_keys.gossip_topic,
        old_keys.discovery_topic,
        Sha256::digest(Sha256::digest("den")).into(),
        Sha256::digest("den").into(),
        distributed_topic_tracker::TopicId::new("den".to_owned()).hash(),
    ];
    // The old secret, and the number of the new epoch.
    let next = old.number + 1;
    let stale = Invite::parse(&text).unwrap();
    let derived = nostr_gateway::protocol::private::derive::EpochKeys::derive(
        &stale.topic,
        next,
        &stale.secret,
    );
    guesses.push(derived.gossip_topic);
    let again = notes(1, "while they listen");
    for gateway in [&a, &b] {
        for (who, node) in
            [("outsider", &outsider), ("former member", &member.node), ("fresh id", &fresh)]
        {
            asks_by_name(&mut loot, node, who, gateway, &secret[0]).await;
            let connection = node.connect(gateway).await;
            // What anybody gets who makes a tag up.
            let nobody = Message::Hello { tag: [9; 16], admission: None };
            let unknown = ask(&connection, &framed(&nobody), false).await;
            let binding = node.binding(&connection);
            let tag =
                binding.tag(member.epochs.topic(), member.epochs.topic_key(), Role::Initiator);
            let own = Admission::sign(&stale.topic, &stale.key, node.id());
            let stolen = member.epochs.admission().copied();
            for (what, admission) in [("none", None), ("a new", Some(own)), ("the old", stolen)] {
                let hello = framed(&Message::Hello { tag, admission });
                let answer = ask(&connection, &hello, false).await;
                let taken =
                    if answer == unknown { Vec::new() } else { [&answer.0[..], b"!"].concat() };
                loot.take(format!("{who}, tag and {what} admission"), taken);
            }
            // Everything that was ever said, again, piece by piece and at once.
            let recorded = member.recorded.clone();
            for (n, bytes) in recorded.iter().chain([&recorded.concat()]).enumerate() {
                let answer = ask(&connection, bytes, false).await;
                loot.take(format!("{who}, replay {n}"), answer.0);
            }
            connection.close(0_u32.into(), b"");
        }
    }
    let listening = async {
        for (who, node) in [("outsider", &outsider), ("fresh id", &fresh)] {
            let heard = node.listens(&a, &guesses).await.concat();
            loot.take(format!("{who}, in guessed swarms"), heard);
        }
    };
    let talking = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        publish(&a, &again).await;
        // Frames of old, in the swarm that is no more.
        for frame in &frames {
            let _ = sender.broadcast(frame.clone().into()).await;
        }
        let late = seal.seal(events::json(&open[0]).as_bytes()).unwrap();
        let _ = sender.broadcast(late.into()).await;
    };
    tokio::join!(listening, talking);
    let mut last = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(NOTHING, receiver.next()).await {
        if let Ok(GossipEvent::Received(message)) = event {
            last.extend_from_slice(&message.content);
        }
    }
    loot.take("former member, in the old swarm".to_owned(), last);
    loot.is_nothing();

    // And what they said had no effect.
    let all = [all, again].concat();
    for gateway in [&a, &b] {
        becomes(gateway, &all).await;
        assert_eq!((epoch(gateway).await, held(gateway).await), (2, events::ids(&all)));
    }
    let mut client = RawClient::connect(&a.topic_url("den")).await;
    let more = events::note(&Keys::generate(), "it goes on");
    client.accept(&more).await;
    becomes(&b, &[all, vec![more]].concat()).await;
    // Nor does anybody learn that somebody has left.
    b.command(&["topic", "leave", "den"]).await.succeeded();
    let mut loot = Loot::default();
    asks_by_name(&mut loot, &outsider, "outsider", &b, &secret[0]).await;
    loot.is_nothing();
    let mut page = RawClient::connect_from_page(&a.url(), "https://evil.example").await;
    assert!(page.stored_ids(&[json!({"kinds": [1]})]).await.is_empty());
}

/// All that the DHT has for a topic and a minute.
async fn slot(dht: &AsyncDht, place: &Place, minute: u64) -> Vec<Vec<u8>> {
    let key = signing_keypair(place, minute).verifying_key().to_bytes();
    let items = dht.get_mutable(&key, Some(&salt(place, minute)), None);
    let values = items.map(|item| item.value().to_vec()).collect::<BTreeSet<_>>();
    let values = tokio::time::timeout(SOON, values).await.expect("the DHT answers");
    values.into_iter().collect()
}

/// Who wrote a record, for whoever has the epoch's keys.
fn writer(keys: &EpochKeys, minute: u64, value: &[u8]) -> String {
    let place = Place::from_hash(&keys.discovery_topic);
    let mut secret = [0; 32];
    secret.copy_from_slice(&Sha512::digest(*keys.discovery_secret)[..32]);
    let opens = encryption_keypair(&place, &RotationHandle::default(), secret, minute);
    let sealed = EncryptedRecord::from_bytes(value.to_vec()).unwrap();
    let record = sealed.decrypt(&opens).unwrap();
    record.verify(&place.hash(), minute).unwrap();
    data_encoding::HEXLOWER.encode(&record.pub_key())
}

/// Everybody can read the DHT; only members know where in it they are.
#[tokio::test(flavor = "multi_thread")]
async fn outsiders_and_former_members_do_not_find_the_topic_in_the_dht() {
    let _alone = alone().await;
    let testnet = Testnet::on_loopback(DHT_TESTNET).await;
    let dht = Dht::builder().bootstrap(&testnet.bootstrap).build().unwrap().as_async();
    let a = home(Some(&testnet)).await;
    let text = invite(&a, false).await;
    let b = joined("B", Some(&testnet), &text).await;
    let old = Invite::parse(&text).unwrap();
    let derive = |epoch: u64, secret: &EpochSecret| EpochKeys::derive(&old.topic, epoch, secret);
    let old_place = Place::from_hash(&derive(1, &old.secret).discovery_topic);
    let minute = || events::now() / 60;
    eventually("who has the secret finds the topic", SOON, async || {
        let now = minute();
        let found = [slot(&dht, &old_place, now).await, slot(&dht, &old_place, now - 1).await];
        (!found.concat().is_empty()).then_some(())
    })
    .await;

    a.command(&["topic", "rotate", "den", "--grace", "0s"]).await.succeeded();
    reaches_epoch(&b, 2).await;
    let rotated = minute();
    let new = Invite::parse(&invite(&a, false).await).unwrap();
    assert_eq!(new.epoch, 2);
    let new_keys = derive(2, &new.secret);
    let new_place = Place::from_hash(&new_keys.discovery_topic);
    // What was written in the minute of the rotation stays there; later ones show who looks where.
    let later = Duration::from_secs(60) + SOON;
    let (now, values) = eventually("members write in a later minute", later, async || {
        let now = minute();
        let values = match now > rotated {
            true => slot(&dht, &new_place, now).await,
            false => Vec::new(),
        };
        (!values.is_empty()).then_some((now, values))
    })
    .await;
    for value in values {
        let writer = writer(&new_keys, now, &value);
        assert!([&a.endpoint, &b.endpoint].contains(&&writer), "{writer}");
    }
    // With neighbors, members write there every five minutes only.
    let mut public = Vec::new();
    for minute in now - 6..=now {
        public.extend(slot(&dht, &Place::new("town"), minute).await);
    }
    assert!(!public.is_empty(), "public ones are found by name");

    // By the name, by the name and the admin, by old secrets for this epoch and others, by the topic
    // key that former members keep.
    let mut guesses = vec![
        ("name", Place::new("den")),
        ("hashed name", Place::from_hash(&Sha256::digest("den").into())),
        ("name, hashed twice", Place::from_hash(&Sha256::digest(Sha256::digest("den")).into())),
        ("admin", Place::from_hash(&old.topic.admin)),
        ("old gossip topic", Place::from_hash(&derive(1, &old.secret).gossip_topic)),
    ];
    let topic_key = EpochSecret::new(*old.topic_key.expose());
    for epoch in 0..4 {
        let keys = derive(epoch, &old.secret);
        guesses.push(("old secret", Place::from_hash(&keys.discovery_topic)));
        let keys = derive(epoch, &topic_key);
        guesses.push(("topic key", Place::from_hash(&keys.discovery_topic)));
    }
    for (what, place) in &guesses {
        for minute in [now, now + 1] {
            let found = slot(&dht, place, minute).await;
            assert!(found.is_empty(), "{what}: {found:?}");
        }
    }
    assert!(!slot(&dht, &new_place, now).await.is_empty(), "it was there all the time");
}
