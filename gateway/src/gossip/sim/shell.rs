//! How iroh-gossip 0.101 looks after its connections.
//!
//! `proto` says to whom to send; its actor (`net.rs` there) dials, keeps one connection per peer for
//! sending and reports the end of that one. The library keeps the actor private, so its rules stand
//! here once more — with the faults that they have, because these are what our own rules must live with:
//!
//! - A dial that failed leaves its messages in the queue, and a queue that is not empty is not dialed
//!   for: that peer is not reached again until it connects to us.
//! - What is sent over a connection that has ended is gone, as long as no newer one came.
//! - A connection that is no longer used stays open until one of the two goes, if our door does not
//!   close it.

use std::time::Duration;

use iroh::EndpointId;
use iroh_gossip::proto::{Event, InEvent, Message, OutEvent};

use super::{
    happening::Happening,
    world::{IDLE, World},
};

/// How often a first packet is repeated.
const REPEAT: Duration = Duration::from_secs(1);

/// What the actor knows of a peer.
pub enum Peer {
    Pending(Vec<Message<EndpointId>>),
    Active { conn: usize, others: Vec<usize> },
}

/// A connection. The first end dialed.
pub struct Conn {
    pub ends: [End; 2],
}

pub struct End {
    pub node: usize,
    pub life: u32,
    pub open: bool,
    /// What the door calls it, on the side that accepted.
    guest: Option<u64>,
}

impl World {
    /// Something happens to the state machine of a node; does what it says.
    pub fn gossip(&mut self, node: usize, event: InEvent<EndpointId>) {
        let now = self.instant();
        let out: Vec<_> = self.nodes[node].gossip.handle(event, now, None).collect();
        for event in out {
            match event {
                OutEvent::SendMessage(peer, message) => self.send_gossip(node, peer, message),
                OutEvent::EmitEvent(_, Event::NeighborUp(peer)) => self.neighbor_up(node, peer),
                OutEvent::EmitEvent(_, Event::NeighborDown(peer)) => self.neighbor_down(node, peer),
                OutEvent::EmitEvent(_, Event::Received(got)) => {
                    self.hears(node, &got.content, got.delivered_from, got.scope);
                }
                OutEvent::ScheduleTimer(after, timer) => {
                    self.plan(node, after, Happening::Timer(timer));
                }
                OutEvent::DisconnectPeer(peer) => {
                    let peer = self.index[&peer];
                    self.nodes[node].peers.remove(&peer);
                }
                OutEvent::PeerData(..) => {}
            }
        }
    }

    fn send_gossip(&mut self, node: usize, peer: EndpointId, message: Message<EndpointId>) {
        let peer = self.index[&peer];
        let state = self.nodes[node].peers.entry(peer);
        match state.or_insert_with(|| Peer::Pending(Vec::new())) {
            Peer::Active { conn, .. } => {
                let conn = *conn;
                self.transmit(node, peer, conn, message);
            }
            Peer::Pending(queue) => {
                let begins = queue.is_empty();
                queue.push(message);
                if begins && self.nodes[node].dialing.insert(peer) {
                    self.dial(node, peer, self.now);
                } else if !self.nodes[node].dialing.contains(&peer) {
                    self.stuck += 1;
                }
            }
        }
    }

    fn transmit(&mut self, node: usize, peer: usize, conn: usize, message: Message<EndpointId>) {
        if !self.conns[conn].end(node).open {
            self.swallowed += 1;
        } else if !self.links.loses(&mut self.random) {
            let after = self.links.latency(node, peer);
            self.plan(peer, after, Happening::Message { from: node, conn, message });
        }
    }

    pub fn receives(
        &mut self,
        node: usize,
        from: usize,
        conn: usize,
        message: Message<EndpointId>,
    ) {
        let life = self.nodes[node].life;
        let end = self.conns[conn].end(node);
        if end.open && end.life == life && self.links.connects(node, from) {
            let from = self.nodes[from].id;
            self.gossip(node, InEvent::RecvMessage(from, message));
        }
    }

    /// Whether a packet would be answered.
    pub fn answers(&self, node: usize, peer: usize) -> bool {
        node != peer && self.nodes[peer].alive && self.links.connects(node, peer)
    }

    /// Tries to open a connection for gossip, for as long as a handshake may take.
    pub fn dial(&mut self, node: usize, peer: usize, since: Duration) {
        let latency = self.links.latency(node, peer);
        if self.answers(node, peer) {
            let conn = self.open(node, peer);
            self.plan(node, latency * 2, Happening::Dialed { peer, conn });
        } else if self.now < since + IDLE {
            self.plan(node, REPEAT, Happening::Dial { peer, since });
        } else {
            self.nodes[node].dialing.remove(&peer);
            // With a connection in use, a failed dial says nothing.
            if !matches!(self.nodes[node].peers.get(&peer), Some(Peer::Active { .. })) {
                let id = self.nodes[peer].id;
                self.gossip(node, InEvent::PeerDisconnected(id));
            }
        }
    }

