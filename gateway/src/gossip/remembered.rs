//! Neighbors of earlier days: remembered as they stay, and asked again when there is nobody.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use iroh::{
    EndpointAddr, EndpointId, RelayUrl, TransportAddr, address_lookup::memory::MemoryLookup,
};

use super::{links::Links, peer_id, state::TopicState};
use crate::{
    clock::unix_now,
    pipeline::{PeerId, PeerStore, RememberedPeer, StoreError, remembered::MAX_OF_TOPIC},
    protocol::private::MemberId,
};

/// How often the neighbors are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A neighbor is worth remembering once it has stayed so long.
const LASTING: Duration = Duration::from_secs(3);
/// One that stays is written down again after this time, and at most this often when the way to it
/// changes.
const AGAIN: Duration = Duration::from_secs(600);
const CHANGED: Duration = Duration::from_secs(30);

/// How many are asked in one look: those that answered last, and some of the others.
const BEST: usize = 2;
const OTHERS: usize = 2;
/// One that is no neighbor so long after it was asked was looked for in vain.
const IN_VAIN: Duration = Duration::from_secs(15);

/// The pause between two attempts is this part of the time that a peer has been away: one that went a
/// minute ago is asked every four seconds.
const PATIENCE: u32 = 16;
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The addresses remembered of one endpoint.
const ADDRESSES: usize = 8;

/// The remembered peers of one topic.
pub struct Remembered {
    store: Arc<dyn PeerStore>,
    state: Arc<TopicState>,
    links: Links,
    /// Where iroh looks addresses up; shared by all topics.
    hints: MemoryLookup,
    known: Mutex<Vec<RememberedPeer>>,
}

impl Remembered {
    pub fn new(
        store: Arc<dyn PeerStore>,
        state: Arc<TopicState>,
        links: Links,
        hints: MemoryLookup,
    ) -> Self {
        Self { store, state, links, hints, known: Mutex::default() }
    }

    /// Reads those of earlier runs, and gives iroh their addresses.
    ///
    /// # Errors
    /// When they cannot be read; the topic does without them then.
    pub async fn recall(&self) -> Result<(), StoreError> {
        let peers = self.store.load(self.state.name().clone()).await?;
        for peer in &peers {
            if let Some(address) = address_of(peer) {
                self.hints.add_endpoint_info(address);
            }
        }
        *self.known() = peers;
        Ok(())
    }

    /// Whom to ask now; the most promising first.
    pub fn choice(&self) -> Vec<EndpointId> {
        let mut known = self.known().clone();
        known.retain(|known| self.belongs(known.peer));
        known.sort_by_key(|peer| (peer.failures, std::cmp::Reverse(peer.reached_at)));
        let ids = known.iter().filter_map(|peer| EndpointId::from_bytes(&peer.peer.0).ok());
        let (best, others): (Vec<_>, Vec<_>) = ids.enumerate().partition(|(rank, _)| *rank < BEST);
        // In order of a random key.
        let others: BTreeSet<_> =
            others.into_iter().map(|p| (rand::random::<u64>(), p.1)).collect();
        let others = others.into_iter().take(OTHERS).map(|(_, id)| id);
        best.into_iter().map(|(_, id)| id).chain(others).collect()
    }

