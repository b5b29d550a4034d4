//! The subscriptions of a connection: REQ → stored events → EOSE → live events.

use std::sync::Arc;

use super::{End, PAGE, Scanning, Session, Subscription};
use crate::{
    clock::unix_now,
    pipeline::{ScanItem, Seq},
    protocol::{Filter, Prefix, Reason, message},
    subscriptions::{Delivery, Interest, Lagged},
};

impl Session {
    pub(super) async fn request(
        &mut self,
        id: Arc<str>,
        mut filters: Vec<Filter>,
    ) -> Result<(), End> {
        // NIP-01: a REQ with the id of an open subscription replaces it.
        self.forget(&id);
        if self.open.len() >= self.relay.config.max_subscriptions {
            let max = self.relay.config.max_subscriptions;
            let text = format!("more than {max} subscriptions; close one first");
            let reason = Reason::new(Prefix::RateLimited, text);
            return self.send(message::closed(&id, &reason)).await;
        }
        let config = &self.relay.config;
        for filter in &mut filters {
            let limit = filter.limit.unwrap_or(config.default_limit);
            filter.limit = Some(limit.min(config.max_limit));
        }
        self.generation += 1;
        let interest =
            Interest { filters, scope: self.scope.clone(), visible: self.visible.clone() };
        let subscription =
            Subscription { interest: Arc::new(interest), generation: self.generation };
        self.open.insert(id.clone(), subscription);
        self.relay.metrics.subscriptions.inc();
        self.waiting.push_back(id);
        Ok(())
    }

    pub(super) fn forget(&mut self, id: &Arc<str>) {
        if self.open.remove(id).is_none() {
            return;
        }
        self.relay.metrics.subscriptions.dec();
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
        let scan = self.relay.reader.scan(filters, scope, self.visible.clone());
        self.scanning = Some(Scanning { subscription: id, scan });
    }

    pub(super) async fn scanned(&mut self, item: Option<ScanItem>) -> Result<(), End> {
        let Some(scanning) = &self.scanning else { return Ok(()) };
        let id = scanning.subscription.clone();
        match item {
            Some(ScanItem::Event(json)) => self.send(message::event(&id, &json)).await,
            Some(ScanItem::End(at)) => {
                self.scanning = None;
                self.send(message::eose(&id)).await?;
                self.go_live(&id, at).await
            }
            Some(ScanItem::Failed(_)) | None => {
                self.forget(&id);
                let reason = Reason::error("the query could not be answered");
                self.send(message::closed(&id, &reason)).await
            }
        }
    }

    /// Sends what the log has after `after`, then lets the registry deliver.
    async fn go_live(&mut self, id: &Arc<str>, mut after: Seq) -> Result<(), End> {
        loop {
            let Some(subscription) = self.open.get(id) else { return Ok(()) };
            let interest = subscription.interest.clone();
            let generation = subscription.generation;
            if let Some(missed) = self.feed.activate(id, generation, &interest, after) {
                for event in missed {
                    self.send(message::event(id, event.json())).await?;
                }
                return Ok(());
            }
            let head = *self.relay.reader.head().borrow();
            let entries = match self.relay.reader.log_after(after, PAGE).await {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::error!(%error, "a subscription cannot read the log");
                    self.forget(id);
                    let reason = Reason::error("the subscription could not be kept up");
                    return self.send(message::closed(id, &reason)).await;
                }
            };
            let now = unix_now();
            after = entries.last().map_or(head, |entry| entry.seq);
            for entry in entries.iter().filter(|entry| interest.wants(entry, now)) {
                self.send(message::event(id, entry.event.json())).await?;
            }
        }
    }

    pub(super) async fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        let Delivery { subscription, generation, event } = delivery;
        // What was queued for a subscription that is closed or replaced by now is not sent.
        match self.open.get(&subscription) {
            Some(open) if open.generation == generation => {
                self.send(message::event(&subscription, event.json())).await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn catch_up_lagged(&mut self) -> Result<(), End> {
        for Lagged { subscription, generation, after } in self.feed.take_lagged() {
            if self.open.get(&subscription).is_some_and(|open| open.generation == generation) {
                self.go_live(&subscription, after).await?;
            }
        }
        Ok(())
    }
}
