//! How the members of a topic find one another. The steps overlap; whichever answers first wins.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use futures_util::StreamExt;
use iroh::EndpointId;
use mainline::async_dht::AsyncDht;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    asking::Asking,
    config::DiscoveryConfig,
    dht::SharedDht,
    ladder::{FoundBy, Step},
    local::LocalPeers,
    pace::{self, Choice},
    record::{RecordKeys, Sighting},
    state::TopicState,
};
use crate::{
    clock::unix_now,
    metrics::{CauseLabels, Metrics},
};

/// How many distinct values of one minute are decrypted, as a multiple of `records_per_minute`:
/// whoever knows the topic can fill its slots with rubbish.
const TRIED_PER_KEPT: usize = 4;

const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// One topic's search for neighbors.
pub struct Discovery {
    pub keys: RecordKeys,
    pub me: SigningKey,
    pub id: EndpointId,
    pub config: Arc<DiscoveryConfig>,
    pub dht: Option<SharedDht>,
    pub configured: Arc<[EndpointId]>,
    pub local: Option<LocalPeers>,
    pub state: Arc<TopicState>,
    /// To the topic, which joins whom we find. When it is full, we find them again.
    pub join: mpsc::Sender<Vec<EndpointId>>,
    pub metrics: Arc<Metrics>,
}

impl Discovery {
    /// Looks for neighbors until shutdown.
    pub async fn run(self, token: CancellationToken) {
        let steps = async {
            tokio::join!(self.meet_configured(), self.meet_local(), self.use_dht(&token),);
        };
        token.run_until_cancelled(steps).await;
    }

    /// The peers named in the configuration: at start, and again while there are few neighbors.
    async fn meet_configured(&self) {
        if self.configured.is_empty() {
            return;
        }
        let mut asking = Asking::new(Step::Configured, self.timeout());
        loop {
            if self.has_few() {
                let asked = self.join_known(self.configured.iter(), FoundBy::Configured);
                asking.ask(&self.state, "", &asked);
            }
            asking.during(&self.state, self.rest()).await;
        }
    }

    /// The gateways on the local network: as they appear, and again while there are few neighbors.
    async fn meet_local(&self) {
        let Some(mut local) = self.local.clone() else { return };
        let mut asking = Asking::new(Step::Mdns, self.timeout());
        loop {
            let peers = local.borrow_and_update().clone();
            if self.has_few() {
                let asked = self.join_known(peers.iter(), FoundBy::Mdns);
                asking.ask(&self.state, &format!("sees {}, ", peers.len()), &asked);
            }
            tokio::select! {
                changed = local.changed() => if changed.is_err() { return },
                () = asking.during(&self.state, self.rest()) => {}
            }
        }
    }

    async fn use_dht(&self, token: &CancellationToken) {
        let Some(mut dht) = self.dht.clone() else { return };
        let Some(dht) = dht.ready(token).await else { return };
        // The slot of a minute is shared: look who is in it before writing over it.
        let looked = Notify::new();
        tokio::join!(self.look_on_and_on(&dht, &looked), self.publish_on_and_on(&dht, &looked));
    }

    async fn look_on_and_on(&self, dht: &AsyncDht, looked: &Notify) {
        let mut failed = 0;
        loop {
            let began = Instant::now();
            let minute = unix_minute();
            let choice = Mutex::default();
            let (now, before) = tokio::join!(
                self.look(dht, minute, &choice),
                self.look(dht, minute.saturating_sub(1), &choice)
            );
            self.join_chosen(choice, now.iter().chain(&before).flatten());
            let records = now.iter().chain(&before).map(Vec::len).sum::<usize>();
            let result = match (&now, &before) {
                (None, None) => Err("timed out".to_owned()),
                // An empty answer, and an empty routing table: there was nobody to answer.
                _ if records == 0 && dht.to_bootstrap().await.is_empty() => {
                    Err("no node of the DHT answers".to_owned())
                }
                _ => Ok(format!("{records} records of others")),
            };
            failed = if result.is_ok() { 0 } else { failed + 1 };
            self.state.step(Step::DhtLookup, began, result);
            looked.notify_one();
            if (1..=self.config.retries).contains(&failed) {
                tokio::time::sleep(RETRY_PAUSE + self.jitter()).await;
            } else {
                failed = 0;
                self.rest().await;
            }
        }
    }

    /// Reads the records of one minute and joins their publishers as they come in. `None` when
    /// nothing came in time.
    async fn look(
        &self,
        dht: &AsyncDht,
        minute: u64,
        choice: &Mutex<Choice>,
    ) -> Option<Vec<Sighting>> {
        self.metrics.lookups.inc();
        let (key, salt) = self.keys.place(minute);
        let mut items = dht.get_mutable(&key, Some(&salt), None);
        let deadline = tokio::time::Instant::now() + self.timeout();
        let (mut seen, mut sightings) = (HashSet::new(), Vec::new());
        let most = self.config.records_per_minute;
        while sightings.len() < most && seen.len() < most.saturating_mul(TRIED_PER_KEPT) {
            let item = match tokio::time::timeout_at(deadline, items.next()).await {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(_) if seen.is_empty() => return None,
                Err(_) => break,
            };
            // Every node of the DHT that holds the slot answers with the same value.
            if !seen.insert(item.value().to_vec()) {
                continue;
            }
            match self.keys.open(minute, item.value()) {
                Ok(sighting) if sighting.publisher == self.id => {}
                Ok(sighting) => {
                    self.follow(&sighting, choice);
                    sightings.push(sighting);
                }
                Err(error) => {
                    let cause = CauseLabels { cause: error.cause() };
                    self.metrics.records_dropped.get_or_create(&cause).inc();
                }
            }
        }
        Some(sightings)
    }