    /// Writes down which neighbors stay. Never ends.
    pub async fn keep(&self) -> Infallible {
        let mut seen: HashMap<EndpointId, Seen> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let sources = self.state.sources();
            seen.retain(|id, _| sources.iter().any(|(neighbor, _)| neighbor == id));
            for (id, found_by) in sources {
                let seen = seen.entry(id).or_insert_with(Seen::new);
                let addresses = self.links.addresses(&id);
                if !seen.is_due(&addresses) || !self.belongs(peer_id(&id)) {
                    continue;
                }
                seen.written = Some((Instant::now(), addresses.clone()));
                let peer = RememberedPeer {
                    topic: self.state.name().clone(),
                    peer: peer_id(&id),
                    addresses: addresses.iter().take(ADDRESSES).filter_map(written).collect(),
                    found_by: found_by.name().to_owned(),
                    over_relay: !addresses.iter().any(TransportAddr::is_ip),
                    reached_at: unix_now(),
                    failures: 0,
                };
                self.reached(peer).await;
            }
        }
    }

    async fn reached(&self, peer: RememberedPeer) {
        if let Some(address) = address_of(&peer) {
            // In place of what was known: where it is now counts.
            self.hints.set_endpoint_info(address);
        }
        {
            let mut known = self.known();
            known.retain(|known| known.peer != peer.peer);
            known.insert(0, peer.clone());
            known.truncate(MAX_OF_TOPIC);
        }
        let id = peer.peer;
        match self.store.reached(peer).await {
            Ok(()) => tracing::debug!(peer = ?id, "remembering a neighbor"),
            Err(error) => tracing::warn!(%error, "cannot remember a neighbor"),
        }
    }

    /// Counts a failure for each of these.
    pub async fn missed(&self, peers: Vec<EndpointId>) {
        if peers.is_empty() {
            return;
        }
        let peers: Vec<_> = peers.iter().map(peer_id).collect();
        for known in self.known().iter_mut().filter(|known| peers.contains(&known.peer)) {
            known.failures = known.failures.saturating_add(1);
        }
        if let Err(error) = self.store.missed(self.state.name().clone(), peers).await {
            tracing::warn!(%error, "cannot note who was looked for in vain");
        }
    }

    /// Whoever was left out of a private topic may be a neighbor for the grace, and is not asked later.
    fn belongs(&self, peer: PeerId) -> bool {
        self.state.circle().is_none_or(|circle| circle.is_member(MemberId(peer.0)))
    }

    fn known(&self) -> MutexGuard<'_, Vec<RememberedPeer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A neighbor of now.
struct Seen {
    since: Instant,
    /// When it was written down, and with which addresses.
    written: Option<(Instant, Vec<TransportAddr>)>,
}

impl Seen {
    fn new() -> Self {
        Self { since: Instant::now(), written: None }
    }

    fn is_due(&self, addresses: &[TransportAddr]) -> bool {
        // Between two connections there are none.
        if addresses.is_empty() {
            return false;
        }
        match &self.written {
            None => self.since.elapsed() >= LASTING,
            Some((at, before)) if before == addresses => at.elapsed() >= AGAIN,
            Some((at, _)) => at.elapsed() >= CHANGED,
        }
    }
}

/// Who was asked and has not become a neighbor. A peer counts as missed once for each time that it is
/// needed: retries while it stays away say nothing new.
#[derive(Default)]
pub struct Asked(HashMap<EndpointId, Absent>);

struct Absent {
    since: Instant,
    asked: Instant,
    counted: bool,
}

impl Asked {
    /// Those of `peers` to ask now: the longer one has been away, the less often.
    pub fn due(&mut self, peers: Vec<EndpointId>, neighbors: &[EndpointId]) -> Vec<EndpointId> {
        self.0.retain(|peer, _| !neighbors.contains(peer));
        let now = Instant::now();
        let mut due = peers;
        due.retain(|peer| !neighbors.contains(peer));
        due.retain(|peer| self.0.get(peer).is_none_or(|absent| absent.is_due(now)));
        for peer in &due {
            let new = Absent { since: now, asked: now, counted: false };
            self.0.entry(*peer).or_insert(new).asked = now;
        }
        due
    }

    /// Those who have been asked in vain for a while; each is named once.
    pub fn missed(&mut self) -> Vec<EndpointId> {
        let missed = self.0.iter_mut().filter(|(_, absent)| !absent.counted);
        let missed = missed.filter(|(_, absent)| absent.since.elapsed() >= IN_VAIN);
        missed
            .map(|(peer, absent)| {
                absent.counted = true;
                *peer
            })
            .collect()
    }
}

impl Absent {
    fn is_due(&self, now: Instant) -> bool {
        let pause = (now.duration_since(self.since) / PATIENCE).min(LONGEST_PAUSE);
        now.duration_since(self.asked) >= pause
    }
}

fn written(address: &TransportAddr) -> Option<String> {
    match address {
        TransportAddr::Ip(address) => Some(address.to_string()),
        TransportAddr::Relay(url) => Some(url.to_string()),
        _ => None,
    }
}

