//! Members of a private topic: how they find one another again, and who may read at each of them.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, RawClient, events, eventually, free_port};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{
    alone,
    circles::{becomes, builder, epoch, home, invite, joined, notes, publish, reaches_epoch},
};

const SOON: Duration = Duration::from_secs(40);
const EVIL: &str = "https://evil.example";

/// Waits until a gateway has written down where it reached the other one.
async fn remembers(gateway: &Gateway, other: &Gateway) {
    let other = &other.endpoint[..10];
    let wanted = |line: &str| line.contains("remembering a neighbor") && line.contains(other);
    gateway.log_line(SOON, wanted).await;
}

/// The endpoint ids of the neighbors, sorted, each with who found it.
async fn neighbors(gateway: &Gateway) -> Vec<(String, String)> {
    let topic = gateway.topic_status("den").await;
    let neighbors = topic["neighbors"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut neighbors: Vec<_> =
        neighbors.map(|one| (text(&one["id"]), text(&one["found_by"]))).collect();
    neighbors.sort();
    neighbors
}

/// Nothing else tells the holder of an invite where to begin, and the step that asks those whom it names
/// says how that went.
#[tokio::test(flavor = "multi_thread")]
async fn the_peers_of_an_invite_are_a_step_of_their_own() {
    let _alone = alone().await;
    let bind = format!("\"127.0.0.1:{}\"", free_port());
    let mut a = builder("A", None).set("endpoint", "bind", &bind).start().await;
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    let text = invite(&a, false).await;
    assert!(a.interrupt().await.success());
    let b = builder("B", None).set("discovery", "timeout_ms", "1000").start().await;
    b.command(&["topic", "join", &text]).await.succeeded();
    let step = async |ok: bool| {
        eventually("the step has ended so", SOON, async || {
            let step = b.topic_status("den").await["steps"].get("invite").cloned()?;
            (step["ok"] == ok).then_some(step)
        })
        .await
    };
    let failed = step(false).await;
    let why = "asked 1, none of them came within 1000 ms";
    assert_eq!((&failed["result"], &failed["error"]), (&json!(why), &json!(why)), "{failed}");
    assert!(failed["took_ms"].as_u64() >= Some(1_000), "{failed}");
    let steps = b.topic_status("den").await["steps"].clone();
    assert!(steps.get("members").is_none(), "it knows of no member yet: {steps}");

    let a = a.restart().await;
    b.wait_for_neighbors("den", 1, SOON).await;
    assert_eq!(neighbors(&b).await, [(a.endpoint.clone(), "invite".to_owned())]);
    let done = step(true).await;
    assert!(done["attempts"].as_u64() > failed["attempts"].as_u64(), "{done}");
    assert_eq!((&done["neighbors"], &done["error"]), (&json!(1), &json!(why)), "{done}");
    assert_eq!(b.metric(r#"nostr_gateway_neighbors_found_total{by="invite""#).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_met_once_meet_again_without_dht_and_mdns() {
    let _alone = alone().await;
    let mut a = home(None).await;
    let text = invite(&a, false).await;
    let mut b = joined("B", None, &text).await;
    let c = joined("C", None, &text).await;
    let mut all = notes(3, "before");
    publish(&a, &all).await;
    becomes(&b, &all).await;
    becomes(&c, &all).await;
    for (one, other) in [(&a, &b), (&a, &c), (&b, &c)] {
        remembers(one, other).await;
    }

    // The invite named A alone, and A is away. Each start takes another port.
    assert!(a.interrupt().await.success() && b.interrupt().await.success());
    let missed = notes(2, "missed");
    publish(&c, &missed).await;
    all.extend(missed);
    let b = b.restart().await;
    becomes(&b, &all).await;
    assert_eq!(neighbors(&b).await, [(c.endpoint.clone(), "remembered".to_owned())]);
    let topic = b.topic_status("den").await;
    let step = &topic["steps"]["remembered"];
    // Who is away is asked again later, in vain.
    let went_well = step["attempts"].as_u64() > step["failures"].as_u64();
    assert!(went_well && step["neighbors"] == 1, "{topic}");
    assert!(b.metric("nostr_gateway_neighbors_found_total{by=\"remembered\"").await >= 1);

    // Nobody has told A where B is now, but C is where it was, and brings the two together.
    let mut a = a.restart().await;
    a.wait_for_neighbors("den", 2, SOON).await;
    let found = neighbors(&a).await;
    assert!(found.contains(&(c.endpoint.clone(), "remembered".to_owned())), "{found:?}");
    let more = notes(2, "more");
    publish(&a, &more).await;
    all.extend(more);
    becomes(&b, &all).await;

    // Whoever was left out is not asked any more.
    a.command(&["topic", "rotate", "den", "--exclude", &c.endpoint, "--grace", "0s"])
        .await
        .succeeded();
    reaches_epoch(&b, 2).await;
    remembers(&a, &b).await;
    assert!(a.interrupt().await.success());
    let a = a.restart().await;
    a.wait_for_neighbors("den", 1, SOON).await;
    assert_eq!(neighbors(&a).await, [(b.endpoint.clone(), "remembered".to_owned())]);
    let topic = a.topic_status("den").await;
    let result = topic["steps"]["remembered"]["result"].as_str().unwrap_or_default();
    assert!(result.starts_with("asked 1,"), "{topic}");
    let last = notes(1, "without C");
    publish(&a, &last).await;
    all.extend(last);
    becomes(&b, &all).await;
    assert_eq!((epoch(&c).await, neighbors(&c).await), (1, Vec::new()));
}

/// What a connection sees of an event on `/`: stored, counted, reconciled.
async fn sees(client: &mut RawClient, event: &Event) -> bool {
    let one = [json!({"ids": [event.id.to_hex()]})];
    let stored = client.stored_ids(&one).await;
    let (count, found) = (client.count(&one).await, client.negentropy(&one[0], &[]).await.unwrap());
    assert_eq!(stored.len() as u64, count, "one answer to all questions");
    assert_eq!(stored, found.only_there, "one answer to all questions");
    !stored.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_older_than_a_private_topic_see_it() {
    let _alone = alone().await;
    let a = builder("A", None).start().await;
    let b = builder("B", None).start().await;
    let mut open = Vec::new();
    for gateway in [&a, &b] {
        // A local program, and a web page.
        let mut local = RawClient::connect(&gateway.url()).await;
        let mut page = RawClient::connect_from_page(&gateway.url(), EVIL).await;
        for client in [&mut local, &mut page] {
            assert!(client.req("live", &[json!({})]).await.is_empty());
        }
        open.push((local, page));
    }
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    b.command(&["topic", "join", &invite(&a, false).await]).await.succeeded();
    eventually("a member lets it in", SOON, async || (epoch(&b).await > 0).then_some(())).await;
    b.wait_for_neighbors("den", 1, SOON).await;
    let passing = events::event(&Keys::generate(), 20_001, "passing", &[], events::now());
    let [note] = &notes(1, "for members")[..] else { panic!() };
    for event in [note, &passing] {
        publish(&a, std::slice::from_ref(event)).await;
        for (local, page) in &mut open {
            assert_eq!(local.live("live").await["id"], event.id.to_hex());
            page.expect_silence().await;
        }
    }
    for (local, page) in &mut open {
        assert!(sees(local, note).await && !sees(page, note).await);
    }
}

/// Clients of one gateway, each with a subscription on `/`: a reader of the topic, somebody else who
/// authenticated, and one from elsewhere who did not.
struct Audience([RawClient; 3]);

impl Audience {
    async fn of(gateway: &Gateway, reader: &Keys) -> Self {
        let from_elsewhere = [("x-forwarded-for", "203.0.113.9")];
        let connect = async || {
            RawClient::try_connect_with(&gateway.url(), &from_elsewhere).await.ok().unwrap()
        };
        let mut clients = [connect().await, connect().await, connect().await];
        for (client, keys) in clients.iter_mut().zip([reader, &Keys::generate()]) {
            client.authenticate(keys, &gateway.url()).await;
            client.forget();
        }
        for client in &mut clients {
            client.req("live", &[json!({"limit": 0})]).await;
        }
        Self(clients)
    }

    /// Checks that the event came live to the reader alone.
    async fn is_told(&mut self, event: &Event) {
        let [reader, others @ ..] = &mut self.0;
        assert_eq!(reader.live("live").await["id"], event.id.to_hex());
        for other in others {
            other.expect_silence().await;
        }
    }

    /// Checks that the reader alone is answered.
    async fn is_answered(&mut self, event: &Event) {
        for (n, client) in self.0.iter_mut().enumerate() {
            assert_eq!(sees(client, event).await, n == 0, "client {n}");
        }
    }
}

/// The same at the topic's own URL.
async fn readers_alone_enter(gateway: &Gateway, reader: &Keys, event: &Event) {
    let elsewhere = [("x-forwarded-for", "203.0.113.9")];
    let url = gateway.topic_url("den");
    let one = [json!({"ids": [event.id.to_hex()]})];
    for (keys, refusal) in [
        (Some(reader), None),
        (Some(&Keys::generate()), Some("restricted: ")),
        (None, Some("auth-required: ")),
    ] {
        let mut client = RawClient::try_connect_with(&url, &elsewhere).await.ok().unwrap();
        if let Some(keys) = keys {
            client.authenticate(keys, &gateway.url()).await;
        }
        match refusal {
            None => {
                assert_eq!(client.stored_ids(&one).await, [event.id.to_hex()]);
                assert_eq!(client.count(&one).await, 1);
            }
            Some(refusal) => {
                for reason in
                    [client.refused_req("q", &one).await, client.refused_count("q", &one).await]
                {
                    assert!(reason.starts_with(refusal), "{reason}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_private_topic_is_read_by_its_readers_at_each_member() {
    let _alone = alone().await;
    let (of_a, of_b) = (Keys::generate(), Keys::generate());
    let with_readers = |name, reader: &Keys| {
        let key = reader.public_key().to_hex();
        let table = format!("[[private_topic]]\nname = \"den\"\nreaders = [{key:?}]");
        builder(name, None).set("access", "read", r#""open""#).table(&table)
    };
    let a = with_readers("A", &of_a).start().await;
    // Also connections that were there first.
    let mut at_a = Audience::of(&a, &of_a).await;
    a.command(&["topic", "create", "den", "--private"]).await.succeeded();
    let mut b = with_readers("B", &of_b).start().await;
    let mut at_b = Audience::of(&b, &of_b).await;
    // Each gateway has a list of its own: this one is a reader elsewhere.
    let mut stranger = Audience::of(&b, &of_a).await.0;
    b.command(&["topic", "join", &invite(&a, false).await]).await.succeeded();
    eventually("a member lets it in", SOON, async || (epoch(&b).await > 0).then_some(())).await;
    b.wait_for_neighbors("den", 1, SOON).await;

    let mut all = Vec::new();
    let passing = events::event(&Keys::generate(), 20_001, "passing", &[], events::now());
    for (writer, event) in
        [(&a, &notes(1, "from A")[0]), (&b, &notes(1, "from B")[0]), (&a, &passing)]
    {
        publish(writer, std::slice::from_ref(event)).await;
        at_a.is_told(event).await;
        at_b.is_told(event).await;
        stranger[0].expect_silence().await;
        if event.kind == nostr_sdk::Kind::TextNote {
            all.push(event.clone());
        }
    }
    for event in &all {
        at_a.is_answered(event).await;
        at_b.is_answered(event).await;
        assert!(!sees(&mut stranger[0], event).await);
        readers_alone_enter(&a, &of_a, event).await;
        readers_alone_enter(&b, &of_b, event).await;
    }

    // It stays so after a restart.
    assert!(b.interrupt().await.success());
    let b = b.restart().await;
    let mut at_b = Audience::of(&b, &of_b).await;
    b.wait_for_neighbors("den", 1, SOON).await;
    let more = notes(1, "after the restart");
    publish(&a, &more).await;
    at_b.is_told(&more[0]).await;
    for event in all.iter().chain(&more) {
        at_b.is_answered(event).await;
        readers_alone_enter(&b, &of_b, event).await;
    }
    becomes(&b, &[all, more].concat()).await;
}
