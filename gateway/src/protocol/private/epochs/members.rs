//! Who is a member: those on the newest roster, and those admitted since.

use std::collections::BTreeSet;

use super::{Epochs, Output, Refusal};
use crate::protocol::private::{MAX_MEMBERS, MemberId, admission::Admission, roster::Uses};

/// Who shows an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The one it is for.
    Holder,
    /// A member that took it in.
    Member,
}

impl Epochs {
    /// Members on the newest roster and those admitted since.
    pub fn members(&self) -> BTreeSet<MemberId> {
        let listed = self.roster().into_iter().flat_map(|roster| roster.body().members.keys());
        listed.chain(self.admissions.keys()).copied().collect()
    }

    /// Whether this endpoint may have secrets, events and answers of this topic.
    pub fn is_member(&self, peer: MemberId) -> bool {
        self.roster().is_some_and(|roster| roster.body().members.contains_key(&peer))
            || self.admissions.contains_key(&peer)
    }

    /// Whether to answer an endpoint that named the topic, or to know of no such topic.
    pub fn welcomes(&self, peer: MemberId, admission: Option<&Admission>) -> bool {
        self.is_member(peer)
            || admission.is_some_and(|admission| {
                admission.member == peer && self.is_admissible(admission, Source::Holder)
            })
    }

    pub(super) fn told(
        &mut self,
        peer: MemberId,
        list: &[Admission],
        out: &mut Vec<Output>,
    ) -> bool {
        if !self.is_member(peer) {
            out.push(Output::Refused(Refusal::NotMember(peer)));
            return false;
        }
        let list = list.iter().take(MAX_MEMBERS);
        list.fold(false, |changed, admission| self.admit(*admission, Source::Member) | changed)
    }

    /// Whether the roster lets this one in. Says nothing of the signature for those known already.
    fn is_admissible(&self, admission: &Admission, source: Source) -> bool {
        self.fits(admission, source) && admission.is_valid(&self.topic)
    }

    fn fits(&self, admission: &Admission, source: Source) -> bool {
        let Some(roster) = self.roster() else { return false };
        let Some(uses) = roster.body().invites.get(&admission.invite) else { return false };
        if roster.body().members.contains_key(&admission.member) {
            return false;
        }
        if let Some(known) = self.admissions.get(&admission.member) {
            return known == admission;
        }
        if *uses == Uses::Once
            && let Some(other) = self.users(&admission.invite).next()
        {
            // The holder of an invite that is used up comes too late. That two members admitted
            // different ones at the same time is settled by rank.
            return source == Source::Member
                && admission.rank(&self.topic) < other.rank(&self.topic);
        }
        roster.body().members.len() + self.admissions.len() < MAX_MEMBERS
    }

    fn users(&self, invite: &[u8; 32]) -> impl Iterator<Item = &Admission> {
        self.admissions.values().filter(move |one| one.invite == *invite)
    }

    /// Returns whether anything changed.
    pub(super) fn admit(&mut self, admission: Admission, source: Source) -> bool {
        if self.admissions.contains_key(&admission.member) {
            return false;
        }
        self.is_admissible(&admission, source) && self.admit_checked(admission, source)
    }

    /// As [`Self::admit`], for an admission whose signature is known to be valid.
    pub(super) fn admit_checked(&mut self, admission: Admission, source: Source) -> bool {
        if !self.fits(&admission, source) {
            return false;
        }
        let uses = self.roster().and_then(|roster| roster.body().invites.get(&admission.invite));
        if uses == Some(&Uses::Once) {
            self.admissions.retain(|_, other| other.invite != admission.invite);
        }
        self.admissions.insert(admission.member, admission);
        true
    }
}
