//! Rosters: who belongs to the topic, signed by its admin.
//!
//! A roster is a *header*, a *body* with the members and the outstanding invites, and a signature
//! over the header. Each header names the hash of the one before, so the newest signature vouches
//! for the whole chain, and whoever was away needs the headers between, but only the newest body.
//!
//! A rotation begins a new *epoch* with a new secret, at revision 0. A new invite, or a member
//! folded in, is the next *revision* of the same epoch: nothing changes but the list.

use std::{collections::BTreeMap, fmt};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use super::{
    MAX_INVITES, MAX_MEMBERS, Malformed, MemberId, Topic,
    bytes::{Reader, write_count},
    derive::PROTOCOL,
};
use crate::protocol::hex;

/// The longest time that the secret of the epoch before is still read, in seconds: a week.
pub const MAX_GRACE: u32 = 7 * 24 * 3_600;

/// The length of a header, in bytes.
pub const HEADER_BYTES: usize = 121;

/// SHA-256 of a header's canonical bytes: the name of a roster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RosterHash(pub [u8; 32]);

impl RosterHash {
    /// What the first roster of a topic names as the one before.
    pub const NONE: Self = Self([0; 32]);
}

impl fmt::Debug for RosterHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..5]))
    }
}

/// Where in the chain a roster stands. Epochs count from 1, revisions of an epoch from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub epoch: u64,
    pub revision: u32,
}

/// What the admin signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub place: Place,
    /// The roster that this one follows.
    pub previous: RosterHash,
    /// To the epoch's secret: `EpochKeys::commitment`.
    pub commitment: [u8; 32],
    /// SHA-256 of the body.
    pub body: [u8; 32],
    /// How long the secret of the epoch before is still read, in seconds; at most [`MAX_GRACE`].
    pub grace: u32,
    /// Seconds since the Unix epoch, by the admin's clock. Shown to people; decides nothing.
    pub issued_at: u64,
    /// A member was left out here, and with it every invite that was outstanding.
    pub exclusion: bool,
}

impl Header {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.place.epoch.to_be_bytes());
        out.extend_from_slice(&self.place.revision.to_be_bytes());
        out.extend_from_slice(&self.previous.0);
        out.extend_from_slice(&self.commitment);
        out.extend_from_slice(&self.body);
        out.extend_from_slice(&self.grace.to_be_bytes());
        out.extend_from_slice(&self.issued_at.to_be_bytes());
        out.push(u8::from(self.exclusion));
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let header = Self {
            place: Place { epoch: reader.u64()?, revision: reader.u32()? },
            previous: RosterHash(reader.array()?),
            commitment: reader.array()?,
            body: reader.array()?,
            grace: reader.u32()?,
            issued_at: reader.u64()?,
            exclusion: reader.flag()?,
        };
        let first = header.place == Place { epoch: 1, revision: 0 };
        let numbered = header.place.epoch > 0 && first == (header.previous == RosterHash::NONE);
        // Somebody left out must not keep a secret that stays in use.
        let excludes = !header.exclusion || (header.place.revision == 0 && !first);
        if numbered && excludes && header.grace <= MAX_GRACE { Ok(header) } else { Err(Malformed) }
    }

    /// What is signed and hashed.
    fn canonical(&self, topic: &Topic) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PROTOCOL.len() + 8 + 161 + HEADER_BYTES);
        bytes.extend_from_slice(PROTOCOL);
        bytes.extend_from_slice(b" roster\0");
        topic.write(&mut bytes);
        self.write(&mut bytes);
        bytes
    }

    pub fn hash(&self, topic: &Topic) -> RosterHash {
        RosterHash(Sha256::digest(self.canonical(topic)).into())
    }

    /// Whether this header may stand behind the other one.
    pub fn follows(&self, before: &Self, hash: RosterHash) -> bool {
        let Place { epoch, revision } = before.place;
        let next_revision = self.place.epoch == epoch
            && Some(self.place.revision) == revision.checked_add(1)
            && self.commitment == before.commitment;
        let next_epoch = Some(self.place.epoch) == epoch.checked_add(1) && self.place.revision == 0;
        self.previous == hash && (next_revision || next_epoch)
    }
}

/// How often an invite admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uses {
    Once,
    Many,
}

