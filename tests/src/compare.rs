//! Whether a relay has exactly these events, by reconciling with it (NIP-77).

use std::time::Duration;

use nostr_sdk::Event;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{Difference, RawClient};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// What a relay has of a filter, in comparison with these events.
pub async fn difference(url: &str, filter: &Value, events: &[Event]) -> Difference {
    let mut client = RawClient::connect(url).await;
    client.negentropy(filter, events).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Waits until a relay has exactly these events.
pub async fn has_exactly(what: &str, url: &str, events: &[Event], deadline: Duration) {
    has_exactly_of(what, url, &json!({}), events, deadline).await;
}

/// The same of what a filter matches.
pub async fn has_exactly_of(
    what: &str,
    url: &str,
    filter: &Value,
    events: &[Event],
    deadline: Duration,
) {
    let end = Instant::now() + deadline;
    loop {
        let found = difference(url, filter, events).await;
        if found.only_here.is_empty() && found.only_there.is_empty() {
            return;
        }
        assert!(
            Instant::now() < end,
            "within {deadline:?}, {what} did not have exactly these {} events: {} are missing ({}), \
             {} are too many ({})",
            events.len(),
            found.only_here.len(),
            described(&found.only_here, events),
            found.only_there.len(),
            found.only_there.first().map_or("none", String::as_str),
        );
        sleep(PAUSE).await;
    }
}

/// The first few.
fn described(ids: &[String], events: &[Event]) -> String {
    let first = ids.iter().take(3).filter_map(|id| {
        let event = events.iter().find(|event| event.id.to_hex() == *id)?;
        Some(format!("kind {} of {}", event.kind.as_u16(), event.created_at.as_secs()))
    });
    first.collect::<Vec<_>>().join(", ")
}
