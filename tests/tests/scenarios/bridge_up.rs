//! What goes up to relays: later when they are away, once each, and what they refuse is told.

use std::time::{Duration, Instant};

use nostr_gateway_tests::{
    Gateway, RawClient, ScriptedRelay, events, eventually, report,
    scripted::{Auth, OnEvent, Script},
};
use nostr_sdk::{Event, Keys};
use serde_json::Value;

use crate::{
    alone,
    bridge::{FLOW, builder, settled, shown, stream},
};

/// Nothing more is sent after so long.
const QUIET: Duration = Duration::from_secs(4);

async fn publish(gateway: &Gateway, count: usize, word: &str) -> Vec<Event> {
    let keys = Keys::generate();
    let mut client = RawClient::connect(&gateway.topic_url("town")).await;
    let mut published = Vec::new();
    for n in 0..count {
        let event = events::note(&keys, &format!("{word} {n}"));
        client.accept(&event).await;
        published.push(event);
    }
    published
}

fn up(shown: &(Value, Value)) -> &Value {
    let up = &shown.1["up"];
    assert!(up.is_object(), "{}", shown.0);
    up
}

/// An outbox: what is written while the relay is away goes there when it is back, over restarts of
/// both, and only once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_the_relay_is_away_arrives_later() {
    let _alone = alone().await;
    let mut relay = ScriptedRelay::start(Script::default()).await;
    relay.stop();
    let table = stream("s", &relay.url(), "up", "");
    let mut gateway = builder("A").table(&table).start().await;
    let mut all = publish(&gateway, 150, "the relay was never there").await;
    let waiting = eventually("what waits is shown", FLOW, async || {
        let shown = shown(&gateway, "s").await;
        up(&shown)["waiting"].as_u64().filter(|waiting| *waiting >= 150)
    })
    .await;
    assert_eq!(waiting, 150);
    gateway.interrupt().await;
    gateway = gateway.restart().await;
    all.extend(publish(&gateway, 50, "the gateway was restarted").await);
    relay.restart().await;
    eventually("all of it at the relay", FLOW, async || {
        (relay.ids().len() >= all.len()).then_some(())
    })
    .await;
    // Away again, in the middle of it, and killed meanwhile.
    let before = relay.counts();
    relay.stop();
    all.extend(publish(&gateway, 100, "and away again").await);
    gateway.kill9().await;
    gateway = gateway.restart().await;
    all.extend(publish(&gateway, 20, "killed meanwhile").await);
    relay.restart().await;
    eventually("the rest at the relay", FLOW, async || {
        (relay.ids().len() >= all.len()).then_some(())
    })
    .await;
    assert_eq!(relay.ids(), events::ids(&all));
    let sent = settled("up", QUIET, async || relay.counts().verb("EVENT")).await;
    report(&format!("{} events went up in {sent} messages", all.len()));
    // A kill may cost the last seconds of the cursor: what was sent before is sent again.
    assert!(sent <= all.len() as u64 + before.verb("EVENT"), "{sent} messages");
    let shown = shown(&gateway, "s").await;
    assert_eq!(up(&shown)["waiting"], 0, "{}", shown.0);
    assert!(shown.0["sent"].as_u64().is_some_and(|sent| sent >= 120), "{}", shown.0);
}

