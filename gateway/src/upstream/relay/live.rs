//! Takes what comes while the connection lasts.
//!
//! The subscriptions have no `since`: events that were made earlier and arrive late come too. With
//! `limit` 1 the relay sends hardly anything that is stored.

use std::{collections::HashSet, future::poll_fn, task::Poll, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    Relay, Signals,
    missed::{changed, has_sole_subscription},
};
use crate::{
    clock::unix_now,
    pipeline::{Span, streams::Part},
    protocol::Filter,
    upstream::{
        catch_up::Pending,
        config::History,
        demand::{self, Demand},
        flow::Flow,
        link::{Item, Link, LinkError, Request},
    },
};

/// Filters of one subscription with a relay that does not say how many it takes.
const FILTERS: usize = 10;
/// Bytes of one subscription with a relay that does not say how long a message may be.
const BYTES: usize = 48 * 1_024;
/// What a REQ has beside its filters, and a filter beside itself.
const WRAPPING: usize = 200;
/// Subscriptions with a relay that does not say how many it allows; one more is for the past.
const SUBSCRIPTIONS: usize = 6;
/// How often it is noted how far live events have come, on a connection that holds.
const CHECKPOINT: Duration = Duration::from_secs(240);
/// The first pause after the relay ended a subscription, doubled after each further time.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// A subscription that was open so long makes earlier ends forgotten.
const HELD: Duration = Duration::from_secs(60);

/// One live subscription.
struct Open {
    request: Request,
    /// Without limits.
    filters: Vec<(Part, Filter)>,
    opened: Instant,
    /// From when on nothing was missed, in Unix seconds.
    since: u64,
    answered: bool,
    /// Stored events have been sent.
    is_live: bool,
}

enum Happening {
    Item(usize, Option<Item>),
    Demand,
    Clock,
}

/// The live half of one connection.
struct Live<'a> {
    relay: &'a Relay,
    link: &'a Link,
    signals: &'a Signals,
    flow: Flow<'a>,
    open: Vec<Open>,
    pending: Pending,
    mark: u64,
    checkpoint: Instant,
    /// Ends of subscriptions in a row, and when they are opened again.
    ends: u32,
    again: Option<Instant>,
}

impl Relay {
    /// Ends when the connection does.
    pub(super) async fn live(&self, link: &Link, signals: &Signals) -> LinkError {
        let mut pending = Pending::default();
        let live = Live {
            relay: self,
            link,
            signals,
            flow: Flow::new(&self.source, self.pace()),
            open: Vec::new(),
            mark: pending.open(),
            pending,
            checkpoint: Instant::now() + CHECKPOINT,
            ends: 0,
            again: None,
        };
        live.run().await
    }
}

