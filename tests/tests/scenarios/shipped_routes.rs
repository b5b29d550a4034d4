//! The shipped topic router in the running gateway.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, eventually};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{GATEWAY, alone};

/// For some events between processes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn builder(name: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name)
        .topics(&["town", "nostr", "news", "rest"])
        .set("topics", "default", r#"["town"]"#)
        .set("plugins", "budget_ms", "5000")
}

/// Which of these events a topic has, by their place.
async fn held(gateway: &Gateway, topic: &str, of: &[Event]) -> Vec<usize> {
    let ids: Vec<_> = of.iter().map(|event| event.id.to_hex()).collect();
    let mut client = RawClient::connect(&gateway.topic_url(topic)).await;
    let found = client.stored_ids(&[json!({ "ids": ids })]).await;
    let mut places: Vec<_> =
        found.iter().filter_map(|id| ids.iter().position(|other| other == id)).collect();
    places.sort_unstable();
    places
}

#[tokio::test(flavor = "multi_thread")]
async fn the_router_sends_events_to_topics_by_rules() {
    let _alone = alone().await;
    let (editor, alice) = (Keys::generate(), Keys::generate());
    let rules = format!(
        "rules = [\n  {{ tags = {{ t = [\"nostr\"] }}, kinds = [1], topics = [\"nostr\"] }},\n  \
         {{ authors = [{:?}], topics = [\"news\"] }},\n]\nelse = [\"rest\"]\nvisits = [\"open\"]\n",
        editor.public_key().to_hex()
    );
    let a = builder("A")
        .set("topics", "join_on_visit", "2")
        .shipped("topic-router", &format!("{rules}keep = false"), &[])
        .start()
        .await;
    let b = builder("B")
        .set("discovery", "peers", &format!("[{:?}]", a.as_peer().await))
        .set("sync", "interval_s", "2")
        .start()
        .await;
    b.wait_for_neighbors("nostr", 1, SOON).await;
    b.wait_for_neighbors("news", 1, SOON).await;
    let tag: &[&[&str]] = &[&["t", "Nostr"]];
    let now = events::now();
    let published = [
        events::event(&alice, 1, "about it", tag, now),
        events::event(&editor, 1, "both", tag, now),
        events::event(&editor, 7, "+", tag, now),
        events::event(&alice, 1, "of nothing", &[], now),
    ];
    let mut client = RawClient::connect(&a.url()).await;
    for event in &published {
        client.accept(event).await;
    }
    for (topic, places) in
        [("nostr", &[0, 1][..]), ("news", &[1, 2]), ("rest", &[3]), ("town", &[])]
    {
        assert_eq!(held(&a, topic, &published).await, places, "{topic}");
        // The neighbor has them in the same topics.
        eventually(&format!("{topic} has reached B"), SOON, async || {
            (held(&b, topic, &published).await == places).then_some(())
        })
        .await;
    }

    // Only what is listed is joined for visitors.
    assert!(RawClient::try_connect(&a.topic_url("closed")).await.is_err());
    drop(RawClient::connect(&a.topic_url("open")).await);
    assert_eq!(a.topic_status("open").await["how"], "visit");

    // With keep, what is published goes where it would go anyway as well.
    let mut a = a;
    a.interrupt().await;
    let a = a.restart_with(|b| b.shipped("topic-router", &rules, &[])).await;
    let more = [
        events::event(&alice, 1, "in town", tag, now),
        events::event(&alice, 1, "at the URL of news", tag, now),
    ];
    RawClient::connect(&a.url()).await.accept(&more[0]).await;
    RawClient::connect(&a.topic_url("news")).await.accept(&more[1]).await;
    for (topic, places) in [("nostr", &[0, 1][..]), ("town", &[0]), ("news", &[1])] {
        assert_eq!(held(&a, topic, &more).await, places, "{topic}");
    }
}
