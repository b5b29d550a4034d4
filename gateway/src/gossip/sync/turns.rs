//! Who leads a comparison: between two gateways there is one at a time.

use std::{collections::HashMap, time::Duration};

use iroh::EndpointId;
use tokio::time::Instant;

/// Peers of which something is remembered.
const PEERS: usize = 64;

/// The turns of one topic.
#[derive(Default)]
pub struct Turns {
    /// With whom we compare at the moment, and whether we lead.
    open: HashMap<EndpointId, bool>,
    /// When a peer last led.
    followed: HashMap<EndpointId, Instant>,
}

impl Turns {
    /// Takes the turn to lead, unless the two of us compare already.
    pub fn lead(&mut self, peer: EndpointId) -> bool {
        if self.open.contains_key(&peer) {
            return false;
        }
        self.open.insert(peer, true);
        true
    }

    /// Takes the turn to follow. When both sides begin at once, the one with the lower id leads.
    /// Nobody leads again within `pause`.
    pub fn follow(
        &mut self,
        me: EndpointId,
        peer: EndpointId,
        pause: Duration,
        now: Instant,
    ) -> bool {
        if self.open.get(&peer).is_some_and(|we_lead| !we_lead || me < peer) {
            return false;
        }
        let lately = |at: &Instant| now.saturating_duration_since(*at) < pause;
        if self.followed.get(&peer).is_some_and(lately) {
            return false;
        }
        if self.followed.len() >= PEERS {
            self.followed.retain(|_, at| lately(at));
        }
        self.followed.insert(peer, now);
        self.open.insert(peer, false);
        true
    }

    /// Gives a turn back. When both began at once, the other's stands there by now.
    pub fn end(&mut self, peer: &EndpointId, leads: bool) {
        if self.open.get(peer) == Some(&leads) {
            self.open.remove(peer);
        }
    }
}
