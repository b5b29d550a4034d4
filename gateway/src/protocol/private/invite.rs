//! Invites: one printable string that lets its holder in.
//!
//! Bech32m with the prefix `ngw`. An
//! invite is far longer than any topic name, and whatever begins like one is read as one, so a
//! mistyped invite is an error and never a new, empty topic.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ed25519_dalek::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use super::{
    Malformed, MemberId, Topic, admin_key,
    bytes::{Reader, write_name},
    derive::{EpochSecret, TopicKey},
    printed,
};
use crate::protocol::{TopicName, TopicNameError};

/// What every invite begins with.
pub const PREFIX: &str = "ngw1";

const KIND: &str = "ngw";
const VERSION: u8 = 1;
const MAX_PEERS: usize = 8;
const MAX_ADDRESSES: usize = 4;

/// An endpoint to begin with. Displayed as `discovery.peers` takes it, one entry per address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: MemberId,
    /// At most four; empty when only the id is known.
    pub addresses: Vec<SocketAddr>,
}

impl Peer {
    /// Entries for `discovery.peers`.
    pub fn entries(&self) -> Vec<String> {
        if self.addresses.is_empty() {
            return vec![self.id.to_string()];
        }
        self.addresses.iter().map(|address| format!("{}@{address}", self.id)).collect()
    }
}

/// What an invite says. Whoever holds it can read the epoch that it was made in and be admitted
/// while its key is on the newest roster.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    pub topic: Topic,
    pub topic_key: TopicKey,
    pub epoch: u64,
    pub secret: EpochSecret,
    /// The invite's own key. Zeroed when dropped.
    pub key: SigningKey,
    pub peers: Vec<Peer>,
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invite({self})")
    }
}

/// For people and logs: what is no secret.
impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, epoch, peers) = (&self.topic.name, self.epoch, self.peers.len());
        write!(f, "invite to {name:?}, epoch {epoch}, {peers} peers")
    }
}

/// Why a text is no invite. Never repeats the text: it may be all but one character of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    #[error(
        "this invite is mistyped or incomplete: its checksum does not match; copy it again, whole"
    )]
    Mistyped,
    #[error("this invite is of version {0}, which this gateway does not know; update the gateway")]
    Version(u8),
    #[error("this is a topic's admin key, and no invite; `topic import-admin` takes it")]
    AdminKey,
    #[error("this invite has a valid checksum but not the content of one")]
    Malformed,
}

impl From<Malformed> for InviteError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// What somebody wants to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joinable {
    Name(TopicName),
    Invite(Box<Invite>),
}

