//! Streams that follow public keys: authors spread over independent relays, lists that change and lie,
//! relays that die and come back.

use std::time::Duration;

use nostr_gateway_tests::{Gateway, GatewayBuilder, IndependentRelay, RawClient, events};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::GATEWAY;

/// Lists are found, a plan is made after a quiet second, relays are connected, events are fetched: on a
/// machine that has other things to do.
const SOON: Duration = Duration::from_secs(40);
/// A relay must be away for a while before somebody else steps in, and its connection is tried again with
/// growing pauses.
const LATER: Duration = Duration::from_secs(120);

/// Somebody with keys and lists.
struct Person {
    keys: Keys,
}

impl Person {
    fn new() -> Self {
        Self { keys: Keys::generate() }
    }

    fn key(&self) -> String {
        self.keys.public_key().to_hex()
    }

    fn follows(&self, whom: &[&Person], at: u64) -> Event {
        let keys: Vec<String> = whom.iter().map(|person| person.key()).collect();
        let tags: Vec<[&str; 2]> = keys.iter().map(|key| ["p", key]).collect();
        let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
        events::event(&self.keys, 3, "", &tags, at)
    }

    /// A relay list: where they write, and one more where they only read.
    fn writes_to(&self, urls: &[&str], at: u64) -> Event {
        let mut tags: Vec<Vec<&str>> = urls.iter().map(|url| vec!["r", url]).collect();
        tags.push(vec!["r", "wss://inbox.example.org", "read"]);
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        events::event(&self.keys, 10_002, "", &tags, at)
    }

    fn note(&self, text: &str) -> Event {
        events::note(&self.keys, text)
    }
}

/// A gateway with a stream `timeline` into the topic `home` that follows one key.
fn following(me: &Person, discover: &IndependentRelay, more: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, "follower").topics(&["home"]).table(&format!(
        "[[upstream]]\nname = \"timeline\"\nfollow = [\"{}\"]\ntopics = [\"home\"]\n\
         filter = {{ kinds = [1] }}\ndiscover = [{:?}]\n{more}",
        me.key(),
        discover.url(),
    ))
}

const PRIVATE: &str = "allow_private_relays = true";

async fn follow(gateway: &Gateway) -> Value {
    let shown = gateway.command(&["upstream", "show", "timeline", "--json"]).await;
    shown.succeeded();
    shown.json()["follow"].clone()
}

