//! How many signatures one core verifies: what publishing is compared with. And all cores at once: what an
//! import is.

use std::{
    io,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Barrier},
    thread,
    time::Instant,
};

use serde::Serialize;

use super::frames::{Frames, event_json};
use crate::{
    protocol::{Event, VerifiedEvent},
    tasks,
};

/// Events of one round.
const ROUND: usize = 5_000;
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct VerifyReport {
    pub per_second: f64,
    /// Per second that the thread really ran. Much more than `per_second` says that the machine did
    /// something else meanwhile.
    pub per_cpu_second: Option<f64>,
    /// With a thread for each core, which may be less than that many times as much.
    pub all_cores: f64,
    pub cores: usize,
}

impl VerifyReport {
    /// The share of the time that the thread was given a core.
    pub fn share_of_core(&self) -> Option<f64> {
        self.per_cpu_second.map(|possible| self.per_second / possible)
    }
}

/// Verifies as the gateway does, on this thread alone. The median round counts, so that a moment of
/// something else on the machine does not.
///
/// # Errors
/// When the events cannot be read back.
pub fn measure(frames: &Path) -> io::Result<VerifyReport> {
    let events = read(frames)?;
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let round = events.clone();
        let count = round.len() as f64;
        let (start, cpu) = (Instant::now(), thread_cpu_s());
        for event in round {
            VerifiedEvent::verify(event).map_err(io::Error::other)?;
        }
        let rate = count / start.elapsed().as_secs_f64();
        let possible =
            thread_cpu_s().zip(cpu).map(|(now, before)| (count / (now - before)).round());
        rounds.push((rate, possible));
    }
    rounds.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (rate, per_cpu_second) = rounds[ROUNDS / 2];
    let (all_cores, cores) = on_all_cores(&events)?;
    Ok(VerifyReport { per_second: rate.round(), per_cpu_second, all_cores, cores })
}

/// The same on as many threads as there are cores; all of them verify all events.
fn on_all_cores(events: &[Event]) -> io::Result<(f64, usize)> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let begin = Arc::new(Barrier::new(cores + 1));
    let mut threads = Vec::with_capacity(cores);
    for n in 0..cores {
        let (round, begin) = (events.to_vec(), begin.clone());
        let (told, result) = crossbeam_channel::bounded(1);
        tasks::thread(format!("verify-{n}"), move || {
            begin.wait();
            let verified = round.into_iter().try_for_each(|e| VerifiedEvent::verify(e).map(drop));
            let _ = told.send(verified.map_err(io::Error::other));
        })?;
        threads.push(result);
    }
    begin.wait();
    let start = Instant::now();
    for result in threads {
        result.recv().map_err(io::Error::other)??;
    }
    let rate = (events.len() * cores) as f64 / start.elapsed().as_secs_f64();
    Ok((rate.round(), cores))
}

/// Seconds for which this thread has run.
#[cfg(unix)]
fn thread_cpu_s() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

#[cfg(not(unix))]
fn thread_cpu_s() -> Option<f64> {
    None
}

fn read(path: &Path) -> io::Result<Vec<Event>> {
    let mut frames = Frames::open(path)?;
    let mut events = Vec::with_capacity(ROUND);
    while events.len() < ROUND
        && let Some(frame) = frames.next()?
    {
        let json = event_json(&frame.text).ok_or_else(|| io::Error::other("no event"))?;
        events.push(Event::parse(json).map_err(io::Error::other)?);
    }
    Ok(events)
}