impl Live<'_> {
    async fn run(mut self) -> LinkError {
        let mut demand = self.relay.demand.clone();
        if has_sole_subscription(self.link) {
            self.signals.idle().await;
        }
        loop {
            let wanted = demand.borrow_and_update().clone();
            self.flow.set_pace(wanted.events_per_s);
            if self.again.is_none()
                && let Err(why) = self.subscribe(&wanted).await
            {
                if self.link.is_closed() {
                    return why;
                }
                self.refused(&why.to_string());
            }
            if wanted.wanted.is_empty() {
                self.relay.standing.serves();
                self.signals.set_ready();
            }
            loop {
                match self.happening(&mut demand).await {
                    Happening::Demand => break,
                    Happening::Item(_, None) => return self.link.closed().await,
                    Happening::Item(at, Some(item)) => self.take(at, item, &wanted).await,
                    Happening::Clock => {}
                }
                self.look_at_the_clock();
                self.settle().await;
                if self.relay.source.taken.is_junk() {
                    let text = "it sends nothing but invalid events";
                    return LinkError::Misbehaved(text.to_owned());
                }
                if self.again.is_some_and(|at| at <= Instant::now()) {
                    self.again = None;
                    break;
                }
            }
        }
    }

    async fn happening(&mut self, demand: &mut tokio::sync::watch::Receiver<Demand>) -> Happening {
        let patience = self.link.timeouts().answer;
        let unanswered = self.open.iter().filter(|open| !open.answered);
        let answer = unanswered.map(|open| open.opened + patience).min();
        let deadline = [answer, self.again].into_iter().flatten().min();
        let deadline = deadline.map_or(self.checkpoint, |at| at.min(self.checkpoint));
        let open = &mut self.open;
        let next = poll_fn(|cx| {
            for (at, open) in open.iter_mut().enumerate() {
                if let Poll::Ready(item) = open.request.poll_next(cx) {
                    return Poll::Ready((at, item));
                }
            }
            Poll::Pending
        });
        self.flow
            .meanwhile(async {
                tokio::select! {
                    biased;
                    () = changed(demand) => Happening::Demand,
                    (at, item) = next => Happening::Item(at, item),
                    () = sleep_until(deadline) => Happening::Clock,
                }
            })
            .await
    }

    async fn take(&mut self, at: usize, item: Item, wanted: &Demand) {
        self.open[at].answered = true;
        match item {
            Item::Event(event) => {
                self.relay.standing.event_came();
                let is_live = self.open[at].is_live;
                let mut takers = wanted.wanted.iter().filter(|wanted| wanted.takes(&event));
                // Whoever wants nothing of the past gets no stored event.
                if takers.any(|wanted| is_live || wanted.history != History::None) {
                    self.pending.sent(self.mark);
                    self.flow.send(event, self.mark).await;
                }
            }
            Item::Eose { .. } => {
                self.open[at].is_live = true;
                self.answered();
            }
            Item::Closed(reason) => self.closed(at, &reason),
        }
    }

    /// The relay answers: if it does so to all subscriptions, fetching the past begins.
    fn answered(&mut self) {
        if self.again.is_none() && self.open.iter().all(|open| open.answered) {
            self.relay.standing.serves();
            self.signals.set_ready();
        }
    }

    fn closed(&mut self, at: usize, reason: &str) {
        let open = self.open.swap_remove(at);
        if open.opened.elapsed() >= HELD {
            self.ends = 0;
        }
        // What comes until it is open again is fetched then.
        self.signals.missed(open.filters.iter().map(|(part, _)| *part));
        self.refused(reason);
    }

    fn refused(&mut self, why: &str) {
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.ends)).min(LONGEST);
        self.ends = self.ends.saturating_add(1);
        let again = Instant::now() + pause;
        self.again = Some(self.again.map_or(again, |at| at.max(again)));
        let (stream, url) = (&*self.relay.source.stream, &*self.relay.source.url);
        tracing::warn!(
            stream,
            url,
            why,
            pause_s = pause.as_secs(),
            "upstream had closed the subscription; subscribing again"
        );
        self.relay.standing.refuses(format!("the relay closed the subscription: {why}"));
        self.signals.set_ready();
    }

    /// Opens what is wanted and not open, and closes what is not wanted any more.
    async fn subscribe(&mut self, demand: &Demand) -> Result<(), LinkError> {
        let limits = self.link.limits();
        let bytes = limits.max_message_length.unwrap_or(BYTES).saturating_sub(WRAPPING);
        let mut filters = Vec::new();
        for wanted in &demand.wanted {
            let pieces = demand::fitting(&wanted.filter, bytes);
            let too_long =
                || LinkError::TooLong { bytes: demand::length(&wanted.filter), max: bytes };
            filters
                .extend(pieces.ok_or_else(too_long)?.into_iter().map(|piece| (wanted.part, piece)));
        }
        self.open.retain(|open| open.filters.iter().any(|filter| filters.contains(filter)));
        let missing = filters
            .iter()
            .filter(|filter| !self.open.iter().any(|open| open.filters.contains(filter)))
            .cloned()
            .collect();
        let most_filters = limits.max_filters.unwrap_or(FILTERS);
        let allowed = match limits.max_subscriptions {
            // One is for the past.
            Some(max) => (max - 1).clamp(1, SUBSCRIPTIONS),
            None => SUBSCRIPTIONS,
        };
        let mut groups = grouped(missing, most_filters, bytes);
        if self.open.len() + groups.len() > allowed && !self.open.is_empty() {
            // Together they may need fewer. What comes meanwhile is fetched.
            let open = std::mem::take(&mut self.open);
            self.signals.missed(open.iter().flat_map(|open| &open.filters).map(|(part, _)| *part));
            drop(open);
            groups = grouped(filters, most_filters, bytes);
        }
        let left_out: HashSet<Part> = groups
            .iter()
            .skip(allowed - self.open.len())
            .flatten()
            .map(|(part, _)| *part)
            .collect();
        self.signals.set_not_live(left_out);
        for group in groups.into_iter().take(allowed - self.open.len()) {
            let asked: Vec<Filter> = group
                .iter()
                .map(|(_, filter)| Filter { limit: Some(1), ..filter.clone() })
                .collect();
            let request = self.flow.meanwhile(self.link.request(&asked)).await?;
            let (opened, since) = (Instant::now(), unix_now());
            let open =
                Open { request, filters: group, opened, since, answered: false, is_live: false };
            self.open.push(open);
        }
        Ok(())
    }

    fn look_at_the_clock(&mut self) {
        let patience = self.link.timeouts().answer;
        let is_late = |open: &Open| !open.answered && open.opened.elapsed() >= patience;
        if self.open.iter().any(is_late) {
            // It may still send events some day: the connection lives, or its pings would have ended it.
            self.open.iter_mut().for_each(|open| open.answered = true);
            let seconds = patience.as_secs();
            let why = format!("the relay did not answer to the subscription within {seconds} s");
            self.relay.standing.refuses(why);
            self.signals.set_ready();
        }
        if self.checkpoint <= Instant::now() {
            self.checkpoint = Instant::now() + CHECKPOINT;
            self.pending.ended(self.mark, Some(Span { from: 0, until: unix_now() }));
            self.mark = self.pending.open();
        }
    }

    /// Notes how far live events have come, when all up to there are committed.
    async fn settle(&mut self) {
        let settled = self.flow.take_settled();
        if self.pending.settled(&settled) > 0 {
            // Not taken: they have to come once more, and nothing counts as complete that they are in.
            let parts: HashSet<Part> =
                self.open.iter().flat_map(|open| &open.filters).map(|(part, _)| *part).collect();
            self.signals.missed(parts);
            let now = unix_now();
            self.open.iter_mut().for_each(|open| open.since = now);
        }
        let past = &self.relay.past;
        for Span { until, .. } in self.pending.complete() {
            for open in self.open.iter().filter(|open| open.is_live && open.since <= until) {
                for (part, _) in &open.filters {
                    // The next checkpoint tells the same.
                    let Ok(ledger) = past.ledger(*part).await else { continue };
                    let mut ledger = ledger.lock().await;
                    ledger.add(Span { from: open.since, until });
                    ledger.keep(&*past.store).await;
                }
            }
        }
    }
}

