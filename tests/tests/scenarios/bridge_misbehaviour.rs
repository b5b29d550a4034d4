//! Relays that misbehave are shown as what they are, and hold up nobody.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nostr_gateway_tests::{
    Gateway, IndependentRelay, RawClient, ScriptedRelay, events, eventually, ordinary, proc,
    report,
    scripted::{Document, Door, OnNeg, OnReq, Script},
};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};

use crate::{
    alone,
    bridge::{FLOW, builder, shown},
};

/// How long relays are watched for loops, after everything was shown: several of the first back-offs.
const WATCH: Duration = Duration::from_secs(15);
/// The longest time-out for an answer is well within this.
const SHOWN: Duration = Duration::from_secs(90);

/// A relay that misbehaves, and what must come of it.
struct Case {
    name: &'static str,
    script: Script,
    /// A word of what the operator is shown.
    word: &'static str,
    /// Its events come all the same.
    is_survived: bool,
}

fn case(name: &'static str, word: &'static str, script: Script) -> Case {
    Case { name, script, word, is_survived: false }
}

/// No trouble worth telling: its events come.
fn survived(name: &'static str, script: Script) -> Case {
    Case { name, script: Script { max_limit: 50, ..script }, word: "", is_survived: true }
}

/// A stream of all that an ordinary relay has, into the topic of its name.
fn asking(name: &str, url: &str) -> String {
    format!(
        "[[upstream]]\nname = {name:?}\nurls = [{url:?}]\ntopics = [{name:?}]\n\
         filter = {{ kinds = [0, 1, 3, 6, 7, 10002, 30078] }}\n"
    )
}

fn door(door: Door) -> Script {
    Script { door, ..Script::default() }
}

fn document(document: Document) -> Script {
    Script { document, ..Script::default() }
}

