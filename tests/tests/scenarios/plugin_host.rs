//! What plugins can do in the running gateway: each verdict for each origin and direction, what they
//! remember and ask, and whom they let visit.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nostr_gateway_tests::{
    Gateway, GatewayBuilder, IndependentRelay, RawClient, events, eventually, report,
};
use nostr_sdk::{Event, Keys};
use serde_json::json;
use tokio_tungstenite::tungstenite::Error;

use crate::{GATEWAY, alone};

/// For some events between processes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Installs one of the components that do what an event's content says.
fn fixture(builder: GatewayBuilder, name: &str, world: &str, manifest: &str) -> GatewayBuilder {
    let component = format!("{name}.wasm");
    let built =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(name).join(&component);
    let folder = builder.plugin_folder(name);
    fs::copy(built, folder.join(&component)).unwrap();
    let text = format!(
        "id = \"{name}\"\nversion = \"1.0.0\"\nworld = \"{world}\"\nfile = \"{component}\"\n\
         {manifest}\n[limits]\ntime_ms = 1000\n"
    );
    fs::write(folder.join("plugin.toml"), text).unwrap();
    // What goes beyond log, config and clock is the operator's to grant.
    let granted = format!("[{name}]\ngrant = [\"kv\", \"lookup\"]\n");
    fs::write(builder.data_dir().join("grants.toml"), granted).unwrap();
    // The machine may be busy.
    builder.set("plugins", "budget_ms", "5000")
}

fn misbehaving(builder: GatewayBuilder, directions: &str) -> GatewayBuilder {
    let manifest = format!(
        "capabilities = [\"log\", \"config\", \"clock\"]\n[applies_to]\ndirections = {directions}"
    );
    fixture(builder, "fixtures", "event-filter", &manifest)
}

fn builder(name: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name)
        .topics(&["town", "village"])
        .set("topics", "default", r#"["town"]"#)
        .set("sync", "interval_s", "2")
}

async fn knowing(builder: GatewayBuilder, known: &Gateway) -> GatewayBuilder {
    let status = known.status().await;
    let address = status["addresses"][0].as_str().unwrap();
    builder.set("discovery", "peers", &format!("[\"{}@{address}\"]", known.endpoint))
}

fn note(content: &str) -> Event {
    events::note(&Keys::generate(), content)
}

/// Those of these events that a subscription at this URL has.
async fn held(url: &str, of: &[&Event]) -> Vec<String> {
    let ids: Vec<_> = of.iter().map(|event| event.id.to_hex()).collect();
    let mut found = RawClient::connect(url).await.stored_ids(&[json!({ "ids": ids })]).await;
    found.sort();
    found
}

