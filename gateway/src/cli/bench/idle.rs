//! Thousands of connections that do nothing: what they cost, and whether others notice them.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use super::{
    connection::{Socket, Target, Use},
    error::BenchError,
    fresh::Fresh,
    latency::Summary,
    publish,
    server::Process,
    shapes,
};
use crate::cli::progress::Progress;

/// Handshakes at the same time.
const AT_ONCE: usize = 64;

/// Connections from one source address: the system has about 28,000 ports for each.
const PER_SOURCE: u32 = 20_000;

/// What the relay's allocator is given to come to rest.
const REST: Duration = Duration::from_secs(1);

/// Events whose latency is compared, one at a time.
pub const PROBES: u32 = 500;

#[derive(Debug, Serialize)]
pub struct IdleReport {
    pub wanted: u32,
    pub opened: u32,
    /// Why not all were opened.
    pub refusal: Option<String>,
    pub seconds: f64,
    /// One event at a time, without and with the connections.
    pub publish_before: Option<Summary>,
    pub publish_with: Option<Summary>,
    /// Private memory of the relay per connection.
    pub bytes_per_connection: Option<f64>,
    pub private_bytes_before: Option<u64>,
    pub private_bytes: Option<u64>,
}

pub async fn measure(
    target: &Target,
    wanted: u32,
    process: Option<Process>,
    [mut before, mut with]: [Fresh; 2],
    progress: &Progress,
) -> Result<IdleReport, BenchError> {
    let publish_before = probe(target, &mut before).await?;
    sleep(REST).await;
    let private_before = process.map(Process::private_bytes).transpose()?;
    let start = Instant::now();
    let (sockets, refusal) = open_all(target, wanted, progress).await?;
    let seconds = start.elapsed().as_secs_f64();
    sleep(REST).await;
    let private = process.map(Process::private_bytes).transpose()?;
    let publish_with = probe(target, &mut with).await?;
    let opened = sockets.len() as u32;
    let grown = private.zip(private_before).map(|(now, before)| now as f64 - before as f64);
    Ok(IdleReport {
        wanted,
        opened,
        refusal,
        seconds: (seconds * 1_000.0).round() / 1_000.0,
        publish_before,
        publish_with,
        bytes_per_connection: grown.filter(|_| opened > 0).map(|b| (b / f64::from(opened)).round()),
        private_bytes_before: private_before,
        private_bytes: private,
    })
}

/// Opens connections until there are enough or the relay takes no more; the first must succeed.
async fn open_all(
    target: &Target,
    wanted: u32,
    progress: &Progress,
) -> Result<(Vec<Socket>, Option<String>), BenchError> {
    let mut opening =
        stream::iter((0..wanted).map(|number| open(target, number))).buffer_unordered(AT_ONCE);
    let mut sockets = Vec::with_capacity(wanted as usize);
    while let Some(opened) = opening.next().await {
        match opened {
            Ok(socket) => {
                sockets.push(socket);
                progress.add(1);
            }
            Err(error) if sockets.is_empty() => return Err(error),
            Err(error) => return Ok((sockets, Some(error.to_string()))),
        }
    }
    Ok((sockets, None))
}

/// One connection with one subscription that matches nothing that is published here.
async fn open(target: &Target, number: u32) -> Result<Socket, BenchError> {
    // Not for the first ones: a port that is bound before the connection must not be in TIME_WAIT, and
    // after another run it takes the system long to find such.
    let source = (number >= PER_SOURCE && target.is_loopback_v4()).then(|| {
        let last = 1 + (number / PER_SOURCE).min(250) as u8;
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
    });
    let mut socket = target.open("idle", Use::Idle, source).await?;
    let author = format!("{number:064x}");
    let filter = json!({ "kinds": [1], "authors": [author], "limit": 1 });
    socket.ask(shapes::req("idle", &filter)).await?;
    Ok(socket)
}

async fn probe(target: &Target, events: &mut Fresh) -> Result<Option<Summary>, BenchError> {
    let progress = Progress::silent();
    let (tally, start, end) = publish::publish(target, "idle", 1, 1, events, &progress).await?;
    Ok(tally.into_report(1, 1, start, end).ok)
}