/// Whom a roster lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body {
    /// At most [`MAX_MEMBERS`], and since when each is listed: seconds since the Unix epoch, by the
    /// admin's clock.
    pub members: BTreeMap<MemberId, u64>,
    /// The public keys of outstanding invites; at most [`MAX_INVITES`].
    pub invites: BTreeMap<[u8; 32], Uses>,
}

impl Body {
    /// Members and invites in ascending order: one content, one way to write it.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_count(self.members.len(), out);
        for (member, since) in &self.members {
            out.extend_from_slice(&member.0);
            out.extend_from_slice(&since.to_be_bytes());
        }
        write_count(self.invites.len(), out);
        for (key, uses) in &self.invites {
            out.extend_from_slice(key);
            out.push(match uses {
                Uses::Once => 1,
                Uses::Many => 2,
            });
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut body = Self::default();
        for _ in 0..reader.count(MAX_MEMBERS)? {
            let member = MemberId(reader.array()?);
            if body.members.last_key_value().is_some_and(|(last, _)| *last >= member) {
                return Err(Malformed);
            }
            body.members.insert(member, reader.u64()?);
        }
        for _ in 0..reader.count(MAX_INVITES)? {
            let key = reader.array()?;
            let uses = match reader.u8()? {
                1 => Uses::Once,
                2 => Uses::Many,
                _ => return Err(Malformed),
            };
            if body.invites.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Malformed);
            }
            body.invites.insert(key, uses);
        }
        Ok(body)
    }

    pub fn hash(&self) -> [u8; 32] {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        Sha256::digest(bytes).into()
    }
}

/// A roster with a valid signature: made by signing or by verifying, and in no other way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    header: Header,
    body: Body,
    signature: [u8; 64],
    hash: RosterHash,
}

/// A roster that nobody has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnverifiedRoster {
    pub header: Header,
    pub body: Body,
    pub signature: [u8; 64],
}

impl Roster {
    /// Signs a roster. The header's `body` is filled in here.
    pub fn sign(topic: &Topic, mut header: Header, body: Body, admin: &SigningKey) -> Self {
        debug_assert!(body.members.len() <= MAX_MEMBERS && body.invites.len() <= MAX_INVITES);
        debug_assert_eq!(admin.verifying_key().to_bytes(), topic.admin);
        header.body = body.hash();
        let signature = admin.sign(&header.canonical(topic)).to_bytes();
        Self { header, body, signature, hash: header.hash(topic) }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn place(&self) -> Place {
        self.header.place
    }

    pub fn body(&self) -> &Body {
        &self.body
    }

    pub fn hash(&self) -> RosterHash {
        self.hash
    }

    pub fn unverified(&self) -> UnverifiedRoster {
        UnverifiedRoster { header: self.header, body: self.body.clone(), signature: self.signature }
    }
}

impl UnverifiedRoster {
    pub fn write(&self, out: &mut Vec<u8>) {
        self.header.write(out);
        out.extend_from_slice(&self.signature);
        self.body.write(out);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let header = Header::read(reader)?;
        let signature = reader.array()?;
        Ok(Self { header, signature, body: Body::read(reader)? })
    }

    /// # Errors
    /// When the body is another one than the header says, or the topic's admin did not sign it.
    pub fn verify(self, topic: &Topic) -> Result<Roster, Malformed> {
        let Self { header, body, signature } = self;
        if body.hash() != header.body {
            return Err(Malformed);
        }
        verify(&topic.admin, &header.canonical(topic), &signature)?;
        Ok(Roster { header, body, signature, hash: header.hash(topic) })
    }
}

/// Verifies strictly: no weak keys, and no second signature made from a first one.
pub(super) fn verify(key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> Result<(), Malformed> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| Malformed)?;
    key.verify_strict(bytes, &Signature::from_bytes(signature)).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::TopicName;

    fn admin() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn topic() -> Topic {
        Topic {
            admin: admin().verifying_key().to_bytes(),
            name: TopicName::new("reading circle").unwrap(),
        }
    }

    fn header(epoch: u64, revision: u32) -> Header {
        let first = (epoch, revision) == (1, 0);
        Header {
            place: Place { epoch, revision },
            previous: if first { RosterHash::NONE } else { RosterHash([3; 32]) },
            commitment: [4; 32],
            body: [0; 32],
            grace: 600,
            issued_at: 1_800_000_000,
            exclusion: false,
        }
    }

