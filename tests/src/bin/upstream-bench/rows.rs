//! The rows.

use std::time::Duration;

use clap::ValueEnum;
use nostr_gateway_tests::{
    IndependentRelay,
    figures::Row,
    load::{self, Listener, Notes},
    restarts::restart_and_compare,
};
use tokio::time::sleep;

use crate::{
    catch_up, follow,
    setup::{Setup, TOPIC, stream},
};

/// After the last event was sent, for those on their way.
const ARRIVE: Duration = Duration::from_secs(3);

/// What can be run.
#[derive(Clone, Copy, ValueEnum)]
pub enum Name {
    CatchUpNip77,
    CatchUpPaging,
    Live,
    Restarts,
    Follow,
}

impl Name {
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::CatchUpNip77 => "catching up with NIP-77",
            Self::CatchUpPaging => "catching up by paging",
            Self::Live => "live",
            Self::Restarts => "restarts",
            Self::Follow => "following",
        }
    }
}

/// The lines of one row; in a quick run without a verdict.
pub async fn run(name: Name, setup: Setup) -> Vec<Row> {
    let mut rows = match name {
        Name::CatchUpNip77 => catch_up::negentropy(&setup).await,
        Name::CatchUpPaging => catch_up::paging(&setup).await,
        Name::Live => vec![live(&setup).await],
        Name::Restarts => vec![restarts(&setup).await],
        Name::Follow => follow::rows(&setup).await,
    };
    if setup.quick {
        rows.iter_mut().for_each(|row| row.met = None);
    }
    rows
}

/// Relay → gateway → client, beside a client of the relay itself.
async fn live(setup: &Setup) -> Row {
    let notes = Notes::sign(setup.or(3_000, 200));
    let relay = IndependentRelay::start(&[]).await;
    let table = stream(&relay.url(), "down");
    let gateway = setup.builder("bridge").table(&table).start().await;
    let direct = Listener::start(&relay.url(), &notes).await;
    let bridged = Listener::start(&gateway.topic_url(TOPIC), &notes).await;
    // The stream has to be there first.
    gateway.wait_for_metric("nostr_gateway_upstream_connects_total", 1, ARRIVE * 10).await;
    sleep(ARRIVE).await;
    load::write(relay.url(), notes.clone(), 0, 1, Some(100.0)).await;
    sleep(ARRIVE).await;
    let (added, missing) = bridged.behind(&direct);
    let percentile = |share: f64| {
        let last = added.len().checked_sub(1).expect("events came");
        added[(last as f64 * share).round() as usize]
    };
    Row::new(format!("live, {} events at 100/s", notes.count()), "adds ≤ 2 ms p50")
        .figure("adds p50 ms", percentile(0.5))
        .figure("p99 ms", percentile(0.99))
        .figure("missing", missing as f64)
        .met(percentile(0.5) <= 2.0 && missing == 0)
}

/// Both sides of a bridge while the relay is restarted again and again.
async fn restarts(setup: &Setup) -> Row {
    let (times, count) = (setup.or(50, 5), setup.or(20_000, 1_000));
    let mut relay = IndependentRelay::start(&[]).await;
    let table = stream(&relay.url(), "both");
    let gateway = setup.builder("bridge").table(&table).start().await;
    let patience = Duration::from_secs(120);
    let took = restart_and_compare(&mut relay, &gateway, TOPIC, (times, count), patience).await;
    let since = took.equal.saturating_sub(took.published);
    Row::new(format!("{times} restarts, {count} events"), "equal ≤ 10 s after the last restart")
        .figure("equal after s", took.equal.as_secs_f64())
        .figure("after the last event s", since.as_secs_f64())
        .met(took.equal <= Duration::from_secs(10))
}
