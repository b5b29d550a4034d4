//! What a gateway missed comes afterwards: from late joiners to partitions, between separate processes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nostr_gateway_tests::{
    Gateway, GatewayBuilder, Network, RawClient, Testnet, events, eventually, report,
};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{DHT_TESTNET, GATEWAY, alone, management::call};

/// For a few hundred events between processes on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

pub const EVENTS_IN: &str = r#"nostr_gateway_sync_bytes_total{cause="events in""#;

/// Finds others only by being told of them.
pub async fn builder(name: &str, known: &[&Gateway]) -> GatewayBuilder {
    let builder = GatewayBuilder::new(GATEWAY, name).topics(&["town"]);
    knowing(builder.set("sync", "interval_s", "5"), known).await
}

pub async fn knowing(builder: GatewayBuilder, known: &[&Gateway]) -> GatewayBuilder {
    let mut peers = Vec::new();
    for gateway in known {
        let status = gateway.status().await;
        let address = status["addresses"][0].as_str().unwrap().to_owned();
        peers.push(format!("{:?}", format!("{}@{address}", gateway.endpoint)));
    }
    builder.set("discovery", "peers", &format!("[{}]", peers.join(", ")))
}

pub async fn publish(gateway: &Gateway, events: &[Event]) {
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    for events in events.chunks(200) {
        for event in events {
            client.send_event(event).await;
        }
        for event in events {
            let (accepted, message) = client.ok(&event.id.to_hex()).await;
            assert!(accepted, "{message}");
        }
    }
}

/// The ids in the topic, sorted.
pub async fn held(gateway: &Gateway) -> Vec<String> {
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    let mut ids = client.stored_ids(&[json!({"limit": 5000})]).await;
    ids.sort();
    ids
}

pub async fn becomes(gateway: &Gateway, expected: &[String]) {
    eventually("the topic's events are there", SOON, async || {
        (held(gateway).await == expected).then_some(())
    })
    .await;
}

