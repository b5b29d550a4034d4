//! Live delivery: many connections with the same subscription, one that publishes.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::pending,
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use serde::Serialize;
use serde_json::json;
use tokio::time::{sleep, sleep_until};

use super::{
    connection::{Socket, Target, Use},
    error::BenchError,
    frames::{ShortId, short_id},
    fresh::Fresh,
    latency::{Latencies, Summary},
    publish::{self, Source},
    scan::{self, Frame},
    server::Used,
    shapes,
};
use crate::cli::progress::Progress;

/// What has not been delivered when nothing more came for this long will not be.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize)]
pub struct FanoutReport {
    pub subscribers: u32,
    pub paced: PacedReport,
    pub unpaced: UnpacedReport,
}

#[derive(Debug, Serialize)]
pub struct PacedReport {
    pub events_per_second: u32,
    pub events: u64,
    pub delivered: u64,
    pub expected: u64,
    /// From just before an event is sent until a subscriber has it.
    pub delivery: Option<Summary>,
    pub server: Option<Used>,
}

#[derive(Debug, Serialize)]
pub struct UnpacedReport {
    pub events: u64,
    pub delivered: u64,
    pub expected: u64,
    pub share_delivered: f64,
    pub deliveries_per_second: f64,
    pub events_per_second: f64,
    /// Subscribers whose connection the relay closed.
    pub lost_subscribers: u64,
    pub server: Option<Used>,
}

/// The subscribers' common view.
#[derive(Default)]
struct Deliveries {
    count: Cell<u64>,
    last: Cell<Option<Instant>>,
    lost: Cell<u64>,
    /// When each event was sent; empty when nobody asks for latencies.
    sent: RefCell<HashMap<ShortId, Instant>>,
    latencies: RefCell<Latencies>,
}

/// Publishes at a steady rate and measures how long each delivery takes.
pub async fn paced(
    target: &Target,
    subscribers: u32,
    rate: u32,
    hashtag: &str,
    mut events: Fresh,
    progress: &Progress,
) -> Result<PacedReport, BenchError> {
    let count = events.len() as u64;
    let expected = count * u64::from(subscribers);
    let sockets = subscribe(target, subscribers, hashtag).await?;
    let mut publisher = target.open("fanout", Use::Traffic, None).await?;
    let deliveries = Deliveries::default();
    let publishing = async {
        let period = Duration::from_secs(1) / rate;
        let start = tokio::time::Instant::now();
        let mut number = 0;
        while let Some(frame) = events.next()? {
            sleep_until(start + period * number).await;
            number += 1;
            deliveries.sent.borrow_mut().insert(frame.id, Instant::now());
            publisher.send(frame.text).await?;
            refused(&mut publisher, target)?;
            progress.add(1);
        }
        Ok(())
    };
    watch(sockets, &deliveries, count, expected, publishing).await?;
    refused(&mut publisher, target)?;
    Ok(PacedReport {
        events_per_second: rate,
        events: count,
        delivered: deliveries.count.get(),
        expected,
        delivery: deliveries.latencies.into_inner().summary(),
        server: None,
    })
}

/// Publishes as fast as the relay says OK and measures how many deliveries come of it.
pub async fn unpaced(
    target: &Target,
    subscribers: u32,
    in_flight: u32,
    hashtag: &str,
    mut events: Fresh,
    progress: &Progress,
) -> Result<UnpacedReport, BenchError> {
    let count = events.len() as u64;
    let expected = count * u64::from(subscribers);
    let sockets = subscribe(target, subscribers, hashtag).await?;
    let deliveries = Deliveries::default();
    let start = Instant::now();
    let rate = Cell::new(0.0);
    let publishing = async {
        let (_, start, end) =
            publish::publish(target, "fanout", 1, in_flight, &mut events, progress).await?;
        rate.set(count as f64 / end.duration_since(start).as_secs_f64());
        Ok(())
    };
    watch(sockets, &deliveries, count, expected, publishing).await?;
    let delivered = deliveries.count.get();
    let seconds = deliveries.last.get().unwrap_or(start).duration_since(start).as_secs_f64();
    Ok(UnpacedReport {
        events: count,
        delivered,
        expected,
        share_delivered: delivered as f64 / expected as f64,
        deliveries_per_second: if seconds > 0.0 {
            (delivered as f64 / seconds).round()
        } else {
            0.0
        },
        events_per_second: rate.get().round(),
        lost_subscribers: deliveries.lost.get(),
        server: None,
    })
}

/// Opens the subscribers and waits until each has its EOSE.
async fn subscribe(
    target: &Target,
    subscribers: u32,
    hashtag: &str,
) -> Result<Vec<Socket>, BenchError> {
    let req = shapes::req("live", &json!({ "kinds": [1], "#t": [hashtag] }));
    let mut sockets = Vec::with_capacity(subscribers as usize);
    for _ in 0..subscribers {
        sockets.push(target.open("fanout", Use::Traffic, None).await?);
    }
    let asking = sockets.into_iter().map(|mut socket| {
        let req = req.clone();
        async move {
            socket.ask(req).await?;
            Ok::<_, BenchError>(socket)
        }
    });
    try_join_all(asking).await
}

/// Publishes while the subscribers read, then waits until everything is delivered or nothing comes
/// any more.
async fn watch(
    sockets: Vec<Socket>,
    deliveries: &Deliveries,
    events: u64,
    expected: u64,
    publishing: impl Future<Output = Result<(), BenchError>>,
) -> Result<(), BenchError> {
    let reading = join_all(sockets.into_iter().map(|socket| read(socket, deliveries, events)));
    let publishing = async {
        publishing.await?;
        let mut before = (0, Instant::now());
        while deliveries.count.get() < expected && before.1.elapsed() < GRACE {
            if before.0 != deliveries.count.get() {
                before = (deliveries.count.get(), Instant::now());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    let reading = async {
        reading.await;
        // The publisher decides when it is over.
        pending::<()>().await;
    };
    tokio::select! {
        done = publishing => done,
        () = reading => Ok(()),
    }
}

/// One subscriber, until it has everything or its connection is gone.
async fn read(mut socket: Socket, deliveries: &Deliveries, events: u64) {
    let mut got = 0;
    while got < events {
        let Ok(text) = socket.next().await else {
            deliveries.lost.set(deliveries.lost.get() + 1);
            return;
        };
        if !matches!(scan::frame(&text), Frame::Event) {
            continue;
        }
        got += 1;
        deliveries.count.set(deliveries.count.get() + 1);
        let now = Instant::now();
        deliveries.last.set(Some(now));
        let sent = deliveries.sent.borrow();
        if !sent.is_empty()
            && let Some(sent) =
                scan::event_id(&text).and_then(short_id).and_then(|id| sent.get(&id))
        {
            deliveries.latencies.borrow_mut().record(now.duration_since(*sent));
        }
    }
}

/// An error when the relay has refused an event.
fn refused(publisher: &mut Socket, target: &Target) -> Result<(), BenchError> {
    while let Some(text) = publisher.ready()? {
        if let Frame::Ok { accepted: false, message, .. } = scan::frame(&text) {
            return Err(publish::refused(target, message));
        }
    }
    Ok(())
}
