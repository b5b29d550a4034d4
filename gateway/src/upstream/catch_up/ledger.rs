//! Which spans of time are complete: all that the relay had from there is committed here.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{
    pipeline::{
        Span, StoreError,
        streams::{MAX_SPANS, Part, StreamRelay, UpstreamStore},
    },
    upstream::flow::Settled,
};

/// Events may arrive at a relay so much later than they were made, in seconds: so much of the end of each
/// span is asked for again.
pub(super) const OVERLAP: u64 = 15 * 60;
/// The least time between two writes.
const BETWEEN: Duration = Duration::from_secs(5);

/// The spans of one part of what a relay is asked for.
pub(in crate::upstream) struct Ledger {
    of: StreamRelay,
    pub part: Part,
    /// Oldest first, apart from one another.
    spans: Vec<Span>,
    /// Not yet written.
    changed: bool,
    written: Option<Instant>,
}

impl Ledger {
    pub async fn load(
        store: &dyn UpstreamStore,
        of: StreamRelay,
        part: Part,
    ) -> Result<Self, StoreError> {
        let mut spans = Vec::new();
        for span in store.down(of.clone(), part).await? {
            add(&mut spans, span);
        }
        Ok(Self { of, part, spans, changed: false, written: None })
    }

    /// Another span is complete.
    pub fn add(&mut self, span: Span) {
        if span.from <= span.until {
            add(&mut self.spans, span);
            self.changed = true;
        }
    }

    /// Writes what is new, now and then.
    pub async fn keep(&mut self, store: &dyn UpstreamStore) {
        if self.written.is_none_or(|at| at.elapsed() >= BETWEEN) {
            self.keep_now(store).await;
        }
    }

    /// Writes what is new. What cannot be written is fetched again some day.
    pub async fn keep_now(&mut self, store: &dyn UpstreamStore) {
        if !self.changed {
            return;
        }
        self.written = Some(Instant::now());
        match store.down_reached(self.of.clone(), self.part, self.spans.clone()).await {
            Ok(()) => self.changed = false,
            Err(error) => {
                let (stream, url) = (&*self.of.stream, &*self.of.url);
                tracing::warn!(stream, url, %error, "cannot keep how far an upstream has come");
            }
        }
    }

    /// Where the oldest complete span begins; `None` when nothing is known of this relay.
    pub fn earliest(&self) -> Option<u64> {
        self.spans.first().map(|span| span.from)
    }

    /// What is not complete since a time, newest first. The first one has no end.
    pub fn missing(&self, since: u64) -> Vec<Span> {
        let mut missing = Vec::new();
        let mut until = u64::MAX;
        for span in self.spans.iter().rev() {
            let end = span.until.saturating_sub(OVERLAP).max(since.saturating_sub(1));
            if span.from > end {
                // All of it lies in the overlap.
                continue;
            }
            if end < until {
                missing.push(Span { from: (end + 1).max(since), until });
            }
            if span.from <= since {
                return missing;
            }
            until = span.from - 1;
        }
        missing.push(Span { from: since, until });
        missing
    }
}

/// Adds a span to others; what touches becomes one.
fn add(spans: &mut Vec<Span>, new: Span) {
    let mut new = new;
    spans.retain(|span| {
        let apart =
            span.until.saturating_add(1) < new.from || new.until.saturating_add(1) < span.from;
        if !apart {
            new.from = new.from.min(span.from);
            new.until = new.until.max(span.until);
        }
        apart
    });
    let at = spans.partition_point(|span| span.from < new.from);
    spans.insert(at, new);
    if spans.len() > MAX_SPANS {
        let too_many = spans.len() - MAX_SPANS;
        spans.drain(..too_many);
    }
}

/// Spans that are complete as soon as their events are committed: an event carries the number of the span
/// that it came with.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Pending {
    first: u64,
    spans: VecDeque<OpenSpan>,
}

#[derive(Debug, Default)]
struct OpenSpan {
    under_way: usize,
    failed: bool,
    /// Set when all its events are under way: what is complete then, if anything is.
    ended: Option<Option<Span>>,
}

impl Pending {
    /// A new span; its number is the mark of its events.
    pub fn open(&mut self) -> u64 {
        self.spans.push_back(OpenSpan::default());
        self.first + self.spans.len() as u64 - 1
    }

    fn get(&mut self, mark: u64) -> Option<&mut OpenSpan> {
        let at = usize::try_from(mark.checked_sub(self.first)?).ok()?;
        self.spans.get_mut(at)
    }

