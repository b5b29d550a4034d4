//! The admin's key of a topic as one printable string, for another of the admin's gateways.
//!
//! It looks like an invite and begins in another way, so that nobody hands out the one for the other.

use std::fmt;

use ed25519_dalek::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use super::{
    Malformed, Topic,
    bytes::{Reader, write_name},
    printed,
};
use crate::protocol::TopicName;

/// What every such string begins with.
pub const PREFIX: &str = "ngwadmin1";

const KIND: &str = "ngwadmin";
const VERSION: u8 = 1;

/// Whoever has it decides who is in the topic. Zeroed when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey {
    pub name: TopicName,
    pub key: SigningKey,
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminKey({:?})", self.name)
    }
}

/// Why a text is no admin's key. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdminKeyError {
    #[error(
        "this admin key is mistyped or incomplete: its checksum does not match; copy it again, whole"
    )]
    Mistyped,
    #[error(
        "this admin key is of version {0}, which this gateway does not know; update the gateway"
    )]
    Version(u8),
    #[error("this admin key has a valid checksum but not the content of one")]
    Malformed,
}

impl From<Malformed> for AdminKeyError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl AdminKey {
    /// The topic whose admin this is.
    pub fn topic(&self) -> Topic {
        Topic { admin: self.key.verifying_key().to_bytes(), name: self.name.clone() }
    }

    /// The string: at most 275 characters.
    pub fn encode(&self) -> Zeroizing<String> {
        // Room for all of it: growing would leave copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(256));
        bytes.push(VERSION);
        write_name(&self.name, &mut bytes);
        bytes.extend_from_slice(self.key.as_bytes());
        printed::print(KIND, &bytes).expect("a name has at most 128 bytes")
    }

    /// # Errors
    /// [`AdminKeyError::Mistyped`] for every single wrong character, and for nearly all others.
    pub fn parse(text: &str) -> Result<Self, AdminKeyError> {
        let bytes = printed::read(KIND, text).ok_or(AdminKeyError::Mistyped)?;
        let mut reader = Reader::new(&bytes);
        match reader.u8()? {
            VERSION => {}
            other => return Err(AdminKeyError::Version(other)),
        }
        let name = reader.name()?;
        let mut seed: [u8; 32] = reader.array()?;
        let key = SigningKey::from_bytes(&seed);
        seed.zeroize();
        reader.end()?;
        Ok(Self { name, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::private::invite::{InviteError, Joinable, JoinableError};

    fn key(name: &str) -> AdminKey {
        let name = TopicName::new(name).unwrap();
        AdminKey { name, key: SigningKey::from_bytes(&[0xd4; 32]) }
    }

    /// Does not compile otherwise.
    #[test]
    fn an_admin_key_is_zeroed_when_dropped() {
        fn zeroed<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let key = key("x");
        let AdminKey { name: _, key: signing } = &key;
        zeroed(signing);
        zeroed(&key.encode());
    }

    #[test]
    fn an_admin_key_round_trips() {
        for name in ["x", "Lesekreis Süd", &"ß".repeat(64)] {
            let key = key(name);
            let text = key.encode();
            assert!(text.starts_with(PREFIX) && text.len() <= 275, "{}", text.len());
            assert_eq!(AdminKey::parse(&text).unwrap(), key);
            assert_eq!(AdminKey::parse(&text.to_uppercase()).unwrap(), key);
            let wrapped = format!(" {}\r\n{}\n", &text[..20], &text[20..]);
            assert_eq!(AdminKey::parse(&wrapped).unwrap(), key);
        }
    }

    /// Each character replaced by each other one that can be typed; also where a topic's name or an
    /// invite is asked for, it is told and never taken for a name.
    #[test]
    fn a_single_wrong_character_is_told() {
        let text = key("den").encode();
        let elsewhere = |text: &str| Joinable::parse(text).unwrap_err();
        assert_eq!(elsewhere(&text), JoinableError::Invite(InviteError::AdminKey));
        for at in 0..text.len() {
            for wrong in (b'!'..=b'~').filter(|wrong| *wrong != text.as_bytes()[at]) {
                let mut bad = text.as_bytes().to_vec();
                bad[at] = wrong;
                let bad = str::from_utf8(&bad).unwrap();
                assert_eq!(AdminKey::parse(bad), Err(AdminKeyError::Mistyped), "{at}: {wrong}");
                assert!(matches!(elsewhere(bad), JoinableError::Invite(_)), "{at}: {wrong}");
            }
            let cut = AdminKey::parse(&text[..at]);
            assert_eq!(cut, Err(AdminKeyError::Mistyped), "cut off at {at}");
        }
    }

    #[test]
    fn what_is_no_admin_key_is_told() {
        let invite = include_str!("../../../../docs/private-topics.json");
        let invite = invite.split('"').find(|word| word.starts_with("ngw1")).unwrap();
        assert_eq!(AdminKey::parse(invite), Err(AdminKeyError::Mistyped));
        let print = |bytes: &[u8]| AdminKey::parse(&printed::print(KIND, bytes).unwrap());
        assert_eq!(print(&[2; 40]), Err(AdminKeyError::Version(2)));
        assert_eq!(print(&[VERSION; 40]), Err(AdminKeyError::Malformed));
        assert_eq!(print(&[]), Err(AdminKeyError::Malformed));
    }

    #[test]
    fn printing_shows_no_secret() {
        let key = key("den");
        let text = key.encode();
        let shown = format!("{key:?} {:?}", AdminKey::parse(&text[..50]));
        for secret in ["d4d4", "212", PREFIX, &text[9..20]] {
            assert!(!shown.to_lowercase().contains(secret), "{shown}");
        }
    }
}
