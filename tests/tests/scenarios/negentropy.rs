//! NIP-77: reconciliation.

use nostr_gateway_tests::{Difference, Gateway, GatewayBuilder, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::GATEWAY;

const CAP: usize = 300;

async fn gateway() -> Gateway {
    GatewayBuilder::new(GATEWAY, "negentropy")
        .topics(&["town"])
        .set("relay", "max_negentropy_events", &CAP.to_string())
        .start()
        .await
}

fn notes(keys: &Keys, count: usize) -> Vec<Event> {
    let start = events::now() - 10_000;
    (0..count).map(|n| events::event(keys, 1, &format!("{n}"), &[], start + n as u64 / 3)).collect()
}

async fn publish(client: &mut RawClient, all: &[Event]) {
    for chunk in all.chunks(100) {
        for event in chunk {
            client.send_event(event).await;
        }
        for event in chunk {
            assert!(client.ok(&event.id.to_hex()).await.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sets_find_their_differences() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let all = notes(&keys, CAP);
    publish(&mut client, &all[..250]).await;
    let filter = json!({"kinds": [1]});

    // Some are only here, some only there, most on both sides.
    let found = client.negentropy(&filter, &all[40..]).await.unwrap();
    assert_eq!(found.only_there, events::ids(&all[..40]));
    assert_eq!(found.only_here, events::ids(&all[250..]));
    // Nothing here, everything there, and the other way round.
    let found = client.negentropy(&filter, &[]).await.unwrap();
    assert_eq!(found.only_there, events::ids(&all[..250]));
    let found = client.negentropy(&json!({"kinds": [7]}), &all[..10]).await.unwrap();
    assert_eq!(found.only_here, events::ids(&all[..10]));
    // The same on both sides: one message is enough.
    let found = client.negentropy(&filter, &all[..250]).await.unwrap();
    assert_eq!(found, Difference { rounds: 1, ..Difference::default() });
    // The filter's conditions and its limit count.
    let newest = client.negentropy(&json!({"kinds": [1], "limit": 10}), &[]).await.unwrap();
    assert_eq!(newest.only_there.len(), 10);
    let since = json!({"since": all[240].created_at.as_secs()});
    let found = client.negentropy(&since, &[]).await.unwrap();
    assert_eq!(found.only_there, events::ids(&all[240..250]));
    // A topic's URL reconciles the topic.
    let mut in_topic = RawClient::connect(&gateway.topic_url("town")).await;
    assert_eq!(in_topic.negentropy(&filter, &[]).await.unwrap().only_there, Vec::<String>::new());
    in_topic.accept(&all[0]).await;
    let found = in_topic.negentropy(&filter, &[]).await.unwrap();
    assert_eq!(found.only_there, events::ids(&all[..1]));
    // FACTS of clients: no NOTICE came in all this.
    client.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_at_the_cap_succeeds_and_one_above_is_told_the_number() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    let all = notes(&keys, CAP + 1);
    publish(&mut client, &all[..CAP]).await;
    let found = client.negentropy(&json!({}), &[]).await.unwrap();
    assert_eq!(found.only_there, events::ids(&all[..CAP]));
    client.accept(&all[CAP]).await;
    // NIP-77: the reason of a query that is too big begins with "blocked".
    let error = client.negentropy(&json!({}), &[]).await.unwrap_err();
    assert_eq!(error, format!("blocked: this query is too big: more than {CAP} events"));
    // A narrower one goes on working.
    let narrow = json!({"until": all[10].created_at.as_secs()});
    assert!(client.negentropy(&narrow, &[]).await.unwrap().only_there.len() >= 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn reconciliations_have_ids_of_their_own_and_are_replaced_and_closed() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    let keys = Keys::generate();
    publish(&mut client, &notes(&keys, 3)).await;
    // The first message of an empty set: one range of no ids.
    let empty = "6100000200";
    assert_eq!(client.req("neg", &[json!({"kinds": [1]})]).await.len(), 3);
    let open = async |client: &mut RawClient, id: &str, filter: Value| -> Value {
        client.send(&json!(["NEG-OPEN", id, filter, empty])).await;
        let text = client
            .wait_for(|m| m[0].as_str().is_some_and(|v| v.starts_with("NEG")) && m[1] == id, id)
            .await;
        serde_json::from_str(&text).unwrap()
    };
    // NIP-77: an open id is replaced, and has nothing to do with that of a REQ.
    let three = open(&mut client, "neg", json!({})).await;
    let none = open(&mut client, "neg", json!({"kinds": [7]})).await;
    assert_eq!((&three[0], &none[0]), (&json!("NEG-MSG"), &json!("NEG-MSG")));
    assert!(three[2].as_str().unwrap().len() > none[2].as_str().unwrap().len());
    client.send(&json!(["NEG-CLOSE", "neg"])).await;
    let live = events::note(&keys, "the subscription lives");
    client.accept(&live).await;
    assert_eq!(client.live("neg").await["id"], live.id.to_hex());
    client.send(&json!(["CLOSE", "neg"])).await;

    // After its end there is nothing to go on with; a second NEG-CLOSE says nothing.
    client.send(&json!(["NEG-CLOSE", "neg"])).await;
    client.send(&json!(["NEG-MSG", "neg", empty])).await;
    let error = client.next().await;
    assert_eq!((&error[0], &error[1]), (&json!("NEG-ERR"), &json!("neg")), "{error}");
    assert!(error[2].as_str().unwrap().starts_with("closed: "), "{error}");

    // So many at once and no more.
    for n in 0..5 {
        assert_eq!(open(&mut client, &format!("n{n}"), json!({})).await[0], "NEG-MSG");
    }
    let error = open(&mut client, "n5", json!({})).await;
    assert_eq!(error[0], "NEG-ERR");
    assert!(error[2].as_str().unwrap().starts_with("rate-limited: "), "{error}");
    client.send(&json!(["NEG-CLOSE", "n0"])).await;
    assert_eq!(open(&mut client, "n5", json!({})).await[0], "NEG-MSG");
    client.expect_silence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_gets_neg_err_and_never_a_notice() {
    let gateway = gateway().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    publish(&mut client, &notes(&Keys::generate(), 50)).await;
    for (message, prefix) in [
        (json!(["NEG-OPEN", "n"]), "invalid"),
        (json!(["NEG-OPEN", "n", {}]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, "61", "61"]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, ""]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, 61]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, "xyz"]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, "616"]), "invalid"),
        (json!(["NEG-OPEN", "n", {"kinds": "1"}, "61"]), "invalid"),
        (json!(["NEG-OPEN", "n", {"#emoji": ["1"]}, "61"]), "unsupported"),
        (json!(["NEG-OPEN", "n", {"kinds": [1059]}, "61"]), "auth-required"),
        // Hexadecimal, but not negentropy: no version, a mode that there is not, a count without
        // ids, an id without end.
        (json!(["NEG-OPEN", "n", {}, "00"]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, "61000009"]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, "61000002ffffffffffffff7f"]), "invalid"),
        (json!(["NEG-OPEN", "n", {}, "610021"]), "invalid"),
        (json!(["NEG-MSG", "n"]), "invalid"),
        (json!(["NEG-MSG", "n", "zz"]), "invalid"),
    ] {
        client.send(&message).await;
        let answer = client.wait_for(|m| m[0] != "AUTH", "NEG-ERR").await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("n")), "{message}");
        let reason = answer[2].as_str().unwrap();
        assert!(reason.starts_with(&format!("{prefix}: ")), "{message}: {reason}");
    }
    client.next_challenge().await;
    // A protocol of another version is told ours (negentropy, "Protocol version").
    client.send(&json!(["NEG-OPEN", "n", {}, "62"])).await;
    assert_eq!(client.next().await, json!(["NEG-MSG", "n", "61"]));
    // A client that does not wait for its turn is told so, or answered in time; others go on.
    for _ in 0..30 {
        client.send(&json!(["NEG-MSG", "n", "6100000200"])).await;
    }
    client.send(&json!(["NEG-OPEN", "after", {}, "6100000200"])).await;
    loop {
        let answer = client.next().await;
        if answer[1] == "after" {
            assert_eq!(answer[0], "NEG-MSG");
            break;
        }
        assert!(answer[0] == "NEG-ERR" || answer[0] == "NEG-MSG", "{answer}");
    }
    let found = client.negentropy(&json!({}), &[]).await.unwrap();
    assert_eq!(found.only_there.len(), 50);
}
