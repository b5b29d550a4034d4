//! Private topics between gateways: made, joined by invite, rotated, and kept from everybody else.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, RawClient, Testnet, events, eventually};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{DHT_TESTNET, GATEWAY, alone};

const SOON: Duration = Duration::from_secs(40);

/// A gateway that is told of nobody. With a DHT it finds the addresses of those whose ids it knows.
pub fn builder(name: &str, dht: Option<&Testnet>) -> GatewayBuilder {
    let builder =
        GatewayBuilder::new(GATEWAY, name).topics(&["town"]).set("sync", "interval_s", "5");
    match dht {
        Some(dht) => builder.dht(dht),
        None => builder,
    }
}

pub async fn publish(gateway: &Gateway, events: &[Event]) {
    let mut client = RawClient::connect(&gateway.topic_url("den")).await;
    for event in events {
        client.accept(event).await;
    }
}

/// The ids in the topic, sorted.
pub async fn held(gateway: &Gateway) -> Vec<String> {
    let mut client = RawClient::connect(&gateway.topic_url("den")).await;
    let mut ids = client.stored_ids(&[json!({"limit": 5000})]).await;
    ids.sort();
    ids
}

pub async fn becomes(gateway: &Gateway, expected: &[Event]) {
    let expected = events::ids(expected);
    let mut last = Vec::new();
    eventually("the private topic's events are there", SOON, async || {
        last = held(gateway).await;
        (last == expected).then_some(())
    })
    .await;
}

pub fn notes(count: usize, what: &str) -> Vec<Event> {
    let keys = Keys::generate();
    (0..count).map(|n| events::note(&keys, &format!("{what} {n}"))).collect()
}

pub async fn invite(gateway: &Gateway, once: bool) -> String {
    let mut command = vec!["topic", "invite", "den"];
    command.extend(once.then_some("--once"));
    let made = gateway.command(&command).await;
    made.succeeded();
    made.stdout.trim().to_owned()
}

pub async fn show(gateway: &Gateway) -> Value {
    gateway.command(&["topic", "show", "den", "--json"]).await.json()
}

/// The epoch that the gateway publishes in; 0 while nobody has let it in.
pub async fn epoch(gateway: &Gateway) -> u64 {
    show(gateway).await["private"]["epoch"].as_u64().unwrap_or(0)
}

pub async fn reaches_epoch(gateway: &Gateway, wanted: u64) {
    eventually("the epoch is reached", SOON, async || {
        (epoch(gateway).await == wanted).then_some(())
    })
    .await;
}

/// A gateway that has just joined by an invite.
pub async fn joined(name: &str, dht: Option<&Testnet>, invite: &str) -> Gateway {
    let gateway = builder(name, dht).start().await;
    gateway.command(&["topic", "join", invite]).await.succeeded();
    eventually("a member lets it in", SOON, async || (epoch(&gateway).await > 0).then_some(()))
        .await;
    gateway
}

