//! What can be said of a swarm.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Node, World};
use crate::protocol::{Event, EventId};

impl World {
    pub fn living(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.alive)
    }

    /// How many swarms there are that hold no link to one another. A link counts when both sides
    /// know of it.
    pub fn components(&self) -> usize {
        self.parts(|world, node, peer| world.nodes[peer].neighbors.contains(&world.nodes[node].id))
    }

    /// The same, where a link counts of which one side knows: enough to reconcile over.
    pub fn reconciling_components(&self) -> usize {
        self.parts(|_, _, _| true)
    }

    fn parts(&self, counts: impl Fn(&Self, usize, usize) -> bool) -> usize {
        let mut links = vec![Vec::new(); self.nodes.len()];
        for (node, here) in self.living() {
            for peer in here.neighbors.iter().map(|peer| self.index[peer]) {
                if self.nodes[peer].alive && counts(self, node, peer) {
                    links[node].push(peer);
                    links[peer].push(node);
                }
            }
        }
        let mut left: BTreeSet<usize> = self.living().map(|(node, _)| node).collect();
        let mut parts = 0;
        while let Some(first) = left.pop_first() {
            parts += 1;
            let mut reached = vec![first];
            while let Some(node) = reached.pop() {
                reached.extend(links[node].iter().filter(|peer| left.remove(peer)));
            }
        }
        parts
    }

    /// Links that only one side knows of.
    pub fn one_sided(&self) -> usize {
        self.living()
            .flat_map(|(_, node)| node.neighbors.iter().map(move |peer| (node, self.index[peer])))
            .filter(|(node, peer)| !self.nodes[*peer].neighbors.contains(&node.id))
            .count()
    }

    /// How many copies of these events are missing, over all that live.
    pub fn missing(&self, events: &[Event]) -> usize {
        self.living()
            .map(|(_, node)| events.iter().filter(|e| !node.events.contains_key(&e.id)).count())
            .sum()
    }

    /// Over how many links these events came, and how long that took, sorted.
    pub fn deliveries(
        &self,
        sent: &BTreeMap<EventId, std::time::Duration>,
    ) -> (Vec<u32>, Vec<u64>) {
        let heard = self.living().flat_map(|(_, node)| &node.heard);
        let (mut hops, mut millis): (Vec<_>, Vec<_>) = heard
            .filter_map(|(id, hops, at)| Some((*hops, (*at - *sent.get(id)?).as_millis() as u64)))
            .unzip();
        hops.sort_unstable();
        millis.sort_unstable();
        (hops, millis)
    }

    /// Open connections, of the one that has most.
    pub fn most_connections(&self) -> usize {
        let mut open = vec![0; self.nodes.len()];
        for end in self.conns.iter().flat_map(|conn| &conn.ends) {
            let node = &self.nodes[end.node];
            open[end.node] += usize::from(node.alive && end.open && end.life == node.life);
        }
        open.into_iter().max().unwrap_or(0)
    }
}

/// The value that a share of all does not exceed.
pub fn quantile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}
