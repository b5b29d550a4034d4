//! The state of one private topic at one member.
//!
//! A state machine: commands, messages and the time go in as [`Input`], what is to be done comes out
//! as [`Output`], in the order in which it is to be done. No clock, no network and no randomness of
//! its own, so a seeded simulator tests hundreds of members.
//!
//! What holds:
//! - Everybody who has seen the same rosters is in the same epoch ([`chain::is_newer`]).
//! - A secret goes only to members on the newest roster that the giver knows, and to holders of
//!   invites on it.
//! - Leaving somebody out voids every invite, so whoever is left out comes back by none of them.
//! - Events are published in the newest epoch only; the ones before are read for their grace.

mod admin;
mod chain;
mod saved;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ed25519_dalek::SigningKey;

pub use self::admin::Command;
use self::{
    admin::Wish,
    chain::{Chain, is_newer},
};
use super::{
    MAX_MEMBERS, MemberId, Topic,
    admission::Admission,
    derive::{EpochKeys, EpochSecret, TopicKey, commitment},
    invite::Invite,
    message::{Handover, Position},
    roster::{Place, Roster, RosterHash, Uses},
};
use crate::protocol::{TopicName, hex};

/// Secrets held at once: the newest and those in their grace. With more, the one that ends first
/// goes.
pub const MAX_HELD: usize = 8;

/// One epoch of one topic. Two rotations may have the same number; their commitments differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EpochId {
    pub number: u64,
    pub commitment: [u8; 32],
}

impl fmt::Debug for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, hex::encode(&self.commitment[..3]))
    }
}

/// What every step is told beside its input.
pub struct Moment<'a> {
    /// Seconds since the Unix epoch.
    pub now: u64,
    /// Secure random bytes: secrets are made of them.
    pub random: &'a mut dyn FnMut() -> [u8; 32],
}

#[derive(Debug, Clone)]
pub enum Input {
    Command(Command),
    /// The peer is an endpoint that knows the topic's tag, and told its position.
    Met {
        peer: MemberId,
        position: Position,
    },
    /// A peer that knows the topic's tag sent what we lack.
    Received {
        peer: MemberId,
        handover: Box<Handover>,
    },
    /// The peer told whom it knows to be admitted.
    Told {
        peer: MemberId,
        admissions: Vec<Admission>,
    },
    /// Time has passed. Call it at [`Epochs::next_tick`], and after a start.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Save [`Epochs::secret_state`] and then [`Epochs::open_state`], durably, before anything that
    /// follows: an admin that forgot what it handed out would sign two different rosters.
    Persist,
    /// Enter the swarm of this epoch and read there.
    Join(EpochId),
    /// From now on publish in this epoch, and only there.
    Publish(EpochId),
    /// Leave the swarm; the secret is gone.
    Leave(EpochId),
    HandOver {
        to: MemberId,
        handover: Box<Handover>,
    },
    Tell {
        to: MemberId,
        admissions: Vec<Admission>,
    },
    /// The invite that was asked for.
    Invited(Box<Invite>),
    /// There is something new: meet the members one is connected with again.
    Spread,
    Refused(Refusal),
}

/// Why something was not done. For logs and the operator; a peer learns none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is not on the newest roster")]
    NotMember(MemberId),
    #[error("what {0} sent does not continue the rosters known here")]
    Unlinked(MemberId),
    #[error("what {0} sent is not signed by the topic's admin, or not of one piece")]
    Forged(MemberId),
    #[error("what {0} sent is not newer")]
    NotNewer(MemberId),
    #[error("this gateway is not on the roster that {0} sent")]
    NotForUs(MemberId),
    #[error("only the topic's admin can do this, and its key is not here")]
    NotAdmin,
    #[error("this is the key of another topic's admin")]
    OtherAdmin,
    #[error("{0} is not a member")]
    NoSuchMember(MemberId),
    #[error("the admin's own gateway cannot be left out")]
    Myself,
    #[error("the grace time is at most {max} seconds", max = super::roster::MAX_GRACE)]
    Grace,
    #[error("there are {max} outstanding invites, and no more are possible", max = super::MAX_INVITES)]
    Invites,
    #[error("no further roster can follow this one")]
    Exhausted,
}

