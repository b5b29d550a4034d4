//! Comparing what is held with what a relay has (NIP-77), and fetching the difference.
//!
//! The past is compared in sessions of a bounded number of ids of ours, split by time. Their size decides
//! what comparing costs: negentropy cuts a set into 16 parts at a time and lists the ids of parts that
//! differ and have fewer than 32, so that a set of 16 × 16 × 16 × 6 ids ends with lists of six, and one
//! of 100,000 with lists of 24.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc},
    time::Instant,
};

use super::{
    CatchUp, CatchUpError, Ledger,
    fetch::Fetch,
    sets::{Set, Step, in_turn},
};
use crate::{
    clock::unix_now,
    pipeline::{IdSet, Scope, Span, Viewer},
    protocol::{EventId, Filter, Prefix},
    upstream::{demand::Wanted, link::NegError},
};

/// Ids of ours in one session.
const SESSION: usize = 24_000;
/// Sessions with one relay at once.
const SESSIONS: usize = 2;
/// Ids of ours that are in memory for one relay.
const WINDOW: usize = if cfg!(test) { 2_000 } else { 250_000 };
/// With fewer ids of ours, and nothing known of the relay, pages are the shorter way: they bring events
/// at once.
const FEW: usize = 100;
/// A part of so many ids or more that was compared as a whole is not compared so again for a while.
const MANY: usize = 100_000;
const WHILE: Duration = Duration::from_secs(600);
/// Splits of one part because the relay compares no set so large.
const MOST_SPLITS: usize = 400;
/// Messages of one session.
const MOST_ROUNDS: usize = 4_096;
/// Answers whose ids wait to be fetched.
const ANSWERS: usize = 2;
/// The longest message of ours, in bytes; twice that in hexadecimal.
const FRAME: usize = 64 * 1_024;
/// The shortest that negentropy allows.
const LEAST_FRAME: usize = 4_096;
/// Nothing was on Nostr before; where an endless past is cut first. 2020-11-01.
const BEGINNING: u64 = 1_604_188_800;
/// How far in the future events may be dated, in seconds, when a span without an end is cut.
const FUTURE: u64 = 86_400;

/// How comparing a part ended.
pub(super) enum Compared {
    Complete,
    /// Hardly anything is held yet: pages are the better way.
    NothingHeld,
}

