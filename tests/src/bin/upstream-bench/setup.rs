//! The gateway of a row, and the yardstick.

use std::{path::PathBuf, time::Duration};

use nostr_gateway::protocol::{Event, VerifiedEvent};
use nostr_gateway_tests::{Gateway, GatewayBuilder, events};
use tokio::time::{Instant, sleep};

pub const TOPIC: &str = "town";

/// What all rows need.
#[derive(Clone)]
pub struct Setup {
    pub gateway: PathBuf,
    pub quick: bool,
}

impl Setup {
    /// The first when everything is measured, the second in a quick run.
    pub fn or<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A gateway in the topic that goes nowhere.
    pub fn builder(&self, name: &str) -> GatewayBuilder {
        GatewayBuilder::new(self.gateway.to_str().unwrap(), name)
            .topics(&[TOPIC])
            .env("RUST_LOG", "warn")
    }
}

/// A stream of the topic.
pub fn stream(url: &str, direction: &str) -> String {
    format!(
        "[[upstream]]\nname = \"bench\"\nurls = [{url:?}]\ndirection = {direction:?}\n\
         topics = [{TOPIC:?}]\n"
    )
}

/// A file with these events, in a folder that is gone with the first value.
pub fn file<'a>(
    events: impl IntoIterator<Item = &'a nostr_sdk::Event>,
) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let lines: Vec<String> = events.into_iter().map(events::json).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

/// Events a second that one core verifies, as the gateway does it: on this thread alone.
pub fn verification_rate(events: &[nostr_sdk::Event]) -> f64 {
    let parsed: Vec<Event> = events
        .iter()
        .take(10_000)
        .map(|event| Event::parse(&events::json(event)).expect("a valid event"))
        .collect();
    let count = parsed.len() as f64;
    let start = std::time::Instant::now();
    for event in parsed {
        VerifiedEvent::verify(event).expect("a valid event");
    }
    count / start.elapsed().as_secs_f64()
}

/// Waits until a gateway has stored so many events since it started.
pub async fn has_stored(gateway: &Gateway, count: usize) -> Instant {
    let end = Instant::now() + Duration::from_secs(180);
    loop {
        let stored = gateway.metric(r#"nostr_gateway_events_total{outcome="stored""#).await;
        if stored >= count as u64 {
            return Instant::now();
        }
        assert!(Instant::now() < end, "{stored} of {count} events came");
        sleep(Duration::from_millis(50)).await;
    }
}
