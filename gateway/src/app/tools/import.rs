//! Events that the operator takes in from a file.

use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    admin::api::Imported,
    pipeline::{Candidate, Ingest, Origin, Outcome, Target},
    protocol::{Event, TopicName},
};

/// Events of one part of a file that are under way at once. Several parts are: together they keep the
/// ingest threads busy and leave room for those who publish meanwhile.
const AT_ONCE: usize = 512;
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
    let target = topics.map_or(Target::Routed, Target::Topics);
    let mut lines = (first..).zip(lines.lines());
    let mut under_way = FuturesUnordered::new();
    loop {
        // Each is read when its turn comes: verifying the first does not wait for the last.
        while under_way.len() < AT_ONCE
            && let Some((number, line)) = lines.next()
        {
            match Event::parse(line.trim()) {
                _ if line.trim().is_empty() => {}
                Ok(event) => {
                    let target = target.clone();
                    let candidate = Candidate { event, origin: Origin::Import, target };
                    under_way.push(submit(ingest, number, candidate));
                }
                Err(error) => imported.refuse(number, format!("invalid: {error}"), TOLD),
            }
        }
        let Some((number, outcome)) = under_way.next().await else { return imported };
        match outcome {
            Outcome::Stored(_) | Outcome::Passed => imported.added += 1,
            Outcome::Joined(_) | Outcome::Duplicate => imported.known += 1,
            Outcome::Shadowed => {
                imported.refuse(number, "blocked: a plugin keeps it out".to_owned(), TOLD);
            }
            Outcome::Refused(reason) => imported.refuse(number, reason.to_string(), TOLD),
        }
    }
}

async fn submit(ingest: &Ingest, number: u64, candidate: Candidate) -> (u64, Outcome) {
    (number, ingest.submit(candidate).await)
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
