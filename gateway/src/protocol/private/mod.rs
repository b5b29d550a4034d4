//! Private topics: who may know, find, join and read them.
//!
//! Everything here is pure: secrets, time and messages come in, decisions and bytes go out. The
//! bytes are described in `docs/private-topics.md`, exactly enough for another implementation.
//!
//! - [`derive`] turns secrets into keys; every derivation of the protocol is in that one file.
//! - [`seal`] makes gossip frames unreadable for others, deterministically.
//! - [`proof`] is how two members recognise one another on a direct stream.
//! - [`roster`] says who belongs to an epoch, [`invite`] and [`admission`] how one comes to belong.
//! - [`admin_key`] carries the admin's key from one of the admin's gateways to another.
//! - [`epochs`] is the state of one topic at one member: a state machine without clock or network.
//! - [`message`] is what members tell one another on a direct stream.

pub mod admin_key;
pub mod admission;
mod bytes;
pub mod derive;
pub mod epochs;
pub mod invite;
pub mod message;
mod printed;
pub mod proof;
pub mod roster;
pub mod seal;
#[cfg(test)]
mod vectors;

use std::fmt;

pub use bytes::Malformed;

use super::{TopicName, hex};

/// The most members that a roster lists, and the most that a topic has with those admitted since.
pub const MAX_MEMBERS: usize = 1_000;

/// The most invites that are outstanding at once.
pub const MAX_INVITES: usize = 256;

/// A member's iroh endpoint id: an ed25519 public key, proven by the connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub [u8; 32]);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..5]))
    }
}

/// What a private topic is: its admin's public key and its name. Two admins may use one name for
/// topics that have nothing to do with each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topic {
    /// The ed25519 public key that signs the rosters.
    pub admin: [u8; 32],
    pub name: TopicName,
}

impl Topic {
    /// Admin key, length of the name, name: how the topic stands in everything signed or sealed.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.admin);
        bytes::write_name(&self.name, out);
    }
}