    fn follow(&self, sighting: &Sighting, choice: &Mutex<Choice>) {
        let follows =
            choice.lock().unwrap_or_else(PoisonError::into_inner).follows(self.neighbors());
        if follows {
            self.join([sighting.publisher], FoundBy::Dht);
        }
    }

    fn join_chosen<'a>(
        &self,
        choice: Mutex<Choice>,
        sightings: impl Iterator<Item = &'a Sighting>,
    ) {
        let choice = choice.into_inner().unwrap_or_else(PoisonError::into_inner);
        let neighbors = self.state.neighbors();
        let chosen = choice.end(self.id, &neighbors, sightings, &mut rand::rng());
        self.join(chosen, FoundBy::Dht);
    }

    async fn publish_on_and_on(&self, dht: &AsyncDht, looked: &Notify) {
        looked.notified().await;
        let republish = Duration::from_secs(self.config.republish_s);
        let mut last: Option<(u64, Instant)> = None;
        loop {
            let minute = unix_minute();
            let published = last.map(|(slot, at)| (slot, at.elapsed()));
            let due = pace::publishes(self.neighbors(), published, minute, republish);
            if due && self.publish(dht, minute).await {
                last = Some((minute, Instant::now()));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn publish(&self, dht: &AsyncDht, minute: u64) -> bool {
        let began = Instant::now();
        let mut reason = String::new();
        for attempt in 0..=self.config.retries {
            if attempt > 0 {
                tokio::time::sleep(RETRY_PAUSE + self.jitter()).await;
            }
            // Ours replaces the record of another member in this slot: name our neighbors, so that
            // whoever reads it finds them too.
            let neighbors = self.state.neighbors();
            let item = match self.keys.seal(minute, &self.me, &neighbors) {
                Ok(item) => item,
                Err(error) => {
                    reason = error.to_string();
                    break;
                }
            };
            let seq = item.seq();
            match tokio::time::timeout(self.timeout(), dht.put_mutable(item, Some(seq))).await {
                Ok(Ok(_)) => {
                    self.metrics.records_published.inc();
                    let text = format!("published with {} neighbors", neighbors.len());
                    self.state.step(Step::DhtPublish, began, Ok(text));
                    return true;
                }
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => "timed out".clone_into(&mut reason),
            }
        }
        self.state.step(Step::DhtPublish, began, Err(reason));
        false
    }

    fn join_known<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a EndpointId>,
        by: FoundBy,
    ) -> Vec<EndpointId> {
        let neighbors = self.state.neighbors();
        let peers = peers.into_iter().copied();
        self.join(pace::known(self.id, &neighbors, peers, &mut rand::rng()), by)
    }

    fn join(&self, peers: impl IntoIterator<Item = EndpointId>, by: FoundBy) -> Vec<EndpointId> {
        ask(self.id, &self.state, &self.join, peers, by)
    }

    fn neighbors(&self) -> usize {
        *self.state.count().borrow()
    }

    fn has_few(&self) -> bool {
        self.neighbors() < pace::FEW
    }

    async fn rest(&self) {
        rest(&self.state, self.config.jitter_ms).await;
    }

    fn jitter(&self) -> Duration {
        jitter(self.config.jitter_ms)
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.timeout_ms)
    }
}

/// Asks the topic to join those that are not neighbors yet. Returns them, or nobody when the topic is too
/// busy to hear of it.
pub fn ask(
    me: EndpointId,
    state: &TopicState,
    join: &mpsc::Sender<Vec<EndpointId>>,
    peers: impl IntoIterator<Item = EndpointId>,
    by: FoundBy,
) -> Vec<EndpointId> {
    let new = pace::strangers(me, &state.neighbors(), peers);
    new.iter().for_each(|peer| state.found(*peer, by));
    if new.is_empty() || join.try_send(new.clone()).is_ok() { new } else { Vec::new() }
}

/// Waits for the next look, and not at all once the last neighbor is gone.
pub async fn rest(state: &TopicState, jitter_ms: u64) {
    let mut count = state.count();
    let now = *count.borrow();
    let pause = pace::pause(now, state.alone_for());
    tokio::select! {
        () = tokio::time::sleep(pause + jitter(jitter_ms)) => {}
        _ = count.wait_for(|count| *count == 0), if now > 0 => {}
    }
}

fn jitter(most_ms: u64) -> Duration {
    Duration::from_millis(rand::random_range(0..=most_ms))
}

/// The slot of now: records are kept by the minute since the Unix epoch.
fn unix_minute() -> u64 {
    unix_now() / 60
}

#[cfg(test)]
mod tests;
