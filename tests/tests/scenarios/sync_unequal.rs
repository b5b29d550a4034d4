//! Comparisons between those that are unlike: other rules, other clocks, programs that know gossip alone,
//! and a gateway that could not listen for a while.

use std::{fs, path::PathBuf, time::Duration};

use nostr_gateway_tests::{Child, Gateway, GatewayBuilder, RawClient, events, eventually, report};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{
    alone,
    hostile::Peer,
    management::call,
    sync::{EVENTS_IN, SOON, becomes, builder, held, knowing, publish, synced},
};

const LED: &str = r#"nostr_gateway_syncs_total{cause="#;

/// Gateways with other rules do not send one another the same events for ever.
#[tokio::test(flavor = "multi_thread")]
async fn unequal_gateways_send_no_events_the_second_time() {
    let _alone = alone().await;
    let (banned, barred) = (Keys::generate(), Keys::generate());
    let admin = Keys::generate();
    let mut a = builder("A", &[])
        .await
        .set("limits", "max_future_s", "3600")
        .blocklist(&[], &["onlyforb"])
        .start()
        .await;
    let keys = Keys::generate();
    let now = events::now();
    let at_a = [
        events::event(&keys, 1, "plain", &[], now - 500),
        events::event(&keys, 1, "from the near future", &[], now + 600),
        events::event(&keys, 1, "forbiddenatb", &[], now - 400),
        events::event(&keys, 1, "old", &[], now - 100_000),
        events::event(&keys, 0, "{}", &[], now - 200_000),
        events::event(&banned, 1, "banned at B", &[], now - 300),
        events::event(&keys, 30_023, "v1", &[&["d", "x"]], now - 50),
        events::event(&keys, 1, &"x".repeat(5_000), &[], now - 45),
        events::event(&barred, 1, "barred at B", &[], now - 20),
    ];
    publish(&a, &at_a).await;
    // After a start anew, gossip says nothing of them.
    assert!(a.interrupt().await.success());
    let a = a.restart().await;
    let base = builder("B", &[])
        .await
        .set("limits", "max_future_s", "60")
        .set("limits", "max_event_bytes", "4000")
        .set("relay", "admins", &format!("[{:?}]", admin.public_key().to_hex()))
        .blocklist(&[&banned.public_key().to_hex()], &["forbiddenatb"])
        .table("[[retention]]\ntopic = \"town\"\nmax_age_s = 50000")
        .set("topics", "join", r#"["town"]"#);
    let mut b = base.clone().start().await;
    let key = json!([barred.public_key().to_hex()]);
    call(&b, &admin, "banpubkey", key.clone()).await;
    let at_b = [
        events::event(&keys, 1, "onlyforb", &[], now - 700),
        events::event(&keys, 30_023, "v2", &[&["d", "x"]], now - 40),
        events::event(&keys, 1, "plain too", &[], now - 30),
    ];
    publish(&b, &at_b).await;
    assert!(b.interrupt().await.success());
    let mut b = knowing(base, &[&a]).await.start().await;
    b.wait_for_neighbors("town", 1, SOON).await;
    let expected = async |of: &Gateway, ids: &[&Event]| {
        becomes(of, &events::ids(ids.iter().copied())).await;
    };
    expected(&b, &[&at_a[0], &at_a[4], &at_b[0], &at_b[1], &at_b[2]]).await;
    expected(
        &a,
        &[
            &at_a[0], &at_a[1], &at_a[2], &at_a[3], &at_a[4], &at_a[5], &at_a[7], &at_a[8],
            &at_b[1], &at_b[2],
        ],
    )
    .await;

    // A few comparisons later, and after a start anew, no event is on the wire any more.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let before = (a.metric(EVENTS_IN).await, b.metric(EVENTS_IN).await);
    assert!(before.0 > 0 && before.1 > 0, "the first time events were sent: {before:?}");
    let led = r#"nostr_gateway_syncs_total{cause="#;
    let comparisons = a.metric(led).await + b.metric(led).await;
    eventually("two more comparisons", SOON, async || {
        (a.metric(led).await + b.metric(led).await >= comparisons + 4).then_some(())
    })
    .await;
    assert_eq!((a.metric(EVENTS_IN).await, b.metric(EVENTS_IN).await), before);

    // What the other side said is gone was only in memory; to hear it again takes no event.
    assert!(b.interrupt().await.success());
    let b = b.restart().await;
    b.wait_for_neighbors("town", 1, SOON).await;
    let led = r#"nostr_gateway_syncs_total{cause="led""#;
    let from = a.metric(led).await;
    eventually("a comparison of all there is", SOON, async || {
        (a.metric(led).await + b.metric(led).await > from).then_some(())
    })
    .await;
    assert_eq!((a.metric(EVENTS_IN).await, b.metric(EVENTS_IN).await), (before.0, 0));

    // A ban that is lifted lets come what it kept out.
    call(&b, &admin, "unbanpubkey", key).await;
    expected(&b, &[&at_a[0], &at_a[4], &at_a[8], &at_b[0], &at_b[1], &at_b[2]]).await;
}

/// Moves the wall clock of a gateway by so many seconds, and nothing else of its time. `None` where the
/// library for it is missing; that is said.
fn with_clock(scenario: &str, builder: GatewayBuilder, seconds: i64) -> Option<GatewayBuilder> {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let Some(library) = found.find(|path: &PathBuf| path.exists()) else {
        report(&format!("{scenario} did not run: libfaketime is missing (the package faketime)"));
        return None;
    };
    let builder = builder
        .env("LD_PRELOAD", &library.display().to_string())
        .env("FAKETIME", &format!("{seconds:+}"))
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("NO_FAKE_STAT", "1");
    Some(builder)
}

/// The clock of B is twenty minutes fast: what is too new for A is not for B, and what has expired at B
/// has not at A. Each keeps what it may, and the second comparison sends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_whose_clocks_differ_send_no_events_the_second_time() {
    const FAST: u64 = 1_200;
    let scenario = "gateways_whose_clocks_differ_send_no_events_the_second_time";
    let _alone = alone().await;
    let Some(base) = with_clock(scenario, builder("B", &[]).await, FAST as i64) else { return };
    let keys = Keys::generate();
    let now = events::now();
    let expires = (now + FAST / 2).to_string();
    let note =
        |content: &str, tags: &[&[&str]], at: u64| events::event(&keys, 1, content, tags, at);
    let mut a = builder("A", &[]).await.start().await;
    let at_a = [
        note("of an hour ago", &[], now - 3_600),
        note("expired where it is later", &[&["expiration", &expires]], now - 10),
    ];
    publish(&a, &at_a).await;
    let mut b = base.clone().start().await;
    let at_b = [note("of both", &[], now + 600), note("too new elsewhere", &[], now + FAST)];
    publish(&b, &at_b).await;
    // So the clocks do differ.
    for (gateway, event) in [(&a, &at_b[1]), (&b, &at_a[1])] {
        let mut client = RawClient::connect(&gateway.topic_url("town")).await;
        let (accepted, why) = client.publish(event).await;
        assert!(!accepted && why.starts_with("invalid: "), "{why}");
    }
    // After a start anew, gossip says nothing of them.
    assert!(a.interrupt().await.success());
    assert!(b.interrupt().await.success());
    let a = a.restart().await;
    let b = knowing(base, &[&a]).await.start().await;
    becomes(&a, &events::ids(at_a.iter().chain([&at_b[0]]))).await;
    becomes(&b, &events::ids([&at_a[0], &at_b[0], &at_b[1]])).await;

    let compared = async || a.metric(LED).await + b.metric(LED).await;
    let settled = compared().await;
    eventually("a few comparisons more", SOON, async || {
        (compared().await >= settled + 2).then_some(())
    })
    .await;
    let before = (a.metric(EVENTS_IN).await, b.metric(EVENTS_IN).await);
    assert!(before.0 > 0 && before.1 > 0, "the first time events were sent: {before:?}");
    let first = compared().await;
    for gateway in [&a, &b] {
        // All of it, on demand and to its end.
        let (_, result) = synced(gateway, 0).await;
        assert_eq!((&result["compared"], &result["needed"]), (&json!(1), &json!(0)), "{result}");
    }
    assert!(compared().await >= first + 2);
    assert_eq!((a.metric(EVENTS_IN).await, b.metric(EVENTS_IN).await), before);
    becomes(&a, &events::ids(at_a.iter().chain([&at_b[0]]))).await;
    becomes(&b, &events::ids([&at_a[0], &at_b[0], &at_b[1]])).await;
}

