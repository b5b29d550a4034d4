//! A stream with plugins of its own: these judge it, no others, and nothing passes without them.

use std::time::Duration;

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, events, eventually,
};
use nostr_sdk::{Event, Keys};
use serde_json::json;

use crate::{GATEWAY, alone};

const SOON: Duration = Duration::from_secs(60);

async fn holds(url: &str, event: &Event) -> bool {
    let mut client = RawClient::connect(url).await;
    let ids = [event.id.to_hex()];
    !client.stored_ids(&[json!({"ids": ids, "limit": 1})]).await.is_empty()
}

async fn wait_until_held(url: &str, event: &Event) {
    eventually("the event is there", SOON, async || holds(url, event).await.then_some(())).await;
}

async fn waits_for_plugin(gateway: &Gateway) -> String {
    let is_waiting = |stream: &serde_json::Value| stream["state"] == "waiting";
    let stream = gateway.wait_for_stream("s", "waiting", SOON, is_waiting).await;
    stream["reason"].as_str().unwrap().to_owned()
}

/// Without the plugin nothing comes and nothing goes; with it, what it lets pass does.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_its_plugin_and_is_judged_by_it_alone() {
    let _alone = alone().await;
    let keys = Keys::generate();
    let note = |text: &str| events::note(&keys, text);
    let (good, spam, other) = (note("good"), note("spam"), note("other"));
    let relay = IndependentRelay::start(&[good.clone(), spam.clone(), other.clone()]).await;
    let url = relay.url();
    // The blocklist judges all else: it refuses the word "other".
    let builder = GatewayBuilder::new(GATEWAY, "A")
        .topics(&["town"])
        .blocklist(&[], &["other"])
        .set("plugins", "budget_ms", "5000")
        .table(&format!(
            "[[upstream]]\nname = \"s\"\nurls = [{url:?}]\ndirection = \"both\"\n\
             topics = [\"town\"]\nplugins = [\"words\", \"outward\"]\n"
        ));
    let gateway = builder.clone().start().await;
    let reason = waits_for_plugin(&gateway).await;
    assert!(reason.contains("\"words\"") && reason.contains("not there"), "{reason}");
    gateway.log_line(SOON, |line| line.contains("\"words\"") && line.contains("ERROR")).await;
    let ours = note("ours");
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    client.accept(&ours).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!holds(&gateway.url(), &good).await && !holds(&url, &ours).await);

    // The same plugin under other names, with other words: one for what comes, one for what goes up.
    let blocklist = builder.plugin_folder("blocklist");
    for (id, word, direction) in [("words", "spam", "in"), ("outward", "ours alone", "to-upstream")]
    {
        let folder = builder.plugin_folder(id);
        for file in std::fs::read_dir(&blocklist).unwrap().map(|file| file.unwrap().path()) {
            if file.file_name().unwrap() != "plugin.toml" {
                std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
            }
        }
        let lines = [
            ("id = \"blocklist\"", format!("id = {id:?}")),
            ("words = [\"other\"]", format!("words = [{word:?}]")),
            ("directions = [\"in\"]", format!("directions = [{direction:?}]")),
        ];
        let mut manifest = std::fs::read_to_string(blocklist.join("plugin.toml")).unwrap();
        for (before, now) in lines {
            assert!(manifest.contains(before), "{before}: {manifest}");
            manifest = manifest.replace(before, &now);
        }
        std::fs::write(folder.join("plugin.toml"), manifest).unwrap();
    }

    wait_until_held(&gateway.url(), &good).await;
    wait_until_held(&gateway.url(), &other).await;
    // It begins with what is stored from then on.
    let next = note("next");
    client.accept(&next).await;
    wait_until_held(&url, &next).await;
    assert!(!holds(&url, &ours).await);
    assert!(!holds(&gateway.url(), &spam).await, "its plugin refuses it");
    // Up too: a client may publish it here, and it stays here.
    let kept = note("ours alone");
    client.accept(&kept).await;
    let last = note("last");
    client.accept(&last).await;
    wait_until_held(&url, &last).await;
    let judged = |stream: &serde_json::Value| stream["relays"][0]["up"]["refused"]["plugin"] == 1;
    gateway.wait_for_stream("s", "the plugin kept one", SOON, judged).await;
    assert!(!holds(&url, &kept).await);
    eventually("it is shown, once it is written down", SOON, async || {
        let shown = gateway.command(&["upstream", "show", "s", "--json"]).await.json();
        let mut dropped = shown["dropped"].as_array().unwrap().iter();
        dropped.any(|event| event["id"] == kept.id.to_hex()).then_some(())
    })
    .await;
    // And the other plugin goes on judging everybody else.
    assert!(!client.publish(&note("other, by a client")).await.0);

    // Without it again, nothing more comes.
    gateway.command(&["plugin", "disable", "words"]).await.succeeded();
    waits_for_plugin(&gateway).await;
    let late = note("late");
    RawClient::connect(&url).await.accept(&late).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!holds(&gateway.url(), &late).await);
    gateway.command(&["plugin", "enable", "words"]).await.succeeded();
    wait_until_held(&gateway.url(), &late).await;
}
