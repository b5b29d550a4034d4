//! The homes: a set of relays that covers the authors.
//!
//! Begins with what is in force, fills up greedily (the relay that is the first home of the most
//! authors, then the second one of the most), closes what has become superfluous, and exchanges relays
//! where there is no room for better ones. A new beginning is made only when that would save a good part of
//! the relays or cover many more authors.

use std::collections::BTreeMap;

use super::{Address, Graph, LeftOut, Limits, WhyLeftOut};

/// More rounds than any situation needs; they end when nothing changes.
const MAX_ROUNDS: usize = 100;

#[derive(Clone)]
pub(super) struct Cover<'a> {
    graph: &'a Graph<'a>,
    limits: Limits,
    /// How many relays may be open.
    room: usize,
    /// By relay.
    open: Vec<bool>,
    open_count: usize,
    /// By host: how many of its relays are open.
    host_open: Vec<usize>,
    /// By author.
    homes: Vec<Vec<usize>>,
}

/// For how many authors a relay would be the first home, and for how many a further one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Gain {
    first: usize,
    further: usize,
}

impl<'a> Cover<'a> {
    pub fn find(graph: &'a Graph<'a>, limits: Limits, room: usize) -> Self {
        let mut fresh = Self::empty(graph, limits, room);
        let mut repaired = fresh.clone();
        fresh.settle();
        repaired.resume();
        if repaired.open_count == 0 {
            return fresh;
        }
        repaired.settle();
        if fresh.is_much_better_than(&repaired) { fresh } else { repaired }
    }

    fn empty(graph: &'a Graph<'a>, limits: Limits, room: usize) -> Self {
        Self {
            graph,
            limits,
            room,
            open: vec![false; graph.relay_count()],
            open_count: 0,
            host_open: vec![0; graph.host_count()],
            homes: vec![Vec::new(); graph.author_count()],
        }
    }

    /// Opens what is open and puts authors where they are, as far as the limits still allow it: the
    /// relays with the most authors first.
    fn resume(&mut self) {
        let mut authors = BTreeMap::<usize, usize>::new();
        for author in 0..self.graph.author_count() {
            for relay in self.graph.before(author) {
                *authors.entry(*relay).or_default() += 1;
            }
        }
        let mut relays: Vec<_> = authors.into_iter().collect();
        relays.sort_by_key(|(relay, authors)| (usize::MAX - authors, *relay));
        for (relay, _) in relays {
            if self.may_open(relay) {
                self.open(relay);
            }
        }
        for author in 0..self.graph.author_count() {
            let before = self.graph.before(author).iter().copied();
            let stay = before.filter(|relay| self.open[*relay]).take(self.need(author));
            self.homes[author] = stay.collect();
        }
    }

    fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.fill();
            let grown = self.grow();
            let pruned = self.prune();
            let exchanged = self.exchange();
            if !(grown || pruned || exchanged) {
                return;
            }
        }
    }

    fn is_much_better_than(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.covered(), other.covered());
        let saves = self.open_count + 3 <= other.open_count
            && self.open_count * 4 < other.open_count * 3
            && ours >= theirs;
        saves || ours > theirs + (theirs / 10).max(5)
    }

    /// How many homes an author should have.
    fn need(&self, author: usize) -> usize {
        self.graph.listed(author).len().min(self.limits.per_author)
    }

    fn covered(&self) -> usize {
        self.homes.iter().filter(|homes| !homes.is_empty()).count()
    }

    fn has_room_at_host(&self, relay: usize) -> bool {
        self.host_open[self.graph.host(relay)] < self.limits.per_host
    }

    fn may_open(&self, relay: usize) -> bool {
        self.open_count < self.room && self.has_room_at_host(relay) && !self.open[relay]
    }

    fn open(&mut self, relay: usize) {
        self.open[relay] = true;
        self.open_count += 1;
        self.host_open[self.graph.host(relay)] += 1;
    }

    fn close(&mut self, relay: usize) {
        self.open[relay] = false;
        self.open_count -= 1;
        self.host_open[self.graph.host(relay)] -= 1;
        for author in self.graph.listers(relay) {
            self.homes[*author].retain(|home| *home != relay);
        }
    }

    /// Gives authors further homes among the relays that are open anyway, in the order of their lists.
    fn fill(&mut self) {
        for author in 0..self.graph.author_count() {
            let need = self.need(author);
            for relay in self.graph.listed(author) {
                if self.homes[author].len() >= need {
                    break;
                }
                if self.open[*relay] && !self.homes[author].contains(relay) {
                    self.homes[author].push(*relay);
                }
            }
        }
    }

    /// What opening each relay would bring.
    fn gains(&self) -> Vec<Gain> {
        let mut gains = vec![Gain::default(); self.graph.relay_count()];
        for author in 0..self.graph.author_count() {
            let homes = self.homes[author].len();
            if homes >= self.need(author) {
                continue;
            }
            for relay in self.graph.listed(author).iter().filter(|relay| !self.open[**relay]) {
                let gain = &mut gains[*relay];
                *(if homes == 0 { &mut gain.first } else { &mut gain.further }) += 1;
            }
        }
        gains
    }

    /// The better of two relays that bring the same is the one that more authors list, then the
    /// encrypted one, then the first by name.
    fn best(&self, gains: &[Gain], may: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = (0..gains.len()).filter(|relay| !self.open[*relay] && may(*relay));
        candidates.max_by_key(|relay| {
            let secure = self.graph.address(*relay).is_secure();
            let listers = self.graph.listers(*relay).len();
            (gains[*relay], listers, secure, usize::MAX - relay)
        })
    }

    fn is_worth_opening(&self, gain: Gain) -> bool {
        gain.first > 0 || gain.further >= self.limits.worth_a_second.max(1)
    }

    /// Opens relays, the best first, while there is room and one is worth it.
    fn grow(&mut self) -> bool {
        let mut gains = self.gains();
        let mut grown = false;
        while self.open_count < self.room {
            let Some(relay) = self.best(&gains, |relay| self.has_room_at_host(relay)) else {
                break;
            };
            if !self.is_worth_opening(gains[relay]) {
                break;
            }
            self.open(relay);
            self.move_in(relay, &mut gains);
            grown = true;
        }
        grown
    }

    /// Makes an open relay a home of those of its authors who need one.
    fn move_in(&mut self, relay: usize, gains: &mut [Gain]) {
        let graph = self.graph;
        for author in graph.listers(relay).iter().copied() {
            let (had, need) = (self.homes[author].len(), self.need(author));
            if had >= need {
                continue;
            }
            self.homes[author].push(relay);
            for other in graph.listed(author).iter().filter(|other| !self.open[**other]) {
                let gain = &mut gains[*other];
                *(if had == 0 { &mut gain.first } else { &mut gain.further }) -= 1;
                if had + 1 < need {
                    gain.further += 1;
                }
            }
        }
    }

    /// What closing an open relay would cost: how many authors would be without an open relay, and how
    /// many with fewer than they need.
    fn loss(&self, relay: usize) -> Gain {
        let mut loss = Gain::default();
        for author in self.graph.listers(relay) {
            let listed = self.graph.listed(*author).iter();
            let others = listed.filter(|other| **other != relay && self.open[**other]).count();
            if others == 0 {
                loss.first += 1;
            } else if others < self.need(*author) {
                loss.further += 1;
            }
        }
        loss
    }

    /// The open relay that would be missed least.
    fn least(&self) -> Option<(Gain, usize)> {
        let open = (0..self.open.len()).filter(|relay| self.open[*relay]);
        let losses = open.map(|relay| (self.loss(relay), relay));
        losses.min_by_key(|(loss, relay)| {
            (*loss, self.graph.listers(*relay).len(), usize::MAX - relay)
        })
    }

    /// Closes relays that nobody would miss. A relay stays open for fewer than it is opened for: one
    /// author who changes a list does not open and close it in turn.
    fn prune(&mut self) -> bool {
        let mut pruned = false;
        while let Some((loss, relay)) = self.least() {
            if loss.first > 0 || loss.further * 2 >= self.limits.worth_a_second.max(1) {
                break;
            }
            self.close(relay);
            self.fill();
            pruned = true;
        }
        pruned
    }

    /// Where there is no room: opens a relay in place of one whose authors are clearly fewer.
    fn exchange(&mut self) -> bool {
        let mut exchanged = false;
        while self.open_count >= self.room {
            let Some((loss, least)) = self.least() else { break };
            let mut gains = self.gains();
            let host = self.graph.host(least);
            let fits = |relay| self.has_room_at_host(relay) || self.graph.host(relay) == host;
            let Some(best) = self.best(&gains, fits) else { break };
            if gains[best].first <= loss.first + (loss.first / 4).max(1) {
                break;
            }
            self.close(least);
            self.fill();
            gains = self.gains();
            self.open(best);
            self.move_in(best, &mut gains);
            exchanged = true;
        }
        exchanged
    }

    pub fn homes(&self, author: usize) -> impl Iterator<Item = usize> {
        self.homes[author].iter().copied()
    }

    /// The open relays.
    pub fn open_relays(&self) -> impl Iterator<Item = usize> {
        (0..self.open.len()).filter(|relay| self.open[*relay])
    }

    /// Those who have the relay as a home.
    pub fn authors_of(&self, relay: usize) -> impl Iterator<Item = usize> {
        let listers = self.graph.listers(relay).iter().copied();
        listers.filter(move |author| self.homes[*author].contains(&relay))
    }

    /// What is not opened, and why.
    pub fn left_out(&self) -> BTreeMap<Address, LeftOut> {
        let gains = self.gains();
        let closed = (0..self.open.len()).filter(|relay| !self.open[*relay]);
        let left_out = closed.map(|relay| {
            let gain = gains[relay];
            let why = if !self.is_worth_opening(gain) {
                WhyLeftOut::NotNeeded
            } else if self.has_room_at_host(relay) {
                WhyLeftOut::NoRoom
            } else {
                WhyLeftOut::HostFull
            };
            let authors = self.graph.listers(relay).len();
            (self.graph.address(relay).clone(), LeftOut { authors, without_home: gain.first, why })
        });
        left_out.collect()
    }
}
