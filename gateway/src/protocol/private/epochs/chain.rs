//! The rosters that a member holds: the headers of many, and the newest whole.

use std::{cmp::Reverse, collections::VecDeque};

use super::super::{
    Malformed, Topic,
    message::{MAX_CHAIN, MAX_LOCATOR},
    roster::{Header, Place, Roster, RosterHash},
};

/// Consecutive rosters, oldest first. Never empty; the last header is that of `head`.
#[derive(Debug, Clone)]
pub struct Chain {
    links: VecDeque<(RosterHash, Header)>,
    head: Roster,
}

/// Whether a roster goes before another one: the later place, and of two at the same place the
/// lower hash. A total order, so all who see the same rosters settle on the same.
pub fn is_newer(one: (Place, RosterHash), other: (Place, RosterHash)) -> bool {
    (one.0, Reverse(one.1)) > (other.0, Reverse(other.1))
}

impl Chain {
    /// Of the given headers and the newest roster.
    ///
    /// # Errors
    /// When they do not follow one another.
    pub fn new(topic: &Topic, headers: &[Header], head: Roster) -> Result<Self, Malformed> {
        Self::behind(VecDeque::new(), topic, headers, head)
    }

    /// This chain up to where the given headers leave it, and then those.
    ///
    /// # Errors
    /// When they begin nowhere on it, or do not follow one another.
    pub fn switched(
        &self,
        topic: &Topic,
        headers: &[Header],
        head: Roster,
    ) -> Result<Self, Malformed> {
        let first = headers.first().unwrap_or(head.header());
        let common = self.place_of(first.previous).ok_or(Malformed)?;
        let links = self.links.range(..=common).copied().collect();
        Self::behind(links, topic, headers, head)
    }

    fn behind(
        mut links: VecDeque<(RosterHash, Header)>,
        topic: &Topic,
        headers: &[Header],
        head: Roster,
    ) -> Result<Self, Malformed> {
        for header in headers.iter().chain([head.header()]) {
            if links.back().is_some_and(|(hash, before)| !header.follows(before, *hash)) {
                return Err(Malformed);
            }
            links.push_back((header.hash(topic), *header));
        }
        while links.len() > MAX_CHAIN {
            links.pop_front();
        }
        Ok(Self { links, head })
    }

    pub fn head(&self) -> &Roster {
        &self.head
    }

    pub fn position(&self) -> (Place, RosterHash) {
        (self.head.place(), self.head.hash())
    }

    /// When the first roster of the newest epoch was issued.
    pub fn epoch_since(&self) -> u64 {
        let newest = self.head.place().epoch;
        let own = self.links.iter().rev().take_while(|(_, header)| header.place.epoch == newest);
        own.last().map_or(self.head.header().issued_at, |(_, header)| header.issued_at)
    }

    fn contains(&self, hash: RosterHash) -> bool {
        self.place_of(hash).is_some()
    }

    /// From the newest back: most questions are about the last few.
    fn place_of(&self, hash: RosterHash) -> Option<usize> {
        self.links.iter().rposition(|(link, _)| *link == hash)
    }

    /// Hashes before the newest: the last, the one before, and then twice as far each time. The
    /// oldest is among them, so that two chains with anything in common find it.
    pub fn locator(&self) -> Vec<RosterHash> {
        let last = self.links.len() - 1;
        let mut hashes = Vec::new();
        let mut back = 1;
        while back < last && hashes.len() < MAX_LOCATOR - 1 {
            hashes.push(self.links[last - back].0);
            back *= 2;
        }
        if last > 0 {
            hashes.push(self.links[0].0);
        }
        hashes
    }

    /// The headers after the first of these hashes that is known here, without the newest. `None`
    /// if none is, or if it is the newest itself.
    pub fn after(&self, known: impl IntoIterator<Item = RosterHash>) -> Option<Vec<Header>> {
        let last = self.links.len() - 1;
        let common = known.into_iter().find_map(|hash| self.place_of(hash))?;
        (common < last).then(|| self.headers(common + 1))
    }

    /// All headers but the newest.
    pub fn whole(&self) -> Vec<Header> {
        self.headers(0)
    }

    fn headers(&self, from: usize) -> Vec<Header> {
        let last = self.links.len() - 1;
        self.links.range(from..last).map(|(_, header)| *header).collect()
    }

    /// Whether a member was left out behind the last roster that both chains have.
    pub fn excluded_since(&self, other: &Self) -> bool {
        let new = self.links.iter().rev().take_while(|(hash, _)| !other.contains(*hash));
        new.into_iter().any(|(_, header)| header.exclusion)
    }

    /// The rosters behind the last one that both chains have: those that the other chain undoes.
    pub fn undone_by(&self, other: &Self) -> Vec<RosterHash> {
        let hashes = self.links.iter().rev().map(|(hash, _)| *hash);
        hashes.take_while(|hash| !other.contains(*hash)).collect()
    }
}