fn notes(keys: &Keys, count: usize, what: &str) -> Vec<Event> {
    let start = events::now() - 100_000;
    let note = |n| events::event(keys, 1, &format!("{what} {n}"), &[], start + n as u64);
    (0..count).map(note).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_joiner_gets_the_history_and_open_subscriptions_see_it() {
    let _alone = alone().await;
    let base = builder("A", &[]).await;
    let mut a = base.clone().start().await;
    let history: Vec<_> = events::assortment(300);
    publish(&a, &history).await;
    let large = events::note(&Keys::generate(), &"z".repeat(60_000));
    publish(&a, std::slice::from_ref(&large)).await;
    assert!(a.interrupt().await.success());

    // Its client is there before the history comes.
    let b = builder("B", &[]).await.start().await;
    let mut live = RawClient::connect(&b.topic_url("town")).await;
    let filter = json!({"ids": [large.id.to_hex(), history[1].id.to_hex()]});
    assert!(live.req("live", &[filter]).await.is_empty());
    let a = knowing(base, &[&b]).await.start().await;
    let mut all = history.clone();
    all.push(large.clone());
    becomes(&b, &events::ids(&all)).await;
    for event in [&large, &history[1]] {
        let id = event.id.to_hex();
        live.wait_for(|m| m[0] == "EVENT" && m[2]["id"] == id, "an event of long ago").await;
    }

    // What one side says of the other's events afterwards is little.
    eventually("nothing is left to say", SOON, async || {
        let unchanged = r#"nostr_gateway_syncs_total{cause="unchanged""#;
        (a.metric(unchanged).await + b.metric(unchanged).await >= 2).then_some(())
    })
    .await;
    assert_eq!(a.metric(EVENTS_IN).await, 0);
}

/// One of many topics changes, and nothing is compared but this one.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_one_topic_makes_no_work_in_the_others() {
    const TOPICS: usize = 50;
    let _alone = alone().await;
    let names: Vec<String> = (0..TOPICS).map(|n| format!("topic{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let base =
        |name| GatewayBuilder::new(GATEWAY, name).topics(&names).set("sync", "interval_s", "2");
    let a = base("A").start().await;
    let keys = Keys::generate();
    for name in &names {
        let mut client = RawClient::connect(&a.topic_url(name)).await;
        for event in
            [events::note(&keys, name), events::event(&keys, 30_023, "", &[&["d", name]], 1)]
        {
            client.send_event(&event).await;
            assert!(client.ok(&event.id.to_hex()).await.0);
        }
    }
    let b = knowing(base("B"), &[&a]).await.start().await;
    let sum = async |metric: &str| a.metric(metric).await + b.metric(metric).await;
    const UNCHANGED: &str = r#"nostr_gateway_syncs_total{cause="unchanged""#;
    const ROUNDS: &str = "nostr_gateway_sync_rounds_total";
    const LED: &str = r#"nostr_gateway_syncs_total{cause="led""#;
    eventually("all topics are the same", Duration::from_secs(90), async || {
        let (rounds, unchanged) = (sum(ROUNDS).await, sum(UNCHANGED).await);
        tokio::time::sleep(Duration::from_secs(6)).await;
        let is_quiet = sum(ROUNDS).await == rounds;
        (is_quiet && sum(UNCHANGED).await >= unchanged + TOPICS as u64).then_some(())
    })
    .await;
    assert!(sum(LED).await >= TOPICS as u64, "each was compared once at least");

    let (rounds, led, unchanged) = (sum(ROUNDS).await, sum(LED).await, sum(UNCHANGED).await);
    let note = events::note(&keys, "news");
    let mut client = RawClient::connect(&a.topic_url(names[7])).await;
    client.send_event(&note).await;
    assert!(client.ok(&note.id.to_hex()).await.0);
    let mut there = RawClient::connect(&b.topic_url(names[7])).await;
    eventually("the other gateway has it", SOON, async || {
        let ids = there.stored_ids(&[json!({"ids": [note.id.to_hex()]})]).await;
        (ids.len() == 1).then_some(())
    })
    .await;
    eventually("every topic had its turn, and more", SOON, async || {
        (sum(UNCHANGED).await >= unchanged + 3 * TOPICS as u64).then_some(())
    })
    .await;
    let led = sum(LED).await - led;
    let rounds = sum(ROUNDS).await - rounds;
    // One comparison, or two should it have begun between the two commits: a message about each part
    // and its answer, perhaps once more.
    assert!((1..=2).contains(&led), "{led} comparisons");
    assert!(rounds <= led * 3 * 4, "{rounds} messages in {led} comparisons");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_while_away_comes_afterwards() {
    let _alone = alone().await;
    let a = builder("A", &[]).await.start().await;
    let mut b = builder("B", &[&a]).await.start().await;
    b.wait_for_neighbors("town", 1, SOON).await;
    let keys = Keys::generate();
    b.kill9().await;
    publish(&a, &notes(&keys, 300, "while B was dead")).await;
    // Deleted while it was away: neither the event nor its deletion was heard.
    let before = events::event(&keys, 1, "to be deleted", &[], events::now() - 50);
    let b = b.restart().await;
    let mut expected = held(&a).await;
    publish(&b, std::slice::from_ref(&before)).await;
    expected.push(before.id.to_hex());
    expected.sort();
    becomes(&a, &expected).await;
    becomes(&b, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_and_vanishes_come_ahead_of_what_they_name() {
    let _alone = alone().await;
    let a = builder("A", &[]).await.start().await;
    let (keys, leaving) = (Keys::generate(), Keys::generate());
    let deleted = notes(&keys, 100, "deleted");
    let kept = notes(&Keys::generate(), 50, "kept");
    let forgotten = notes(&leaving, 100, "forgotten");
    for events in [&deleted, &kept, &forgotten] {
        publish(&a, events).await;
    }
    let mut b = builder("B", &[&a]).await.start().await;
    becomes(&b, &held(&a).await).await;
    b.kill9().await;
    // A's copies go.
    let ids: Vec<String> = deleted.iter().map(|event| event.id.to_hex()).collect();
    let tags: Vec<[&str; 2]> = ids.iter().map(|id| ["e", id.as_str()]).collect();
    let tags: Vec<&[&str]> = tags.iter().map(<[_; 2]>::as_slice).collect();
    let deletion = events::event(&keys, 5, "", &tags, events::now());
    let vanish = events::event(&leaving, 62, "", &[&["relay", "ALL_RELAYS"]], events::now());
    publish(&a, &[deletion.clone(), vanish.clone()]).await;
    let mut expected = events::ids(&kept);
    expected.extend([deletion.id.to_hex(), vanish.id.to_hex()]);
    expected.sort();
    assert_eq!(held(&a).await, expected);

    let b = b.restart().await;
    becomes(&b, &expected).await;
    // Neither sent the other what is gone.
    assert_eq!(a.metric(EVENTS_IN).await, 0);

    // One that was never there gets the two requests and what is kept, and not one byte more.
    let c = builder("C", &[&a]).await.start().await;
    becomes(&c, &expected).await;
    let bytes: usize = kept.iter().chain([&deletion, &vanish]).map(|e| events::json(e).len()).sum();
    assert!(c.metric(EVENTS_IN).await <= bytes as u64);
}

/// B stands between two that do not know of one another: what it gains, it hints.
#[tokio::test(flavor = "multi_thread")]
async fn those_behind_the_one_that_gained_do_not_wait_for_the_timer() {
    let Some(network) = Network::available("those_behind_the_one_that_gained") else { return };
    let _alone = alone().await;
    let hosts: Vec<_> = (1..=3).map(|n| Arc::new(network.add(&format!("h{n}"), n, 1))).collect();
    network.part(&hosts[0], &hosts[2]);
    let on = async |host: usize, known: &[&Gateway]| {
        let builder = builder(&format!("{host}"), known).await.set("sync", "interval_s", "3600");
        builder.namespace(hosts[host].clone())
    };
    // A is there for a while before it hears of B.
    let base = on(0, &[]).await;
    let mut a = base.clone().start().await;
    let history = notes(&Keys::generate(), 200, "history");
    publish(&a, &history).await;
    assert!(a.interrupt().await.success());
    let b = on(1, &[]).await.start().await;
    let c = on(2, &[&b]).await.start().await;
    c.wait_for_neighbors("town", 1, SOON).await;
    let _a = knowing(base, &[&b]).await.start().await;
    becomes(&b, &events::ids(&history)).await;
    becomes(&c, &events::ids(&history)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_the_middle_is_gone_on_with() {
    let _alone = alone().await;
    let a = builder("A", &[]).await.start().await;
    let keys = Keys::generate();
    let history = notes(&keys, 4_000, &"long ".repeat(100));
    publish(&a, &history).await;
    let mut b = builder("B", &[&a]).await.start().await;
    let stored = r#"nostr_gateway_events_total{origin="sync",outcome="stored""#;
    b.wait_for_metric(stored, 500, SOON).await;
    b.kill9().await;
    let b = b.restart().await;
    becomes(&b, &held(&a).await).await;
    let again = b.metric(stored).await;
    assert!(again <= 3_500, "what had come was fetched again: {again}");
}

/// The other side still looks for it where it was, and cannot be told by a DHT.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_crashed_and_is_back_at_another_port_is_asked_for_what_it_has() {
    let _alone = alone().await;
    let a = builder("A", &[]).await.start().await;
    let mut b = builder("B", &[&a]).await.start().await;
    let keys = Keys::generate();
    // Too long for gossip: it is fetched.
    let large = |what: &str| events::note(&keys, &what.repeat(10_000));
    let (before, after) = (large("before"), large("after"));
    publish(&b, std::slice::from_ref(&before)).await;
    becomes(&a, &[before.id.to_hex()]).await;
    b.kill9().await;
    let b = b.restart().await;
    a.wait_for_neighbors("town", 1, SOON).await;
    publish(&b, std::slice::from_ref(&after)).await;
    let mut both = [before.id.to_hex(), after.id.to_hex()];
    both.sort();
    // Within the time that the old connections are believed to live, and a little. iroh alone takes
    // half a minute and more.
    eventually("it is fetched", Duration::from_secs(12), async || {
        (held(&a).await == both).then_some(())
    })
    .await;
}

/// How many events a gateway has stored.
async fn stored(gateway: &Gateway) -> usize {
    gateway.metric(r#"nostr_gateway_events_total{outcome="stored""#).await as usize
}

async fn all_store(gateways: &[Gateway], count: usize) {
    eventually("all have stored what they can reach", SOON, async || {
        let stored = join_all(gateways.iter().map(stored)).await;
        stored.iter().all(|stored| *stored == count).then_some(())
    })
    .await;
}

/// Whether one of these is a neighbor of one of the others.
async fn know_one_another(these: &[Gateway], others: &[Gateway]) -> bool {
    let topics = join_all(these.iter().map(|gateway| gateway.topic_status("town"))).await;
    let neighbors = topics.iter().flat_map(|topic| topic["neighbors"].as_array().unwrap());
    let mut ids = neighbors.map(|neighbor| &neighbor["id"]);
    ids.any(|id| others.iter().any(|other| *id == json!(other.endpoint)))
}

/// Each side writes while the other cannot be reached: three gateways here, three there.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_partition_have_all_afterwards() {
    const EACH: usize = 200;
    // From when the first two of them are neighbors again. Until then it is discovery: nobody here is
    // alone, and with few neighbors a look comes every 15 s.
    const EQUAL: Duration = Duration::from_secs(5);
    let Some(network) = Network::available("both_sides_of_a_partition") else { return };
    let _alone = alone().await;
    let dht = network.add("dht", 1, 1);
    let testnet = Testnet::in_namespace(DHT_TESTNET, &dht).await;
    let hosts: Vec<_> = (2..=7).map(|n| Arc::new(network.add(&format!("h{n}"), n, 1))).collect();
    let mut gateways = join_all(hosts.iter().map(|host| {
        let builder = GatewayBuilder::new(GATEWAY, &host.address().to_string()).topics(&["town"]);
        builder.dht(&testnet).namespace(host.clone()).start()
    }))
    .await;
    for gateway in &gateways {
        gateway.wait_for_neighbors("town", 1, Duration::from_secs(60)).await;
    }
    let together = notes(&Keys::generate(), 1, "together");
    publish(&gateways[0], &together).await;
    all_store(&gateways, 1).await;

    let across: Vec<_> =
        hosts[..3].iter().flat_map(|one| hosts[3..].iter().map(move |two| (one, two))).collect();
    across.iter().for_each(|(one, two)| network.part(one, two));
    let there = gateways.split_off(3);
    let here = gateways;
    // Longer than a connection lasts without a sign of life.
    eventually("they miss one another", SOON, async || {
        let (one, two) =
            tokio::join!(know_one_another(&here, &there), know_one_another(&there, &here));
        (!one && !two).then_some(())
    })
    .await;
    let (ours, theirs) =
        (notes(&Keys::generate(), EACH, "here"), notes(&Keys::generate(), EACH, "there"));
    tokio::join!(publish(&here[0], &ours), publish(&there[0], &theirs));
    tokio::join!(all_store(&here, 1 + EACH), all_store(&there, 1 + EACH));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (side, own) in [(&here, &ours), (&there, &theirs)] {
        let expected = events::ids(together.iter().chain(own));
        for gateway in side {
            assert_eq!(held(gateway).await, expected, "they are apart");
        }
    }

    across.iter().for_each(|(one, two)| network.heal(one, two));
    let healed = Instant::now();
    eventually("they are neighbors again", SOON, async || {
        know_one_another(&here, &there).await.then_some(())
    })
    .await;
    let met = Instant::now();
    tokio::join!(all_store(&here, 1 + 2 * EACH), all_store(&there, 1 + 2 * EACH));
    let equal = met.elapsed();
    report(&format!(
        "3 | 3 apart, {EACH} events on each side: neighbors {:?} after the link is back, equal \
         {equal:?} after that",
        met - healed
    ));
    assert!(equal <= EQUAL, "{equal:?}");
    let all = events::ids(together.iter().chain(&ours).chain(&theirs));
    for gateway in here.iter().chain(&there) {
        assert_eq!(held(gateway).await, all);
    }
}

/// What `topic sync` told, step by step, and its result.
pub async fn synced(gateway: &Gateway, code: i32) -> (Vec<Value>, Value) {
    let told = gateway.command(&["topic", "sync", "town", "--json"]).await;
    assert_eq!(told.code, Some(code), "{told:?}");
    let mut lines: Vec<Value> =
        told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let result = lines.pop().unwrap()["result"].take();
    let steps: Vec<Value> = lines.into_iter().map(|mut line| line["progress"].take()).collect();
    assert!(steps.iter().all(Value::is_object), "{told:?}");
    (steps, result)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_on_demand_brings_what_is_missing_and_says_how_it_goes() {
    let _alone = alone().await;
    let (admin, author) = (Keys::generate(), Keys::generate());
    let a = builder("A", &[]).await.set("sync", "interval_s", "3600").start().await;
    let b = builder("B", &[&a])
        .await
        .set("sync", "interval_s", "3600")
        .set("relay", "admins", &format!("[{:?}]", admin.public_key().to_hex()))
        .start()
        .await;
    for gateway in [&a, &b] {
        gateway.wait_for_neighbors("town", 1, SOON).await;
    }
    // B refuses what gossip says of this author, and then would take it: nothing brings it but a
    // comparison, and none is due.
    let key = json!([author.public_key().to_hex()]);
    call(&b, &admin, "banpubkey", key.clone()).await;
    let missing = notes(&author, 300, "missing");
    publish(&a, &missing).await;
    let heard = events::note(&Keys::generate(), "heard");
    publish(&a, std::slice::from_ref(&heard)).await;
    becomes(&b, &[heard.id.to_hex()]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    call(&b, &admin, "unbanpubkey", key).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(held(&b).await, [heard.id.to_hex()], "nothing comes by itself");

    let (steps, result) = synced(&b, 0).await;
    let number = |step: &Value, field: &str| step[field].as_u64().unwrap();
    assert_eq!((&steps[0]["finished"], &steps[0]["neighbors_left"]), (&json!(false), &json!(1)));
    assert!(steps.iter().any(|step| number(step, "needed") > 0), "{steps:?}");
    assert!(steps.windows(2).all(|two| number(&two[0], "fetched") <= number(&two[1], "fetched")));
    assert_eq!(result["neighbor"], a.endpoint, "{result}");
    let end = ["neighbors_left", "failed", "needed", "fetched"].map(|field| number(&result, field));
    assert_eq!((&result["finished"], end), (&json!(true), [0, 0, 300, 300]), "{result}");
    let all = events::ids(missing.iter().chain([&heard]));
    assert_eq!(held(&b).await, all, "it is over when all is here");

    // Once more there is nothing to do, and that is no failure.
    let (_, result) = synced(&b, 0).await;
    assert_eq!((number(&result, "needed"), number(&result, "failed")), (0, 0), "{result}");

    // A neighbor that does not answer is one.
    a.signal("STOP");
    let (_, result) = synced(&b, 1).await;
    assert_eq!(number(&result, "failed"), 1, "{result}");
    a.signal("CONT");
}
