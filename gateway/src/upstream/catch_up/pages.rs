//! Paging back through a relay's events, the newest first (NIP-01, `until` and `limit`).
//!
//! The next page is asked for while the events of the last are on their way through the pipeline. A page
//! is complete, and the cursor moves, when all of them are committed. Several events may have been made in
//! the second at which a page ends, so the next page begins with that second.

use std::{collections::HashSet, time::Duration};

use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, timeout},
};

use super::{CatchUp, CatchUpError, Ledger, Pending};
use crate::{
    clock::unix_now,
    pipeline::Span,
    protocol::{EventId, Filter, Prefix},
    upstream::{
        demand::{self, Wanted},
        flow::Flow,
        link::Item,
    },
};

/// Events asked for at once of a relay that does not say how many it gives.
const PAGE: u64 = 500;
/// The most in any case...
const LARGEST_PAGE: u64 = 1_000;
/// ... but of a single second that has more.
const CROWDED_PAGE: u64 = 5_000;
/// The longest filter sent to a relay that does not say how long a message may be, in bytes.
const FILTER: usize = 48 * 1_024;
/// What a REQ has beside its filter.
const WRAPPING: usize = 200;
/// How often a relay that wants us to go slower is asked again.
const RETRIES: u32 = 5;
/// Pages in a row without an EOSE that are taken for what they are.
const WITHOUT_END: u32 = 5;
/// How long a relay may take for one page, its pauses together.
const LONGEST_PAGE: Duration = Duration::from_secs(120);

/// How a page ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Eose,
    /// The relay said that it has no more (NIP-67).
    Complete,
    /// It fell silent, took too long, or sent much more than it was asked for.
    None(&'static str),
}

#[derive(Debug)]
struct Page {
    end: End,
    /// Events, those included that the page before had too.
    count: u64,
    /// Events that the page before did not have.
    fresh: u64,
    mismatched: u64,
    /// `created_at` of the oldest.
    oldest: u64,
    /// The ids of that second.
    of_oldest: HashSet<EventId>,
    /// The newest came first.
    ordered: bool,
}

/// Where the next page begins.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Until(u64),
    /// It is full, and all of it is of this second: the same question would bring the same page.
    Crowded(u64),
    Done,
}

impl CatchUp<'_> {
    pub(super) async fn pages(
        &self,
        wanted: &Wanted,
        since: u64,
        ledger: &AsyncMutex<Ledger>,
    ) -> Result<(), CatchUpError> {
        let longest = self.link.limits().max_message_length.unwrap_or(FILTER + WRAPPING);
        let pieces = demand::fitting(&wanted.filter, longest.saturating_sub(WRAPPING));
        let pieces = pieces.ok_or_else(|| {
            let text = format!("the filter is longer than the relay takes ({longest} bytes)");
            CatchUpError::Refused(text)
        })?;
        self.standing.catch_up(|status| status.way = Some("paging"));
        let missing = ledger.lock().await.missing(since);
        for gap in missing {
            let began = unix_now();
            let sole = pieces.len() == 1;
            for piece in &pieces {
                let mut run = Run {
                    with: self,
                    wanted,
                    ledger: sole.then_some(ledger),
                    flow: self.flow(),
                    pending: Pending::default(),
                    failed: 0,
                    fetched: 0,
                };
                let paged = run.gap(piece, gap, began).await;
                // What is under way counts, however it ended.
                run.flow.drain().await;
                run.settle().await;
                paged?;
                if run.failed > 0 {
                    return Err(CatchUpError::NotTaken(run.failed));
                }
            }
            let mut ledger = ledger.lock().await;
            if !sole {
                ledger.add(Span { from: gap.from, until: gap.until.min(began) });
            }
            ledger.keep_now(&*self.past.store).await;
        }
        Ok(())
    }
}

/// Paging through one gap.
struct Run<'r, 'a> {
    with: &'r CatchUp<'a>,
    wanted: &'r Wanted,
    /// Where each page is entered; not when several filters stand for one.
    ledger: Option<&'r AsyncMutex<Ledger>>,
    flow: Flow<'a>,
    pending: Pending,
    failed: usize,
    fetched: u64,
}

