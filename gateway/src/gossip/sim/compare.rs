//! Comparing what two nodes have: who begins when is decided by our own plans and turns, and what is
//! lacking by our own sets. The frames between the two are not written out; they take their time.

use std::{collections::HashSet, time::Duration};

use iroh::EndpointId;

use super::{happening::Happening, world::World};
use crate::{
    gossip::sync::{
        plans::Ended,
        sets::{Difference, Set},
    },
    protocol::EventId,
};

/// As `sync/follow.rs` has it.
const PAUSE: Duration = Duration::from_millis(500);
/// When a peer that does not answer is given up.
const GIVEN_UP: Duration = Duration::from_secs(10);

impl World {
    /// The loop of `TopicSync::run`.
    pub fn compare(&mut self, node: usize) {
        let now = self.instant();
        let here = &mut self.nodes[node];
        let neighbors: HashSet<_> = here.neighbors.iter().copied().collect();
        here.plans.follow(&neighbors, now);
        while let Some((peer, _)) = self.nodes[node].plans.start(now, &mut self.random) {
            self.lead(node, peer);
        }
        while let Some(peer) = self.nodes[node].plans.tell(now) {
            let peer = self.index[&peer];
            if self.answers(node, peer) {
                let after = self.links.latency(node, peer) * 3;
                self.plan(peer, after, Happening::Hinted { by: node });
            }
        }
        let wake = self.nodes[node].plans.wake().map(|at| self.now + at.duration_since(now));
        let here = &mut self.nodes[node];
        if let Some(at) = wake
            && here.compare_at.is_none_or(|planned| planned <= self.now || at < planned)
        {
            here.compare_at = Some(at);
            self.plan(node, at - self.now, Happening::Compare);
        }
    }

    fn lead(&mut self, node: usize, peer: EndpointId) {
        let (there, now) = (self.index[&peer], self.instant());
        if !self.nodes[node].turns.lead(peer) {
            self.nodes[node].plans.ended(&peer, Ended::Failed, now, &mut self.random);
            return;
        }
        let after = match self.answers(node, there) {
            true => self.links.latency(node, there) * 3,
            false => GIVEN_UP,
        };
        self.plan(node, after, Happening::Greets { peer: there });
    }

    /// The greeting arrives, if it does.
    pub fn greets(&mut self, node: usize, peer: usize) {
        let (now, me) = (self.instant(), self.nodes[node].id);
        let latency = self.links.latency(node, peer);
        let answers = self.answers(node, peer);
        let there = &mut self.nodes[peer];
        if !answers || !there.turns.follow(there.id, me, PAUSE, now) {
            self.plan(node, latency, Happening::Led { peer, need: None });
            return;
        }
        let (found, rounds) = self.differ(node, peer);
        self.compared += 1;
        let after = latency * (2 * rounds + 2);
        self.plan(node, after, Happening::Led { peer, need: Some(found.need) });
        self.plan(peer, after + latency, Happening::Followed { by: node, need: found.have });
    }

    /// What each lacks, by all messages that the two exchange.
    fn differ(&self, node: usize, peer: usize) -> (Difference, u32) {
        let set = |node: usize| {
            let events = self.nodes[node].events.values();
            let ids: Vec<_> = events.map(|event| (event.created_at, event.id)).collect();
            Set::new(&ids).expect("these are ids of a store")
        };
        let (here, there) = (set(node), set(peer));
        let mut found = Difference::default();
        let mut message = here.first().expect("there is a first message");
        for round in 1.. {
            let answer = there.answer(&message).expect("we understand one another");
            match here.next(&answer, &mut found).expect("we understand one another") {
                Some(next) => message = next,
                None => return (found, round),
            }
        }
        unreachable!("comparing ends")
    }

    pub fn led(&mut self, node: usize, peer: usize, need: Option<Vec<EventId>>) {
        let (now, id) = (self.instant(), self.nodes[peer].id);
        let gained =
            need.filter(|_| self.answers(node, peer)).map(|need| self.pull(node, peer, &need));
        let ended = match gained {
            Some(gained) => Ended::Done { gained: gained > 0, lost: false },
            None => Ended::Failed,
        };
        let here = &mut self.nodes[node];
        here.turns.end(&id, true);
        here.plans.ended(&id, ended, now, &mut self.random);
        self.gained(node, id, gained.unwrap_or(0));
    }

    pub fn followed(&mut self, node: usize, by: usize, need: &[EventId]) {
        let (now, id) = (self.instant(), self.nodes[by].id);
        let gained = if self.answers(node, by) { self.pull(node, by, need) } else { 0 };
        let here = &mut self.nodes[node];
        here.turns.end(&id, false);
        here.plans.followed(&id, now, &mut self.random);
        self.gained(node, id, gained);
    }

    pub fn hinted(&mut self, node: usize, by: usize) {
        let (now, by) = (self.instant(), self.nodes[by].id);
        self.nodes[node].plans.hinted(&by, now, &mut self.random);
        self.compare(node);
    }

    /// Takes what the other has of these. Returns how many were new.
    fn pull(&mut self, node: usize, from: usize, ids: &[EventId]) -> usize {
        let mut gained = 0;
        for id in ids {
            if let Some(event) = self.nodes[from].events.get(id).cloned() {
                gained += usize::from(self.nodes[node].events.insert(*id, event).is_none());
            }
        }
        self.pulled += gained as u64;
        gained
    }

    fn gained(&mut self, node: usize, from: EndpointId, gained: usize) {
        if gained > 0 {
            let now = self.instant();
            self.nodes[node].plans.pass_on(&from, now, |_| true);
        }
        self.compare(node);
    }
}