/// A program that knows gossip alone has nothing to compare, and that is no failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_neighbor_that_knows_gossip_alone_does_not_fail_a_sync() {
    let _alone = alone().await;
    let a = builder("A", &[]).await.set("sync", "interval_s", "3600").start().await;
    let _plain = Peer::join(&a, "town").await;
    a.wait_for_neighbors("town", 1, SOON).await;
    let (_, result) = synced(&a, 0).await;
    let counts = |result: &serde_json::Value| {
        ["compared", "gossip_only", "failed"].map(|field| result[field].as_u64().unwrap())
    };
    assert_eq!((counts(&result), &result["finished"]), ([0, 1, 0], &json!(true)), "{result}");
    let told = a.command(&["topic", "sync", "town"]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stdout.contains("no other gateway is in town"), "{told:?}");
    assert!(told.stdout.contains("know gossip alone"), "{told:?}");

    let b = builder("B", &[&a]).await.set("sync", "interval_s", "3600").start().await;
    b.wait_for_neighbors("town", 1, SOON).await;
    eventually("it is a neighbor too", SOON, async || {
        let neighbors = a.topic_status("town").await["neighbors"].clone();
        neighbors.as_array()?.iter().any(|n| n["id"] == b.endpoint).then_some(())
    })
    .await;
    let (_, result) = synced(&a, 0).await;
    assert_eq!(counts(&result), [1, 1, 0], "{result}");
    let told = a.command(&["topic", "sync", "town"]).await;
    assert!(told.stdout.starts_with("town is reconciled; "), "{told:?}");
}

