//! How many signatures one core verifies: what publishing is compared with.

use std::{io, path::Path, time::Instant};

use serde::Serialize;

use super::frames::{Frames, event_json};
use crate::protocol::{Event, VerifiedEvent};

/// Events of one round.
const ROUND: usize = 5_000;
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct VerifyReport {
    pub per_second: f64,
}

/// Verifies as the gateway does, on this thread alone. The median round counts, so that a moment of
/// something else on the machine does not.
///
/// # Errors
/// When the events cannot be read back.
pub fn measure(frames: &Path) -> io::Result<VerifyReport> {
    let events = read(frames)?;
    let mut rates = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let round = events.clone();
        let count = round.len() as f64;
        let start = Instant::now();
        for event in round {
            VerifiedEvent::verify(event).map_err(io::Error::other)?;
        }
        rates.push(count / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(VerifyReport { per_second: rates[ROUNDS / 2].round() })
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