/// Filters in as few subscriptions as the relay's limits allow.
fn grouped(
    filters: Vec<(Part, Filter)>,
    most_filters: usize,
    most_bytes: usize,
) -> Vec<Vec<(Part, Filter)>> {
    let mut groups: Vec<Vec<(Part, Filter)>> = Vec::new();
    let mut bytes = 0;
    for filter in filters {
        let length = demand::length(&filter.1) + "\"limit\":1,,".len();
        match groups.last_mut() {
            Some(group) if group.len() < most_filters && bytes + length <= most_bytes => {
                bytes += length;
                group.push(filter);
            }
            _ => {
                bytes = length;
                groups.push(vec![filter]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PublicKey;

    #[test]
    fn filters_share_subscriptions_within_the_limits() {
        let filter = |n: u8, authors: u8| {
            let authors = Some((0..authors).map(|author| PublicKey([author; 32])).collect());
            (u64::from(n), Filter { authors, kinds: Some(vec![n.into()]), ..Filter::default() })
        };
        let small: Vec<_> = (0..25).map(|n| filter(n, 1)).collect();
        let sizes =
            |groups: &[Vec<(Part, Filter)>]| groups.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(&grouped(small.clone(), 10, 100_000)), [10, 10, 5]);
        assert_eq!(sizes(&grouped(small.clone(), 1, 100_000)), [1; 25]);
        let large: Vec<_> = (0..4).map(|n| filter(n, 100)).collect();
        assert_eq!(sizes(&grouped(large, 10, 15_000)), [2, 2]);
        assert_eq!(grouped(small.clone(), 10, 100_000).concat(), small);
        assert!(grouped(Vec::new(), 10, 100).is_empty());
    }
}
