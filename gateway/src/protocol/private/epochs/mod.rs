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
mod meeting;
mod members;
mod saved;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use ed25519_dalek::SigningKey;

pub use self::admin::Command;
use self::{admin::Wish, chain::Chain};
use super::{
    MemberId, Topic,
    admission::Admission,
    derive::{EpochKeys, EpochSecret, TopicKey, commitment},
    invite::Invite,
    message::{Handover, Position},
    roster::{Place, Roster, RosterHash},
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

    /// When the newest epoch began, by the admin's clock, in seconds since the Unix epoch. The oldest
    /// roster of it that is remembered counts.
    pub fn epoch_since(&self) -> Option<u64> {
        self.chain.as_ref().map(Chain::epoch_since)
    }

    pub fn is_admin(&self) -> bool {
        self.admin.is_some()
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

    /// Forgets secrets whose grace is over, and wishes that nothing can undo any more.
    fn expire(&mut self, now: u64) -> bool {
        let (held, wishes) = (self.held.len(), self.wishes.len());
        self.held.retain(|held| held.until.is_none_or(|until| now < until));
        self.wishes.retain(|wish| !wish.is_settled(now));
        (held, wishes) != (self.held.len(), self.wishes.len())
    }
}

fn epoch_id(roster: &Roster) -> EpochId {
    let header = roster.header();
    EpochId { number: header.place.epoch, commitment: header.commitment }
}