/// Waits until the stream is as wanted.
async fn until(gateway: &Gateway, what: &str, within: Duration, wanted: impl Fn(&Value) -> bool) {
    let mut last = Value::Null;
    let end = tokio::time::Instant::now() + within;
    loop {
        let now = follow(gateway).await;
        if wanted(&now) {
            return;
        }
        if tokio::time::Instant::now() > end {
            panic!("{what}: not within {within:?}; it is {last:#}");
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Role, authors and stand-ins of a relay that is open.
fn relay(follow: &Value, relay: &IndependentRelay) -> Option<(String, u64, u64)> {
    let relays = follow["relays"].as_array()?;
    let found = relays.iter().find(|open| open["url"] == relay.url())?;
    let figure = |name: &str| found[name].as_u64().unwrap();
    Some((found["role"].as_str()?.to_owned(), figure("authors"), figure("stand_ins")))
}

fn is_home_of(follow: &Value, at: &IndependentRelay, authors: u64) -> bool {
    relay(follow, at).is_some_and(|(role, homes, _)| role == "home" && homes == authors)
}

fn exception<'a>(follow: &'a Value, why: &str) -> Option<&'a Value> {
    follow["exceptions"].as_array()?.iter().find(|exception| exception["why"] == why)
}

/// Waits until these notes are in the topic, and no others.
async fn timeline(gateway: &Gateway, notes: &[&Event]) {
    let mut client = RawClient::connect(&gateway.topic_url("home")).await;
    let wanted = events::ids(notes.iter().copied());
    let filter = json!({"kinds": [1]});
    let mut last = Vec::new();
    let end = tokio::time::Instant::now() + LATER;
    while tokio::time::Instant::now() < end {
        last = client.stored_ids(std::slice::from_ref(&filter)).await;
        last.sort();
        let mut wanted = wanted.clone();
        wanted.sort();
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the timeline has {last:?} instead of {wanted:?}; {:#}", follow(gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_comes_from_where_everybody_writes() {
    let [me, ann, bob, cat, stranger] = [(); 5].map(|()| Person::new());
    let then = events::now() - 1_000;
    let lists = IndependentRelay::start(&[]).await;
    let mut relays = Vec::new();
    for _ in 0..4 {
        relays.push(IndependentRelay::start(&[stranger.note("not followed")]).await);
    }
    let [big, small, rare, unused] = &relays[..] else { unreachable!() };
    let notes = [me.note("mine"), ann.note("a"), bob.note("b"), cat.note("c")];
    // Everybody writes to the big one; Cat to a rare one alone.
    for event in [
        me.follows(&[&ann, &bob, &cat], then),
        me.writes_to(&[&big.url()], then),
        ann.writes_to(&[&small.url(), &big.url()], then),
        bob.writes_to(&[&big.url(), &unused.url()], then),
        cat.writes_to(&[&rare.url()], then),
    ] {
        lists.load(&event).await;
    }
    big.load(&notes[0]).await;
    big.load(&notes[1]).await;
    big.load(&notes[2]).await;
    rare.load(&notes[3]).await;
    let more = format!("{PRIVATE}\nmax_relays = 3\nrelays_per_author = 1");
    let gateway = following(&me, &lists, &more).start().await;

    timeline(&gateway, &notes.iter().collect::<Vec<_>>()).await;
    until(&gateway, "the fewest relays", SOON, |follow| {
        is_home_of(follow, big, 3)
            && is_home_of(follow, rare, 1)
            && relay(follow, small).is_none()
            && relay(follow, unused).is_none()
            && follow["authors"] == 4
            && follow["at_home"] == 4
            && follow["with_list"] == 4
    })
    .await;
    // The lists are in the topic too, for one's other machines.
    let mut client = RawClient::connect(&gateway.topic_url("home")).await;
    assert_eq!(client.stored_ids(&[json!({"kinds": [3, 10_002]})]).await.len(), 5);

    // What they write from now on.
    let live = [cat.note("c, live"), ann.note("a, live")];
    RawClient::connect(&rare.url()).await.accept(&live[0]).await;
    RawClient::connect(&big.url()).await.accept(&live[1]).await;
    timeline(&gateway, &notes.iter().chain(&live).collect::<Vec<_>>()).await;
    let shown = gateway.command(&["upstream", "show", "timeline"]).await;
    shown.succeeded();
    assert!(shown.stdout.contains("4 authors, 4 of them with a relay list"), "{}", shown.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_change_change_what_is_asked_where() {
    let [me, ann, bob, cat] = [(); 4].map(|()| Person::new());
    let then = events::now() - 1_000;
    let lists = IndependentRelay::start(&[]).await;
    let (one, two) = (IndependentRelay::start(&[]).await, IndependentRelay::start(&[]).await);
    for event in [
        me.follows(&[&ann, &bob], then),
        me.writes_to(&[&one.url()], then),
        ann.writes_to(&[&one.url()], then),
        bob.writes_to(&[&one.url()], then),
        cat.writes_to(&[&two.url()], then),
    ] {
        lists.load(&event).await;
    }
    let notes = [ann.note("at one"), bob.note("at one"), bob.note("at two"), cat.note("at two")];
    one.load(&notes[0]).await;
    one.load(&notes[1]).await;
    two.load(&notes[2]).await;
    two.load(&notes[3]).await;
    let gateway = following(&me, &lists, PRIVATE).start().await;
    timeline(&gateway, &[&notes[0], &notes[1]]).await;
    until(&gateway, "one relay", SOON, |follow| is_home_of(follow, &one, 3)).await;

    // Bob moves, and says so where lists are found.
    let moved = bob.writes_to(&[&two.url()], then + 10);
    RawClient::connect(&lists.url()).await.accept(&moved).await;
    timeline(&gateway, &[&notes[0], &notes[1], &notes[2]]).await;
    until(&gateway, "Bob has moved", SOON, |follow| {
        is_home_of(follow, &one, 2) && is_home_of(follow, &two, 1)
    })
    .await;

    // I follow somebody else, and say so to my own gateway.
    let mut client = RawClient::connect(&gateway.url()).await;
    client.accept(&me.follows(&[&ann, &bob, &cat], then + 20)).await;
    timeline(&gateway, &notes.iter().collect::<Vec<_>>()).await;

    // And Ann no more.
    client.accept(&me.follows(&[&bob, &cat], then + 30)).await;
    until(&gateway, "Ann is gone", SOON, |follow| {
        follow["authors"] == 3 && is_home_of(follow, &one, 1) && is_home_of(follow, &two, 2)
    })
    .await;
    let unseen = ann.note("to those who still follow");
    RawClient::connect(&one.url()).await.accept(&unseen).await;
    let mine = me.note("mine");
    RawClient::connect(&one.url()).await.accept(&mine).await;
    timeline(&gateway, &notes.iter().chain([&mine]).collect::<Vec<_>>()).await;

    // Over a restart everybody stays where they are, and what came meanwhile is fetched.
    let mut gateway = gateway;
    gateway.interrupt().await;
    let meanwhile = cat.note("while it was away");
    RawClient::connect(&two.url()).await.accept(&meanwhile).await;
    let gateway = gateway.restart().await;
    timeline(&gateway, &notes.iter().chain([&mine, &meanwhile]).collect::<Vec<_>>()).await;
    until(&gateway, "everybody is where they were", SOON, |follow| {
        is_home_of(follow, &one, 1) && is_home_of(follow, &two, 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_is_stood_in_for_until_it_is_back() {
    let [me, ann, bob] = [(); 3].map(|()| Person::new());
    let then = events::now() - 1_000;
    let lists = IndependentRelay::start(&[]).await;
    let mut first = IndependentRelay::start(&[]).await;
    let (second, last) = (IndependentRelay::start(&[]).await, IndependentRelay::start(&[]).await);
    for event in [
        me.follows(&[&ann, &bob], then),
        me.writes_to(&[&first.url()], then),
        ann.writes_to(&[&first.url(), &second.url()], then),
        bob.writes_to(&[&first.url()], then),
    ] {
        lists.load(&event).await;
    }
    let more = format!("{PRIVATE}\nrelays_per_author = 1\nfallback = [{:?}]", last.url());
    let gateway = following(&me, &lists, &more).start().await;
    until(&gateway, "one relay for all", SOON, |follow| {
        is_home_of(follow, &first, 3) && follow["at_home"] == 3
    })
    .await;

    first.stop();
    let meanwhile = [ann.note("at the second relay"), bob.note("at the fallback")];
    second.load(&meanwhile[0]).await;
    last.load(&meanwhile[1]).await;
    until(&gateway, "others step in", LATER, |follow| {
        let away = exception(follow, "all relays away");
        relay(follow, &second) == Some(("stand-in".to_owned(), 0, 1))
            && relay(follow, &last) == Some(("fallback".to_owned(), 0, 2))
            && away.is_some_and(|away| {
                away["authors"] == 3
                    && away["away"] == json!([first.url()])
                    && away["instead"] == json!({second.url(): 1, last.url(): 2})
            })
    })
    .await;
    timeline(&gateway, &[&meanwhile[0], &meanwhile[1]]).await;

    let missed = me.note("nobody asked for it anywhere else");
    first.load(&missed).await;
    first.restart().await;
    timeline(&gateway, &[&meanwhile[0], &meanwhile[1], &missed]).await;
    until(&gateway, "everybody is home again", LATER, |follow| {
        is_home_of(follow, &first, 3)
            && follow["at_home"] == 3
            && relay(follow, &second).is_none()
            && relay(follow, &last).is_none()
            && follow["exceptions"] == json!([])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_strangers_lead_nowhere_near_home() {
    let [me, ann, bob] = [(); 3].map(|()| Person::new());
    let then = events::now() - 1_000;
    let lists = IndependentRelay::start(&[]).await;
    // What a list must not make the gateway connect to: a service of this machine.
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let fallback = IndependentRelay::start(&[bob.note("bob's"), ann.note("ann's")]).await;
    let local = [
        format!("ws://127.0.0.1:{port}"),
        format!("ws://localhost:{port}"),
        format!("ws://[::ffff:127.0.0.1]:{port}"),
        format!("ws://2130706433:{port}"),
    ];
    let long = format!("wss://relay.example.org/{}", "a".repeat(5_000));
    let mut rubbish: Vec<&str> = local.iter().map(String::as_str).collect();
    rubbish.extend([
        "",
        "hello",
        "https://relay.example.org",
        "wss://me:pass@relay.example.org",
        "ws://192.168.1.1",
        "ws://abc.onion",
        "wss://relay.example.org:22",
        "ws://box.local",
        &long,
    ]);
    for event in [me.follows(&[&ann, &bob], then), ann.writes_to(&rubbish, then)] {
        lists.load(&event).await;
    }
    let notes = [ann.note("found at the fallback")];
    fallback.load(&notes[0]).await;
    let more = format!("fallback = [{:?}]", fallback.url());
    let gateway = following(&me, &lists, &more).start().await;
    until(&gateway, "what was done instead", SOON, |follow| {
        let nothing = exception(follow, "no usable relay on the list");
        let none = exception(follow, "no relay list");
        nothing.is_some_and(|nothing| {
            nothing["keys"] == json!([ann.key()])
                && nothing["instead"] == json!({fallback.url(): 1})
        }) && none.is_some_and(|none| {
            none["authors"] == 2 && none["instead"] == json!({fallback.url(): 2})
        }) && follow["refused_urls"]
            == json!({
                "private address": 6, "no relay URL": 3, "with credentials": 1, "hidden service": 1,
                "port of another service": 1, "too long": 1,
            })
    })
    .await;
    let connected = tokio::time::timeout(Duration::from_secs(3), service.accept()).await;
    assert!(connected.is_err(), "somebody's list made the gateway connect to a local service");
}