/// The store of B stands still, as on a disk that is busy, while much is said: gossip goes on without it,
/// and only a comparison brings what it missed. None is due by time.
#[tokio::test(flavor = "multi_thread")]
async fn what_gossip_said_while_nobody_listened_comes_by_a_comparison() {
    /// More than gossip keeps for a reader that does not read, and the gateway for its store.
    const EVENTS: usize = 4_000;
    const LOCKED: &str = "import sqlite3, sys, time\n\
        store = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)\n\
        store.execute('BEGIN IMMEDIATE')\n\
        print('locked', flush=True)\n\
        time.sleep(4)\n\
        store.execute('ROLLBACK')\n";
    let scenario = "what_gossip_said_while_nobody_listened_comes_by_a_comparison";
    let python = std::process::Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        report(&format!("{scenario} did not run: the command python3 is missing"));
        return;
    }
    let _alone = alone().await;
    let with = async |name, known: &[&Gateway]| {
        builder(name, known).await.set("sync", "interval_s", "3600")
    };
    let a = with("A", &[]).await.start().await;
    let to_b = with("B", &[&a]).await;
    let file = to_b.data_dir().join("gateway.db");
    let b = to_b.start().await;
    for gateway in [&a, &b] {
        gateway.wait_for_neighbors("town", 1, SOON).await;
    }
    let peer = Peer::join(&a, "town").await;
    let keys = Keys::generate();
    let all: Vec<Event> = (0..EVENTS).map(|n| events::note(&keys, &format!("said {n}"))).collect();
    // Both hear it.
    let heard = events::note(&keys, "before");
    peer.sender.broadcast(events::json(&heard).into()).await.unwrap();
    for gateway in [&a, &b] {
        becomes(gateway, &[heard.id.to_hex()]).await;
    }

    let mut command = std::process::Command::new("python3");
    command.arg("-c").arg(LOCKED).arg(&file);
    let lock = Child::spawn("the lock", command);
    lock.stdout_line(SOON, |line| line == "locked").await;
    for some in all.chunks(40) {
        for event in some {
            peer.sender.broadcast(events::json(event).into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let count = async |gateway: &Gateway| {
        RawClient::connect(&gateway.topic_url("town")).await.count(&[json!({})]).await
    };
    for gateway in [&a, &b] {
        eventually("all of it is there", SOON, async || {
            (count(gateway).await == EVENTS as u64 + 1).then_some(())
        })
        .await;
    }
    let lagged = b.metric(r#"nostr_gateway_frames_dropped_total{cause="lagged""#).await;
    let fetched = b.metric(r#"nostr_gateway_sync_events_total{cause="fetched""#).await;
    report(&format!("of {EVENTS} events that were said meanwhile, {fetched} came by a comparison"));
    assert!(lagged > 0, "it did not fall behind");
    assert!(fetched > 0, "nothing was missed");
    assert!(held(&b).await.contains(&all[EVENTS / 2].id.to_hex()));
}