fn ids(of: &[&Event]) -> Vec<String> {
    let mut ids: Vec<_> = of.iter().map(|event| event.id.to_hex()).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_leave_is_kept_and_nobody_fetches_it() {
    let _alone = alone().await;
    let a = misbehaving(builder("A"), r#"["to-topics"]"#).start().await;
    let b = knowing(builder("B"), &a).await.start().await;
    b.wait_for_neighbors("town", 1, SOON).await;
    let (stays, goes) = (note("out:reject:not outside"), note("out:"));
    let (silent, narrowed) = (note("out:shadow"), note("out:route:village"));
    let broken = note("out:panic");
    // Published for all: it is stored, in none of the topics that it may not go to.
    let mut client = RawClient::connect(&a.url()).await;
    for event in [&stays, &silent, &narrowed, &broken, &goes] {
        client.accept(event).await;
    }
    // Published in a topic, it was meant for nothing else.
    let mut in_town = RawClient::connect(&a.topic_url("town")).await;
    let (for_town, secretly) = (note("out:reject:not outside"), note("out:shadow"));
    let (accepted, reason) = in_town.publish(&for_town).await;
    assert_eq!((accepted, reason.as_str()), (false, "blocked: topics [\"town\"] not outside"));
    assert_eq!(in_town.publish(&secretly).await, (true, String::new()));

    let all = [&stays, &silent, &narrowed, &broken, &goes, &for_town, &secretly];
    let stored = ids(&[&stays, &silent, &narrowed, &broken, &goes]);
    assert_eq!(held(&a.url(), &all).await, stored);
    assert_eq!(held(&a.topic_url("town"), &all).await, ids(&[&goes]));
    // Comparing brings what gossip did not; it has had its chance when this one came.
    eventually("the event is at B", SOON, async || {
        (held(&b.url(), &all).await == ids(&[&goes])).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(held(&b.url(), &all).await, ids(&[&goes]));

    // What comes from the topic is in it already.
    let from_b = note("out:reject:too late");
    RawClient::connect(&b.topic_url("town")).await.accept(&from_b).await;
    eventually("the event is at A", SOON, async || {
        (held(&a.topic_url("town"), &[&from_b]).await.len() == 1).then_some(())
    })
    .await;
}

/// Kept from the private topic that it was routed to, an event must not become one for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_enter_a_private_topic_does_not_become_public() {
    let reader = Keys::generate().public_key().to_hex();
    let private = format!(
        "[[private_topic]]\nname = \"family\"\nreaders = [{reader:?}]\n\
         [[route]]\nfilter = {{ kinds = [30000] }}\ntopics = [\"family\"]"
    );
    let gateway = misbehaving(builder("A"), r#"["to-topics"]"#).table(&private).start().await;
    let keys = Keys::generate();
    let secret = |content| events::event(&keys, 30_000, content, &[&["d", content]], events::now());
    let (stays, goes, silent) = (secret("out:reject:no"), secret("out:"), secret("out:shadow"));
    let mut client = RawClient::connect(&gateway.url()).await;
    client.accept(&goes).await;
    let (accepted, reason) = client.publish(&stays).await;
    assert_eq!((accepted, reason.as_str()), (false, "blocked: topics [\"family\"] no"));
    assert_eq!(client.publish(&silent).await, (true, String::new()));
    assert_eq!(held(&gateway.url(), &[&stays, &goes, &silent]).await, ids(&[&goes]));
}

#[tokio::test(flavor = "multi_thread")]
async fn shadow_reject_stores_nothing_whatever_the_origin() {
    let _alone = alone().await;
    let from_relay = [note("shadow"), note("from the relay")];
    let relay = IndependentRelay::start(&from_relay).await;
    let b = builder("B").start().await;
    let a = misbehaving(knowing(builder("A"), &b).await, r#"["in"]"#)
        .upstream("elsewhere", &relay.url(), "town")
        .start()
        .await;
    a.wait_for_neighbors("town", 1, SOON).await;
    let own = [note("shadow"), note("of a client")];
    let ephemeral = events::event(&Keys::generate(), 20_001, "shadow", &[], events::now());
    let mut listener = RawClient::connect(&a.url()).await;
    listener.req("live", &[json!({"kinds": [20_001]})]).await;
    let mut client = RawClient::connect(&a.url()).await;
    for event in own.iter().chain([&ephemeral]) {
        assert_eq!(client.publish(event).await, (true, String::new()));
    }
    listener.expect_silence().await;
    let by_gossip = [note("shadow"), note("of a neighbor")];
    let mut client = RawClient::connect(&b.topic_url("town")).await;
    for event in &by_gossip {
        client.accept(event).await;
    }
    let stored = [&from_relay[1], &own[1], &by_gossip[1]];
    let all = [&from_relay, &own, &by_gossip].map(|pair| pair.each_ref());
    let all: Vec<&Event> = all.concat();
    eventually("all others came", SOON, async || {
        (held(&a.url(), &all).await == ids(&stored)).then_some(())
    })
    .await;
    // Nor does comparing with B bring it, which has it.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(held(&a.url(), &all).await, ids(&stored));
    // And of what A shadowed, B hears nothing.
    assert_eq!(held(&b.url(), &[&own[0], &from_relay[0]]).await, ids(&[]));
    // Told again, the client hears the same.
    assert_eq!(RawClient::connect(&a.url()).await.publish(&own[0]).await, (true, String::new()));
}

/// The reason with which the fixture answers.
async fn answer(gateway: &Gateway, content: &str) -> String {
    let (accepted, reason) = RawClient::connect(&gateway.url()).await.publish(&note(content)).await;
    assert!(!accepted, "{content}: {reason}");
    reason.trim_start_matches("blocked: ").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_remembers_over_a_restart_and_knows_who_is_known() {
    let capabilities = "capabilities = [\"log\", \"kv\", \"lookup\"]";
    let gateway =
        fixture(builder("A"), "fixtures-store", "event-filter", capabilities).start().await;
    assert_eq!(answer(&gateway, "set x 17").await, "Ok(())");
    assert_eq!(answer(&gateway, "increment visits 1 3600").await, "Ok(1)");
    assert_eq!(answer(&gateway, "set brief 1 1").await, "Ok(())");

    let (alice, bob) = (Keys::generate(), Keys::generate());
    let (a, b) = (alice.public_key().to_hex(), bob.public_key().to_hex());
    let unknown = "Ok(Author { events: 0, has-profile: false, has-follows: false })";
    assert_eq!(answer(&gateway, &format!("author {a}")).await, unknown);
    let mut client = RawClient::connect(&gateway.url()).await;
    let now = events::now();
    client.accept(&events::event(&alice, 0, "{}", &[], now)).await;
    client.accept(&events::event(&alice, 3, "", &[&["p", &b]], now)).await;
    client.accept(&events::note(&alice, "hello")).await;
    let known = "Ok(Author { events: 3, has-profile: true, has-follows: true })";
    assert_eq!(answer(&gateway, &format!("author {a}")).await, known);
    assert_eq!(answer(&gateway, &format!("count {a},{b} 0,1 0 10")).await, "Ok(2)");
    assert_eq!(answer(&gateway, &format!("follows {a} {b}")).await, "Ok(true)");
    assert_eq!(answer(&gateway, &format!("follows {b} {a}")).await, "Ok(false)");
    assert_eq!(answer(&gateway, &format!("list {a} 10")).await, format!("Ok([\"{b}\"])"));

    let mut gateway = gateway;
    gateway.interrupt().await;
    let mut gateway = gateway.restart().await;
    assert_eq!(answer(&gateway, "get x").await, "Some(\"17\")");
    assert_eq!(answer(&gateway, "increment visits 1 3600").await, "Ok(2)");
    assert_eq!(answer(&gateway, "get brief").await, "None");
    // Killed, it has lost a second at most.
    assert_eq!(answer(&gateway, "set x 18").await, "Ok(())");
    tokio::time::sleep(Duration::from_secs(4)).await;
    gateway.kill9().await;
    let gateway = gateway.restart_in_place().await;
    assert_eq!(answer(&gateway, "get x").await, "Some(\"18\")");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_what_is_remembered_does_not_hold_up_others() {
    let _alone = alone().await;
    let capabilities = "capabilities = [\"log\", \"kv\", \"lookup\"]\n[applies_to]\nkinds = [7]";
    let gateway =
        fixture(builder("A"), "fixtures-store", "event-filter", capabilities).start().await;
    let mut bad = RawClient::connect(&gateway.url()).await;
    let flood = events::event(&Keys::generate(), 7, "flood", &[], events::now());
    bad.send_event(&flood).await;
    // One thread is busy with it for a second; the others store on.
    let mut good = RawClient::connect(&gateway.url()).await;
    for n in 0..20 {
        good.accept(&note(&format!("note {n}"))).await;
    }
    let (accepted, reason) = bad.ok(&flood.id.to_hex()).await;
    assert_eq!((accepted, reason.as_str()), (false, "error: plugin fixtures-store failed"));
    let bytes = "nostr_gateway_plugin_kv_bytes{plugin=\"fixtures-store\"}";
    gateway.wait_for_metric(bytes, 100_000, SOON).await;
    assert!(gateway.metric(bytes).await <= 1_048_576);
}

/// A question may read only so much, a call only so much in all, and asking without an end ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_asks_the_store_without_end_does_not_hold_up_others() {
    let _alone = alone().await;
    let manifest = "capabilities = [\"log\", \"kv\", \"lookup\"]\n[applies_to]\nkinds = [7]";
    let gateway = fixture(builder("A"), "fixtures-store", "event-filter", manifest).start().await;
    let author = Keys::generate();
    let mut good = RawClient::connect(&gateway.url()).await;
    for n in 0..300 {
        good.accept(&events::event(&author, 1, &format!("{n}"), &[], events::now() - n)).await;
    }
    let asks = |more: &str| {
        let content = format!("asks {}{more}", author.public_key().to_hex());
        events::event(&Keys::generate(), 7, &content, &[], events::now())
    };
    // Each answer counts 300 events, and a call may read 5000 rows.
    let mut bad = RawClient::connect(&gateway.url()).await;
    let (_, said) = bad.publish(&asks(" 100")).await;
    let words: Vec<&str> = said.trim_start_matches("blocked: ").split([' ', ',']).collect();
    let answered: u32 = words[0].parse().expect(&said);
    assert!((1..=16).contains(&answered), "{said}");
    assert!(said.ends_with(&format!("{} refused", 100 - answered)), "{said}");

    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        let endless = asks("");
        bad.send_event(&endless).await;
        for n in 0..20 {
            let began = Instant::now();
            good.accept(&note(&format!("note {n}"))).await;
            slowest = slowest.max(began.elapsed());
        }
        let (accepted, reason) = bad.ok(&endless.id.to_hex()).await;
        assert_eq!((accepted, reason.as_str()), (false, "error: plugin fixtures-store failed"));
        gateway.log_line(SOON, |line| line.contains("it ran longer than 1000 ms")).await;
        // Never two failures in a row: it would rest.
        let again = events::event(&Keys::generate(), 7, "get x", &[], events::now());
        assert_eq!(bad.publish(&again).await.1, "blocked: None");
    }
    report(&format!("slowest OK for others beside endless questions: {slowest:?}"));
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

/// Each is stopped within its limit, the operator is told why, and nobody else waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_plugins_are_stopped_and_hold_up_nobody() {
    let _alone = alone().await;
    let manifest = "capabilities = [\"log\", \"config\", \"clock\"]\n\
                    [applies_to]\nkinds = [7]";
    let gateway = fixture(builder("A"), "fixtures", "event-filter", manifest).start().await;
    let mut bad = RawClient::connect(&gateway.url()).await;
    let mut good = RawClient::connect(&gateway.url()).await;
    let reaction = |content: &str| events::event(&Keys::generate(), 7, content, &[], events::now());
    let mut slowest = Duration::ZERO;
    for (content, cause) in [
        ("loop", "it ran longer than 1000 ms"),
        ("bomb", "it wanted more memory than 64 MiB"),
        ("recurse", "its stack overflowed"),
        ("giant", "it handed over more than 262144 bytes"),
        ("panic", "it trapped"),
        ("many", "it routed to 1000 topics"),
    ] {
        let event = reaction(content);
        bad.send_event(&event).await;
        for n in 0..10 {
            let began = Instant::now();
            good.accept(&note(&format!("{content} {n}"))).await;
            slowest = slowest.max(began.elapsed());
        }
        let (accepted, reason) = bad.ok(&event.id.to_hex()).await;
        assert_eq!((accepted, reason.as_str()), (false, "error: plugin fixtures failed"));
        let failed = format!("the plugin failed: {cause}");
        gateway.log_line(SOON, |line| line.contains(&failed)).await;
        // It works again before the next; it may rest for a moment.
        eventually("it works again", SOON, async || {
            let mut client = RawClient::connect(&gateway.url()).await;
            let (_, reason) = client.publish(&reaction("reject:well")).await;
            (reason == "blocked: well").then_some(())
        })
        .await;
    }
    // A flood of lines is cut, and the event passes.
    bad.accept(&reaction("flood:very loud")).await;
    let lines = gateway.log().iter().filter(|line| line.contains("very loud")).count();
    assert!((1..200).contains(&lines), "{lines}");
    report(&format!("slowest OK for others beside hostile plugins: {slowest:?}"));
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_policy_routes_and_says_who_may_visit_what() {
    let gateway =
        fixture(builder("A"), "fixtures-topics", "topic-policy", "capabilities = [\"log\"]")
            .set("topics", "join_on_visit", "2")
            .start()
            .await;
    let (routed, usual) = (note("to:village"), note("to nobody"));
    let mut client = RawClient::connect(&gateway.url()).await;
    client.accept(&routed).await;
    client.accept(&usual).await;
    let both = [&routed, &usual];
    assert_eq!(held(&gateway.topic_url("village"), &both).await, ids(&[&routed]));
    assert_eq!(held(&gateway.topic_url("town"), &both).await, ids(&[&usual]));

    for name in ["closed", "panic"] {
        match RawClient::try_connect(&gateway.topic_url(name)).await {
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                let text = String::from_utf8_lossy(&body).into_owned();
                assert_eq!(response.status().as_u16(), 404);
                assert!(text.is_empty() || text.contains("a plugin does not let"), "{text}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{name} may not be visited"),
        }
    }
    drop(RawClient::connect(&gateway.topic_url("open-house")).await);
    assert_eq!(gateway.topic_status("open-house").await["how"], "visit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_sees_with_which_keys_the_client_is_authenticated() {
    let gateway = misbehaving(builder("A"), r#"["in"]"#).start().await;
    let keys = Keys::generate();
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(client.publish(&note("keys")).await, (false, "blocked: []".to_owned()));
    client.authenticate(&keys, &gateway.url()).await;
    let proved = format!("blocked: [\"{}\"]", keys.public_key().to_hex());
    assert_eq!(client.publish(&note("keys")).await, (false, proved));
}