impl CatchUp<'_> {
    pub(super) async fn compare(
        &self,
        wanted: &Wanted,
        since: u64,
        ledger: &AsyncMutex<Ledger>,
    ) -> Result<Compared, CatchUpError> {
        // Never closed. Whoever waits for its turn holds no ids.
        let _permit = self.source.intake.comparing.acquire().await;
        let began = unix_now();
        let (is_new, recent) = {
            let ledger = ledger.lock().await;
            let newest = ledger.missing(since).first().map(|span| span.from);
            (ledger.earliest().is_none(), newest.unwrap_or(since))
        };
        let whole = self.past.compared().whole.get(&wanted.part).copied();
        let from = match whole {
            Some((at, ids)) if ids >= MANY && at.elapsed() < WHILE => recent,
            _ => since,
        };
        let mut open = vec![Span { from, until: u64::MAX }];
        let mut total = 0;
        let mut fetch = Fetch::new(self, wanted);
        self.standing.catch_up(|status| status.way = Some("negentropy"));
        while let Some(window) = open.pop() {
            let Some(ids) = self.held(wanted, window).await? else {
                // The newest first.
                open.extend(halves(window, None));
                continue;
            };
            total += ids.len();
            if is_new && open.is_empty() && total < FEW {
                return Ok(Compared::NothingHeld);
            }
            let compared = self.window(wanted, window, ids, &mut fetch).await;
            if compared.is_err() {
                // What is under way counts all the same.
                fetch.finish().await?;
            }
            compared?;
            self.standing.catch_up(|status| status.reached = Some(window.from));
        }
        fetch.finish().await?;
        if from == since {
            self.past.compared().whole.insert(wanted.part, (Instant::now(), total));
        }
        let mut ledger = ledger.lock().await;
        ledger.add(Span { from, until: began });
        ledger.keep_now(&*self.past.store).await;
        Ok(Compared::Complete)
    }

    /// What is held of a span, in all topics that it is to be in; `None` when it is too much at once.
    async fn held(
        &self,
        wanted: &Wanted,
        span: Span,
    ) -> Result<Option<Vec<(u64, EventId)>>, CatchUpError> {
        let filter = within(&wanted.filter, span);
        let topics = &self.source.topics;
        let scopes: Vec<Scope> = match topics.is_empty() {
            true => vec![Scope::All],
            false => topics.iter().cloned().map(Scope::Topic).collect(),
        };
        let mut common: Option<Vec<(u64, EventId)>> = None;
        for scope in scopes {
            // Messages for others (NIP-17) are not seen by it: they are looked up before they are fetched.
            let viewer = Arc::new(Viewer::default());
            let ids = self.past.reader.ids(filter.clone(), scope, viewer, WINDOW).await?;
            let IdSet::All(mut ids) = ids else {
                return match can_split(span) {
                    true => Ok(None),
                    false => Err(CatchUpError::Compare(format!(
                        "more than {WINDOW} events of one second are held"
                    ))),
                };
            };
            ids.sort_unstable();
            common = Some(match common {
                None => ids,
                Some(mut common) => {
                    common.retain(|id| ids.binary_search(id).is_ok());
                    common
                }
            });
        }
        Ok(common)
    }

    /// Compares all that is held of a span.
    async fn window(
        &self,
        wanted: &Wanted,
        window: Span,
        ids: Vec<(u64, EventId)>,
        fetch: &mut Fetch<'_, '_>,
    ) -> Result<(), CatchUpError> {
        let (found, mut needed) = mpsc::channel(ANSWERS);
        let ids: Arc<[(u64, EventId)]> = ids.into();
        let comparing = async move {
            let mut splits = 0;
            let mut open = sessions(window, &ids);
            // A session that the relay finds too large comes back in two.
            while !open.is_empty() {
                let refused: Vec<Vec<Span>> = stream::iter(std::mem::take(&mut open))
                    .map(|span| self.session(wanted, span, &ids, found.clone()))
                    .buffered(SESSIONS)
                    .try_collect()
                    .await?;
                open = refused.into_iter().flatten().collect();
                splits += open.len();
                if splits > MOST_SPLITS {
                    let text = "the relay compares no set, however small";
                    return Err(CatchUpError::Compare(text.to_owned()));
                }
            }
            Ok(())
        };
        let fetching = async {
            while let Some(ids) = needed.recv().await {
                fetch.ids(ids).await?;
            }
            fetch.rest().await
        };
        // Either error ends both.
        tokio::try_join!(comparing, fetching).map(drop)
    }

    /// Compares one span. Returns the spans to compare in its place when the relay finds it too large.
    async fn session(
        &self,
        wanted: &Wanted,
        span: Span,
        all: &Arc<[(u64, EventId)]>,
        found: mpsc::Sender<Vec<EventId>>,
    ) -> Result<Vec<Span>, CatchUpError> {
        let turns = &self.source.intake.turns;
        let frame = self.frame();
        let ids = all.clone();
        let (set, mut message) = in_turn(turns, move || {
            let set = Set::new(part(&ids, span), frame)?;
            let first = set.first()?;
            Ok((Arc::new(set), first))
        })
        .await?;
        let filter = within(&wanted.filter, span);
        let mut session = self.link.negentropy(&filter).await?;
        for _ in 0..MOST_ROUNDS {
            let answer = match session.exchange(&message).await {
                Err(NegError::Refused(why)) if is_too_large(&why) && can_split(span) => {
                    return Ok(halves(span, Some(part(all, span))));
                }
                answer => answer?,
            };
            let asked = set.clone();
            let Step { next, need } = in_turn(turns, move || asked.step(&answer)).await?;
            if !need.is_empty() && found.send(need).await.is_err() {
                // Fetching has failed, and says why.
                return Ok(Vec::new());
            }
            match next {
                Some(next) => message = next,
                None => return Ok(Vec::new()),
            }
        }
        Err(CatchUpError::Compare(format!("no end after {MOST_ROUNDS} messages")))
    }

    /// The longest negentropy message that the relay takes.
    fn frame(&self) -> u64 {
        let longest = self.link.limits().max_message_length.unwrap_or(2 * FRAME);
        let frame = (longest / 2).saturating_sub(1_024).clamp(LEAST_FRAME, FRAME);
        u64::try_from(frame).unwrap_or(LEAST_FRAME as u64)
    }
}

/// The filter, and no event outside the span.
fn within(filter: &Filter, span: Span) -> Filter {
    let since = span.from.max(filter.since.unwrap_or(0));
    let until = span.until.min(filter.until.unwrap_or(u64::MAX));
    Filter {
        since: (since > 0).then_some(since),
        until: (until != u64::MAX).then_some(until),
        limit: None,
        ..filter.clone()
    }
}