/// Why a text is nothing that can be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinableError {
    #[error(transparent)]
    Invite(#[from] InviteError),
    #[error(transparent)]
    Name(#[from] TopicNameError),
}

impl Joinable {
    /// Reads a topic name or an invite, and takes nothing for a name that was meant as an invite.
    ///
    /// # Errors
    /// For a name that is none and for a mistyped invite.
    pub fn parse(text: &str) -> Result<Self, JoinableError> {
        if is_meant_as_invite(text) {
            Ok(Self::Invite(Box::new(Invite::parse(text)?)))
        } else {
            Ok(Self::Name(TopicName::new(text)?))
        }
    }
}

/// Whether this begins like an invite or an admin's key, or would but for one mistake in its
/// beginning.
pub fn is_meant_as_invite(text: &str) -> bool {
    printed::begins_like(PREFIX, text) || printed::begins_like(admin_key::PREFIX, text)
}

impl Invite {
    /// The string. Peers that would make it too long are left out.
    pub fn encode(&self) -> Zeroizing<String> {
        for peers in (0..=self.peers.len().min(MAX_PEERS)).rev() {
            let bytes = self.bytes(&self.peers[..peers]);
            if let Some(text) = printed::print(KIND, &bytes) {
                return text;
            }
        }
        unreachable!("without peers it is at most 528 characters long")
    }

    fn bytes(&self, peers: &[Peer]) -> Zeroizing<Vec<u8>> {
        // Room for all of it: growing would leave copies of the secrets behind.
        let mut out = Zeroizing::new(Vec::with_capacity(2_048));
        out.push(VERSION);
        out.extend_from_slice(&self.topic.admin);
        write_name(&self.topic.name, &mut out);
        out.extend_from_slice(self.topic_key.expose());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(self.secret.expose());
        out.extend_from_slice(self.key.as_bytes());
        out.push(peers.len() as u8);
        for peer in peers {
            out.extend_from_slice(&peer.id.0);
            let addresses = &peer.addresses[..peer.addresses.len().min(MAX_ADDRESSES)];
            out.push(addresses.len() as u8);
            addresses.iter().for_each(|address| write_address(address, &mut out));
        }
        out
    }

    /// Reads an invite. White space around it and line breaks within it do not matter, and neither
    /// does writing all of it in capitals.
    ///
    /// # Errors
    /// [`InviteError::Mistyped`] for every single wrong character, and for nearly all others.
    pub fn parse(text: &str) -> Result<Self, InviteError> {
        let Some(bytes) = printed::read(KIND, text) else {
            let begins = text.trim_start().get(..admin_key::PREFIX.len());
            let is_other =
                begins.is_some_and(|begin| begin.eq_ignore_ascii_case(admin_key::PREFIX));
            return Err(if is_other { InviteError::AdminKey } else { InviteError::Mistyped });
        };
        let mut reader = Reader::new(&bytes);
        match reader.u8()? {
            VERSION => {}
            other => return Err(InviteError::Version(other)),
        }
        let invite = Self::read(&mut reader)?;
        reader.end()?;
        Ok(invite)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let admin = reader.array()?;
        let topic = Topic { admin, name: reader.name()? };
        let topic_key = TopicKey::new(reader.array()?);
        let epoch = reader.u64()?;
        let secret = EpochSecret::new(reader.array()?);
        let mut seed: [u8; 32] = reader.array()?;
        let key = SigningKey::from_bytes(&seed);
        seed.zeroize();
        let count = usize::from(reader.u8()?);
        if epoch == 0 || count > MAX_PEERS {
            return Err(Malformed);
        }
        let mut peers = Vec::with_capacity(count);
        for _ in 0..count {
            let id = MemberId(reader.array()?);
            let count = usize::from(reader.u8()?);
            if count > MAX_ADDRESSES {
                return Err(Malformed);
            }
            let addresses = (0..count).map(|_| read_address(reader)).collect::<Result<_, _>>()?;
            peers.push(Peer { id, addresses });
        }
        Ok(Self { topic, topic_key, epoch, secret, key, peers })
    }
}

fn write_address(address: &SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn read_address(reader: &mut Reader<'_>) -> Result<SocketAddr, Malformed> {
    let ip = match reader.u8()? {
        4 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)),
        6 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)),
        _ => return Err(Malformed),
    };
    Ok(SocketAddr::new(ip, reader.u16()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not compile otherwise.
    #[test]
    fn an_invite_is_zeroed_when_dropped() {
        fn zeroed<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let invite = invite(1);
        // Topic key and secret: see there.
        let Invite { topic: _, topic_key: _, epoch: _, secret: _, key, peers: _ } = &invite;
        zeroed(key);
        zeroed(&invite.encode());
    }

    fn invite(peers: usize) -> Invite {
        let peer = |n: usize| Peer {
            id: MemberId([n as u8; 32]),
            addresses: vec!["192.0.2.1:4870".parse().unwrap(), "[2001:db8::1]:9".parse().unwrap()],
        };
        Invite {
            topic: Topic { admin: [7; 32], name: TopicName::new("Lesekreis Süd").unwrap() },
            topic_key: TopicKey::new([0xa1; 32]),
            epoch: 3,
            secret: EpochSecret::new([0xb2; 32]),
            key: SigningKey::from_bytes(&[0xc3; 32]),
            peers: (0..peers).map(peer).collect(),
        }
    }

    #[test]
    fn an_invite_round_trips() {
        for peers in 0..4 {
            let invite = invite(peers);
            let text = invite.encode();
            assert!(text.starts_with(PREFIX));
            assert_eq!(Invite::parse(&text).unwrap(), invite);
            assert_eq!(Invite::parse(&text.to_uppercase()).unwrap(), invite);
            let wrapped = format!("  {}\r\n {}\n", &text[..60], &text[60..]);
            assert_eq!(Invite::parse(&wrapped).unwrap(), invite);
        }
        let peer = &invite(1).peers[0];
        let id = "00".repeat(32);
        assert_eq!(
            peer.entries(),
            [format!("{id}@192.0.2.1:4870"), format!("{id}@[2001:db8::1]:9")]
        );
    }

    #[test]
    fn peers_that_do_not_fit_are_left_out() {
        let mut long = invite(8);
        long.topic.name = TopicName::new(&"ß".repeat(64)).unwrap();
        let text = long.encode();
        assert!(text.len() <= printed::MAX_CHARACTERS);
        let parsed = Invite::parse(&text).unwrap();
        assert!(!parsed.peers.is_empty() && parsed.peers.len() < 8);
        long.peers = parsed.peers.clone();
        assert_eq!(parsed, long);
    }

    /// Each character replaced by each other one that can be typed.
    #[test]
    fn a_single_wrong_character_is_told() {
        let text = invite(1).encode();
        for at in 0..text.len() {
            for wrong in (b'!'..=b'~').filter(|wrong| *wrong != text.as_bytes()[at]) {
                let mut bad = text.as_bytes().to_vec();
                bad[at] = wrong;
                let bad = str::from_utf8(&bad).unwrap();
                let expected = Err(InviteError::Mistyped);
                // One capital alone is a mistake too (BIP 173), except that of the only one.
                assert_eq!(Invite::parse(bad), expected, "{at}: {}", wrong as char);
                assert_eq!(
                    Joinable::parse(bad),
                    Err(JoinableError::Invite(InviteError::Mistyped)),
                    "{at}: {}",
                    wrong as char
                );
            }
        }
    }

    #[test]
    fn missing_added_and_swapped_characters_are_told() {
        let text = invite(1).encode();
        let mistyped = Err(JoinableError::Invite(InviteError::Mistyped));
        for at in 0..text.len() {
            let missing = format!("{}{}", &text[..at], &text[at + 1..]);
            // Of two equal neighbors, leaving out either is the same text; all are mistakes.
            assert_eq!(Joinable::parse(&missing), mistyped, "{at}");
            let doubled = format!("{}{}", &text[..=at], &text[at..]);
            assert_eq!(Joinable::parse(&doubled), mistyped, "{at}");
        }
        for length in PREFIX.len()..text.len() {
            assert_eq!(Joinable::parse(&text[..length]), mistyped, "cut off at {length}");
        }
        assert_eq!(Joinable::parse(&text.replace('1', "l")), mistyped);
    }

    #[test]
    fn names_stay_names() {
        for name in ["global", "n", "ng", "ngw", "ngw-users", "ngx1", "gw1 and others", "nostr"] {
            assert!(matches!(Joinable::parse(name), Ok(Joinable::Name(_))), "{name}");
        }
        assert!(matches!(Joinable::parse(""), Err(JoinableError::Name(_))));
        let text = invite(0).encode();
        assert!(matches!(Joinable::parse(&text), Ok(Joinable::Invite(_))));
    }

    #[test]
    fn a_later_version_is_told() {
        let mut bytes = invite(0).bytes(&[]);
        bytes[0] = 2;
        let text = printed::print(KIND, &bytes).unwrap();
        assert_eq!(Invite::parse(&text), Err(InviteError::Version(2)));
        bytes[0] = 1;
        bytes.push(0);
        let text = printed::print(KIND, &bytes).unwrap();
        assert_eq!(Invite::parse(&text), Err(InviteError::Malformed));
    }

    #[test]
    fn printing_shows_no_secret() {
        let invite = invite(2);
        let text = invite.encode();
        for shown in [
            format!("{invite:?} {invite}"),
            format!("{:?}", Joinable::parse(&text)),
            format!("{:?}", Invite::parse(&text[..100])),
            Invite::parse(&text[..100]).unwrap_err().to_string(),
        ] {
            for secret in ["a1a1", "b2b2", "c3c3", "161, 161", "178, 178", "195, 195", "ngw1"] {
                assert!(!shown.to_lowercase().contains(secret), "{shown}");
            }
        }
    }
}