fn cases() -> Vec<Case> {
    let text = |text: &str| text.to_owned();
    let lies = json!({"name": 7, "supported_nips": "77", "limitation": {"max_limit": "many",
        "max_subscriptions": -3, "max_message_length": {}, "min_pow_difficulty": 1e300}});
    let zeros = json!({"max_limit": 0, "max_subscriptions": 0, "max_filters": 0,
        "max_message_length": 0, "max_subid_length": 0, "min_pow_difficulty": 0});
    vec![
        case("never-upgrades", "", door(Door::Silent)),
        case("hangs-up", "", door(Door::HangUp)),
        case("refuses", "503", door(Door::Refuse(503))),
        case("closes-again", "", door(Door::CloseAfter(Duration::from_millis(200)))),
        case("silent", "", Script::on_req(OnReq::Silence)),
        case(
            "closed",
            "no room for you",
            Script::on_req(OnReq::Closed(text("error: no room for you"))),
        ),
        case(
            "notices",
            "cannot be bothered",
            Script::on_req(OnReq::Notice(text("cannot be bothered"))),
        ),
        case("no-eose", "", Script::on_req(OnReq::NoEose)),
        case("endless", "", Script::on_req(OnReq::Endless(Duration::from_millis(5)))),
        case("wrong-subscription", "", Script::on_req(OnReq::WrongSubscription)),
        case("forges", "invalid", Script::on_req(OnReq::Forged(40))),
        case("unasked", "", Script::on_req(OnReq::Unasked(40))),
        case("oversize", "", Script::on_req(OnReq::Oversize(12 << 20))),
        case("garbage", "", Script::on_req(OnReq::Garbage(text("{\"EVENT\"")))),
        case("garbage-event", "", Script::on_req(OnReq::Garbage(text(r#"["EVENT","x",[]]"#)))),
        survived("slow", Script { delay: Duration::from_millis(400), ..Script::default() }),
        survived("same-page", Script::on_req(OnReq::SamePage)),
        survived("binary", Script::on_req(OnReq::Binary)),
        survived("no-document", document(Document::None)),
        survived("no-json", document(Document::Text(text("<html>hello</html>")))),
        survived("deep-json", document(Document::Text("[".repeat(100_000)))),
        survived("lies", document(Document::Json(lies))),
        survived("zeros", Script::default().limits(zeros)),
        survived("endless-document", document(Document::Endless)),
        survived("silent-document", document(Document::Silent)),
        survived("neg-silence", Script::lying_about_negentropy(OnNeg::Silence)),
        survived(
            "neg-notice",
            Script::lying_about_negentropy(OnNeg::Notice(text("ERROR: bad msg"))),
        ),
        survived("neg-error", Script::lying_about_negentropy(OnNeg::Error(text("blocked: no")))),
        survived("neg-closed", Script::lying_about_negentropy(OnNeg::Closed(text("error: what?")))),
        survived("neg-garbage", Script::lying_about_negentropy(OnNeg::Garbage(text("61ff00zz")))),
        survived("neg-nonsense", Script::lying_about_negentropy(OnNeg::Garbage(text("6102ffff")))),
        survived("neg-echo", Script::lying_about_negentropy(OnNeg::Echo)),
    ]
}

/// All of them at once on one gateway, beside a relay that is as it should be.
#[tokio::test(flavor = "multi_thread")]
async fn relays_that_misbehave_are_shown_and_hold_up_nobody() {
    let _alone = alone().await;
    let cases = cases();
    let mut relays = Vec::new();
    let mut held: Vec<Vec<Event>> = Vec::new();
    for case in &cases {
        // What never gives another page has only one.
        let count = if case.name == "same-page" { 50 } else { 120 };
        let own = ordinary(count, events::now() - 3_600);
        relays.push(ScriptedRelay::holding(case.script.clone(), &own).await);
        held.push(own);
    }
    let good_events = ordinary(300, events::now() - 3_600);
    let good = IndependentRelay::start(&good_events).await;
    let mut names: Vec<&str> = cases.iter().map(|case| case.name).collect();
    names.push("good");
    let mut gateway = builder("bridge").topics(&names);
    for (case, relay) in cases.iter().zip(&relays) {
        gateway = gateway.table(&asking(case.name, &relay.url()));
    }
    let begun = Instant::now();
    let gateway = gateway.upstream("good", &good.url(), "good").start().await;

    // The good one is complete and live meanwhile.
    let latencies = watch_the_good_one(&gateway, &good, &good_events);
    let survivors = async {
        for (case, own) in cases.iter().zip(&held).filter(|(case, _)| case.is_survived) {
            arrives(&gateway, case.name, own).await;
        }
        begun.elapsed()
    };
    let (mut latencies, all_came) = tokio::join!(latencies, survivors);
    latencies.sort();
    let median = latencies[latencies.len() / 2];
    report(&format!(
        "beside {} relays that misbehave: live p50 {median:?}, max {:?}; those that can be survived \
         were complete after {all_came:?}",
        cases.len(),
        latencies.last().unwrap()
    ));
    assert!(median < Duration::from_secs(1), "{latencies:?}");

    // Each is shown, and says in the operator's words what the matter is.
    for case in cases.iter().filter(|case| !case.is_survived) {
        is_shown(&gateway, case).await;
    }
    assert!(gateway.status().await["upstreams"].is_array());

    // And from then on little is sent to them. Nothing loops.
    let before: Vec<_> = relays.iter().map(ScriptedRelay::counts).collect();
    tokio::time::sleep(WATCH).await;
    let mut loops = Vec::new();
    for ((case, relay), before) in cases.iter().zip(&relays).zip(&before) {
        let counts = relay.counts();
        let connections = counts.connections - before.connections;
        let messages = counts.messages() - before.messages();
        let documents = counts.documents - before.documents;
        if connections > 8 || messages > 30 || documents > 8 {
            loops.push(format!(
                "{}: {connections} connections, {messages} messages, {documents} documents in \
                 {WATCH:?}",
                case.name
            ));
        }
        // In the beginning, too. A relay that is being restarted is asked again every three seconds.
        let most = 10 + begun.elapsed().as_secs() * 4 / 10;
        if counts.connections > most || counts.messages() > 4 * most {
            loops.push(format!(
                "{} since the start: {} connections, {:?}",
                case.name, counts.connections, counts.verbs
            ));
        }
        if counts.open > 1 {
            loops.push(format!("{}: {} connections are open", case.name, counts.open));
        }
    }
    assert!(loops.is_empty(), "{loops:#?}");

    // Of what was forged or not asked for, nothing is stored.
    let mut client = RawClient::connect(&gateway.url()).await;
    assert!(client.stored_ids(&[json!({"kinds": [4242]})]).await.is_empty());
    for name in ["forges", "unasked"] {
        assert_eq!(topic_size(&gateway, name).await, 0, "{name}");
    }
    let megabytes = proc::private_bytes(gateway.pid()) as f64 / 1e6;
    report(&format!("private memory with {} streams: {megabytes:.0} MB", names.len()));
    assert!(megabytes < 400.0, "{megabytes} MB");
}

/// Waits for the relay's past, then times a hundred live events from relay to client.
async fn watch_the_good_one(
    gateway: &Gateway,
    good: &IndependentRelay,
    past: &[Event],
) -> Vec<Duration> {
    arrives(gateway, "good", past).await;
    let mut reader = RawClient::connect(&gateway.topic_url("good")).await;
    reader.req("live", &[json!({"limit": 0})]).await;
    let mut writer = RawClient::connect(&good.url()).await;
    let keys = Keys::generate();
    let mut took = Vec::new();
    for n in 0..100 {
        let event = events::note(&keys, &format!("live {n}"));
        let sent = Instant::now();
        writer.accept(&event).await;
        assert_eq!(reader.live("live").await["id"], event.id.to_hex());
        took.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    took
}

/// Waits until a topic has all of these.
async fn arrives(gateway: &Gateway, topic: &str, wanted: &[Event]) {
    let wanted: HashSet<String> = wanted.iter().map(|event| event.id.to_hex()).collect();
    let mut client = RawClient::connect(&gateway.topic_url(topic)).await;
    let end = Instant::now() + FLOW;
    loop {
        let stored = client.stored_ids(&[json!({"limit": 500})]).await;
        // A live event of the question before may be among them.
        let stored: HashSet<String> = stored.into_iter().collect();
        let missing = wanted.difference(&stored).count();
        if missing == 0 {
            return;
        }
        assert!(Instant::now() < end, "{topic}: {missing} of {} did not come", wanted.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn topic_size(gateway: &Gateway, topic: &str) -> u64 {
    RawClient::connect(&gateway.topic_url(topic)).await.count(&[json!({})]).await
}

/// What the relay is shown with: an error, a notice, or something refused.
fn trouble(relay: &Value) -> Option<String> {
    let mut words: Vec<String> = ["error", "notice"]
        .iter()
        .filter_map(|field| Some(relay[field].as_str()?.to_owned()))
        .collect();
    if let Some(refused) = relay["refused"].as_object().filter(|refused| !refused.is_empty()) {
        words.push(Value::Object(refused.clone()).to_string());
    }
    if let Some(why) = relay["catch_up"]["trouble"].as_str() {
        words.push(why.to_owned());
    }
    for figure in ["mismatched", "unasked", "malformed"] {
        if let Some(count) = relay[figure].as_u64().filter(|count| *count > 0) {
            words.push(format!("{count} {figure}"));
        }
    }
    (!words.is_empty()).then(|| words.join("; "))
}

/// Whether it is in other trouble by now.
async fn has_changed(gateway: &Gateway, name: &str, before: &Value) -> bool {
    let (_, now) = shown(gateway, name).await;
    (&now["error"], &now["catch_up"]["trouble"])
        != (&before["error"], &before["catch_up"]["trouble"])
}

async fn is_shown(gateway: &Gateway, case: &Case) {
    let end = Instant::now() + SHOWN;
    loop {
        let (stream, relay) = shown(gateway, case.name).await;
        if let Some(trouble) = trouble(&relay)
            && trouble.contains(case.word)
        {
            report(&format!(
                "{:<20} {:<12} {trouble}",
                case.name,
                relay["state"].as_str().unwrap()
            ));
            // People are told as well as programs.
            let told = gateway.command(&["upstream", "show", case.name]).await.stdout;
            for field in [&relay["error"], &relay["catch_up"]["trouble"]] {
                let is_told = field.as_str().is_none_or(|trouble| told.contains(trouble));
                assert!(
                    is_told || has_changed(gateway, case.name, &relay).await,
                    "{field}: {told}"
                );
            }
            return;
        }
        assert!(Instant::now() < end, "{} with {:?} is not shown: {stream}", case.name, case.word);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A flood costs the gateway neither memory nor the others their service.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_events_is_dammed() {
    let _alone = alone().await;
    let floods = join_all((0..3).map(|n| {
        let req = match n {
            // As fast as they can be signed.
            0 => OnReq::Endless(Duration::ZERO),
            1 => OnReq::Unasked(20_000),
            _ => OnReq::Forged(20_000),
        };
        ScriptedRelay::start(Script::on_req(req))
    }))
    .await;
    let good_events = ordinary(200, events::now() - 3_600);
    let good = IndependentRelay::start(&good_events).await;
    let names = ["endless", "unasked", "forged"];
    let mut gateway = builder("bridge").topics(&["good", "endless", "unasked", "forged"]);
    for (name, relay) in names.iter().zip(&floods) {
        gateway = gateway.table(&asking(name, &relay.url()));
    }
    let gateway = gateway.upstream("good", &good.url(), "good").start().await;
    let mut took = watch_the_good_one(&gateway, &good, &good_events).await;
    took.sort();
    let megabytes = proc::private_bytes(gateway.pid()) as f64 / 1e6;
    report(&format!(
        "beside floods: live p50 {:?}, max {:?}, {megabytes:.0} MB",
        took[50], took[99]
    ));
    assert!(took[50] < Duration::from_secs(2), "{took:?}");
    assert!(megabytes < 500.0, "{megabytes} MB");
    assert_eq!(topic_size(&gateway, "unasked").await, 0);
    assert_eq!(topic_size(&gateway, "forged").await, 0);
    for (name, relay) in names[1..].iter().zip(&floods[1..]) {
        let what = format!("{name} is shown");
        let found =
            eventually(&what, SHOWN, async || trouble(&shown(&gateway, name).await.1)).await;
        report(&format!("{name}: {found}"));
        assert!(relay.counts().connections < 30, "{}", relay.counts().connections);
    }
}