/// A secret, and until when it is of use.
#[derive(Debug, Clone)]
struct Held {
    id: EpochId,
    secret: EpochSecret,
    /// `None` for the newest.
    until: Option<u64>,
}

/// One topic at one member.
#[derive(Clone)]
pub struct Epochs {
    me: MemberId,
    topic: Topic,
    topic_key: TopicKey,
    /// On the admin's gateways. Zeroed when dropped.
    admin: Option<SigningKey>,
    /// None for somebody invited whom nobody has admitted yet.
    chain: Option<Chain>,
    /// By which invite we came.
    admission: Option<Admission>,
    /// At most [`MAX_HELD`].
    held: Vec<Held>,
    /// Who was admitted since the newest roster. With its members at most [`MAX_MEMBERS`].
    admissions: BTreeMap<MemberId, Admission>,
    /// What the admin did, as long as another copy of the admin's key may undo it unknowingly.
    wishes: Vec<Wish>,
}

impl fmt::Debug for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epochs({:?} at {:?})", self.topic.name, self.place())
    }
}

impl Epochs {
    /// A new topic, with this gateway as its admin and only member.
    pub fn create(me: MemberId, name: TopicName, moment: &mut Moment<'_>) -> (Self, Vec<Output>) {
        let admin = SigningKey::from_bytes(&(moment.random)());
        let topic = Topic { admin: admin.verifying_key().to_bytes(), name };
        let topic_key = TopicKey::new((moment.random)());
        let secret = EpochSecret::new((moment.random)());
        let (roster, held) = admin::first_roster(me, &topic, &admin, secret, moment.now);
        let chain = Chain::new(&topic, &[], roster).expect("one roster follows nothing");
        let epochs = Self {
            me,
            topic,
            topic_key,
            admin: Some(admin),
            chain: Some(chain),
            admission: None,
            held: vec![held],
            admissions: BTreeMap::new(),
            wishes: Vec::new(),
        };
        let outputs = [Output::Persist].into_iter().chain(epochs.resume()).collect();
        (epochs, outputs)
    }

    /// The topic of an invite. Until a member admits this gateway it can look for members, and
    /// publishes nothing.
    pub fn accept(me: MemberId, invite: &Invite) -> (Self, Vec<Output>) {
        let Invite { topic, topic_key, epoch, secret, key, .. } = invite;
        let id = EpochId { number: *epoch, commitment: commitment(topic, *epoch, secret) };
        let epochs = Self {
            me,
            topic: topic.clone(),
            topic_key: topic_key.clone(),
            admin: None,
            chain: None,
            admission: Some(Admission::sign(topic, key, me)),
            held: vec![Held { id, secret: secret.clone(), until: None }],
            admissions: BTreeMap::new(),
            wishes: Vec::new(),
        };
        let outputs = [Output::Persist].into_iter().chain(epochs.resume()).collect();
        (epochs, outputs)
    }