    pub fn open(&mut self, node: usize, peer: usize) -> usize {
        let end = |node: usize| End { node, life: self.nodes[node].life, open: true, guest: None };
        let ends = [end(node), end(peer)];
        self.conns.push(Conn { ends });
        self.conns.len() - 1
    }

    pub fn dialed(&mut self, node: usize, peer: usize, conn: usize) {
        self.nodes[node].dialing.remove(&peer);
        self.connected(node, peer, conn);
    }

    /// This side has a connection that it dialed, and soon the other has it.
    pub fn connected(&mut self, node: usize, peer: usize, conn: usize) {
        let after = self.links.latency(node, peer);
        self.plan(peer, after, Happening::Accepted { peer: node, conn });
        self.takes(node, peer, conn);
    }

    /// A connection comes in: the door is ours, what comes behind it the library's.
    pub fn accepts(&mut self, node: usize, peer: usize, conn: usize) {
        let now = self.instant();
        let (id, here) = (self.nodes[peer].id, &mut self.nodes[node]);
        let Some(entered) = here.guests.enter(id, now, |peer| here.neighbors.contains(peer)) else {
            self.refused += 1;
            self.close(node, conn);
            return;
        };
        self.nodes[node].inside.insert(entered.number, conn);
        self.conns[conn].end(node).guest = Some(entered.number);
        self.takes(node, peer, conn);
        for number in entered.close {
            if let Some(old) = self.nodes[node].inside.remove(&number) {
                self.close(node, old);
                self.closed_here(node, old);
            }
        }
    }

    /// The newest connection is the one to send over; what waited goes over it.
    fn takes(&mut self, node: usize, peer: usize, conn: usize) {
        let state = self.nodes[node].peers.entry(peer);
        let mut waiting = Vec::new();
        match state.or_insert_with(|| Peer::Pending(Vec::new())) {
            Peer::Active { conn: active, others } => {
                others.push(std::mem::replace(active, conn));
            }
            pending => {
                if let Peer::Pending(queue) =
                    std::mem::replace(pending, Peer::Active { conn, others: Vec::new() })
                {
                    waiting = queue;
                }
            }
        }
        for message in waiting {
            self.transmit(node, peer, conn, message);
        }
    }

    /// This side closes a connection, and the other hears of it.
    pub fn close(&mut self, node: usize, conn: usize) {
        self.ends(node, conn);
        let other = self.conns[conn].other(node);
        if self.links.connects(node, other) {
            self.plan(other, self.links.latency(node, other), Happening::Closed { conn });
        }
    }

    pub fn closed(&mut self, node: usize, conn: usize) {
        let end = self.conns[conn].end(node);
        if !end.open || end.life != self.nodes[node].life {
            return;
        }
        self.ends(node, conn);
        self.closed_here(node, conn);
    }

    fn ends(&mut self, node: usize, conn: usize) {
        let end = self.conns[conn].end(node);
        end.open = false;
        if let Some(number) = end.guest.take() {
            self.nodes[node].guests.leave(number);
            self.nodes[node].inside.remove(&number);
        }
    }

    /// The tasks of a connection have ended.
    pub fn closed_here(&mut self, node: usize, conn: usize) {
        let peer = self.conns[conn].other(node);
        match self.nodes[node].peers.get_mut(&peer) {
            Some(Peer::Active { conn: active, .. }) if *active == conn => {
                let id = self.nodes[peer].id;
                self.gossip(node, InEvent::PeerDisconnected(id));
            }
            Some(Peer::Active { others, .. }) => others.retain(|other| *other != conn),
            _ => {}
        }
    }

    /// Nothing was heard for too long, if that is so.
    pub fn idle(&mut self, node: usize, conn: usize) {
        let Conn { ends } = &self.conns[conn];
        let Some(other) = ends.iter().find(|end| end.node != node) else { return };
        let there = &self.nodes[other.node];
        let lives = there.alive && there.life == other.life && other.open;
        if !lives || !self.links.connects(node, other.node) {
            self.closed(node, conn);
        }
    }
}

impl Conn {
    pub fn end(&mut self, node: usize) -> &mut End {
        let [dialed, accepted] = &mut self.ends;
        if dialed.node == node { dialed } else { accepted }
    }

    fn other(&self, node: usize) -> usize {
        let [dialed, accepted] = &self.ends;
        if dialed.node == node { accepted.node } else { dialed.node }
    }
}
