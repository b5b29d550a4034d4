//! A relay that is restarted again and again while events are published on both sides of a bridge.

use std::time::Duration;

use nostr_sdk::{Event, Keys};
use tokio::time::{Instant, sleep};

use crate::{Gateway, IndependentRelay, RawClient, compare::has_exactly, events};

/// How long the relay is there, and how long it is away.
const UP: Duration = Duration::from_millis(700);
const AWAY: Duration = Duration::from_millis(100);

/// When all was well again, each since the last restart.
#[derive(Debug)]
pub struct Restarts {
    pub published: Duration,
    pub equal: Duration,
}

/// Restarts the relay so many times and publishes half of the events on each side meanwhile. Waits until
/// both sides have all of them, at most this long.
pub async fn restart_and_compare(
    relay: &mut IndependentRelay,
    gateway: &Gateway,
    topic: &str,
    (restarts, count): (usize, usize),
    patience: Duration,
) -> Restarts {
    let url = gateway.topic_url(topic);
    let pause = (UP + AWAY) * restarts as u32 / (count / 2) as u32;
    let at_gateway = tokio::spawn(steadily(url.clone(), count / 2, pause));
    let at_relay = tokio::spawn(steadily(relay.url(), count / 2, pause));
    for _ in 0..restarts {
        sleep(UP).await;
        relay.stop();
        sleep(AWAY).await;
        relay.restart().await;
    }
    let last = Instant::now();
    let (of_gateway, of_relay) = (at_gateway.await.unwrap(), at_relay.await.unwrap());
    let published = last.elapsed();
    let all = [of_gateway, of_relay].concat();
    has_exactly("the gateway", &url, &all, patience).await;
    has_exactly("the relay", &relay.url(), &all, patience).await;
    Restarts { published, equal: last.elapsed() }
}

/// Publishes so many notes, each until it is acknowledged, with new connections where one ends.
async fn steadily(url: String, count: usize, pause: Duration) -> Vec<Event> {
    let keys = Keys::generate();
    let start = Instant::now();
    let mut client: Option<RawClient> = None;
    let mut published = Vec::new();
    for n in 0..count {
        let event = events::note(&keys, &format!("{n} at {url}"));
        // A relay that has it already says duplicate.
        loop {
            let mut open = match client.take() {
                Some(open) => open,
                None => match RawClient::try_connect(&url).await {
                    Ok(open) => open,
                    Err(_) => {
                        sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            if open.try_publish(&event).await.is_some_and(|(accepted, _)| accepted) {
                client = Some(open);
                break;
            }
        }
        published.push(event);
        tokio::time::sleep_until(start + pause * n as u32).await;
    }
    published
}