/// Those of the sorted ids that are in the span.
fn part(ids: &[(u64, EventId)], span: Span) -> &[(u64, EventId)] {
    let from = ids.partition_point(|(at, _)| *at < span.from);
    let until = ids.partition_point(|(at, _)| *at <= span.until);
    &ids[from..until]
}

/// Spans of about [`SESSION`] ids each, in whole seconds, newest first.
fn sessions(window: Span, ids: &[(u64, EventId)]) -> Vec<Span> {
    let count = ids.len().div_ceil(SESSION).max(1);
    let each = ids.len().div_ceil(count).max(1);
    let mut spans = Vec::new();
    let (mut from, mut first) = (window.from, 0);
    for end in (1..count).map(|n| n * each) {
        // The second in which a session begins belongs to it as a whole.
        let (Some((at, _)), Some((begin, _))) = (ids.get(end), ids.get(first)) else { continue };
        if at > begin {
            spans.push(Span { from, until: at - 1 });
            (from, first) = (*at, ids.partition_point(|(other, _)| other < at));
        }
    }
    spans.push(Span { from, until: window.until });
    spans.reverse();
    spans
}

const fn can_split(span: Span) -> bool {
    span.from < span.until
}

/// A span cut in two, oldest first: at the middle of our ids if there are any, else in time.
fn halves(span: Span, ids: Option<&[(u64, EventId)]>) -> Vec<Span> {
    let Span { from, until } = span;
    let middle = ids.and_then(|ids| ids.get(ids.len() / 2)).map(|(at, _)| *at);
    let end = until.min(unix_now().saturating_add(FUTURE)).max(from);
    let in_time = match from < BEGINNING && BEGINNING < end {
        true => BEGINNING,
        false => from + (end - from) / 2 + 1,
    };
    // The second part begins here; both have at least a second.
    let cut = middle.filter(|at| *at > from).unwrap_or(in_time).clamp(from + 1, until);
    vec![Span { from, until: cut - 1 }, Span { from: cut, until }]
}

/// Whether a relay refused a set because of its size. The words differ.
fn is_too_large(why: &str) -> bool {
    let word = why.split_once(':').map(|(word, _)| word);
    let why = why.to_ascii_lowercase();
    word == Some(Prefix::Blocked.as_str())
        || ["too many", "too big", "too large", "max", "limit"]
            .iter()
            .any(|said| why.contains(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: u64, each: u64) -> Vec<(u64, EventId)> {
        let id = |n: u64| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            EventId(id)
        };
        (0..count).map(|n| (1_000 + n / each, id(n))).collect()
    }

    #[test]
    fn sessions_cover_the_window_once_in_whole_seconds() {
        let window = Span { from: 5, until: u64::MAX };
        for (count, each, expected) in
            [(0, 1, 1), (10, 1, 1), (100_000, 3, 5), (100_000, 60_000, 2), (30_000, 30_000, 1)]
        {
            let ids = ids(count, each);
            let spans = sessions(window, &ids);
            assert_eq!(spans.len(), expected, "{count} {each}");
            assert_eq!((spans[0].until, spans.last().unwrap().from), (u64::MAX, 5));
            assert!(spans.windows(2).all(|two| two[0].from == two[1].until + 1));
            let parts: usize = spans.iter().map(|span| part(&ids, *span).len()).sum();
            assert_eq!(parts, ids.len());
            if each < 1_000 {
                assert!(spans.iter().all(|span| part(&ids, *span).len() <= SESSION + 3));
            }
        }
    }

    #[test]
    fn a_span_is_cut_until_it_is_a_second() {
        for ids in [Vec::new(), ids(1_000, 1), ids(1_000, 1_000)] {
            let mut open = vec![Span { from: 0, until: u64::MAX }];
            for _ in 0..200 {
                let newest = open.pop().unwrap();
                if !can_split(newest) {
                    break;
                }
                let two = halves(newest, Some(part(&ids, newest)));
                assert_eq!((two[0].from, two[1].until), (newest.from, newest.until));
                assert_eq!(two[0].until + 1, two[1].from);
                assert!(two[0].from <= two[0].until && two[1].from <= two[1].until);
                open.extend(two);
            }
        }
        let span = Span { from: 7, until: 8 };
        let two = [Span { from: 7, until: 7 }, Span { from: 8, until: 8 }];
        assert_eq!(halves(span, None), two);
    }

    #[test]
    fn refusals_of_large_sets_are_known_by_their_words() {
        for yes in ["blocked: too many query results", "Negentropy: set too large", "max_results"] {
            assert!(is_too_large(yes), "{yes}");
        }
        for no in ["unsupported", "auth-required: who are you", "closed: you took too long"] {
            assert!(!is_too_large(no), "{no}");
        }
    }
}
