//! What follows from meeting a peer: who hands over to whom, and what of that is taken.

use super::{
    Chain, Epochs, Held, MAX_HELD, Moment, Output, Refusal, chain::is_newer, epoch_id,
    members::Source,
};
use crate::protocol::private::{
    MemberId,
    derive::{EpochSecret, commitment},
    message::{Handover, Position},
    roster::RosterHash,
};

impl Epochs {
    /// Whether somebody at this position has what we lack.
    pub fn is_behind(&self, position: &Position) -> bool {
        let theirs = (position.place, position.hash);
        position.hash != RosterHash::NONE
            && self.chain.as_ref().is_none_or(|chain| is_newer(theirs, chain.position()))
    }

    pub(super) fn met(
        &mut self,
        peer: MemberId,
        position: &Position,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(own) = self.chain.as_ref().map(Chain::position) else { return false };
        let mut changed = false;
        if let Some(admission) = position.admission.filter(|one| one.member == peer) {
            changed = self.admit(admission, Source::Holder);
        }
        let fresh = position.hash == RosterHash::NONE;
        let theirs = (position.place, position.hash);
        let behind = !fresh && is_newer(theirs, own);
        if !self.is_member(peer) {
            // One who is ahead may have become a member since. It gets nothing from us, but may
            // give.
            if !behind {
                out.push(Output::Refused(Refusal::NotMember(peer)));
            }
            return changed;
        }
        if fresh || is_newer(own, theirs) {
            out.push(self.hand_over(peer, position));
        } else if !behind && !self.admissions.is_empty() {
            let admissions = self.admissions.values().copied().collect();
            out.push(Output::Tell { to: peer, admissions });
        }
        changed
    }

    /// For a member who is behind.
    fn hand_over(&self, peer: MemberId, position: &Position) -> Output {
        let unlinked = Output::Refused(Refusal::Unlinked(peer));
        let Some(chain) = &self.chain else { return unlinked };
        let headers = if position.hash == RosterHash::NONE {
            chain.whole()
        } else {
            let known = [position.hash].into_iter().chain(position.locator.iter().copied());
            let Some(headers) = chain.after(known) else { return unlinked };
            headers
        };
        let id = epoch_id(chain.head());
        let held = self.held.iter().find(|held| held.id == id);
        let secret = held.expect("the newest epoch's secret is held").secret.clone();
        let handover = Handover {
            headers,
            roster: chain.head().unverified(),
            secret,
            admissions: self.admissions.values().copied().collect(),
        };
        Output::HandOver { to: peer, handover: Box::new(handover) }
    }

    pub(super) fn received(
        &mut self,
        peer: MemberId,
        handover: Handover,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> bool {
        let admissions = handover.admissions.clone();
        match self.checked(peer, handover) {
            Ok((chain, secret)) => {
                self.adopt(chain, secret, moment, out);
                for admission in admissions {
                    self.admit(admission, Source::Member);
                }
                out.push(Output::Spread);
                true
            }
            Err(refusal) => {
                out.push(Output::Refused(refusal));
                false
            }
        }
    }

    /// The chain that this makes of ours, if every rule holds.
    fn checked(&self, peer: MemberId, handover: Handover) -> Result<(Chain, EpochSecret), Refusal> {
        let Handover { headers, roster, secret, .. } = handover;
        // What costs least comes first: a peer may send old ones as often as it likes.
        let theirs = (roster.header.place, roster.header.hash(&self.topic));
        match &self.chain {
            Some(chain) if !is_newer(theirs, chain.position()) => {
                return Err(Refusal::NotNewer(peer));
            }
            None if theirs.0 < self.place() => return Err(Refusal::NotNewer(peer)),
            _ => {}
        }
        let roster = roster.verify(&self.topic).map_err(|_| Refusal::Forged(peer))?;
        let header = roster.header();
        if commitment(&self.topic, header.place.epoch, &secret) != header.commitment {
            return Err(Refusal::Forged(peer));
        }
        let by_invite = self
            .admission
            .is_some_and(|admission| roster.body().invites.contains_key(&admission.invite));
        if !by_invite && !roster.body().members.contains_key(&self.me) {
            return Err(Refusal::NotForUs(peer));
        }
        let chain = match &self.chain {
            Some(chain) => chain.switched(&self.topic, &headers, roster),
            None => {
                // The invite vouches for the admin's key and for one epoch; the rosters have to
                // lead from there, or from before, to the newest.
                let first = headers.first().unwrap_or(roster.header()).place.epoch;
                if first > self.place().epoch {
                    return Err(Refusal::Unlinked(peer));
                }
                Chain::new(&self.topic, &headers, roster)
            }
        };
        chain.map(|chain| (chain, secret)).map_err(|_| Refusal::Unlinked(peer))
    }

    /// Makes a newer chain ours.
    pub(super) fn adopt(
        &mut self,
        chain: Chain,
        secret: EpochSecret,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) {
        let grace = chain.head().header().grace;
        let id = epoch_id(chain.head());
        let old = self.chain.replace(chain);
        for held in &mut self.held {
            if held.id != id && held.until.is_none() {
                held.until = Some(moment.now.saturating_add(grace.into()));
            }
        }
        // One that had been given up may win after all.
        self.held.retain(|held| held.id != id);
        self.held.push(Held { id, secret, until: None });
        while self.held.len() > MAX_HELD {
            // The newest has no end and is never the one.
            let first = (0..self.held.len())
                .min_by_key(|at| self.held[*at].until.unwrap_or(u64::MAX))
                .expect("there are some");
            self.held.remove(first);
        }
        let known = std::mem::take(&mut self.admissions);
        for admission in known.into_values() {
            self.admit_checked(admission, Source::Member);
        }
        if let Some(old) = old {
            self.repeat_lost_wishes(&old, moment, out);
        }
    }
}
