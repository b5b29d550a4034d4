//! Events that the operator takes in from a file, or out into one.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::{
    admin::api::{Cause, Imported, Line, Refusal},
    pipeline::{Candidate, EventReader, Ingest, LogEntry, Origin, Outcome, Seq, Target},
    protocol::{Event, Filter, TopicName},
};

/// Events of one import that are under way at once.
const AT_ONCE: usize = 1_024;
/// Log entries that are read at once.
const PAGE: usize = 500;
/// Bytes of events in one line of an answer, unless a single one is longer.
const LINE: usize = 256 * 1024;
/// Refusals that are told with their line.
const TOLD: usize = 10;

/// Takes in events, one in each line, as if a client had published them: nothing that a deletion, a ban
/// or a plugin keeps out comes in. Without `topics`, routing chooses them.
pub(super) async fn import(
    ingest: &Ingest,
    lines: &str,
    first: u64,
    topics: Option<Vec<TopicName>>,
) -> Imported {
    let mut imported = Imported::default();
    let mut candidates = Vec::new();
    for (number, line) in (first..).zip(lines.lines()) {
        match Event::parse(line.trim()) {
            _ if line.trim().is_empty() => {}
            Ok(event) => {
                let target = topics.clone().map_or(Target::Routed, Target::Topics);
                candidates.push((number, Candidate { event, origin: Origin::Import, target }));
            }
            Err(error) => imported.refuse(number, format!("invalid: {error}"), TOLD),
        }
    }
    let submissions = candidates.into_iter().map(|(number, candidate)| {
        let ingest = ingest.clone();
        async move { (number, ingest.submit(candidate).await) }
    });
    let mut outcomes = stream::iter(submissions).buffer_unordered(AT_ONCE);
    while let Some((number, outcome)) = outcomes.next().await {
        match outcome {
            Outcome::Stored(_) | Outcome::Passed => imported.added += 1,
            Outcome::Joined(_) | Outcome::Duplicate => imported.known += 1,
            Outcome::Shadowed => {
                imported.refuse(number, "blocked: a plugin keeps it out".to_owned(), TOLD);
            }
            Outcome::Refused(reason) => imported.refuse(number, reason.to_string(), TOLD),
        }
    }
    imported
}

/// What is stored, in the order in which it came, as lines of an answer. It reads the log a page at a time,
/// so no writer waits, and what comes meanwhile is not part of it.
///
/// # Errors
/// When the filter is none.
pub(super) fn export(
    reader: Arc<dyn EventReader>,
    filter: Option<&str>,
) -> Result<stream::BoxStream<'static, Line>, Refusal> {
    let filter = filter.map(Filter::parse).transpose();
    let filter =
        filter.map_err(|error| Refusal::new(Cause::Wrong, format!("the filter: {error}")))?;
    if filter.as_ref().is_some_and(|filter| filter.words().is_some() || filter.limit.is_some()) {
        let why =
            "the filter: `search` and `limit` choose by rank and age; an export has all in order";
        return Err(Refusal::new(Cause::Wrong, why));
    }
    let until = *reader.head().borrow();
    let exporting = Exporting { reader, filter, after: 0, until, count: 0, over: false };
    Ok(stream::unfold(exporting, |mut exporting| async move {
        let line = exporting.next().await?;
        Some((line, exporting))
    })
    .boxed())
}

struct Exporting {
    reader: Arc<dyn EventReader>,
    filter: Option<Filter>,
    after: Seq,
    until: Seq,
    count: u64,
    over: bool,
}

impl Exporting {
    async fn next(&mut self) -> Option<Line> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while !self.over && self.after < self.until && bytes < LINE {
            let page = match self.reader.log_after(self.after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    self.over = true;
                    return Some(Line::Refused(Refusal::new(Cause::Failed, error)));
                }
            };
            let Some(last) = page.last() else {
                self.after = self.until;
                break;
            };
            self.after = last.seq;
            for entry in page.iter().filter(|entry| self.wants(entry)) {
                bytes += entry.event.json().len();
                events.push(entry.event.json().to_owned());
            }
        }
        if !events.is_empty() {
            self.count += events.len() as u64;
            let progress = json!({ "events": events, "position": self.after, "of": self.until });
            return Some(Line::Progress(progress));
        }
        if self.over {
            return None;
        }
        self.over = true;
        Some(Line::Done(json!({ "exported": self.count })))
    }

    /// An event that entered another topic later stands in the log once more.
    fn wants(&self, entry: &LogEntry) -> bool {
        entry.first
            && entry.seq <= self.until
            && self.filter.as_ref().is_none_or(|filter| filter.matches(&entry.event))
    }
}

impl Imported {
    fn refuse(&mut self, line: u64, reason: String, told: usize) {
        self.refused += 1;
        if self.lines.len() < told {
            self.lines.push((line, reason.clone()));
        }
        // Of endless kinds of reasons only so many are kept apart.
        let reason = match self.reasons.len() < 100 || self.reasons.contains_key(&reason) {
            true => reason,
            false => "other reasons".to_owned(),
        };
        *self.reasons.entry(reason).or_default() += 1;
    }
}