    /// What is to be done after a start, with a restored state.
    pub fn resume(&self) -> Vec<Output> {
        let joins = self.held.iter().map(|held| Output::Join(held.id));
        joins.chain(self.publishes_in().map(Output::Publish)).collect()
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    pub fn topic_key(&self) -> &TopicKey {
        &self.topic_key
    }

    /// The newest roster, if this gateway was admitted.
    pub fn roster(&self) -> Option<&Roster> {
        self.chain.as_ref().map(Chain::head)
    }

    /// Members on the newest roster and those admitted since.
    pub fn members(&self) -> BTreeSet<MemberId> {
        let listed = self.roster().into_iter().flat_map(|roster| roster.body().members.keys());
        listed.chain(self.admissions.keys()).copied().collect()
    }

    pub fn is_admin(&self) -> bool {
        self.admin.is_some()
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

    /// The epoch to publish in.
    pub fn publishes_in(&self) -> Option<EpochId> {
        self.roster().map(epoch_id)
    }

    /// The epochs to read, oldest first.
    pub fn reads(&self) -> Vec<EpochId> {
        self.held.iter().map(|held| held.id).collect()
    }

    /// The keys of an epoch that is read.
    pub fn keys(&self, epoch: EpochId) -> Option<EpochKeys> {
        let held = self.held.iter().find(|held| held.id == epoch)?;
        Some(EpochKeys::derive(&self.topic, epoch.number, &held.secret))
    }

    /// This gateway's own admission, for [`Message::Hello`](super::message::Message::Hello).
    pub fn admission(&self) -> Option<&Admission> {
        self.admission.as_ref()
    }

    fn place(&self) -> Place {
        match &self.chain {
            Some(chain) => chain.head().place(),
            None => Place { epoch: self.held.last().map_or(1, |held| held.id.number), revision: 0 },
        }
    }

    /// What this gateway tells those who welcomed it, and those it welcomes.
    pub fn position(&self) -> Position {
        let chain = self.chain.as_ref();
        Position {
            place: self.place(),
            hash: chain.map_or(RosterHash::NONE, |chain| chain.head().hash()),
            locator: chain.map(Chain::locator).unwrap_or_default(),
            admission: self.admission,
        }
    }

    /// When the next secret ends, in seconds since the Unix epoch.
    pub fn next_tick(&self) -> Option<u64> {
        self.held.iter().filter_map(|held| held.until).min()
    }

    pub fn step(&mut self, input: Input, moment: &mut Moment<'_>) -> Vec<Output> {
        let before = (self.reads(), self.publishes_in());
        let mut rest = Vec::new();
        let changed = match input {
            Input::Command(command) => self.command(command, moment, &mut rest),
            Input::Met { peer, position } => self.met(peer, &position, &mut rest),
            Input::Received { peer, handover } => self.received(peer, *handover, moment, &mut rest),
            Input::Told { peer, admissions } => self.told(peer, &admissions, &mut rest),
            Input::Tick => false,
        };
        let changed = self.expire(moment.now) | changed;
        if changed { self.outputs(before, rest) } else { rest }
    }

    /// Puts what changed before what the step wants to be done.
    fn outputs(
        &self,
        (read, published): (Vec<EpochId>, Option<EpochId>),
        rest: Vec<Output>,
    ) -> Vec<Output> {
        let reads = self.reads();
        let mut outputs = vec![Output::Persist];
        outputs.extend(reads.iter().filter(|id| !read.contains(id)).map(|id| Output::Join(*id)));
        if let Some(id) = self.publishes_in().filter(|id| published != Some(*id)) {
            outputs.push(Output::Publish(id));
        }
        outputs.extend(read.into_iter().filter(|id| !reads.contains(id)).map(Output::Leave));
        outputs.extend(rest);
        outputs
    }

    fn met(&mut self, peer: MemberId, position: &Position, out: &mut Vec<Output>) -> bool {
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

    fn received(
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
    fn adopt(
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

    fn told(&mut self, peer: MemberId, list: &[Admission], out: &mut Vec<Output>) -> bool {
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
    fn admit(&mut self, admission: Admission, source: Source) -> bool {
        if self.admissions.contains_key(&admission.member) {
            return false;
        }
        self.is_admissible(&admission, source) && self.admit_checked(admission, source)
    }

    /// As [`Self::admit`], for an admission whose signature is known to be valid.
    fn admit_checked(&mut self, admission: Admission, source: Source) -> bool {
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

    /// Forgets secrets whose grace is over, and wishes that nothing can undo any more.
    fn expire(&mut self, now: u64) -> bool {
        let (held, wishes) = (self.held.len(), self.wishes.len());
        self.held.retain(|held| held.until.is_none_or(|until| now < until));
        self.wishes.retain(|wish| !wish.is_settled(now));
        (held, wishes) != (self.held.len(), self.wishes.len())
    }
}

/// Who shows an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The one it is for.
    Holder,
    /// A member that took it in.
    Member,
}

fn epoch_id(roster: &Roster) -> EpochId {
    let header = roster.header();
    EpochId { number: header.place.epoch, commitment: header.commitment }
}
