//! What only the admin's gateway does: rosters, invites, rotations.
//!
//! The admin's key may be on several gateways. Two of them may issue rosters for the same place
//! without knowing of one another; then one roster loses. So each remembers what it did, and does
//! what was lost again on top of the roster that won: nobody stays in because of a coincidence.

use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;

use super::{Chain, Epochs, Held, Moment, Output, Refusal, commitment, epoch_id};
use crate::protocol::private::{
    MAX_INVITES, MAX_MEMBERS, MemberId, Topic,
    derive::EpochSecret,
    invite::{Invite, Peer},
    roster::{Body, Header, MAX_GRACE, Place, Roster, RosterHash, Uses},
};

/// The grace of the first roster; it stands for nothing, because no epoch came before.
const NO_GRACE: u32 = 0;

/// How long the admin remembers what it did, in seconds: 30 days.
const REMEMBERED: u64 = 30 * 24 * 3_600;
/// How far the clocks of the admin's gateways may be apart, in seconds.
const CLOCK_SKEW: u64 = 600;
/// How many of its deeds; exclusions are kept longest.
const MAX_WISHES: usize = 512;

#[derive(Debug, Clone)]
pub enum Command {
    /// Makes an invite. The peers are for its holder to begin with.
    Invite { uses: Uses, peers: Vec<Peer> },
    /// Begins a new epoch without these members. Grace in seconds, at most [`MAX_GRACE`].
    Rotate { exclude: BTreeSet<MemberId>, grace: u32 },
    /// Makes this gateway one more of the admin's.
    Administer(Box<SigningKey>),
}

/// Something the admin did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The roster that says so.
    pub roster: RosterHash,
    /// By the own clock.
    pub made_at: u64,
    pub what: Deed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    LeftOut(BTreeSet<MemberId>),
    Invited([u8; 32], Uses),
}

impl Wish {
    pub fn is_settled(&self, now: u64) -> bool {
        now.saturating_sub(self.made_at) > REMEMBERED
    }
}

pub(super) fn first_roster(
    me: MemberId,
    topic: &Topic,
    admin: &SigningKey,
    secret: EpochSecret,
    now: u64,
) -> (Roster, Held) {
    let header = Header {
        place: Place { epoch: 1, revision: 0 },
        previous: RosterHash::NONE,
        commitment: commitment(topic, 1, &secret),
        body: [0; 32],
        grace: NO_GRACE,
        issued_at: now,
        exclusion: false,
    };
    let body = Body { members: [(me, now)].into(), ..Body::default() };
    let roster = Roster::sign(topic, header, body, admin);
    let id = epoch_id(&roster);
    (roster, Held { id, secret, until: None })
}

impl Epochs {
    /// The admin's key, to be kept for another gateway of the admin.
    pub fn admin_key(&self) -> Option<&SigningKey> {
        self.admin.as_ref()
    }

