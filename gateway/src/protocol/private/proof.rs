//! How two members recognise one another on a direct stream, and nobody else learns anything.
//!
//! Both MACs are over the connection's exported keying material (RFC 8446 §7.5), so what somebody
//! recorded proves nothing on another connection; over the role, so that nothing can be sent back;
//! and over both endpoint ids, which the connection has proven.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    MemberId, Topic,
    derive::{EpochKeys, PROTOCOL, TopicKey, tag_key},
};

/// The label under which the connection exports its keying material; the context is empty.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-nostr-gateway-private-1";

/// Which side of a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that opened the stream.
    Initiator,
    Responder,
}

/// A connection as both of its ends see it, and nobody else.
#[derive(Clone)]
pub struct Binding {
    /// 32 bytes of keying material, exported with [`EXPORTER_LABEL`].
    pub material: Zeroizing<[u8; 32]>,
    /// The endpoint that opened the stream.
    pub initiator: MemberId,
    pub responder: MemberId,
}

/// Names a topic on one connection for those who hold its key.
pub type Tag = [u8; 16];

/// Shows on one connection that its sender holds the secret of an epoch.
pub type Proof = [u8; 32];

impl Binding {
    fn mac(&self, key: &[u8; 32], purpose: &[u8], role: Role, epoch: u64) -> [u8; 32] {
        let mut mac =
            <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(PROTOCOL);
        mac.update(purpose);
        mac.update(&[match role {
            Role::Initiator => 1,
            Role::Responder => 2,
        }]);
        mac.update(&*self.material);
        mac.update(&self.initiator.0);
        mac.update(&self.responder.0);
        mac.update(&epoch.to_be_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The topic's tag from this side.
    pub fn tag(&self, topic: &Topic, key: &TopicKey, role: Role) -> Tag {
        let whole = self.mac(&tag_key(topic, key), b" tag\0", role, 0);
        let mut tag = [0; 16];
        tag.copy_from_slice(&whole[..16]);
        tag
    }

    /// Which of the topics the tag names: its place in the list. Takes the same time whichever it
    /// is, and if it is none.
    pub fn find<'a>(
        &self,
        tag: &Tag,
        role: Role,
        topics: impl IntoIterator<Item = (&'a Topic, &'a TopicKey)>,
    ) -> Option<usize> {
        let mut found = None;
        for (place, (topic, key)) in topics.into_iter().enumerate() {
            if bool::from(self.tag(topic, key, role).ct_eq(tag)) {
                found = Some(place);
            }
        }
        found
    }

    /// Shows that this side holds the secret of the epoch.
    pub fn prove(&self, keys: &EpochKeys, epoch: u64, role: Role) -> Proof {
        self.mac(&keys.proof, b" proof\0", role, epoch)
    }

    /// Whether the side with this role holds the secret of the epoch. Constant time. Whoever fails
    /// is to be answered as if the topic were unknown.
    pub fn verify(&self, keys: &EpochKeys, epoch: u64, role: Role, proof: &Proof) -> bool {
        self.prove(keys, epoch, role).ct_eq(proof).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{TopicName, private::derive::EpochSecret};

    fn binding() -> Binding {
        Binding {
            material: Zeroizing::new([1; 32]),
            initiator: MemberId([2; 32]),
            responder: MemberId([3; 32]),
        }
    }

    fn topic(name: &str) -> Topic {
        Topic { admin: [7; 32], name: TopicName::new(name).unwrap() }
    }

    fn keys(epoch: u64, secret: u8) -> EpochKeys {
        EpochKeys::derive(&topic("t"), epoch, &EpochSecret::new([secret; 32]))
    }

    /// Every connection that differs from [`binding`] in one thing.
    fn others() -> [Binding; 4] {
        let swapped =
            Binding { initiator: MemberId([3; 32]), responder: MemberId([2; 32]), ..binding() };
        [
            Binding { material: Zeroizing::new([9; 32]), ..binding() },
            Binding { initiator: MemberId([9; 32]), ..binding() },
            Binding { responder: MemberId([9; 32]), ..binding() },
            swapped,
        ]
    }

    #[test]
    fn a_proof_counts_once_on_one_connection_in_one_direction() {
        let (keys, role) = (keys(4, 1), Role::Initiator);
        let proof = binding().prove(&keys, 4, role);
        assert!(binding().verify(&keys, 4, role, &proof));
        assert!(!binding().verify(&keys, 4, Role::Responder, &proof), "sent back");
        assert!(!binding().verify(&keys, 5, role, &proof), "another epoch");
        assert!(!binding().verify(&self::keys(4, 2), 4, role, &proof), "another secret");
        for other in others() {
            assert!(!other.verify(&keys, 4, role, &proof), "replayed");
        }
        for at in 0..32 {
            let mut bad = proof;
            bad[at] ^= 0x80;
            assert!(!binding().verify(&keys, 4, role, &bad));
        }
    }

    #[test]
    fn a_tag_names_the_topic_on_one_connection_only() {
        let topics = [topic("a"), topic("b"), topic("c")];
        let list: Vec<_> = topics.iter().map(|topic| (topic, TopicKey::new([5; 32]))).collect();
        let known = || list.iter().map(|(topic, key)| (*topic, key));
        let tag = binding().tag(&topics[1], &TopicKey::new([5; 32]), Role::Initiator);
        assert_eq!(binding().find(&tag, Role::Initiator, known()), Some(1));
        assert_eq!(binding().find(&tag, Role::Responder, known()), None, "sent back");
        for other in others() {
            assert_eq!(other.find(&tag, Role::Initiator, known()), None, "replayed");
        }
        let stranger = binding().tag(&topics[1], &TopicKey::new([6; 32]), Role::Initiator);
        assert_eq!(binding().find(&stranger, Role::Initiator, known()), None);
    }
}