impl Run<'_, '_> {
    async fn gap(&mut self, piece: &Filter, gap: Span, began: u64) -> Result<(), CatchUpError> {
        // Without an end, so that what is dated in the future comes too.
        let mut until = (gap.until != u64::MAX).then_some(gap.until);
        let mut top = gap.until.min(began);
        let max_limit = self.with.link.limits().max_limit;
        let usual = max_limit.map_or(PAGE, |max| max.min(LARGEST_PAGE));
        let largest = max_limit.map_or(CROWDED_PAGE, |max| max.min(CROWDED_PAGE));
        let mut limit = usual;
        let mut boundary = HashSet::new();
        let (mut retries, mut endless) = (0, 0);
        loop {
            let since = (gap.from > 0).then_some(gap.from);
            let filter = Filter { since, until, limit: Some(limit), ..piece.clone() };
            let mark = self.pending.open();
            let page = match self.page(&filter, mark, &boundary).await {
                Err(CatchUpError::Refused(why)) if may_retry(&why) && retries < RETRIES => {
                    self.pending.ended(mark, None);
                    retries += 1;
                    let pause = Duration::from_secs(2_u64.pow(retries));
                    self.with.trouble(format!("going slower: {why}"));
                    self.flow.meanwhile(sleep(pause)).await;
                    continue;
                }
                page => page?,
            };
            retries = 0;
            let next = next(&page, limit, until, gap.from);
            endless = if matches!(page.end, End::None(_)) { endless + 1 } else { 0 };
            if let End::None(what) = page.end {
                self.with.trouble(what.to_owned());
                if endless >= WITHOUT_END || !page.ordered {
                    self.pending.ended(mark, None);
                    return Err(CatchUpError::Misbehaved(what.to_owned()));
                }
            }
            let next = match next {
                Ok(next) => next,
                Err(why) => {
                    self.pending.ended(mark, None);
                    return Err(CatchUpError::Misbehaved(why));
                }
            };
            let next = match next {
                Next::Crowded(at) if limit < largest => {
                    limit = largest;
                    Next::Until(at)
                }
                Next::Crowded(at) => {
                    let text = format!("the relay gives no more than {limit} events of one second");
                    self.with.trouble(text);
                    limit = usual;
                    below(at, gap.from)
                }
                next => {
                    limit = usual;
                    next
                }
            };
            let from = match &next {
                // The second at which a page ends may have more.
                Next::Until(at) | Next::Crowded(at) => at + 1,
                Next::Done => gap.from,
            };
            self.pending.ended(mark, Some(Span { from, until: top }));
            top = top.min(from.saturating_sub(1));
            self.settle().await;
            if self.failed > 0 {
                return Err(CatchUpError::NotTaken(self.failed));
            }
            self.with.check_junk()?;
            let fetched = std::mem::take(&mut self.fetched);
            self.with.standing.catch_up(|status| {
                status.fetched += fetched;
                status.reached = Some(from);
            });
            match next {
                Next::Done => return Ok(()),
                Next::Until(at) | Next::Crowded(at) => until = Some(at),
            }
            boundary = page.of_oldest;
        }
    }

    async fn page(
        &mut self,
        filter: &Filter,
        mark: u64,
        boundary: &HashSet<EventId>,
    ) -> Result<Page, CatchUpError> {
        let link = self.with.link;
        let patience = link.timeouts().answer;
        let asked = link.request(std::slice::from_ref(filter));
        let mut request = self.flow.meanwhile(asked).await?;
        let most = filter.limit.unwrap_or(PAGE).saturating_mul(2).saturating_add(100);
        let mut waited = Duration::ZERO;
        let mut page = Page {
            end: End::Eose,
            count: 0,
            fresh: 0,
            mismatched: 0,
            oldest: u64::MAX,
            of_oldest: HashSet::new(),
            ordered: true,
        };
        page.end = loop {
            let began = Instant::now();
            // Only what the relay takes counts: not the time that events wait for the pipeline.
            let item = match self.flow.meanwhile(timeout(patience, request.next())).await {
                Ok(Some(item)) => item,
                Ok(None) => return Err(link.closed().await.into()),
                Err(_) if page.count == 0 && request.mismatched() == 0 => {
                    return Err(CatchUpError::Silent(patience));
                }
                Err(_) => break End::None("it does not say where stored events end (EOSE)"),
            };
            waited += began.elapsed();
            match item {
                Item::Event(event) => {
                    page.count += 1;
                    page.ordered &= event.created_at <= page.oldest;
                    if event.created_at < page.oldest {
                        page.oldest = event.created_at;
                        page.of_oldest.clear();
                    }
                    if event.created_at == page.oldest {
                        page.of_oldest.insert(event.id);
                    }
                    if !boundary.contains(&event.id) {
                        page.fresh += 1;
                        if self.wanted.takes(&event) {
                            self.fetched += 1;
                            self.pending.sent(mark);
                            self.flow.send(event, mark).await;
                        }
                    }
                    if page.count >= most {
                        break End::None(
                            "it sends more events than it is asked for, without an end",
                        );
                    }
                }
                Item::Eose { complete: true } => break End::Complete,
                Item::Eose { complete: false } => break End::Eose,
                Item::Closed(reason) => return Err(CatchUpError::Refused(reason)),
            }
            if waited > LONGEST_PAGE {
                break End::None("it takes minutes for a page");
            }
            if request.mismatched() > most {
                break End::None("it sends events that do not match");
            }
        };
        page.mismatched = request.mismatched();
        Ok(page)
    }

