//! What members tell one another on a direct stream.
//!
//! The one that opens the stream says [`Message::Hello`]; the other answers [`Message::Welcome`], or
//! as if the topic were unknown; then [`Message::Status`]. Whoever is ahead hands over, and when
//! both are at the same roster both prove that they hold its secret. Everything else that a stream
//! of a private topic carries comes after that.

use std::fmt;

use zeroize::Zeroizing;

use super::{
    MAX_INVITES, MAX_MEMBERS, Malformed,
    admission::{ADMISSION_BYTES, Admission},
    bytes::{Reader, write_count},
    derive::EpochSecret,
    proof::{Proof, Tag},
    roster::{HEADER_BYTES, Header, Place, RosterHash, UnverifiedRoster},
};

/// The most rosters that a member remembers and hands over: one who missed more needs a new invite.
pub const MAX_CHAIN: usize = 4_096;

/// The most hashes by which a member says where its chain is.
pub const MAX_LOCATOR: usize = 16;

/// The longest message before the other side is known to belong to the topic, in bytes.
pub const MAX_HELLO_BYTES: usize = 1 + 16 + 1 + ADMISSION_BYTES;

/// The longest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1
    + (2 + MAX_CHAIN * HEADER_BYTES)
    + (HEADER_BYTES + 64 + 2 + 40 * MAX_MEMBERS + 2 + 33 * MAX_INVITES)
    + 32
    + (2 + MAX_MEMBERS * ADMISSION_BYTES);

const HELLO: u8 = 0x10;
const WELCOME: u8 = 0x11;
const STATUS: u8 = 0x12;
const HANDOVER: u8 = 0x13;
const ADMISSIONS: u8 = 0x14;
const PROOF: u8 = 0x15;

/// How far a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Its newest roster; for the holder of an invite, the epoch that the invite was made in.
    pub place: Place,
    /// The newest roster's hash, or [`RosterHash::NONE`] for somebody who has none yet.
    pub hash: RosterHash,
    /// Hashes of rosters before it, newest first, ever further apart.
    pub locator: Vec<RosterHash>,
    /// Its own admission: whoever does not find it on the roster may admit it by that.
    pub admission: Option<Admission>,
}

/// What a member gives to one who is behind.
#[derive(Clone, PartialEq, Eq)]
pub struct Handover {
    /// The rosters between what the other has and the newest, oldest first, without the newest.
    pub headers: Vec<Header>,
    /// The newest.
    pub roster: UnverifiedRoster,
    /// That of its epoch.
    pub secret: EpochSecret,
    /// Who was admitted since.
    pub admissions: Vec<Admission>,
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handover({} headers to {:?})", self.headers.len(), self.roster.header.place)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The initiator names the topic, and says by which invite it comes if it is not on a roster.
    Hello {
        tag: Tag,
        admission: Option<Admission>,
    },
    /// The responder belongs to it too.
    Welcome {
        tag: Tag,
        position: Position,
    },
    /// How far the initiator is.
    Status(Position),
    Handover(Box<Handover>),
    /// Who was admitted since the roster that both have; at most 1,000.
    Admissions(Vec<Admission>),
    /// Of the newest epoch, from each side.
    Proof(Proof),
}

