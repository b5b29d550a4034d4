//! A gateway around the state machine: asks our own rules, and does what they say.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::EndpointId;
use iroh_gossip::proto::{Command, DeliveryScope, InEvent, Scope};
use rand::Rng;

use super::{
    happening::Happening,
    world::{TOPIC, World},
};
use crate::{
    gossip::{
        fetch::schedule::Job,
        joiner,
        outbound::{self, Outgoing},
        pace,
    },
    pipeline::Outcome,
    protocol::{
        Event, EventId,
        frame::{self, GossipFrame, MAX_GOSSIP_BYTES},
    },
};

/// What one call to the DHT takes, in milliseconds.
const DHT_MS: std::ops::Range<u64> = 80..400;
/// As `fetch/client.rs` has it: when a peer that does not answer is given up.
const STALLED: Duration = Duration::from_secs(10);

impl World {
    pub fn neighbor_up(&mut self, node: usize, peer: EndpointId) {
        let now = self.instant();
        let here = &mut self.nodes[node];
        if here.neighbors.insert(peer) {
            here.plans.arrived(peer, now);
        }
        self.plan(node, Duration::ZERO, Happening::Compare);
        self.plan(node, Duration::ZERO, Happening::Send);
        self.plan(node, Duration::ZERO, Happening::Fetch);
    }

    pub fn neighbor_down(&mut self, node: usize, peer: EndpointId) {
        let here = &mut self.nodes[node];
        if here.neighbors.remove(&peer) && here.neighbors.is_empty() {
            here.alone_since = self.now;
            // Who is alone does not rest.
            self.look_after(node, Duration::ZERO);
            self.ask_configured_after(node, Duration::ZERO);
        }
    }

    // Discovery.

    pub fn tick(&mut self, node: usize) {
        self.plan(node, joiner::CHECK, Happening::Tick);
        let now = self.instant();
        let here = &mut self.nodes[node];
        let neighbors: Vec<_> = here.neighbors.iter().copied().collect();
        for peer in here.asked.overdue(&neighbors, now) {
            if self.rules.asks_anew && self.nodes[node].disturbed.may(peer, now, &mut self.random) {
                let (peer, forget) =
                    (self.index[&peer], joiner::forgets(neighbors.is_empty(), false));
                self.plan(node, Duration::ZERO, Happening::Knock { peer, forget, since: self.now });
            }
        }
        let minute = self.unix() / 60;
        let republish = Duration::from_secs(self.discovery.republish_s);
        let here = &self.nodes[node];
        let published = here.published.map(|(slot, at)| (slot, self.now - at));
        if here.looked && pace::publishes(here.neighbors.len(), published, minute, republish) {
            self.nodes[node].published = Some((minute, self.now));
            let after = self.dht_time();
            self.plan(node, after, Happening::Publish { minute });
        }
    }

    pub fn put_record(&mut self, node: usize, minute: u64) {
        let record = self.record(node);
        self.dht.put(self.links.side(node), minute, &record, &mut self.random);
    }

    /// Another look, instead of the one that was planned.
    pub fn look_after(&mut self, node: usize, after: Duration) {
        if self.rules.dht {
            self.nodes[node].look += 1;
            let number = self.nodes[node].look;
            self.plan(node, after, Happening::Look { number });
        }
    }

    pub fn look(&mut self, node: usize, number: u64) {
        if number == self.nodes[node].look {
            let (after, minute) = (self.dht_time(), self.unix() / 60);
            self.plan(node, after, Happening::Looked { number, minute });
        }
    }

    pub fn looked(&mut self, node: usize, number: u64, minute: u64) {
        let (side, me) = (self.links.side(node), self.nodes[node].id);
        let mut seen = Vec::new();
        for minute in [minute, minute - 1] {
            let mut records = self.dht.get(side, minute);
            records.retain(|record| record.publisher != me);
            records.truncate(self.discovery.records_per_minute);
            seen.extend(records);
        }
        let mut choice = pace::Choice::default();
        for record in &seen {
            if choice.follows(self.nodes[node].neighbors.len()) {
                self.join_new(node, [record.publisher]);
            }
        }
        let neighbors: Vec<_> = self.nodes[node].neighbors.iter().copied().collect();
        let chosen = choice.end(me, &neighbors, seen.iter(), &mut self.random);
        self.join_new(node, chosen);
        self.nodes[node].looked = true;
        if number == self.nodes[node].look {
            let pause = self.pause(node);
            self.look_after(node, pause);
        }
    }

