//! Asks for a while, each connection waiting for EOSE before it asks again.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use serde::Serialize;

use super::{
    connection::{Socket, Target, Use},
    error::BenchError,
    latency::{Latencies, Summary},
    server::Used,
    shapes::{Group, SUBSCRIPTION},
};
use crate::cli::progress::Progress;

#[derive(Debug, Serialize)]
pub struct QueryReport {
    pub connections: u32,
    pub requests: u64,
    pub events: u64,
    pub seconds: f64,
    pub per_second: f64,
    pub eose: Option<Summary>,
    pub shapes: Vec<ShapeReport>,
    pub server: Option<Used>,
    pub own_cpu_s: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct ShapeReport {
    pub name: &'static str,
    pub requests: u64,
    pub events: u64,
    pub eose: Option<Summary>,
}

/// What is known of one group so far.
#[derive(Default)]
struct Asked {
    events: u64,
    latencies: Latencies,
}

/// Asks the groups in turn, and in each group its shapes in turn: so each group is an equal part,
/// whatever the number of its shapes. A tenth of the time before is not counted.
pub async fn measure(
    target: &Target,
    phase: &'static str,
    connections: u32,
    duration: Duration,
    groups: &[Group],
    progress: &Progress,
) -> Result<QueryReport, BenchError> {
    let opening = (0..connections).map(|_| target.open(phase, Use::Traffic, None));
    let sockets = try_join_all(opening).await?;
    let asked: Vec<RefCell<Asked>> = groups.iter().map(|_| RefCell::default()).collect();
    let turns = Cell::new(0);
    let start = Instant::now() + duration / 10;
    let end = start + duration;
    try_join_all(
        sockets.into_iter().map(|socket| ask(socket, groups, &asked, &turns, start..end, progress)),
    )
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let mut all = Latencies::default();
    let (mut requests, mut events) = (0, 0);
    let mut shapes = Vec::new();
    for ((name, _), asked) in groups.iter().zip(asked) {
        let Asked { events: found, latencies } = asked.into_inner();
        requests += latencies.count() as u64;
        events += found;
        all.extend(&latencies);
        shapes.push(ShapeReport {
            name,
            requests: latencies.count() as u64,
            events: found,
            eose: latencies.summary(),
        });
    }
    Ok(QueryReport {
        connections,
        requests,
        events,
        seconds: (seconds * 1_000.0).round() / 1_000.0,
        per_second: (requests as f64 / seconds).round(),
        eose: all.summary(),
        shapes,
        server: None,
        own_cpu_s: None,
    })
}

async fn ask(
    mut socket: Socket,
    groups: &[Group],
    asked: &[RefCell<Asked>],
    turns: &Cell<usize>,
    time: std::ops::Range<Instant>,
    progress: &Progress,
) -> Result<(), BenchError> {
    let close = format!("[\"CLOSE\",\"{SUBSCRIPTION}\"]");
    let close = tokio_tungstenite::tungstenite::Utf8Bytes::from(close);
    loop {
        let turn = turns.replace(turns.get() + 1);
        let (group, turn) = (turn % groups.len(), turn / groups.len());
        let shapes = &groups[group].1;
        let (shape, turn) = (turn % shapes.len(), turn / shapes.len());
        let reqs = &shapes[shape].reqs;
        let req = reqs[turn % reqs.len()].clone();
        let sent = Instant::now();
        if sent >= time.end {
            return Ok(());
        }
        let events = socket.ask(req).await?;
        let done = Instant::now();
        if sent >= time.start {
            let mut asked = asked[group].borrow_mut();
            asked.events += events;
            asked.latencies.record(done - sent);
            progress.add(1);
        }
        // It leaves together with the next question.
        socket.feed(close.clone()).await?;
    }
}
