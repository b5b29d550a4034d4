//! Admissions: how the holder of an invite becomes a member while the admin is away.
//!
//! The invite's own key signs the holder's endpoint id. Every member can check that against the
//! public key on the newest roster; the admin folds the admitted into the next roster.

use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};

use super::{Malformed, MemberId, Topic, bytes::Reader, derive::PROTOCOL, roster::verify};

/// The length of an admission, in bytes.
pub const ADMISSION_BYTES: usize = 128;

/// Says that the holder of an invite is this endpoint. Not yet checked: see [`Admission::is_valid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The invite's public key.
    pub invite: [u8; 32],
    pub member: MemberId,
    signature: [u8; 64],
}

impl Admission {
    pub fn sign(topic: &Topic, invite: &SigningKey, member: MemberId) -> Self {
        let key = invite.verifying_key().to_bytes();
        let signature = invite.sign(&canonical(topic, &key, member)).to_bytes();
        Self { invite: key, member, signature }
    }

    /// Whether the invite's key signed it for this topic. Whether the invite counts is for the
    /// newest roster to say.
    pub fn is_valid(&self, topic: &Topic) -> bool {
        verify(&self.invite, &canonical(topic, &self.invite, self.member), &self.signature).is_ok()
    }

    /// Of two admissions by an invite for one, the lower rank counts. It depends on invite and
    /// member alone, so all who see both choose the same.
    pub fn rank(&self, topic: &Topic) -> [u8; 32] {
        Sha256::digest(canonical(topic, &self.invite, self.member)).into()
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.invite);
        out.extend_from_slice(&self.member.0);
        out.extend_from_slice(&self.signature);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            invite: reader.array()?,
            member: MemberId(reader.array()?),
            signature: reader.array()?,
        })
    }
}

fn canonical(topic: &Topic, invite: &[u8; 32], member: MemberId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PROTOCOL.len() + 11 + 161 + 64);
    bytes.extend_from_slice(PROTOCOL);
    bytes.extend_from_slice(b" admission\0");
    topic.write(&mut bytes);
    bytes.extend_from_slice(invite);
    bytes.extend_from_slice(&member.0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::TopicName;

    #[test]
    fn an_admission_is_for_one_endpoint_and_one_topic() {
        let topic = |name| Topic { admin: [7; 32], name: TopicName::new(name).unwrap() };
        let invite = SigningKey::from_bytes(&[1; 32]);
        let admission = Admission::sign(&topic("a"), &invite, MemberId([2; 32]));
        assert!(admission.is_valid(&topic("a")));
        assert!(!admission.is_valid(&topic("b")));
        assert!(!Admission { member: MemberId([3; 32]), ..admission }.is_valid(&topic("a")));
        let other = SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes();
        assert!(!Admission { invite: other, ..admission }.is_valid(&topic("a")));

        let mut bytes = Vec::new();
        admission.write(&mut bytes);
        assert_eq!(bytes.len(), ADMISSION_BYTES);
        assert_eq!(Admission::read(&mut Reader::new(&bytes)), Ok(admission));
        assert!(Admission::read(&mut Reader::new(&bytes[1..])).is_err());
    }
}