    pub fn ask_configured_after(&mut self, node: usize, after: Duration) {
        if !self.nodes[node].configured.is_empty() {
            self.nodes[node].ask += 1;
            let number = self.nodes[node].ask;
            self.plan(node, after, Happening::Configured { number });
        }
    }

    pub fn ask_configured(&mut self, node: usize, number: u64) {
        if number == self.nodes[node].ask {
            let here = &self.nodes[node];
            let neighbors: Vec<_> = here.neighbors.iter().copied().collect();
            let configured = here.configured.clone();
            let chosen = pace::known(here.id, &neighbors, configured, &mut self.random);
            self.join_new(node, chosen);
            let pause = self.pause(node);
            self.ask_configured_after(node, pause);
        }
    }

    fn pause(&mut self, node: usize) -> Duration {
        let here = &self.nodes[node];
        let alone_for =
            if here.neighbors.is_empty() { self.now - here.alone_since } else { Duration::ZERO };
        let jitter = Duration::from_millis(self.random.random_range(0..=self.discovery.jitter_ms));
        pace::pause(here.neighbors.len(), alone_for) + jitter
    }

    fn dht_time(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(DHT_MS))
    }

    // The joiner.

    fn join_new(&mut self, node: usize, peers: impl IntoIterator<Item = EndpointId>) {
        let here = &self.nodes[node];
        let neighbors: Vec<_> = here.neighbors.iter().copied().collect();
        let new = pace::strangers(here.id, &neighbors, peers);
        if !new.is_empty() {
            self.join(node, new);
        }
    }

    fn join(&mut self, node: usize, peers: Vec<EndpointId>) {
        let now = self.instant();
        self.nodes[node].asked.ask(&peers, now);
        self.gossip(node, InEvent::Command(TOPIC, Command::Join(peers)));
    }

    // `Knocker::knock`, step by step.

    pub fn knock(&mut self, node: usize, peer: usize, forget: bool, since: Duration) {
        let latency = self.links.latency(node, peer);
        if !self.answers(node, peer) {
            if self.now + joiner::CHECK < since + joiner::DIAL {
                self.plan(node, joiner::CHECK, Happening::Knock { peer, forget, since });
            } else {
                let id = self.nodes[peer].id;
                self.nodes[node].disturbed.forgive(&id);
            }
        } else if forget {
            if let Some(conn) = self.nodes[node].handed.remove(&peer) {
                self.close(node, conn);
                self.closed_here(node, conn);
            }
            let conn = self.open(node, peer);
            self.conns[conn].end(node).open = false;
            self.plan(peer, latency * 3, Happening::Accepted { peer: node, conn });
            self.plan(peer, latency * 3, Happening::Closed { conn });
            let after = latency * 2 + joiner::FORGET;
            self.plan(node, after, Happening::Knock { peer, forget: false, since });
        } else if let Some(conn) = self.nodes[node].handed.get(&peer).copied()
            && self.conns[conn].end(node).open
        {
            self.join(node, vec![self.nodes[peer].id]);
        } else if self.rules.hands_over {
            let conn = self.open(node, peer);
            self.plan(node, latency * 2, Happening::HandOver { peer, conn });
        } else {
            self.join(node, vec![self.nodes[peer].id]);
        }
    }

    pub fn hand_over(&mut self, node: usize, peer: usize, conn: usize) {
        self.nodes[node].handed.insert(peer, conn);
        self.connected(node, peer, conn);
        self.join(node, vec![self.nodes[peer].id]);
    }

    // What goes out, and what comes in.

    /// A client publishes an event at this node.
    pub fn publish(&mut self, node: usize, event: &Event) {
        let event = Arc::new(event.clone());
        let since = self.instant();
        let here = &mut self.nodes[node];
        here.events.insert(event.id, (*event).clone());
        here.waiting.push(Outgoing { event, is_ephemeral: false, since });
        self.plan(node, Duration::ZERO, Happening::Send);
    }

    /// The loop of `Outbound::run`.
    pub fn send(&mut self, node: usize) {
        let (now, unix) = (self.instant(), self.unix());
        loop {
            let here = &mut self.nodes[node];
            if here.sending || here.neighbors.is_empty() {
                return;
            }
            if here.lineup.is_empty() {
                if here.waiting.is_empty() {
                    return;
                }
                let most = here.waiting.len().min(outbound::QUEUE);
                let batch = here.waiting.drain(..most).collect();
                here.lineup.add(batch, MAX_GOSSIP_BYTES, now, unix, |_| {});
                continue;
            }
            let Some((bytes, at)) = here.lineup.next(now, unix, |_| {}) else { continue };
            if at > now {
                here.sending = true;
                self.plan(node, at - now, Happening::Send);
                return;
            }
            here.lineup.sent(now);
            self.gossip(node, InEvent::Command(TOPIC, Command::Broadcast(bytes, Scope::Swarm)));
        }
    }

    pub fn hears(&mut self, node: usize, content: &Bytes, from: EndpointId, scope: DeliveryScope) {
        let now = self.instant();
        match GossipFrame::decode(content) {
            Ok(GossipFrame::Event(json)) => {
                let event = Event::parse(json).expect("nobody here sends anything else");
                let heard = (event.id, hops(scope), self.now);
                let here = &mut self.nodes[node];
                here.heard.push(heard);
                here.events.entry(event.id).or_insert(event);
            }
            Ok(GossipFrame::Announce(ids)) => {
                self.nodes[node].fetches.add(from, frame::ids(ids), now);
                self.fetch(node);
            }
            Err(error) => panic!("a gateway sent a bad frame: {error}"),
        }
    }

    // Fetches: the loop of `Puller::run`.

    pub fn fetch(&mut self, node: usize) {
        let now = self.instant();
        let neighbors: Vec<_> = self.nodes[node].neighbors.iter().copied().collect();
        while let Some(mut job) = self.nodes[node].fetches.start(&neighbors, now) {
            let here = &mut self.nodes[node];
            let missing: HashSet<EventId> =
                job.ids().iter().filter(|id| !here.events.contains_key(*id)).copied().collect();
            job.keep(&missing);
            let wanted = job.wanted();
            if wanted.is_empty() {
                here.fetches.ended(job, now);
                continue;
            }
            let peer = self.index[&job.peer()];
            let after = match self.answers(node, peer) {
                true => self.links.latency(node, peer) * 4,
                false => STALLED,
            };
            self.plan(node, after, Happening::Answered { job: Box::new(job), wanted });
        }
        let wake = self.nodes[node].fetches.wake(now).map(|at| self.now + (at - now));
        let here = &mut self.nodes[node];
        if let Some(at) = wake
            && here.fetch_at.is_none_or(|planned| planned <= self.now || at < planned)
        {
            here.fetch_at = Some(at);
            self.plan(node, at - self.now, Happening::Fetch);
        }
    }

    pub fn answered(&mut self, node: usize, mut job: Job, wanted: &[EventId]) {
        let peer = self.index[&job.peer()];
        if self.answers(node, peer) {
            for id in wanted {
                if let Some(event) = self.nodes[peer].events.get(id).cloned() {
                    job.note(*id, &Outcome::Stored(0));
                    self.nodes[node].events.insert(*id, event);
                }
            }
        }
        let now = self.instant();
        self.nodes[node].fetches.ended(job, now);
        self.fetch(node);
    }
}

/// How many links a message has gone over. The library counts from zero and keeps the number to
/// itself, but compares it.
fn hops(scope: DeliveryScope) -> u32 {
    let is_at = |round: &u16| scope == DeliveryScope::Swarm((*round).into());
    (0..u16::MAX).find(is_at).map_or(1, |round| u32::from(round) + 1)
}
