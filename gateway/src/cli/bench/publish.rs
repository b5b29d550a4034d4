//! Publishes events and waits for their OKs, with a bounded number on their way per connection.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use serde::Serialize;

use super::{
    connection::{Socket, Target, Use, shown},
    error::{BenchError, advice},
    frames::{EventFrame, ShortId, short_id},
    latency::{Latencies, Summary},
    scan::{self, Frame},
    server::Used,
};
use crate::cli::progress::Progress;

/// Rates are reported of the first and the last so many events.
const EDGE: u64 = 50_000;

/// Answers between two looks at the clock for these rates.
const MARK: u64 = 1_000;

/// When this many answers were refusals and none was not, the rest would be as well.
const HOPELESS: u64 = 200;

/// Different reasons that are told apart.
const MAX_REASONS: usize = 10;

#[derive(Debug, Serialize)]
pub struct PublishReport {
    pub connections: u32,
    pub in_flight: u32,
    pub sent: u64,
    pub accepted: u64,
    /// Accepted because the relay had them already: such a run says nothing about storing.
    pub duplicates: u64,
    pub rejected: u64,
    /// The reasons given, and how often.
    pub reasons: BTreeMap<String, u64>,
    pub seconds: f64,
    pub per_second: f64,
    /// Of the first and last 50,000; without a value below 100,000 events.
    pub first_per_second: Option<f64>,
    pub last_per_second: Option<f64>,
    /// As a share of one core's verifications.
    pub verify_ratio: Option<f64>,
    pub ok: Option<Summary>,
    pub server: Option<Used>,
    pub server_cpu_s_per_50k: Option<f64>,
    /// The processor time of this program.
    pub own_cpu_s: Option<f64>,
    /// All files below `--data-dir`, before and after.
    pub data_bytes_before: Option<u64>,
    pub data_bytes: Option<u64>,
}

/// What the connections found out together.
#[derive(Default)]
pub struct Tally {
    accepted: u64,
    duplicates: u64,
    rejected: u64,
    reasons: BTreeMap<String, u64>,
    latencies: Latencies,
    /// When every [`MARK`]th answer came.
    marks: Vec<Instant>,
}

impl Tally {
    pub fn answers(&self) -> u64 {
        self.accepted + self.rejected
    }

    fn answered(&mut self, accepted: bool, message: &str, latency: Duration) {
        self.latencies.record(latency);
        if accepted {
            self.accepted += 1;
            self.duplicates += u64::from(message.starts_with("duplicate"));
        } else {
            self.rejected += 1;
            let reason = shown(message);
            if self.reasons.contains_key(&reason) || self.reasons.len() < MAX_REASONS {
                *self.reasons.entry(reason).or_default() += 1;
            } else {
                *self.reasons.entry("other reasons".to_owned()).or_default() += 1;
            }
        }
        if self.answers().is_multiple_of(MARK) {
            self.marks.push(Instant::now());
        }
    }

    /// The reason given most often.
    fn main_reason(&self) -> String {
        let most = self.reasons.iter().max_by_key(|(_, count)| **count);
        most.map_or_else(String::new, |(reason, _)| reason.clone())
    }

    /// The error when nothing at all was accepted.
    pub fn refusal(&self, target: &Target) -> Option<BenchError> {
        let is_refused = self.accepted == 0 && self.rejected > 0;
        is_refused.then(|| refused(target, &self.main_reason()))
    }

    pub fn into_report(
        self,
        clients: u32,
        in_flight: u32,
        start: Instant,
        end: Instant,
    ) -> PublishReport {
        let seconds = end.duration_since(start).as_secs_f64();
        let answers = self.answers();
        let edge = (EDGE / MARK) as usize;
        let rate = |from: Instant, to: Instant| {
            (EDGE as f64 / to.duration_since(from).as_secs_f64()).round()
        };
        let has_edges = answers >= 2 * EDGE;
        let first = has_edges.then(|| rate(start, self.marks[edge - 1]));
        let last = has_edges.then(|| {
            let count = self.marks.len();
            rate(self.marks[count - 1 - edge], self.marks[count - 1])
        });
        PublishReport {
            connections: clients,
            in_flight,
            sent: answers,
            accepted: self.accepted,
            duplicates: self.duplicates,
            rejected: self.rejected,
            reasons: self.reasons,
            seconds: (seconds * 1_000.0).round() / 1_000.0,
            per_second: (answers as f64 / seconds).round(),
            first_per_second: first,
            last_per_second: last,
            verify_ratio: None,
            ok: self.latencies.summary(),
            server: None,
            server_cpu_s_per_50k: None,
            own_cpu_s: None,
            data_bytes_before: None,
            data_bytes: None,
        }
    }
}

/// The error for an event that should have been accepted.
pub fn refused(target: &Target, reason: &str) -> BenchError {
    let url = target.url.to_string();
    BenchError::EventsRefused { url, reason: shown(reason), advice: advice(reason) }
}

