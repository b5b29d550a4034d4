//! Which relays to open, and whom to ask for at each (the outbox model): as few relays as cover the
//! authors, each author on up to so many, and as little change as possible.
//!
//! A plan has two layers. *Homes* are chosen from the authors' own lists, and do not mind that a relay
//! is away for a while. *Stand-ins* are where an author is asked for in the meantime, or because there
//! is no home; they go when the home is back. Everything here is pure and deterministic.

mod cover;
mod graph;
mod stand_in;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::address::Address;
use crate::protocol::PublicKey;
use cover::Cover;
use graph::Graph;

/// How many relays may be opened, and when another one steps in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of the whole stream.
    pub relays: usize,
    /// Relays on which an author is asked for.
    pub per_author: usize,
    /// Relays of one host, whatever their ports and paths.
    pub per_host: usize,
    /// A relay that would only be a further one for its authors is opened for at least so many.
    pub worth_a_second: usize,
    /// After so long a relay that is away is stood in for by others of the authors' lists,
    pub stand_in_after: Duration,
    /// and after so long by a fallback relay.
    pub fall_back_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            relays: 30,
            per_author: 2,
            per_host: 4,
            worth_a_second: 3,
            stand_in_after: Duration::from_secs(15),
            fall_back_after: Duration::from_secs(60),
        }
    }
}

/// How a relay is doing. One of which nothing is known is given the benefit of the doubt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Health {
    /// Connected, or not tried for long.
    #[default]
    Good,
    /// Tried in vain for so long, and still tried.
    Away(Duration),
    /// Given up for now.
    Dead,
}

/// What is known about where an author writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// No list was found.
    Absent,
    /// The usable relays of the list, in its order; may be none.
    Relays(Vec<Address>),
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub authors: &'a BTreeMap<PublicKey, List>,
    /// Relays that are not in here are [`Health::Good`].
    pub health: &'a BTreeMap<Address, Health>,
    /// The operator's own choice for authors who have no relay, in its order.
    pub fallback: &'a [Address],
    /// Where to ask when there is no other relay at all.
    pub last_resort: &'a [Address],
    pub limits: Limits,
    /// The plan in force.
    pub current: &'a Plan,
}

/// Why an author is asked for elsewhere than at home, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    NoList,
    /// The list names no relay that may be used.
    NothingUsable,
    /// All relays of the list were given up for now.
    AllDead,
    /// The relays of the list have too few authors to get one of the places.
    TooFew,
    /// All homes are away.
    Away,
    /// One of the homes is away.
    OneAway,
}

impl Why {
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoList => "no relay list",
            Self::NothingUsable => "no usable relay on the list",
            Self::AllDead => "all relays of the list were given up",
            Self::TooFew => "relays with too few authors",
            Self::Away => "all relays away",
            Self::OneAway => "a relay away",
        }
    }
}

/// Where one author is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Relays of the author's list, in the order in which they were chosen.
    pub homes: Vec<Address>,
    /// Others, while homes are missing.
    pub stand_ins: Vec<Address>,
    /// Why there are stand-ins, or should be.
    pub why: Option<Why>,
}

/// Why a relay is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Authors have it as a home.
    Home,
    /// It stands in for relays that are away.
    StandIn,
    /// It is asked for authors who have no relay.
    Fallback,
}

/// One relay to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub role: Role,
    pub homes: BTreeSet<PublicKey>,
    pub stand_ins: BTreeSet<PublicKey>,
}

/// A relay that authors list and that is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut {
    /// How many authors list it.
    pub authors: usize,
    /// How many of them have no home.
    pub without_home: usize,
    pub why: WhyLeftOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WhyLeftOut {
    /// Its authors have homes; it would be opened for none, or too few.
    NotNeeded,
    /// Other relays had more authors for the last place.
    NoRoom,
    /// So many relays of its host are open already.
    HostFull,
    /// Given up for now.
    Dead,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub relays: BTreeMap<Address, Opened>,
    pub authors: BTreeMap<PublicKey, Place>,
    pub left_out: BTreeMap<Address, LeftOut>,
}

impl Plan {
    /// The plan for a situation. The same situation gives the same plan, and a plan that is in force
    /// and still right is its own successor. An author whose list has not changed leaves a relay only
    /// when that is closed.
    pub fn make(situation: &Situation<'_>) -> Self {
        let graph = Graph::new(situation);
        let limits = situation.limits;
        // Those without a home have a room that others cannot take.
        let kept_free = situation.fallback.len().min(limits.per_author);
        let room = limits.relays.saturating_sub(kept_free).max(1);
        let cover = Cover::find(&graph, limits, room);
        let mut plan = Self::default();
        for (author, list) in graph.authors() {
            let homes = cover.homes(author).map(|relay| graph.address(relay).clone()).collect();
            let why = match list {
                List::Absent => Some(Why::NoList),
                List::Relays(relays) if relays.is_empty() => Some(Why::NothingUsable),
                List::Relays(_) if graph.listed(author).is_empty() => Some(Why::AllDead),
                List::Relays(_) if cover.homes(author).next().is_none() => Some(Why::TooFew),
                List::Relays(_) => None,
            };
            plan.authors.insert(*graph.key(author), Place { homes, stand_ins: Vec::new(), why });
        }
        for relay in cover.open_relays() {
            let homes = cover.authors_of(relay).map(|author| *graph.key(author)).collect();
            let opened = Opened { role: Role::Home, homes, stand_ins: BTreeSet::new() };
            plan.relays.insert(graph.address(relay).clone(), opened);
        }
        plan.left_out = cover.left_out();
        for (address, authors) in graph.dead() {
            let without_home = authors
                .iter()
                .filter(|key| plan.authors.get(key).is_some_and(|place| place.homes.is_empty()));
            let left = LeftOut {
                authors: authors.len(),
                without_home: without_home.count(),
                why: WhyLeftOut::Dead,
            };
            plan.left_out.insert(address.clone(), left);
        }
        stand_in::add(&mut plan, situation);
        plan
    }

    /// All authors to ask for at a relay.
    pub fn asked_at(&self, relay: &Address) -> BTreeSet<PublicKey> {
        let opened = self.relays.get(relay);
        opened.map(|opened| &opened.homes | &opened.stand_ins).unwrap_or_default()
    }
}