    pub(super) fn command(
        &mut self,
        command: Command,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> bool {
        let done = match command {
            Command::Invite { uses, peers } => self.invite(uses, peers, moment, out),
            Command::Rotate { exclude, grace } => self.rotate(exclude, grace, moment, out),
            Command::Administer(key) => self.administer(*key),
        };
        if let Err(refusal) = done {
            out.push(Output::Refused(refusal));
        }
        done.is_ok()
    }

    fn administer(&mut self, key: SigningKey) -> Result<(), Refusal> {
        if key.verifying_key().to_bytes() != self.topic.admin {
            return Err(Refusal::OtherAdmin);
        }
        self.admin = Some(key);
        Ok(())
    }

    fn invite(
        &mut self,
        uses: Uses,
        peers: Vec<Peer>,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let mut body = self.folded(moment.now)?;
        if body.invites.len() >= MAX_INVITES {
            return Err(Refusal::Invites);
        }
        let key = SigningKey::from_bytes(&(moment.random)());
        let public = key.verifying_key().to_bytes();
        body.invites.insert(public, uses);
        let hash = self.revise(body, moment, out)?;
        self.remember(hash, Deed::Invited(public, uses), moment.now);
        let held = self.newest().ok_or(Refusal::NotAdmin)?;
        let invite = Invite {
            topic: self.topic.clone(),
            topic_key: self.topic_key.clone(),
            epoch: held.id.number,
            secret: held.secret.clone(),
            key,
            peers,
        };
        out.push(Output::Invited(Box::new(invite)));
        Ok(())
    }

    fn rotate(
        &mut self,
        exclude: BTreeSet<MemberId>,
        grace: u32,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if self.admin.is_none() {
            return Err(Refusal::NotAdmin);
        }
        if grace > MAX_GRACE {
            return Err(Refusal::Grace);
        }
        if exclude.contains(&self.me) {
            return Err(Refusal::Myself);
        }
        // A slip of the pen must not pass for an exclusion.
        if let Some(stranger) = exclude.iter().find(|member| !self.is_member(**member)) {
            return Err(Refusal::NoSuchMember(*stranger));
        }
        let hash = self.next_epoch(&exclude, grace, moment, out)?;
        if !exclude.is_empty() {
            self.remember(hash, Deed::LeftOut(exclude), moment.now);
        }
        Ok(())
    }

    /// Begins a new epoch; with anybody to leave out, all invites end, also if those left out are
    /// not on the roster.
    fn next_epoch(
        &mut self,
        exclude: &BTreeSet<MemberId>,
        grace: u32,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> Result<RosterHash, Refusal> {
        let mut body = self.folded(moment.now)?;
        if !exclude.is_empty() {
            body.members.retain(|member, _| !exclude.contains(member));
            // Any of these invites may be in the hands of those left out.
            body.invites.clear();
        }
        let secret = EpochSecret::new((moment.random)());
        let before = *self.roster().ok_or(Refusal::NotAdmin)?.header();
        let place = Place {
            epoch: before.place.epoch.checked_add(1).ok_or(Refusal::Exhausted)?,
            revision: 0,
        };
        let header = Header {
            place,
            commitment: commitment(&self.topic, place.epoch, &secret),
            grace,
            exclusion: !exclude.is_empty(),
            ..self.next(moment)?
        };
        if !exclude.is_empty() {
            self.wishes.retain(|wish| matches!(wish.what, Deed::LeftOut(_)));
        }
        self.issue(header, body, secret, moment, out)
    }

    /// The newest body with those admitted since as members, and without the invites they used up.
    fn folded(&self, now: u64) -> Result<Body, Refusal> {
        if self.admin.is_none() {
            return Err(Refusal::NotAdmin);
        }
        let mut body = self.roster().ok_or(Refusal::NotAdmin)?.body().clone();
        for (member, admission) in &self.admissions {
            if body.members.len() >= MAX_MEMBERS {
                break;
            }
            body.members.insert(*member, now);
            if body.invites.get(&admission.invite) == Some(&Uses::Once) {
                body.invites.remove(&admission.invite);
            }
        }
        Ok(body)
    }

    /// The next roster of the same epoch.
    fn revise(
        &mut self,
        body: Body,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> Result<RosterHash, Refusal> {
        let before = *self.roster().ok_or(Refusal::NotAdmin)?.header();
        let revision = before.place.revision.checked_add(1).ok_or(Refusal::Exhausted)?;
        let place = Place { revision, ..before.place };
        let header = Header { place, exclusion: false, ..self.next(moment)? };
        let secret = self.newest().ok_or(Refusal::NotAdmin)?.secret.clone();
        self.issue(header, body, secret, moment, out)
    }

    /// A header behind the newest, still at its place.
    fn next(&self, moment: &Moment<'_>) -> Result<Header, Refusal> {
        let head = self.roster().ok_or(Refusal::NotAdmin)?;
        Ok(Header { previous: head.hash(), issued_at: moment.now, ..*head.header() })
    }

    fn issue(
        &mut self,
        header: Header,
        body: Body,
        secret: EpochSecret,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) -> Result<RosterHash, Refusal> {
        let (Some(admin), Some(chain)) = (&self.admin, &self.chain) else {
            return Err(Refusal::NotAdmin);
        };
        let roster = Roster::sign(&self.topic, header, body, admin);
        let hash = roster.hash();
        let chain = chain.switched(&self.topic, &[], roster).map_err(|_| Refusal::Exhausted)?;
        self.adopt(chain, secret, moment, out);
        if !out.contains(&Output::Spread) {
            out.push(Output::Spread);
        }
        Ok(hash)
    }

    fn newest(&self) -> Option<&Held> {
        let id = self.publishes_in()?;
        self.held.iter().find(|held| held.id == id)
    }

    fn remember(&mut self, roster: RosterHash, what: Deed, now: u64) {
        self.wishes.push(Wish { roster, made_at: now, what });
        if self.wishes.len() > MAX_WISHES {
            let invited = |wish: &Wish| matches!(wish.what, Deed::Invited(..));
            let oldest = self.wishes.iter().position(invited).unwrap_or(0);
            self.wishes.remove(oldest);
        }
    }

    /// Does again what stood on rosters that lost against those of another of the admin's gateways.
    pub(super) fn repeat_lost_wishes(
        &mut self,
        old: &Chain,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) {
        let Some(chain) = self.chain.as_ref().filter(|_| self.admin.is_some()) else { return };
        let (undone, voided) = (old.undone_by(chain), chain.excluded_since(old));
        let is_lost = |wish: &Wish| undone.contains(&wish.roster);
        let (lost, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wishes).into_iter().partition(is_lost);
        self.wishes = kept;
        let (left_out, invited): (Vec<_>, Vec<_>) =
            lost.into_iter().partition(|wish| matches!(wish.what, Deed::LeftOut(_)));
        if left_out.is_empty() {
            if !voided {
                self.invite_again(invited, moment, out);
            }
            return;
        }
        self.leave_out_again(&left_out, voided, old, moment, out);
        // Another roster may win yet.
        let hash = self.roster().map_or(RosterHash::NONE, Roster::hash);
        for wish in left_out {
            self.remember(hash, wish.what, wish.made_at);
        }
    }

    fn leave_out_again(
        &mut self,
        wishes: &[Wish],
        voided: bool,
        old: &Chain,
        moment: &mut Moment<'_>,
        out: &mut Vec<Output>,
    ) {
        let Some(head) = self.roster() else { return };
        let grace = head.header().grace;
        let mut exclude = BTreeSet::new();
        for wish in wishes {
            if let Deed::LeftOut(members) = &wish.what {
                exclude.extend(members.iter().filter(|member| self.is_member(**member)));
            }
        }
        // The exclusion had ended all invites, so whoever came by one on the other side since then
        // may be somebody left out under another name.
        let first = wishes.iter().map(|wish| wish.made_at).min().unwrap_or(u64::MAX);
        let before = &old.head().body().members;
        for (member, since) in &head.body().members {
            if since.saturating_add(CLOCK_SKEW) > first && !before.contains_key(member) {
                exclude.insert(*member);
            }
        }
        exclude.remove(&self.me);
        // And invites that it had ended are still open.
        if !voided && exclude.is_empty() && !head.body().invites.is_empty() {
            for wish in wishes {
                if let Deed::LeftOut(members) = &wish.what {
                    exclude.extend(members);
                }
            }
        }
        if !exclude.is_empty() {
            // It cannot be refused but for numbers that have run out.
            let _ = self.next_epoch(&exclude, grace, moment, out);
        }
    }

    fn invite_again(&mut self, wishes: Vec<Wish>, moment: &mut Moment<'_>, out: &mut Vec<Output>) {
        let Ok(mut body) = self.folded(moment.now) else { return };
        let mut invites: Vec<_> = wishes
            .into_iter()
            .filter_map(|wish| match wish.what {
                Deed::Invited(key, uses) => Some((key, uses)),
                Deed::LeftOut(_) => None,
            })
            .collect();
        invites.retain(|(key, _)| !body.invites.contains_key(key));
        invites.truncate(MAX_INVITES.saturating_sub(body.invites.len()));
        if invites.is_empty() {
            return;
        }
        body.invites.extend(invites.iter().copied());
        if let Ok(hash) = self.revise(body, moment, out) {
            for (key, uses) in invites {
                self.remember(hash, Deed::Invited(key, uses), moment.now);
            }
        }
    }
}
