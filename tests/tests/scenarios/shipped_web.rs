//! The shipped web of trust in the running gateway.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, events, eventually, report};
use nostr_sdk::{Event, EventBuilder, Keys};
use serde_json::json;

use crate::{GATEWAY, alone};

/// For what the gateway notices by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

const UNKNOWN: &str = "restricted: nobody here knows this author";

/// A web with these roots.
fn trusting(roots: &[&Keys], more: &str) -> GatewayBuilder {
    let roots: Vec<_> = roots.iter().map(|keys| hex(keys)).collect();
    // The machine may be busy: time is not what is tested here.
    GatewayBuilder::new(GATEWAY, "A").topics(&[]).set("plugins", "budget_ms", "5000").shipped(
        "web-of-trust",
        &format!("roots = {roots:?}\n{more}"),
        &["lookup"],
    )
}

fn hex(keys: &Keys) -> String {
    keys.public_key().to_hex()
}

/// A list of follows; each one is newer than the one before.
fn follows(keys: &Keys, whom: &[&Keys], version: u64) -> Event {
    let whom: Vec<_> = whom.iter().map(|keys| hex(keys)).collect();
    let tags: Vec<[&str; 2]> = whom.iter().map(|key| ["p", key.as_str()]).collect();
    let tags: Vec<&[&str]> = tags.iter().map(<[_; 2]>::as_slice).collect();
    events::event(keys, 3, "", &tags, events::now() - 1_000 + version)
}

async fn at(gateway: &Gateway) -> RawClient {
    RawClient::connect(&gateway.url()).await
}

async fn may_write(gateway: &Gateway, keys: &Keys) -> (bool, String) {
    let content = format!("a note {}", Keys::generate().public_key());
    at(gateway).await.publish(&events::note(keys, &content)).await
}

async fn comes_in(gateway: &Gateway, keys: &Keys) {
    eventually("the author is in the web", SOON, async || {
        may_write(gateway, keys).await.0.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_web_lets_in_whom_somebody_knows() {
    let _alone = alone().await;
    let [root, friend, other, far, once, stranger] = [(); 6].map(|()| Keys::generate());
    let gateway = trusting(&[&root], "refresh_s = 10").start().await;
    let refused = (false, UNKNOWN.to_owned());
    assert_eq!(may_write(&gateway, &stranger).await, refused);
    assert_eq!(may_write(&gateway, &friend).await, refused);
    assert!(may_write(&gateway, &root).await.0);

    // A new follow of a root counts at once, those of the followed one a little later.
    let mut client = at(&gateway).await;
    client.accept(&follows(&root, &[&friend, &other], 1)).await;
    comes_in(&gateway, &friend).await;
    client.accept(&follows(&friend, &[&far, &once], 1)).await;
    client.accept(&follows(&other, &[&far], 1)).await;
    client.accept(&follows(&stranger, &[&stranger], 1)).await;
    comes_in(&gateway, &far).await;
    comes_in(&gateway, &once).await;
    assert_eq!(may_write(&gateway, &stranger).await, refused);
    // Nobody is kept from being known, or from leaving.
    client.accept(&events::event(&stranger, 0, "{}", &[], events::now())).await;
    client.accept(&events::event(&stranger, 5, "", &[&["k", "1"]], events::now())).await;

    // A start finds it in the store, and other settings count.
    let mut gateway = gateway;
    gateway.interrupt().await;
    let roots =
        format!("roots = [{:?}]\nunknown = \"shadow-reject\"\nmin_followers = 2", hex(&root));
    let gateway = gateway.restart_with(|b| b.shipped("web-of-trust", &roots, &["lookup"])).await;
    let mut client = at(&gateway).await;
    let (known, unknown) = (events::note(&far, "known to two"), events::note(&once, "to one"));
    for event in [&known, &unknown] {
        assert_eq!(client.publish(event).await, (true, String::new()));
    }
    let filter = json!({ "ids": [known.id.to_hex(), unknown.id.to_hex()] });
    assert_eq!(client.stored_ids(&[filter]).await, [known.id.to_hex()]);

    // And whom nobody follows any more is out of it.
    client.accept(&follows(&root, &[&other], 2)).await;
    let mut gateway = gateway;
    gateway.interrupt().await;
    let roots =
        format!("roots = [{:?}]\nhops = 1\nunknown = \"proof-of-work\"\nwork_bits = 8", hex(&root));
    let gateway = gateway.restart_with(|b| b.shipped("web-of-trust", &roots, &["lookup"])).await;
    let told = "pow: 8 bits of work are wanted of authors whom nobody here knows";
    for keys in [&friend, &far] {
        assert_eq!(may_write(&gateway, keys).await, (false, told.to_owned()));
    }
    assert!(may_write(&gateway, &other).await.0);
    let worked =
        |bits| EventBuilder::text_note("work").pow(bits).sign_with_keys(&stranger).unwrap();
    let mut client = at(&gateway).await;
    assert_eq!(client.publish(&worked(4)).await, (false, told.to_owned()));
    client.accept(&worked(8)).await;
}

/// A web of thousands is read at the start and bit by bit, and the gateway answers meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_web_is_read_bit_by_bit() {
    let _alone = alone().await;
    let (root, stranger) = (Keys::generate(), Keys::generate());
    let gateway = GatewayBuilder::new(GATEWAY, "A").topics(&[]).start().await;
    // 400 friends who follow 500 each, most of them others: 200,000 follows are more than a start reads.
    let friends: Vec<_> = (0..400).map(|_| Keys::generate()).collect();
    let all: Vec<_> = friends.iter().collect();
    let mut client = at(&gateway).await;
    client.accept(&follows(&root, &all, 1)).await;
    for (n, friend) in friends.iter().enumerate() {
        let keys: Vec<_> =
            (0..500).map(|m| format!("{:016x}", n * 250 + m + 1).repeat(4)).collect();
        let tags: Vec<[&str; 2]> = keys.iter().map(|key| ["p", key.as_str()]).collect();
        let tags: Vec<&[&str]> = tags.iter().map(<[_; 2]>::as_slice).collect();
        client.accept(&events::event(friend, 3, "", &tags, events::now())).await;
    }
    let mut gateway = gateway;
    gateway.interrupt().await;
    let config = format!("roots = [{:?}]\non_unready = \"refuse\"", hex(&root));
    let gateway = gateway.restart_with(|b| b.shipped("web-of-trust", &config, &["lookup"])).await;
    let mut times = Vec::new();
    let mut client = at(&gateway).await;
    let mut calls = 0;
    eventually("the web is whole", SOON, async || {
        calls += 1;
        let event = events::note(&stranger, &format!("note {calls}"));
        let began = std::time::Instant::now();
        let (_, told) = client.publish(&event).await;
        times.push(began.elapsed());
        (told == UNKNOWN).then_some(())
    })
    .await;
    assert!(may_write(&gateway, friends.last().unwrap()).await.0);
    let news = gateway.log_line(SOON, |line| line.contains("authors are in the web")).await;
    let authors: usize =
        news.split_whitespace().filter_map(|word| word.parse().ok()).next().unwrap();
    // Half of what each follows another one follows, too.
    assert!((50_000..=101_000).contains(&authors), "{news}");
    times.sort();
    let memory = gateway.metric(r#"nostr_gateway_plugin_memory_bytes{plugin="web-of-trust""#).await;
    report(&format!(
        "web of trust: {authors} authors, whole after {calls} events, median answer {:?}, slowest \
         {:?}, all instances hold {memory} bytes",
        times[times.len() / 2],
        times[times.len() - 1],
    ));
}