    fn body(members: u16, invites: u16) -> Body {
        let id = |n: u16| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&n.to_be_bytes());
            id
        };
        Body {
            members: (0..members).map(|n| (MemberId(id(n)), n.into())).collect(),
            invites: (0..invites)
                .map(|n| (id(n), if n % 2 == 0 { Uses::Once } else { Uses::Many }))
                .collect(),
        }
    }

    fn bytes(roster: &UnverifiedRoster) -> Vec<u8> {
        let mut bytes = Vec::new();
        roster.write(&mut bytes);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<UnverifiedRoster, Malformed> {
        let mut reader = Reader::new(bytes);
        let roster = UnverifiedRoster::read(&mut reader)?;
        reader.end().map(|()| roster)
    }

    #[test]
    fn a_roster_round_trips_and_verifies() {
        let roster = Roster::sign(&topic(), header(2, 1), body(1_000, 256), &admin());
        let bytes = bytes(&roster.unverified());
        assert_eq!(parse(&bytes).unwrap().verify(&topic()).unwrap(), roster);
        assert_eq!(bytes.len(), HEADER_BYTES + 64 + 2 + 40_000 + 2 + 33 * 256);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let roster = Roster::sign(&topic(), header(2, 1), body(3, 2), &admin());
        let good = bytes(&roster.unverified());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let verified = parse(&bad).and_then(|roster| roster.verify(&topic()));
            assert_eq!(verified, Err(Malformed), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(parse(&good[..length]).is_err());
        }
        assert!(parse(&[&good[..], &[0]].concat()).is_err(), "something left over");
    }

    #[test]
    fn another_admin_or_topic_is_refused() {
        let roster = Roster::sign(&topic(), header(2, 1), body(3, 2), &admin());
        let mut other = topic();
        other.name = TopicName::new("another").unwrap();
        assert!(roster.unverified().verify(&other).is_err());
        let mut other = topic();
        other.admin = SigningKey::from_bytes(&[2; 32]).verifying_key().to_bytes();
        assert!(roster.unverified().verify(&other).is_err());
    }

    #[test]
    fn there_is_one_way_to_write_a_list() {
        let roster = Roster::sign(&topic(), header(2, 1), body(3, 2), &admin());
        let good = bytes(&roster.unverified());
        let members = HEADER_BYTES + 64 + 2;
        let mut swapped = good.clone();
        swapped[members..members + 80].rotate_left(40);
        assert!(parse(&swapped).is_err(), "out of order");
        let mut twice = good.clone();
        twice.copy_within(members..members + 40, members + 40);
        assert!(parse(&twice).is_err(), "twice the same");
        let mut many = good;
        many[members - 2..members].copy_from_slice(&1_001_u16.to_be_bytes());
        assert!(parse(&many).is_err(), "too many");
    }

    #[test]
    fn impossible_headers_are_refused() {
        let parse = |header: Header| {
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            assert_eq!(bytes.len(), HEADER_BYTES);
            Header::read(&mut Reader::new(&bytes))
        };
        assert_eq!(parse(header(1, 0)), Ok(header(1, 0)));
        assert!(parse(header(0, 1)).is_err(), "epochs count from 1");
        assert!(parse(Header { previous: RosterHash::NONE, ..header(2, 0) }).is_err());
        assert!(parse(Header { previous: RosterHash([1; 32]), ..header(1, 0) }).is_err());
        assert!(parse(Header { grace: MAX_GRACE + 1, ..header(2, 0) }).is_err());
        assert!(parse(Header { exclusion: true, ..header(2, 0) }).is_ok());
        assert!(parse(Header { exclusion: true, ..header(2, 1) }).is_err(), "no new secret");
        assert!(parse(Header { exclusion: true, ..header(1, 0) }).is_err());
    }

    #[test]
    fn a_chain_goes_on_by_one() {
        let topic = topic();
        let first = header(2, 1);
        let hash = first.hash(&topic);
        let next = |epoch, revision| Header { previous: hash, ..header(epoch, revision) };
        assert!(next(2, 2).follows(&first, hash));
        assert!(next(3, 0).follows(&first, hash));
        assert!(!next(2, 3).follows(&first, hash));
        assert!(!next(4, 0).follows(&first, hash));
        assert!(!next(3, 1).follows(&first, hash));
        assert!(!header(3, 0).follows(&first, hash), "another one before");
        let other = Header { commitment: [5; 32], ..next(2, 2) };
        assert!(!other.follows(&first, hash), "another secret in the same epoch");
        assert!(Header { commitment: [5; 32], ..next(3, 0) }.follows(&first, hash));
    }
}