/// `OK false`, by its prefix; OK three times, and none at all.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_apart() {
    let _alone = alone().await;
    const EVENTS: u64 = 12;
    let refuse = |reason: &str| Script::on_event(OnEvent::Refuse(reason.to_owned()));
    let asking = Auth { to_write: true, to_read: false };
    let limited = OnEvent::RateLimitedUntil(Instant::now() + Duration::from_secs(12));
    let cases = [
        ("blocked", refuse("blocked: not here")),
        ("invalid", refuse("invalid: too new")),
        ("restricted", refuse("restricted: members only")),
        ("pow", refuse("pow: 30 bits at least")),
        ("unprefixed", refuse("I do not like it")),
        ("error", refuse("error: the disk is full")),
        ("duplicate", Script::on_event(OnEvent::Duplicate)),
        ("false-duplicate", refuse("duplicate: have it")),
        ("thrice", Script::on_event(OnEvent::Thrice)),
        ("silent", Script::on_event(OnEvent::Silence)),
        ("limited", Script::on_event(limited)),
        ("auth", Script { auth: asking, ..Script::default() }),
        ("no-auth", Script { auth: asking, ..Script::default() }),
    ];
    let mut gateway = builder("A");
    let mut relays = Vec::new();
    for (name, script) in &cases {
        let relay = ScriptedRelay::start(script.clone()).await;
        let more = if *name == "auth" { "auth = true" } else { "" };
        gateway = gateway.table(&stream(name, &relay.url(), "up", more));
        relays.push(relay);
    }
    let gateway = gateway.start().await;
    let all = publish(&gateway, EVENTS as usize, "up").await;
    let of = |wanted: &str| {
        let at = cases.iter().position(|(name, _)| *name == wanted).unwrap();
        &relays[at]
    };
    // What is taken arrives, after the limit and after authenticating too.
    for name in ["thrice", "silent", "limited", "auth"] {
        let relay = of(name);
        eventually(&format!("all of it at {name}"), FLOW, async || {
            (relay.ids() == events::ids(&all)).then_some(())
        })
        .await;
    }
    let auth = of("auth").counts();
    assert!(auth.wrong_auths.is_empty() && !auth.authenticated.is_empty(), "{auth:?}");
    // Nobody is told our key who was not allowed to know it.
    assert_eq!(of("no-auth").counts().verb("AUTH"), 0);

    // What is refused for good is dropped, with the relay's reason.
    for name in ["blocked", "invalid", "restricted", "pow", "unprefixed"] {
        let reason = match &cases.iter().find(|case| case.0 == name).unwrap().1.event {
            OnEvent::Refuse(reason) => reason.clone(),
            _ => unreachable!("these refuse"),
        };
        let told = eventually(&format!("{name} is shown"), FLOW, async || {
            let (stream, _) = shown(&gateway, name).await;
            stream.to_string().contains(&reason).then_some(stream)
        })
        .await;
        report(&format!("{name}: {}", told["relays"][0]["up"]));
    }
    for name in ["duplicate", "false-duplicate"] {
        eventually(&format!("{name} is a success"), FLOW, async || {
            let shown = shown(&gateway, name).await;
            let up = up(&shown);
            let is_empty = up["refused"].as_object().is_none_or(serde_json::Map::is_empty);
            (up["waiting"] == 0 && is_empty).then_some(())
        })
        .await;
    }
    // An error is tried again, a few times; nothing is sent without end.
    for (name, _) in &cases {
        let relay = of(name);
        let sent = settled(name, QUIET, async || relay.counts().verb("EVENT")).await;
        let most = match *name {
            "error" => EVENTS * 6,
            // The first ones wait and are sent again.
            "limited" | "silent" => EVENTS * 4,
            "auth" => EVENTS * 2,
            "no-auth" => EVENTS * 2,
            _ => EVENTS,
        };
        report(&format!("{name}: {sent} messages for {EVENTS} events"));
        assert!(sent <= most, "{name}: {sent} messages for {EVENTS} events");
        assert!(relay.counts().connections <= 12, "{name}: {}", relay.counts().connections);
    }
    assert!(of("error").counts().verb("EVENT") > EVENTS, "an error is tried again");
}

/// A relay that refuses everything is left alone for a while, and the reason is shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_refuses_everything_pauses() {
    let refuse = OnEvent::Refuse("blocked: nobody writes here".to_owned());
    let relay = ScriptedRelay::start(Script::on_event(refuse)).await;
    let gateway = builder("A").table(&stream("s", &relay.url(), "up", "")).start().await;
    publish(&gateway, 300, "up").await;
    let reason = eventually("the pause is shown", FLOW, async || {
        let shown = shown(&gateway, "s").await;
        let up = up(&shown);
        (up["state"] == "paused").then(|| up["reason"].as_str().unwrap_or_default().to_owned())
    })
    .await;
    assert!(reason.contains("nobody writes here"), "{reason}");
    let sent = settled("up", QUIET, async || relay.counts().verb("EVENT")).await;
    report(&format!("paused after {sent} of 300: {reason}"));
    assert!(sent < 200, "{sent} were sent to a relay that takes nothing");
    let status = gateway.status().await["upstreams"].to_string();
    assert!(status.contains("nobody writes here"), "{status}");
}
