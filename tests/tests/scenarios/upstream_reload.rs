//! Streams are added, changed, removed, paused and resumed while the gateway runs.

use std::time::Duration;

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, events, eventually,
};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{GATEWAY, alone};

/// For what the gateway notices by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn builder(name: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).topics(&["town", "village"])
}

/// Waits until a topic of the gateway holds an event.
async fn wait_for_event(gateway: &Gateway, topic: &str, event: &Event) {
    let id = event.id.to_hex();
    eventually(&format!("{id} in {topic}"), SOON, async || {
        let mut client = RawClient::connect(&gateway.topic_url(topic)).await;
        let stored = client.stored_ids(&[json!({"ids": [id], "limit": 1})]).await;
        (!stored.is_empty()).then_some(())
    })
    .await;
}

async fn holds(gateway: &Gateway, event: &Event) -> bool {
    let mut client = RawClient::connect(&gateway.url()).await;
    let ids = [event.id.to_hex()];
    !client.stored_ids(&[json!({"ids": ids, "limit": 1})]).await.is_empty()
}

fn is_connected(stream: &Value) -> bool {
    stream["relays"][0]["connected_since"].is_u64()
}

/// What changes in the file counts without a restart, for the streams alone that changed.
#[tokio::test(flavor = "multi_thread")]
async fn streams_follow_the_configuration_file_and_others_notice_nothing() {
    let _alone = alone().await;
    let keys = Keys::generate();
    let note = |text: &str| events::note(&keys, text);
    let (first, second, third) = (note("first"), note("second"), note("third"));
    let stays = IndependentRelay::start(std::slice::from_ref(&first)).await;
    let comes = IndependentRelay::start(&[second.clone(), third.clone()]).await;
    let mut gateway = builder("A").upstream("stays", &stays.url(), "town").start().await;
    wait_for_event(&gateway, "town", &first).await;
    let before = gateway.stream("stays").await;

    gateway.configure(|builder| builder.upstream("comes", &comes.url(), "village"));
    wait_for_event(&gateway, "village", &second).await;
    gateway
        .log_line(SOON, |line| line.contains("streams that are new") && line.contains("comes"))
        .await;

    // The same stream into another topic: what it brought before is brought there too.
    let url = comes.url();
    gateway.configure(|builder| {
        builder.no_tables().upstream("stays", &stays.url(), "town").upstream("comes", &url, "town")
    });
    gateway.log_line(SOON, |line| line.contains("streams that are changed")).await;
    let fourth = note("fourth");
    RawClient::connect(&comes.url()).await.accept(&fourth).await;
    wait_for_event(&gateway, "town", &fourth).await;

    gateway.configure(|builder| builder.no_tables().upstream("stays", &stays.url(), "town"));
    gateway.wait_for_stream("comes", "gone", SOON, Value::is_null).await;
    let fifth = note("fifth");
    RawClient::connect(&comes.url()).await.accept(&fifth).await;
    let sixth = note("sixth");
    RawClient::connect(&stays.url()).await.accept(&sixth).await;
    wait_for_event(&gateway, "town", &sixth).await;
    assert!(!holds(&gateway, &fifth).await, "the stream is gone");
    let after = gateway.stream("stays").await;
    for field in ["since", "state"] {
        assert_eq!(before[field], after[field], "{before} {after}");
    }
    let connected = |stream: &Value| stream["relays"][0]["connected_since"].clone();
    assert_eq!(connected(&before), connected(&after), "it kept its connection");
    assert_eq!(gateway.metric("nostr_gateway_upstream_connected{stream=\"comes\"").await, 0);
}