pub async fn home(dht: Option<&Testnet>) -> Gateway {
    let gateway = builder("A", dht).start().await;
    gateway.command(&["topic", "create", "den", "--private"]).await.succeeded();
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_topic_is_joined_by_invite_and_brings_its_history() {
    let _alone = alone().await;
    let dht = Testnet::on_loopback(DHT_TESTNET).await;
    let a = home(Some(&dht)).await;
    let mut all = notes(60, "history");
    all.push(events::note(&Keys::generate(), &"z".repeat(30_000)));
    publish(&a, &all).await;
    let text = invite(&a, false).await;
    assert!(text.starts_with("ngw1") && text.len() < 1_024, "{text}");

    let b = builder("B", Some(&dht)).start().await;
    // One wrong character is an error, and no new topic.
    let at = text.len() / 2;
    let wrong = if &text[at..=at] == "q" { "p" } else { "q" };
    let mistyped = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
    let refused = b.command(&["topic", "join", &mistyped]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("checksum") && !refused.stderr.contains(&text[20..at]));
    assert_eq!(
        b.command(&["topic", "list", "--json"]).await.json()["topics"].as_array().unwrap().len(),
        1
    );

    b.command(&["topic", "join", &text]).await.succeeded();
    assert!(b.command(&["topic", "join", &text]).await.stdout.contains("already"));
    becomes(&b, &all).await;
    // Live, both ways.
    b.wait_for_neighbors("den", 1, SOON).await;
    let mut live = RawClient::connect(&a.topic_url("den")).await;
    assert!(live.req("live", &[json!({"limit": 0})]).await.is_empty());
    let from_b = notes(1, "from B");
    publish(&b, &from_b).await;
    assert_eq!(live.live("live").await["id"], from_b[0].id.to_hex());
    all.extend(from_b);
    let from_a = notes(1, "from A");
    publish(&a, &from_a).await;
    all.extend(from_a);
    becomes(&b, &all).await;

    // Under load ids go out, and are fetched.
    let many = notes(300, "many");
    publish(&a, &many).await;
    all.extend(many);
    becomes(&b, &all).await;

    // A tag leads nobody there, also where the topic is known.
    let tagged = events::event(&Keys::generate(), 1, "x", &[&["t", "den"]], events::now());
    RawClient::connect(&a.url()).await.accept(&tagged).await;
    assert_eq!(held(&a).await, events::ids(&all));

    // What is shown holds no secret.
    let shown = show(&a).await;
    assert_eq!(shown["private"]["members"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!((&shown["private"]["epoch"], &shown["private"]["invites"]), (&json!(1), &json!(1)));
    assert_eq!(shown["private"]["is_admin"], true);
    let person = a.command(&["topic", "show", "den"]).await;
    assert!(person.stdout.contains(&b.endpoint) && person.stdout.contains("outstanding"));
    for gateway in [&a, &b] {
        assert!(
            !gateway.log().iter().any(|line| line.contains(&text[40..80])),
            "the invite is secret"
        );
    }

    // Both come back after a restart, whatever ended them.
    let (mut a, mut b) = (a, b);
    b.kill9().await;
    let missed = notes(5, "missed");
    publish(&a, &missed).await;
    all.extend(missed);
    let b = b.restart().await;
    becomes(&b, &all).await;
    assert!(a.interrupt().await.success());
    let a = a.restart().await;
    assert_eq!(held(&a).await, events::ids(&all));
    let back = notes(3, "back");
    publish(&a, &back).await;
    all.extend(back);
    becomes(&b, &all).await;

    // The admin key is not forgotten unasked, and goes from one gateway to another.
    let loses = ["admin key", "invite", "export-admin", "--forget-admin-key"];
    a.command(&["topic", "leave", "den"]).await.refuses(1, &loses);
    b.command(&["topic", "export-admin", "den"]).await.refuses(1, &["admin"]);
    let exported = a.command(&["topic", "export-admin", "den"]).await;
    exported.succeeded();
    assert!(exported.stderr.contains("Keep this to yourself"), "{:?}", exported.stderr);
    let key = exported.stdout.trim().to_owned();
    assert!(key.starts_with("ngwadmin1"), "what is printed is the key and nothing else");
    let wrong = if &key[30..31] == "q" { "p" } else { "q" };
    let mistyped = format!("{}{wrong}{}", &key[..30], &key[31..]);
    let refused = b.command(&["topic", "import-admin", &mistyped]).await;
    refused.refuses(2, &["mistyped"]);
    b.command(&["topic", "import-admin", &key]).await.succeeded();
    let again = b.command(&["topic", "import-admin", &key]).await;
    assert!(again.stdout.contains("already"), "{:?}", again.code);
    let mut b = b;
    assert!(b.interrupt().await.success());
    let b = b.restart().await;
    a.command(&["topic", "leave", "den", "--forget-admin-key"]).await.succeeded();
    assert!(invite(&b, true).await.starts_with("ngw1"), "B invites now");
    for gateway in [&a, &b] {
        let tells = |line: &String| line.contains(&key[20..50]) || line.contains(&mistyped[20..50]);
        assert!(!gateway.log().iter().any(tells), "the key is secret");
    }

    // Leaving it hides what it brought, and the name is not free for others.
    b.command(&["topic", "leave", "den"]).await.refuses(1, &["--forget-admin-key"]);
    b.command(&["topic", "leave", "den", "--forget-admin-key"]).await.succeeded();
    assert!(b.command(&["topic", "join", "den"]).await.stderr.contains("private"));
    assert!(b.command(&["topic", "create", "den", "--private"]).await.stderr.contains("another"));
    let mut page = RawClient::connect_from_page(&b.url(), "https://evil.example").await;
    assert!(page.stored_ids(&[json!({"kinds": [1]})]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_lets_in_who_has_an_invite_and_only_one_by_one_for_one() {
    let _alone = alone().await;
    let dht = Testnet::on_loopback(DHT_TESTNET).await;
    let mut a = home(Some(&dht)).await;
    let all = notes(5, "history");
    publish(&a, &all).await;
    let b = joined("B", Some(&dht), &invite(&a, false).await).await;
    becomes(&b, &all).await;
    let once = invite(&a, true).await;
    reaches_invites(&b, 2).await;
    // The admin is away. The invite names B as well, as a neighbor.
    assert!(a.interrupt().await.success());
    let c = joined("C", Some(&dht), &once).await;
    becomes(&c, &all).await;
    let d = builder("D", Some(&dht)).start().await;
    d.command(&["topic", "join", &once]).await.succeeded();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(epoch(&d).await, 0, "the invite was for one");
    assert!(held(&d).await.is_empty());
    // The admin learns of the new member.
    let a = a.restart().await;
    eventually("the admin knows C", SOON, async || {
        (show(&a).await["private"]["members"].as_array().unwrap().len() == 3).then_some(())
    })
    .await;
    let more = notes(3, "more");
    publish(&c, &more).await;
    becomes(&a, &[all, more].concat()).await;
    assert!(held(&d).await.is_empty());
    // It is the admin's to invite and to rotate.
    for command in [&["topic", "invite", "den"][..], &["topic", "rotate", "den"]] {
        b.command(command).await.refuses(1, &["admin"]);
    }
}

async fn reaches_invites(gateway: &Gateway, count: u64) {
    eventually("the roster with the invite is there", SOON, async || {
        (show(gateway).await["private"]["invites"] == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_loses_nothing_and_leaves_out_who_is_left_out() {
    let _alone = alone().await;
    let dht = Testnet::on_loopback(DHT_TESTNET).await;
    let a = home(Some(&dht)).await;
    let many = invite(&a, false).await;
    let b = joined("B", Some(&dht), &many).await;
    let c = joined("C", Some(&dht), &many).await;
    let mut d = joined("D", Some(&dht), &many).await;
    let mut all = notes(10, "before");
    publish(&a, &all).await;
    for gateway in [&b, &c, &d] {
        becomes(gateway, &all).await;
    }
    let before = all.clone();
    eventually("all know all", SOON, async || {
        (show(&a).await["private"]["members"].as_array().unwrap().len() == 4).then_some(())
    })
    .await;
    d.kill9().await;

    // A slip of the pen is no exclusion.
    let nobody = "0".repeat(64);
    for wrong in ["x", &nobody] {
        let refused = a.command(&["topic", "rotate", "den", "--exclude", wrong]).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
    }
    assert_eq!(epoch(&a).await, 1);

    // C is left out at once while the others write.
    let (from_a, from_b) = (notes(150, "A in the middle"), notes(150, "B in the middle"));
    let rotate = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let c = c.endpoint.clone();
        a.command(&["topic", "rotate", "den", "--exclude", &c, "--grace", "0s"]).await.succeeded();
    };
    tokio::join!(publish(&a, &from_a), publish(&b, &from_b), rotate);
    all.extend(from_a);
    all.extend(from_b);
    reaches_epoch(&b, 2).await;
    becomes(&a, &all).await;
    becomes(&b, &all).await;
    // From here on C is outside, with all that it has.
    let at_c = held(&c).await;
    assert!(at_c.len() < all.len() || before.len() < all.len());
    let after = notes(20, "after");
    publish(&a, &after).await;
    all.extend(after.iter().cloned());
    becomes(&b, &all).await;
    // The old invite is void, for a new gateway as well.
    let e = builder("E", Some(&dht)).start().await;
    e.command(&["topic", "join", &many]).await.succeeded();

    // D was away, and the admin is away when it comes back.
    let mut a = a;
    assert!(a.interrupt().await.success());
    let d = d.restart().await;
    reaches_epoch(&d, 2).await;
    becomes(&d, &all).await;
    let more = notes(3, "from D");
    publish(&d, &more).await;
    all.extend(more);
    becomes(&b, &all).await;

    let out: Vec<String> = events::ids(&after);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(epoch(&c).await, 1, "C is left out");
    // C may let E in where it is itself, and nowhere else.
    assert!(epoch(&e).await < 2);
    for outside in [&c, &e] {
        assert!(!held(outside).await.iter().any(|id| out.contains(id)), "this is for members");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn within_the_grace_both_epochs_are_read() {
    let _alone = alone().await;
    let a = home(None).await;
    let b = joined("B", None, &invite(&a, false).await).await;
    b.wait_for_neighbors("den", 1, SOON).await;
    // As long as a member has not got the new secret, the topic is rotating.
    b.signal("STOP");
    a.command(&["topic", "rotate", "den", "--grace", "8s"]).await.succeeded();
    eventually("it is seen to rotate", SOON, async || {
        (a.topic_status("den").await["state"] == "rotating").then_some(())
    })
    .await;
    assert_eq!(a.metric(r#"nostr_gateway_topic_state{topic="den",state="rotating""#).await, 1);
    b.signal("CONT");
    reaches_epoch(&b, 2).await;
    assert_eq!(show(&b).await["private"]["reads"], json!([1, 2]));
    let all = notes(5, "in the grace");
    publish(&a, &all).await;
    becomes(&b, &all).await;
    eventually("the old secret is forgotten", SOON, async || {
        let forgotten = json!([2]);
        (show(&a).await["private"]["reads"] == forgotten
            && show(&b).await["private"]["reads"] == forgotten)
            .then_some(())
    })
    .await;
    let more = notes(2, "afterwards");
    publish(&b, &more).await;
    becomes(&a, &[all, more].concat()).await;
    eventually("it is no longer rotating", SOON, async || {
        (a.topic_status("den").await["state"] == "joined").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_rotates_and_the_members_follow() {
    let _alone = alone().await;
    let a = builder("A", None).rotate_by_age(4).start().await;
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    let b = joined("B", None, &invite(&a, false).await).await;
    let mut all = notes(3, "first");
    publish(&a, &all).await;
    eventually("two rotations", SOON, async || (epoch(&b).await >= 3).then_some(())).await;
    let more = notes(3, "later");
    publish(&b, &more).await;
    all.extend(more);
    becomes(&a, &all).await;
    becomes(&b, &all).await;
    // Nobody was left out: the invite still counts.
    assert_eq!(show(&a).await["private"]["invites"], 1);
    a.log_line(SOON, |line| line.contains("a plugin gave a private topic a new secret")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_leaves_out_who_was_not_seen_for_long() {
    let _alone = alone().await;
    let dht = Testnet::on_loopback(DHT_TESTNET).await;
    let a = builder("A", Some(&dht)).rotate_by_age(10).drop_unseen_after(8).start().await;
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    let text = invite(&a, false).await;
    let b = joined("B", Some(&dht), &text).await;
    let mut c = joined("C", Some(&dht), &text).await;
    let before = notes(5, "before");
    publish(&a, &before).await;
    becomes(&b, &before).await;
    becomes(&c, &before).await;
    let members = async || {
        let members = show(&a).await["private"]["members"].take();
        let ids = members.as_array().unwrap().iter();
        ids.map(|member| member["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually("the admin knows both", SOON, async || {
        let members = members().await;
        (members.contains(&b.endpoint) && members.contains(&c.endpoint)).then_some(())
    })
    .await;
    c.kill9().await;
    eventually("C is left out", Duration::from_secs(60), async || {
        (!members().await.contains(&c.endpoint)).then_some(())
    })
    .await;
    let without_c = epoch(&a).await;
    a.log_line(SOON, |line| line.contains("leaving out 1 unseen members")).await;

    // B was seen all the time and keeps everything.
    eventually("B follows", SOON, async || (epoch(&b).await >= without_c).then_some(())).await;
    let after = notes(5, "after");
    publish(&a, &after).await;
    let mut all = [before.clone(), after].concat();
    becomes(&b, &all).await;
    let more = notes(2, "from B");
    publish(&b, &more).await;
    all.extend(more);
    becomes(&a, &all).await;

    // C comes back with all that it had, and stays there.
    let c = c.restart().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let at_c = epoch(&c).await;
    assert!((1..without_c).contains(&at_c), "C is at {at_c}, the others went on in {without_c}");
    assert_eq!(held(&c).await, events::ids(&before), "what came after is for members");
    assert!(members().await.contains(&b.endpoint) && !members().await.contains(&c.endpoint));
}