/// Where the events to publish come from.
pub trait Source {
    fn next(&mut self) -> std::io::Result<Option<EventFrame>>;
}

/// Publishes everything that the source has. Returns what was answered, and when the first event was
/// sent and the last answered.
pub async fn publish(
    target: &Target,
    phase: &'static str,
    connections: u32,
    in_flight: u32,
    source: &mut dyn Source,
    progress: &Progress,
) -> Result<(Tally, Instant, Instant), BenchError> {
    let opening = (0..connections).map(|_| target.open(phase, Use::Traffic, None));
    let sockets = try_join_all(opening).await?;
    let source = RefCell::new(source);
    let tally = RefCell::new(Tally::default());
    let start = Instant::now();
    try_join_all(sockets.into_iter().map(|socket| {
        let publisher = Publisher {
            socket,
            in_flight: in_flight as usize,
            on_their_way: HashMap::new(),
            source: &source,
            tally: &tally,
            target,
            progress,
        };
        publisher.run()
    }))
    .await?;
    let end = Instant::now();
    let tally = tally.into_inner();
    match tally.refusal(target) {
        Some(error) => Err(error),
        None => Ok((tally, start, end)),
    }
}

/// One connection. Everything runs on one thread, so the cells are never borrowed twice.
struct Publisher<'a, 's> {
    socket: Socket,
    in_flight: usize,
    on_their_way: HashMap<ShortId, Instant>,
    source: &'a RefCell<&'s mut dyn Source>,
    tally: &'a RefCell<Tally>,
    target: &'a Target,
    progress: &'a Progress,
}

impl Publisher<'_, '_> {
    async fn run(mut self) -> Result<(), BenchError> {
        let mut is_drained = false;
        loop {
            let mut has_fed = false;
            while !is_drained && self.on_their_way.len() < self.in_flight {
                let next = self.source.borrow_mut().next()?;
                let Some(frame) = next else {
                    is_drained = true;
                    break;
                };
                self.on_their_way.insert(frame.id, Instant::now());
                self.socket.feed(frame.text).await?;
                has_fed = true;
                // A relay whose answers nobody reads stops reading as well.
                if self.on_their_way.len().is_multiple_of(64) {
                    self.take_answers()?;
                }
            }
            if self.on_their_way.is_empty() {
                return Ok(());
            }
            if has_fed {
                self.socket.flush().await?;
            }
            let text = self.socket.next().await?;
            self.answer(&text)?;
            // What came with it makes room for as many events, which then leave together.
            self.take_answers()?;
        }
    }

    /// Reads what is here already.
    fn take_answers(&mut self) -> Result<(), BenchError> {
        while let Some(text) = self.socket.ready()? {
            self.answer(&text)?;
        }
        Ok(())
    }

    fn answer(&mut self, text: &str) -> Result<(), BenchError> {
        let Frame::Ok { id, accepted, message } = scan::frame(text) else { return Ok(()) };
        let Some(sent) = short_id(id).and_then(|id| self.on_their_way.remove(&id)) else {
            return Ok(());
        };
        let mut tally = self.tally.borrow_mut();
        tally.answered(accepted, message, sent.elapsed());
        self.progress.add(1);
        if tally.answers() == HOPELESS
            && let Some(error) = tally.refusal(self.target)
        {
            return Err(error);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_the_edges_come_from_the_marks() {
        let start = Instant::now();
        let mut tally = Tally { accepted: 150_000, ..Tally::default() };
        // Every thousand takes 10 ms at first and 40 ms in the last third.
        let mut at = start;
        for number in 0..150 {
            at += Duration::from_millis(if number < 100 { 10 } else { 40 });
            tally.marks.push(at);
        }
        let report = tally.into_report(4, 64, start, at);
        assert_eq!(report.first_per_second, Some(100_000.0));
        assert_eq!(report.last_per_second, Some(25_000.0));
        assert_eq!(report.per_second, 50_000.0);

        let few = Tally { accepted: 10, ..Tally::default() };
        assert_eq!(few.into_report(1, 1, start, at).first_per_second, None);
    }

    #[test]
    fn refusals_are_summed_up_and_nothing_but_refusals_is_an_error() {
        let mut tally = Tally::default();
        for number in 0..50 {
            tally.answered(false, &format!("blocked: {number}"), Duration::ZERO);
            tally.answered(false, "pow: 28 bits needed", Duration::ZERO);
        }
        assert_eq!(tally.reasons.len(), MAX_REASONS + 1);
        assert_eq!(tally.reasons["other reasons"], 41);
        assert_eq!(tally.main_reason(), "pow: 28 bits needed");
        tally.answered(true, "duplicate: we have it", Duration::ZERO);
        tally.answered(true, "", Duration::ZERO);
        assert_eq!((tally.accepted, tally.duplicates, tally.rejected), (2, 1, 100));
    }
}