impl Message {
    /// The message as it stands behind its length. Zeroed when dropped: it may hold a secret.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room for all of it: growing would leave copies of a secret behind.
        let mut out = Zeroizing::new(Vec::with_capacity(self.room()));
        match self {
            Self::Hello { tag, admission } => {
                out.push(HELLO);
                out.extend_from_slice(tag);
                write_optional(admission.as_ref(), &mut out);
            }
            Self::Welcome { tag, position } => {
                out.push(WELCOME);
                out.extend_from_slice(tag);
                position.write(&mut out);
            }
            Self::Status(position) => {
                out.push(STATUS);
                position.write(&mut out);
            }
            Self::Handover(handover) => {
                out.push(HANDOVER);
                handover.write(&mut out);
            }
            Self::Admissions(admissions) => {
                out.push(ADMISSIONS);
                write_admissions(admissions, &mut out);
            }
            Self::Proof(proof) => {
                out.push(PROOF);
                out.extend_from_slice(proof);
            }
        }
        debug_assert!(out.len() <= self.room());
        out
    }

    fn room(&self) -> usize {
        match self {
            Self::Handover(handover) => {
                let body = &handover.roster.body;
                1 + 2
                    + handover.headers.len() * HEADER_BYTES
                    + HEADER_BYTES
                    + 64
                    + 4
                    + 40 * body.members.len()
                    + 33 * body.invites.len()
                    + 32
                    + 2
                    + handover.admissions.len() * ADMISSION_BYTES
            }
            Self::Admissions(admissions) => 3 + admissions.len() * ADMISSION_BYTES,
            _ => 1_024,
        }
    }

    /// # Errors
    /// For everything that [`Self::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(Malformed);
        }
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()? {
            HELLO => Self::Hello { tag: reader.array()?, admission: read_optional(&mut reader)? },
            WELCOME => {
                Self::Welcome { tag: reader.array()?, position: Position::read(&mut reader)? }
            }
            STATUS => Self::Status(Position::read(&mut reader)?),
            HANDOVER => Self::Handover(Box::new(Handover::read(&mut reader)?)),
            ADMISSIONS => Self::Admissions(read_admissions(&mut reader)?),
            PROOF => Self::Proof(reader.array()?),
            _ => return Err(Malformed),
        };
        reader.end()?;
        Ok(message)
    }
}

impl Position {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.place.epoch.to_be_bytes());
        out.extend_from_slice(&self.place.revision.to_be_bytes());
        out.extend_from_slice(&self.hash.0);
        out.push(self.locator.len() as u8);
        self.locator.iter().for_each(|hash| out.extend_from_slice(&hash.0));
        write_optional(self.admission.as_ref(), out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let place = Place { epoch: reader.u64()?, revision: reader.u32()? };
        let hash = RosterHash(reader.array()?);
        let count = usize::from(reader.u8()?);
        if count > MAX_LOCATOR || place.epoch == 0 {
            return Err(Malformed);
        }
        let locator =
            (0..count).map(|_| reader.array().map(RosterHash)).collect::<Result<_, _>>()?;
        Ok(Self { place, hash, locator, admission: read_optional(reader)? })
    }
}

