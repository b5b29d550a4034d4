//! Each verdict for events of each origin and direction, in the running gateway.

use std::{fs, path::Path, time::Duration};

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, events, eventually,
};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{GATEWAY, alone};

/// For some events between processes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn builder(name: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name)
        .topics(&["town", "village"])
        .set("topics", "default", r#"["town"]"#)
        .set("sync", "interval_s", "2")
}

/// With the fixture that answers what an event's content says.
fn judging(builder: GatewayBuilder, directions: &str) -> GatewayBuilder {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/fixtures/fixtures.wasm");
    let folder = builder.plugin_folder("judge");
    fs::copy(built, folder.join("judge.wasm")).unwrap();
    let manifest = format!(
        "id = \"judge\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"judge.wasm\"\n\
         capabilities = [\"log\", \"config\", \"clock\"]\nlimits.time_ms = 1000\n\
         [applies_to]\ndirections = {directions}\n"
    );
    fs::write(folder.join("plugin.toml"), manifest).unwrap();
    builder.set("plugins", "budget_ms", "5000")
}

async fn knowing(builder: GatewayBuilder, known: &Gateway) -> GatewayBuilder {
    builder.set("discovery", "peers", &format!("[{:?}]", known.as_peer().await))
}

fn notes<const N: usize>(contents: [&str; N]) -> [Event; N] {
    contents.map(|content| events::note(&Keys::generate(), content))
}

/// Those of these events that a subscription at this URL has, as places in the list.
async fn held(url: &str, of: &[Event]) -> Vec<usize> {
    let ids: Vec<_> = of.iter().map(|event| event.id.to_hex()).collect();
    let found = RawClient::connect(url).await.stored_ids(&[json!({ "ids": ids })]).await;
    (0..ids.len()).filter(|at| found.contains(&ids[*at])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verdict_counts_for_events_of_each_origin() {
    let _alone = alone().await;
    // In this order everywhere.
    let contents = ["accepted", "reject:no", "shadow", "route:village"];
    let (by_client, by_gossip) = (notes(contents), notes(contents));
    let (by_fetch, by_upstream) = (notes(contents), notes(contents));
    let relay = IndependentRelay::start(&by_upstream).await;
    let b = builder("B").start().await;
    // Before A is there: comparing brings it.
    let mut in_town = RawClient::connect(&b.topic_url("town")).await;
    for event in &by_fetch {
        in_town.accept(event).await;
    }
    let a = judging(knowing(builder("A"), &b).await, r#"["in"]"#)
        .upstream("elsewhere", &relay.url(), "town")
        .start()
        .await;
    a.wait_for_neighbors("town", 1, SOON).await;
    for event in &by_gossip {
        in_town.accept(event).await;
    }
    let mut client = RawClient::connect(&a.url()).await;
    let no = (false, "blocked: no".to_owned());
    let yes = (true, String::new());
    for (event, answer) in by_client.iter().zip([&yes, &no, &yes, &yes]) {
        assert_eq!(client.publish(event).await, *answer, "{}", event.content);
    }

    let (town, village) = (a.topic_url("town"), a.topic_url("village"));
    for (origin, events, in_town) in [
        ("client", &by_client, vec![0]),
        ("upstream", &by_upstream, vec![0]),
        // What a topic brought stays in it.
        ("gossip", &by_gossip, vec![0, 3]),
        ("fetch", &by_fetch, vec![0, 3]),
    ] {
        let what = format!("events of {origin} are where they belong");
        eventually(&what, SOON, async || {
            let here = held(&a.url(), events).await == [0, 3];
            let there = held(&town, events).await == in_town;
            (here && there && held(&village, events).await == [3]).then_some(())
        })
        .await;
    }
    // Nor does comparing again bring what was refused.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for events in [&by_client, &by_upstream, &by_gossip, &by_fetch] {
        assert_eq!(held(&a.url(), events).await, [0, 3]);
    }
    for verdict in ["accept", "reject", "shadow-reject", "route"] {
        let calls =
            format!(r#"nostr_gateway_plugin_calls_total{{plugin="judge",verdict="{verdict}""#);
        assert!(a.metric(&calls).await >= 4, "{verdict}");
    }
    // Of what another relay sent, the topic's other members have what was accepted into it.
    eventually("B has what A took", SOON, async || {
        (held(&b.topic_url("town"), &by_upstream).await == [0]).then_some(())
    })
    .await;
}

/// What another relay sends is judged on its way into topics as what clients publish is.
#[tokio::test(flavor = "multi_thread")]
async fn each_verdict_counts_for_what_an_upstream_relay_sends_into_topics() {
    let _alone = alone().await;
    let sent = notes(["out:", "out:reject:no", "out:shadow", "out:route:village", "out:panic"]);
    let relay = IndependentRelay::start(&sent).await;
    let a = judging(builder("A"), r#"["to-topics"]"#)
        .upstream("elsewhere", &relay.url(), "town")
        .start()
        .await;
    let b = knowing(builder("B"), &a).await.start().await;
    b.wait_for_neighbors("town", 1, SOON).await;
    eventually("all are at A", SOON, async || {
        (held(&a.url(), &sent).await == [0, 1, 2, 3, 4]).then_some(())
    })
    .await;
    assert_eq!(held(&a.topic_url("town"), &sent).await, [0]);
    assert_eq!(held(&a.topic_url("village"), &sent).await, Vec::<usize>::new());
    eventually("B has what may go there", SOON, async || {
        (held(&b.url(), &sent).await == [0]).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(held(&b.url(), &sent).await, [0]);
}
