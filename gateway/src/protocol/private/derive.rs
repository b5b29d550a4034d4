//! Every derivation of the protocol: from secrets to keys, HKDF-SHA256 (RFC 5869) throughout.
//!
//! Two secrets exist. An *epoch secret* is exchanged at every rotation; finding, joining and reading
//! the topic follow from it. The *topic key* stays for the life of the topic; nothing but the tag
//! follows from it by which members recognise on a direct stream which topic is meant, also a
//! member that missed many epochs. A former member still has the topic key, so knowing it opens
//! nothing: whoever is not on the newest roster is answered as if the topic were unknown.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Topic;

/// Names protocol and version in every derivation and signature.
pub(super) const PROTOCOL: &[u8] = b"nostr-gateway/private/1";

/// The secret of one epoch of one topic: 32 random bytes. Zeroed when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct EpochSecret(Zeroizing<[u8; 32]>);

/// The key by which members name the topic on direct streams: 32 random bytes. Zeroed when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct TopicKey(Zeroizing<[u8; 32]>);

macro_rules! secret_bytes {
    ($name:ident) => {
        impl $name {
            pub fn new(bytes: [u8; 32]) -> Self {
                Self(Zeroizing::new(bytes))
            }

            /// For the secret store and for messages to members, and for nothing else.
            pub fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret_bytes!(EpochSecret);
secret_bytes!(TopicKey);

/// All that follows from an epoch secret. Zeroed when dropped.
#[derive(Clone)]
pub struct EpochKeys {
    /// Takes the place of the topic hash in discovery records.
    pub discovery_topic: [u8; 32],
    /// Takes the place of the initial secret in discovery records.
    pub discovery_secret: Zeroizing<[u8; 32]>,
    /// The id of the gossip topic.
    pub gossip_topic: [u8; 32],
    pub encryption: Zeroizing<[u8; 32]>,
    pub nonce: Zeroizing<[u8; 32]>,
    pub proof: Zeroizing<[u8; 32]>,
    /// Stands in the roster: which secret the epoch has, without telling it.
    pub commitment: [u8; 32],
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKeys(…)")
    }
}

impl EpochKeys {
    pub fn derive(topic: &Topic, epoch: u64, secret: &EpochSecret) -> Self {
        let derive = |purpose| Derivation::new(secret.expose()).key(purpose, topic, epoch);
        Self {
            discovery_topic: *derive("discovery topic"),
            discovery_secret: derive("discovery secret"),
            gossip_topic: *derive("gossip topic"),
            encryption: derive("encryption"),
            nonce: derive("nonce"),
            proof: derive("membership proof"),
            commitment: commitment(topic, epoch, secret),
        }
    }
}

/// [`EpochKeys::commitment`] alone.
pub fn commitment(topic: &Topic, epoch: u64, secret: &EpochSecret) -> [u8; 32] {
    *Derivation::new(secret.expose()).key("commitment", topic, epoch)
}

/// What the blinded tag of a topic is made with.
pub fn tag_key(topic: &Topic, key: &TopicKey) -> Zeroizing<[u8; 32]> {
    Derivation::new(key.expose()).key("topic tag", topic, 0)
}

struct Derivation(Hkdf<Sha256>);

impl Derivation {
    fn new(secret: &[u8; 32]) -> Self {
        Self(Hkdf::new(Some(PROTOCOL), secret))
    }

    /// The info names protocol, purpose, epoch and topic. Purposes are fixed words without a zero
    /// byte, so no two infos are equal.
    fn key(&self, purpose: &str, topic: &Topic, epoch: u64) -> Zeroizing<[u8; 32]> {
        let mut info = Vec::with_capacity(256);
        info.extend_from_slice(PROTOCOL);
        info.push(b' ');
        info.extend_from_slice(purpose.as_bytes());
        info.push(0);
        info.extend_from_slice(&epoch.to_be_bytes());
        topic.write(&mut info);
        let mut key = Zeroizing::new([0; 32]);
        self.0.expand(&info, &mut *key).expect("32 bytes are within what HKDF-SHA256 yields");
        key
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::TopicName;

    fn topic(admin: u8, name: &str) -> Topic {
        Topic { admin: [admin; 32], name: TopicName::new(name).unwrap() }
    }

    fn all(topic: &Topic, epoch: u64, secret: u8) -> Vec<[u8; 32]> {
        let keys = EpochKeys::derive(topic, epoch, &EpochSecret::new([secret; 32]));
        vec![
            keys.discovery_topic,
            *keys.discovery_secret,
            keys.gossip_topic,
            *keys.encryption,
            *keys.nonce,
            *keys.proof,
            keys.commitment,
            *tag_key(topic, &TopicKey::new([secret; 32])),
        ]
    }

    #[test]
    fn no_two_keys_are_equal() {
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for (topic, epoch, secret) in [
            (topic(1, "a"), 1, 1),
            (topic(1, "a"), 1, 2),
            (topic(1, "b"), 1, 1),
            (topic(2, "a"), 1, 1),
        ] {
            let keys = all(&topic, epoch, secret);
            count += keys.len();
            seen.extend(keys);
        }
        // The tag does not depend on the epoch.
        let keys = &all(&topic(1, "a"), 2, 1)[..7];
        count += keys.len();
        seen.extend(keys);
        assert_eq!(seen.len(), count);
    }

    /// Does not compile with a secret that stays in memory, nor with a field that nobody looked at.
    #[test]
    fn secrets_are_zeroed_when_dropped() {
        fn zeroed<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let (epoch, topic_key) = (EpochSecret::new([1; 32]), TopicKey::new([1; 32]));
        let keys = EpochKeys::derive(&topic(1, "a"), 1, &epoch);
        let (EpochSecret(bytes), TopicKey(more)) = (&epoch, &topic_key);
        [bytes, more].into_iter().for_each(zeroed);
        let EpochKeys {
            // Guessed by nobody, and seen by whoever looks at the network.
            discovery_topic: _,
            discovery_secret,
            gossip_topic: _,
            encryption,
            nonce,
            proof,
            commitment: _,
        } = &keys;
        [discovery_secret, encryption, nonce, proof].into_iter().for_each(zeroed);
        zeroed(&tag_key(&topic(1, "a"), &topic_key));
    }

    #[test]
    fn secrets_do_not_print() {
        let keys = EpochKeys::derive(&topic(1, "a"), 1, &EpochSecret::new([0xab; 32]));
        let text =
            format!("{keys:?} {:?} {:?}", EpochSecret::new([0xab; 32]), TopicKey::new([0xab; 32]));
        assert_eq!(text, "EpochKeys(…) EpochSecret(…) TopicKey(…)");
    }
}