/// A mistake changes nothing, and is told once in the log and for as long as it lasts in the status.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_keeps_the_old_configuration_and_says_why() {
    let relay = IndependentRelay::start(&[]).await;
    let mut gateway = builder("A").upstream("town", &relay.url(), "town").start().await;
    gateway.wait_for_stream("town", "connected", SOON, is_connected).await;
    let file = |status: &Value| status["config"].clone();
    assert_eq!(file(&gateway.status().await)["errors"], json!([]));

    // The harness writes the file anew before every command: what is wrong must be in its text.
    gateway.configure(|b| b.table("[[upstream]]\nname = \"bad\"\nurls = [\"https://x\"]\n"));
    let status = eventually("the error in the status", SOON, async || {
        let status = gateway.status().await;
        (status["config"]["errors"] != json!([])).then_some(status)
    })
    .await;
    let error = status["config"]["errors"][0].as_str().unwrap();
    let wanted = "upstream[1].urls[0]: \"https://x\" is not the URL of a relay";
    assert!(error.contains("config.toml:") && error.contains(wanted), "{error}");
    let answer = gateway.command(&["config", "reload"]).await;
    answer.refuses(1, &["config.toml:", wanted]);
    let shown = gateway.command(&["status"]).await;
    shown.succeeded();
    assert!(shown.stdout.contains("is not taken"), "{}", shown.stdout);
    assert_eq!(gateway.stream("town").await["state"], "running");
    assert_eq!(gateway.stream("bad").await, Value::Null);
    let note = events::note(&Keys::generate(), "still here");
    RawClient::connect(&relay.url()).await.accept(&note).await;
    wait_for_event(&gateway, "town", &note).await;
    let told = gateway.log().iter().filter(|line| line.contains(wanted)).count();
    assert_eq!(told, 1, "once in the log");

    // In order again, with a setting that needs a restart.
    let url = relay.url();
    gateway.configure(|b| {
        b.no_tables().upstream("town", &url, "town").upstream("more", &url, "village").set(
            "limits",
            "max_future_s",
            "901",
        )
    });
    gateway.wait_for_stream("more", "connected", SOON, is_connected).await;
    let answer = gateway.command(&["config", "reload", "--json"]).await.json();
    assert_eq!(answer["needs_restart"], json!(["limits.max_future_s"]), "{answer}");
    assert_eq!((&answer["added"], &answer["changed"]), (&json!([]), &json!([])), "{answer}");
    let config = file(&gateway.status().await);
    assert_eq!(config["errors"], json!([]), "{config}");
    assert_eq!(config["needs_restart"], json!(["limits.max_future_s"]), "{config}");
}

/// A file that is taken away for a moment, or written in pieces, changes nothing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_on_its_way_is_waited_for() {
    let relay = IndependentRelay::start(&[]).await;
    let mut gateway = builder("A").upstream("town", &relay.url(), "town").start().await;
    let before =
        gateway.wait_for_stream("town", "connected", SOON, is_connected).await["since"].clone();
    // An empty file is a configuration without streams, if it stays so.
    for _ in 0..20 {
        gateway.spoil_configuration("");
        tokio::time::sleep(Duration::from_millis(20)).await;
        gateway.configure(|builder| builder);
        tokio::time::sleep(Duration::from_millis(180)).await;
    }
    assert_eq!(gateway.stream("town").await["since"], before, "it was never touched");
    gateway.spoil_configuration("");
    gateway.wait_for_stream("town", "gone", SOON, Value::is_null).await;
}

/// A paused stream stays so over a restart, and brings and sends what it missed when it is resumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_lasts_over_restarts_and_nothing_is_missed() {
    let _alone = alone().await;
    let relay = IndependentRelay::start(&[]).await;
    let table = format!(
        "[[upstream]]\nname = \"town\"\nurls = [{:?}]\ndirection = \"both\"\ntopics = [\"town\"]\n",
        relay.url()
    );
    let mut gateway = builder("A").table(&table).start().await;
    gateway.wait_for_stream("town", "connected", SOON, is_connected).await;
    gateway.command(&["upstream", "pause", "nobody"]).await.refuses(1, &["no stream \"nobody\""]);
    let paused = gateway.command(&["upstream", "pause", "town"]).await;
    paused.succeeded();
    assert_eq!(paused.stdout, "paused town\n");
    let again = gateway.command(&["upstream", "pause", "town", "--json"]).await.json();
    assert_eq!(again, json!({"name": "town", "was_paused": true}));

    assert!(gateway.interrupt().await.success());
    let gateway = gateway.restart().await;
    let listed = gateway.command(&["upstream", "list", "--json"]).await.json();
    assert_eq!(listed["upstreams"][0]["state"], "paused", "{listed}");
    let keys = Keys::generate();
    let (theirs, ours) = (events::note(&keys, "theirs"), events::note(&keys, "ours"));
    let mut client = RawClient::connect(&relay.url()).await;
    client.accept(&theirs).await;
    RawClient::connect(&gateway.topic_url("town")).await.accept(&ours).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!holds(&gateway, &theirs).await, "it is paused");
    assert!(client.stored_ids(&[json!({"ids": [ours.id.to_hex()]})]).await.is_empty());

    gateway.command(&["upstream", "resume", "town"]).await.succeeded();
    wait_for_event(&gateway, "town", &theirs).await;
    eventually("ours on the relay", SOON, async || {
        let stored = client.stored_ids(&[json!({"ids": [ours.id.to_hex()]})]).await;
        (!stored.is_empty()).then_some(())
    })
    .await;
    let shown = gateway.command(&["upstream", "show", "town"]).await;
    shown.succeeded();
    for word in ["running", "both", "sent", &relay.url()] {
        assert!(shown.stdout.contains(word), "{word}: {}", shown.stdout);
    }
    let not_paused = gateway.command(&["upstream", "resume", "town"]).await;
    assert_eq!(not_paused.stdout, "town was not paused\n");
}