    pub fn sent(&mut self, mark: u64) {
        if let Some(span) = self.get(mark) {
            span.under_way += 1;
        }
    }

    /// All events of a span are under way.
    pub fn ended(&mut self, mark: u64, complete: Option<Span>) {
        if let Some(span) = self.get(mark) {
            span.ended = Some(complete);
        }
    }

    /// Events have settled. Returns how many failed.
    pub fn settled(&mut self, settled: &[(u64, Settled)]) -> usize {
        for (mark, how) in settled {
            if let Some(span) = self.get(*mark) {
                span.under_way -= 1;
                span.failed |= *how == Settled::Failed;
            }
        }
        settled.iter().filter(|(_, how)| *how == Settled::Failed).count()
    }

    /// The spans that are complete now.
    pub fn complete(&mut self) -> Vec<Span> {
        let mut complete = Vec::new();
        while let Some(span) = self.spans.front()
            && let (0, Some(ended)) = (span.under_way, span.ended)
        {
            complete.extend(ended.filter(|_| !span.failed));
            self.spans.pop_front();
            self.first += 1;
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, until: u64) -> Span {
        Span { from, until }
    }

    fn ledger(spans: &[Span]) -> Ledger {
        let of = StreamRelay { stream: "s".into(), url: "ws://a".into() };
        let mut all = Vec::new();
        spans.iter().for_each(|span| add(&mut all, *span));
        Ledger { of, part: 1, spans: all, changed: false, written: None }
    }

    #[test]
    fn spans_that_touch_become_one_and_the_oldest_of_many_are_forgotten() {
        let spans = [span(10, 20), span(40, 50), span(21, 30), span(0, 5), span(45, 60)];
        assert_eq!(ledger(&spans).spans, [span(0, 5), span(10, 30), span(40, 60)]);
        assert_eq!(ledger(&[span(10, 20), span(0, u64::MAX)]).spans, [span(0, u64::MAX)]);
        let many: Vec<Span> = (0..100).map(|n| span(10 * n, 10 * n + 1)).collect();
        assert_eq!(ledger(&many).spans, many[100 - MAX_SPANS..]);
    }

    #[test]
    fn what_is_missing_overlaps_what_is_complete() {
        let day = 86_400;
        let ends = |spans: &[Span], since| ledger(spans).missing(since);
        assert_eq!(ends(&[], 0), [span(0, u64::MAX)]);
        assert_eq!(ends(&[], 7), [span(7, u64::MAX)]);
        assert_eq!(ends(&[span(0, day)], 0), [span(day - OVERLAP + 1, u64::MAX)]);
        assert_eq!(
            ends(&[span(0, day), span(2 * day, 3 * day)], 0),
            [span(3 * day - OVERLAP + 1, u64::MAX), span(day - OVERLAP + 1, 2 * day - 1)]
        );
        // Paging was broken off on its way down.
        assert_eq!(
            ends(&[span(2 * day, 3 * day)], day),
            [span(3 * day - OVERLAP + 1, u64::MAX), span(day, 2 * day - 1)]
        );
        assert_eq!(ends(&[span(0, 3 * day)], 5 * day), [span(5 * day, u64::MAX)]);
        // A span that lies in its own overlap counts for nothing.
        assert_eq!(ends(&[span(day, day + 5)], 0), [span(0, u64::MAX)]);
    }

    #[test]
    fn a_span_is_complete_when_all_its_events_are() {
        let mut pending = Pending::default();
        let (a, b, c) = (pending.open(), pending.open(), pending.open());
        for mark in [a, a, b, c] {
            pending.sent(mark);
        }
        pending.ended(a, Some(span(20, 30)));
        pending.ended(b, Some(span(10, 19)));
        assert_eq!(pending.settled(&[(a, Settled::Done), (b, Settled::Done)]), 0);
        assert!(pending.complete().is_empty(), "an event of the first is under way");
        pending.settled(&[(a, Settled::Done)]);
        assert_eq!(pending.complete(), [span(20, 30), span(10, 19)]);
        assert_eq!(pending.settled(&[(c, Settled::Failed)]), 1);
        pending.ended(c, Some(span(0, 9)));
        assert!(pending.complete().is_empty(), "one of its events failed");
        let d = pending.open();
        pending.ended(d, Some(span(0, 9)));
        assert_eq!(pending.complete(), [span(0, 9)]);
    }
}