impl Handover {
    fn write(&self, out: &mut Vec<u8>) {
        write_count(self.headers.len(), out);
        self.headers.iter().for_each(|header| header.write(out));
        self.roster.write(out);
        out.extend_from_slice(self.secret.expose());
        write_admissions(&self.admissions, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = reader.count(MAX_CHAIN)?;
        Ok(Self {
            headers: (0..count).map(|_| Header::read(reader)).collect::<Result<_, _>>()?,
            roster: UnverifiedRoster::read(reader)?,
            secret: EpochSecret::new(reader.array()?),
            admissions: read_admissions(reader)?,
        })
    }
}

pub(super) fn write_optional(admission: Option<&Admission>, out: &mut Vec<u8>) {
    out.push(u8::from(admission.is_some()));
    if let Some(admission) = admission {
        admission.write(out);
    }
}

pub(super) fn read_optional(reader: &mut Reader<'_>) -> Result<Option<Admission>, Malformed> {
    if reader.flag()? { Admission::read(reader).map(Some) } else { Ok(None) }
}

pub(super) fn write_admissions(admissions: &[Admission], out: &mut Vec<u8>) {
    write_count(admissions.len(), out);
    admissions.iter().for_each(|admission| admission.write(out));
}

pub(super) fn read_admissions(reader: &mut Reader<'_>) -> Result<Vec<Admission>, Malformed> {
    (0..reader.count(MAX_MEMBERS)?).map(|_| Admission::read(reader)).collect()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::protocol::{
        TopicName,
        private::{
            MemberId, Topic,
            roster::{Body, Roster, Uses},
        },
    };

    fn topic() -> (Topic, SigningKey) {
        let admin = SigningKey::from_bytes(&[1; 32]);
        let name = TopicName::new("t").unwrap();
        (Topic { admin: admin.verifying_key().to_bytes(), name }, admin)
    }

    fn admission(n: u8) -> Admission {
        Admission::sign(&topic().0, &SigningKey::from_bytes(&[n; 32]), MemberId([n; 32]))
    }

    fn header(epoch: u64) -> Header {
        Header {
            place: Place { epoch, revision: 0 },
            previous: RosterHash([3; 32]),
            commitment: [4; 32],
            body: [5; 32],
            grace: 600,
            issued_at: 1_800_000_000,
            exclusion: true,
        }
    }

    fn position() -> Position {
        Position {
            place: Place { epoch: 7, revision: 2 },
            hash: RosterHash([9; 32]),
            locator: (0..MAX_LOCATOR as u8).map(|n| RosterHash([n; 32])).collect(),
            admission: Some(admission(2)),
        }
    }

    fn handover(headers: u64, members: u16, admissions: usize) -> Message {
        let (topic, admin) = topic();
        let id = |n: u16| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&n.to_be_bytes());
            id
        };
        let body = Body {
            members: (0..members).map(|n| (MemberId(id(n)), n.into())).collect(),
            invites: (0..members.min(256)).map(|n| (id(n), Uses::Once)).collect(),
        };
        Message::Handover(Box::new(Handover {
            headers: (2..headers + 2).map(header).collect(),
            roster: Roster::sign(&topic, header(headers + 2), body, &admin).unverified(),
            secret: EpochSecret::new([6; 32]),
            admissions: vec![admission(3); admissions],
        }))
    }

    fn all() -> Vec<Message> {
        vec![
            Message::Hello { tag: [1; 16], admission: None },
            Message::Hello { tag: [1; 16], admission: Some(admission(1)) },
            Message::Welcome { tag: [1; 16], position: position() },
            Message::Status(Position { locator: vec![], admission: None, ..position() }),
            handover(3, 2, 1),
            Message::Admissions(vec![admission(1), admission(2)]),
            Message::Proof([8; 32]),
        ]
    }

    #[test]
    fn messages_round_trip_and_nothing_else_is_read() {
        for message in all() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), message);
            for length in 0..bytes.len() {
                assert!(Message::decode(&bytes[..length]).is_err(), "{message:?} to {length}");
            }
            assert!(Message::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
        assert!(Message::decode(&[0x16]).is_err());
    }

    #[test]
    fn the_bounds_hold() {
        let longest = handover(MAX_CHAIN as u64, 1_000, 1_000);
        assert_eq!(longest.encode().len(), MAX_MESSAGE_BYTES);
        assert_eq!(Message::decode(&longest.encode()).unwrap(), longest);
        let hello = Message::Hello { tag: [0; 16], admission: Some(admission(1)) };
        assert_eq!(hello.encode().len(), MAX_HELLO_BYTES);
        let over = handover(MAX_CHAIN as u64 + 1, 1, 0);
        assert!(Message::decode(&over.encode()).is_err());
        let over = Message::Admissions(vec![admission(1); MAX_MEMBERS + 1]);
        assert!(Message::decode(&over.encode()).is_err());
        let locator = vec![RosterHash([1; 32]); MAX_LOCATOR + 1];
        let over = Message::Status(Position { locator, ..position() });
        assert!(Message::decode(&over.encode()).is_err());
    }

    /// Random changes to valid messages: an error or another message, never a panic.
    #[test]
    fn garbage_is_survived() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for message in all() {
            let good = message.encode();
            for _ in 0..500 {
                let mut bad = good.to_vec();
                for _ in 0..1 + next() % 4 {
                    let at = next() % bad.len();
                    bad[at] = next() as u8;
                }
                if let Ok(message) = Message::decode(&bad) {
                    assert_eq!(*message.encode(), bad, "one way to write each message");
                }
            }
        }
    }

    #[test]
    fn a_handover_prints_no_secret() {
        let text = format!("{:?}", handover(1, 1, 0));
        assert!(text.contains("Handover(1 headers"), "{text}");
        assert!(!text.contains("6, 6") && !text.contains("0606"), "{text}");
    }
}
