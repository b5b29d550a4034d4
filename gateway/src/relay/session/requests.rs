//! The subscriptions of a connection: REQ → stored events → EOSE → live events.

use std::sync::Arc;

use futures_util::FutureExt;

use super::{End, LogPage, MAX_FILTER_VALUES, PAGE, Scanning, Session, Subscription};
use crate::{
    clock::unix_now,
    pipeline::{ScanItem, Seq, StoreError},
    protocol::{Filter, Prefix, Reason, message},
    subscriptions::{Delivery, Interest, Lagged, News},
};

impl Session {
    pub(super) async fn request(
        &mut self,
        id: Arc<str>,
        mut filters: Vec<Filter>,
    ) -> Result<(), End> {
        // NIP-01: a REQ with the id of an open subscription replaces it.
        self.forget(&id);
        if let Some(reason) = self.refusal_to_read(&filters) {
            return self.answer(Some(reason.prefix), message::closed(&id, &reason)).await;
        }
        if self.open.len() >= self.relay.config.max_subscriptions {
            let max = self.relay.config.max_subscriptions;
            let text = format!("more than {max} subscriptions; close one first");
            let reason = Reason::new(Prefix::RateLimited, text);
            return self.send(message::closed(&id, &reason)).await;
        }
        let open = self.open.values().flat_map(|open| &open.interest.filters);
        let values: usize = open.chain(&filters).map(Filter::values).sum();
        if values > MAX_FILTER_VALUES {
            let text = format!(
                "more than {MAX_FILTER_VALUES} ids, authors, kinds and tag values in all subscriptions"
            );
            let reason = Reason::new(Prefix::RateLimited, text);
            return self.send(message::closed(&id, &reason)).await;
        }
        let held = match self.rates.as_ref().map(|rates| rates.subscribe(filters.len())) {
            Some(Err(limited)) => {
                let reason = self.patience(limited)?;
                return self.send(message::closed(&id, &reason)).await;
            }
            Some(Ok(held)) => Some(held),
            None => None,
        };
        let config = &self.relay.config;
        for filter in &mut filters {
            let limit = filter.limit.unwrap_or(config.default_limit);
            filter.limit = Some(limit.min(config.max_limit));
        }
        if self.withholds(&filters) {
            self.challenge().await?;
        }
        self.generation += 1;
        let interest = Interest { filters, scope: self.scope.clone(), viewer: self.viewer.clone() };
        let (interest, generation) = (Arc::new(interest), self.generation);
        let subscription = Subscription { interest, generation, _held: held };
        self.open.insert(id.clone(), subscription);
        self.gauges.subscriptions(1);
        self.waiting.push_back(id);
        Ok(())
    }

    pub(super) fn forget(&mut self, id: &Arc<str>) {
        if self.open.remove(id).is_none() {
            return;
        }
        self.gauges.subscriptions(-1);
        self.feed.close(id);
        self.waiting.retain(|waiting| waiting != id);
        if self.scanning.as_ref().is_some_and(|scanning| scanning.subscription == *id) {
            self.scanning = None;
        }
    }

    pub(super) fn start_next_scan(&mut self) {
        if self.scanning.is_some() {
            return;
        }
        let Some(id) = self.waiting.pop_front() else { return };
        let Some(subscription) = self.open.get(&id) else { return };
        let interest = &subscription.interest;
        let (filters, scope) = (interest.filters.clone(), interest.scope.clone());
        let scan = self.relay.reader.scan(filters, scope, self.viewer.load_full());
        self.scanning = Some(Scanning { subscription: id, scan });
    }

    pub(super) async fn scanned(&mut self, item: Option<ScanItem>) -> Result<(), End> {
        let Some(scanning) = &self.scanning else { return Ok(()) };
        let id = scanning.subscription.clone();
        match item {
            Some(ScanItem::Events(events)) => {
                for json in events {
                    self.out.event(&id, &json).await?;
                }
                Ok(())
            }
            Some(ScanItem::End { at, complete }) => {
                self.scanning = None;
                let filters = self.open.get(&id).map_or(&[][..], |open| &open.interest.filters);
                let complete = complete && !self.withholds(filters);
                self.send(message::eose(&id, complete)).await?;
                self.go_live(&id, at).await
            }
            failed @ (Some(ScanItem::Failed(_)) | None) => {
                self.forget(&id);
                let reason = Reason::error(match failed {
                    Some(ScanItem::Failed(StoreError(why))) => why,
                    _ => "the query could not be answered".to_owned(),
                });
                self.send(message::closed(&id, &reason)).await
            }
        }
    }

    /// Sends what others got since `after` and lets the registry deliver from now on, or queues the
    /// subscription to read the log first.
    async fn go_live(&mut self, id: &Arc<str>, after: Seq) -> Result<(), End> {
        let Some(subscription) = self.open.get(id) else { return Ok(()) };
        let (interest, generation) = (subscription.interest.clone(), subscription.generation);
        match self.feed.activate(id, generation, &interest, after) {
            Some(missed) => {
                for event in missed {
                    self.out.event(id, event.json()).await?;
                }
            }
            None => self.behind.push_back(Lagged { subscription: id.clone(), generation, after }),
        }
        Ok(())
    }

    pub(super) fn start_next_catch_up(&mut self) {
        if self.catching_up.is_some() {
            return;
        }
        let Some(lagged) = self.behind.pop_front() else { return };
        let (reader, after) = (self.relay.reader.clone(), lagged.after);
        let page = async move {
            // An empty page means that nothing is left up to here.
            let head = *reader.head().borrow();
            let entries = reader.log_after(after, PAGE).await?;
            let reached = entries.last().map_or(head, |entry| entry.seq);
            Ok(LogPage { entries, reached })
        }
        .boxed();
        self.catching_up = Some((lagged, page));
    }

    /// A page of the log for the subscription that is catching up.
    pub(super) async fn logged(&mut self, page: Result<LogPage, StoreError>) -> Result<(), End> {
        let Some((Lagged { subscription: id, generation, .. }, _)) = self.catching_up.take() else {
            return Ok(());
        };
        let Some(open) = self.open.get(&id).filter(|open| open.generation == generation) else {
            return Ok(());
        };
        let interest = open.interest.clone();
        match page {
            Ok(LogPage { entries, reached }) => {
                let now = unix_now();
                for entry in entries.iter().filter(|entry| interest.wants(entry, now)) {
                    self.out.event(&id, entry.event.json()).await?;
                }
                self.go_live(&id, reached).await
            }
            Err(error) => {
                tracing::error!(%error, "a subscription cannot read the log");
                self.forget(&id);
                let reason = Reason::error("the subscription could not be kept up");
                self.send(message::closed(&id, &reason)).await
            }
        }
    }

    /// What was delivered since the last time, and who was left behind meanwhile.
    pub(super) async fn news(&mut self, news: News) -> Result<(), End> {
        for delivery in news.deliveries {
            self.deliver(delivery).await?;
        }
        for Lagged { subscription, generation, after } in news.lagged {
            // Most often it is all still in memory.
            if self.open.get(&subscription).is_some_and(|open| open.generation == generation) {
                self.go_live(&subscription, after).await?;
            }
        }
        // All that came at once is there: nothing is gained by waiting for more.
        Ok(self.out.flush().await?)
    }

    async fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        let Delivery { subscription, generation, event } = delivery;
        // What was queued for a subscription that is closed or replaced by now is not sent.
        match self.open.get(&subscription) {
            Some(open) if open.generation == generation => {
                Ok(self.out.event(&subscription, event.json()).await?)
            }
            _ => Ok(()),
        }
    }
}