    /// Enters what has become complete into the ledger.
    async fn settle(&mut self) {
        let settled = self.flow.take_settled();
        self.failed += self.pending.settled(&settled);
        let complete = self.pending.complete();
        let Some(ledger) = self.ledger.filter(|_| !complete.is_empty()) else { return };
        let mut ledger = ledger.lock().await;
        complete.into_iter().for_each(|span| ledger.add(span));
        ledger.keep(&*self.with.past.store).await;
    }
}

fn may_retry(why: &str) -> bool {
    why.split_once(':').is_some_and(|(word, _)| word == Prefix::RateLimited.as_str())
}

/// Where the next page begins, or what is wrong with this one.
fn next(page: &Page, limit: u64, until: Option<u64>, from: u64) -> Result<Next, String> {
    if page.count == 0 {
        return match page.mismatched {
            0 => Ok(Next::Done),
            n => Err(format!("a page had {n} events, and none of them matches what was asked for")),
        };
    }
    if page.end == End::Complete {
        return Ok(Next::Done);
    }
    let is_full = page.count >= limit;
    if is_full && until == Some(page.oldest) {
        return Ok(Next::Crowded(page.oldest));
    }
    if page.fresh == 0 {
        // All of that second has come; or the relay gives no more of it.
        return Ok(below(page.oldest, from));
    }
    Ok(Next::Until(page.oldest))
}

/// The second before this one, if it is still in the gap.
fn below(at: u64, from: u64) -> Next {
    match at.checked_sub(1) {
        Some(below) if below >= from => Next::Until(below),
        _ => Next::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(count: u64, fresh: u64, oldest: u64) -> Page {
        Page {
            end: End::Eose,
            count,
            fresh,
            mismatched: 0,
            oldest,
            of_oldest: HashSet::new(),
            ordered: true,
        }
    }

    #[test]
    fn every_page_gets_further() {
        assert_eq!(next(&page(500, 500, 70), 500, None, 0), Ok(Next::Until(70)));
        assert_eq!(next(&page(500, 499, 60), 500, Some(70), 0), Ok(Next::Until(60)));
        // Few may be all there is, or a cap that the relay does not tell.
        assert_eq!(next(&page(3, 3, 60), 500, Some(70), 0), Ok(Next::Until(60)));
        assert_eq!(next(&page(3, 0, 60), 500, Some(60), 0), Ok(Next::Until(59)));
        assert_eq!(next(&page(3, 0, 60), 500, Some(60), 60), Ok(Next::Done));
        assert_eq!(next(&page(1, 0, 0), 500, Some(0), 0), Ok(Next::Done));
        assert_eq!(next(&page(0, 0, u64::MAX), 500, Some(59), 0), Ok(Next::Done));
        assert_eq!(next(&page(500, 400, 60), 500, Some(60), 0), Ok(Next::Crowded(60)));
        assert_eq!(next(&page(500, 0, 60), 500, Some(60), 0), Ok(Next::Crowded(60)));
        let complete = Page { end: End::Complete, ..page(500, 500, 60) };
        assert_eq!(next(&complete, 500, None, 0), Ok(Next::Done));
        let other = Page { mismatched: 5, ..page(0, 0, u64::MAX) };
        assert!(next(&other, 500, Some(9), 0).is_err());
    }
}