/// What was written, for iroh. `None` when nothing of it can be read.
fn address_of(peer: &RememberedPeer) -> Option<EndpointAddr> {
    let id = EndpointId::from_bytes(&peer.peer.0).ok()?;
    let addresses = peer.addresses.iter().filter_map(|text| match text.parse() {
        Ok(address) => Some(TransportAddr::Ip(address)),
        Err(_) => text.parse::<RelayUrl>().ok().map(TransportAddr::Relay),
    });
    let address = EndpointAddr::from_parts(id, addresses);
    (!address.is_empty()).then_some(address)
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;
    use crate::protocol::TopicName;

    fn id(number: u8) -> EndpointId {
        SecretKey::from_bytes(&[number; 32]).public()
    }

    fn peer(number: u8, reached_at: u64, failures: u32, addresses: &[&str]) -> RememberedPeer {
        RememberedPeer {
            topic: TopicName::new("t").unwrap(),
            peer: PeerId(*SecretKey::from_bytes(&[number; 32]).public().as_bytes()),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            found_by: "mdns".into(),
            over_relay: false,
            reached_at,
            failures,
        }
    }

    #[test]
    fn addresses_survive_being_written() {
        let address = address_of(&peer(1, 0, 0, &["192.0.2.1:4", "[::1]:5", "https://r.example/"]));
        let address = address.unwrap();
        assert_eq!((address.ip_addrs().count(), address.relay_urls().count()), (2, 1));
        let texts: Vec<_> = address.addrs.iter().filter_map(written).collect();
        assert!(texts.contains(&"[::1]:5".to_owned()), "{texts:?}");
        assert!(texts.contains(&"https://r.example/".to_owned()), "{texts:?}");
        assert_eq!(address_of(&peer(1, 0, 0, &["", "nonsense"])), None);
    }

    /// Keeps nothing.
    struct Nowhere;

    impl PeerStore for Nowhere {
        fn load(
            &self,
            _topic: TopicName,
        ) -> futures_util::future::BoxFuture<'_, Result<Vec<RememberedPeer>, StoreError>> {
            Box::pin(async { Err(StoreError("nowhere".into())) })
        }
        fn reached(
            &self,
            _peer: RememberedPeer,
        ) -> futures_util::future::BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
        fn missed(
            &self,
            _topic: TopicName,
            _peers: Vec<PeerId>,
        ) -> futures_util::future::BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn those_that_answered_last_are_asked_first_and_few_at_once() {
        let state = Arc::new(TopicState::new(TopicName::new("t").unwrap(), Default::default()));
        let remembered =
            Remembered::new(Arc::new(Nowhere), state, Links::default(), MemoryLookup::new());
        assert!(remembered.recall().await.is_err() && remembered.choice().is_empty());
        for number in 1..=40 {
            remembered.reached(peer(number, u64::from(number), 0, &[])).await;
        }
        remembered.missed(vec![id(40)]).await;
        let choice = remembered.choice();
        assert_eq!(choice.len(), BEST + OTHERS);
        let best: Vec<_> = (40 - BEST as u8..40).rev().map(id).collect();
        assert_eq!(choice[..BEST], best, "the one that was missed comes last");
        let others = (0..20).map(|_| remembered.choice()[BEST..].to_vec());
        assert!(others.collect::<BTreeSet<_>>().len() > 1, "the others take turns");
    }

    #[test]
    fn the_longer_one_is_away_the_less_often_it_is_asked() {
        let mut asked = Asked::default();
        let all = || vec![id(1), id(2), id(3)];
        assert_eq!(asked.due(all(), &[id(3)]), [id(1), id(2)]);
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        asked.0.insert(id(1), Absent { since: ago(60), asked: ago(3), counted: false });
        asked.0.insert(id(2), Absent { since: ago(60), asked: ago(4), counted: false });
        assert_eq!(asked.due(all(), &[id(3)]), [id(2)]);
        let mut missed = asked.missed();
        missed.sort();
        let mut both = vec![id(1), id(2)];
        both.sort();
        assert_eq!(missed, both);
        assert!(asked.missed().is_empty(), "each is counted once");
        // One that came back begins anew.
        assert!(asked.due(all(), &[id(1), id(2)]).contains(&id(3)));
        assert_eq!(asked.due(vec![id(1)], &[]), [id(1)]);
    }
}
