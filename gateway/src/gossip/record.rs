//! Discovery records: what members of a topic leave in the DHT for one another.
//!
//! The format is that of distributed-topic-tracker 0.3, so programs built on that crate and we find
//! one another. A record is a hint: everybody who knows the topic can overwrite it.

use distributed_topic_tracker::{
    EncryptedRecord, GossipRecordContent, MAX_MESSAGE_HASHES, MAX_RECORD_PEERS, Record,
    RotationHandle, TopicId, encryption_keypair, salt, signing_keypair,
};
use ed25519_dalek::SigningKey;
use iroh::EndpointId;
use mainline::MutableItem;
use sha2::{Digest, Sha512};

use crate::protocol::{TopicName, private::derive::EpochKeys};

/// The initial secret of every public topic, as distributed-topic-tracker calls it. It is written
/// in `docs/protocol.md` and protects nothing: it is there because the format wants one.
pub const PUBLIC_SECRET: &[u8] = b"nostr-gateway";

/// The longest value of a DHT item (BEP 44).
const MAX_ITEM_BYTES: usize = 1_000;

/// What a topic's records are signed, sealed and found with.
#[derive(Clone)]
pub struct RecordKeys {
    topic: TopicId,
    secret_hash: [u8; 32],
    rotation: RotationHandle,
    gossip: [u8; 32],
}

/// A valid record of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Who wrote it; proven by its signature.
    pub publisher: EndpointId,
    /// Whom it names as neighbors; at most five, not proven.
    pub neighbors: Vec<EndpointId>,
}

/// Why a record was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("not a record")]
    Malformed,
    #[error("not encrypted for this topic, secret and minute")]
    Sealed,
    #[error("forged, or of another topic or minute")]
    Forged,
}

impl RecordError {
    /// The label for metrics.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Sealed => "sealed",
            Self::Forged => "forged",
        }
    }
}

impl RecordKeys {
    /// Those of a public topic: the name, the well-known secret, the default rotation.
    pub fn public(name: &TopicName) -> Self {
        let topic = TopicId::new(name.as_str());
        let gossip = topic.hash();
        Self::new(topic, PUBLIC_SECRET, gossip)
    }

    /// Those of one epoch of a private topic: nobody without its secret finds or reads anything.
    pub fn private(keys: &EpochKeys) -> Self {
        let topic = TopicId::from_hash(&keys.discovery_topic);
        Self::new(topic, &*keys.discovery_secret, keys.gossip_topic)
    }

    fn new(topic: TopicId, secret: &[u8], gossip: [u8; 32]) -> Self {
        let mut secret_hash = [0; 32];
        secret_hash.copy_from_slice(&Sha512::digest(secret)[..32]);
        // The default rotation hashes; it never calls foreign code on our async workers.
        Self { topic, secret_hash, rotation: RotationHandle::default(), gossip }
    }

    /// The gossip topic's id; that of a public topic as distributed-topic-tracker derives it.
    pub fn gossip_id(&self) -> iroh_gossip::TopicId {
        iroh_gossip::TopicId::from_bytes(self.gossip)
    }

    /// Where the records of a minute are: public key and salt of the DHT item.
    pub fn place(&self, minute: u64) -> ([u8; 32], [u8; 32]) {
        let key = signing_keypair(&self.topic, minute).verifying_key();
        (key.to_bytes(), salt(&self.topic, minute))
    }

    /// Our own record for a minute. Of `neighbors` the first five are named.
    ///
    /// # Errors
    /// When it cannot be encoded; no input does that.
    pub fn seal<'a>(
        &self,
        minute: u64,
        me: &SigningKey,
        neighbors: impl IntoIterator<Item = &'a EndpointId>,
    ) -> Result<MutableItem, RecordError> {
        let mut content = GossipRecordContent {
            active_peers: [[0; 32]; MAX_RECORD_PEERS],
            last_message_hashes: [[0; 32]; MAX_MESSAGE_HASHES],
        };
        for (slot, peer) in content.active_peers.iter_mut().zip(neighbors) {
            *slot = *peer.as_bytes();
        }
        let record = Record::sign(self.topic.hash(), minute, content, me)
            .map_err(|_| RecordError::Malformed)?;
        let bytes = record
            .encrypt(&self.encryption(minute))
            .to_bytes()
            .map_err(|_| RecordError::Malformed)?;
        let key = signing_keypair(&self.topic, minute);
        // All members share the slot. Everybody uses the highest sequence number, so that the last
        // writer wins and nobody can lock the others out.
        Ok(MutableItem::new(key, &bytes, i64::MAX, Some(&salt(&self.topic, minute))))
    }

    /// Reads a record that was found at [`Self::place`] of this minute.
    ///
    /// # Errors
    /// For everything that a member of this topic did not write for this minute.
    pub fn open(&self, minute: u64, value: &[u8]) -> Result<Sighting, RecordError> {
        if value.len() > MAX_ITEM_BYTES {
            return Err(RecordError::Malformed);
        }
        let sealed =
            EncryptedRecord::from_bytes(value.to_vec()).map_err(|_| RecordError::Malformed)?;
        let record = sealed.decrypt(&self.encryption(minute)).map_err(|_| RecordError::Sealed)?;
        record.verify(&self.topic.hash(), minute).map_err(|_| RecordError::Forged)?;
        let publisher =
            EndpointId::from_bytes(&record.pub_key()).map_err(|_| RecordError::Forged)?;
        // The publisher counts even if the rest is of a later format.
        let neighbors = match record.content::<GossipRecordContent>() {
            Ok(content) => content
                .active_peers
                .iter()
                .filter(|peer| **peer != [0; 32] && **peer != record.pub_key())
                .filter_map(|peer| EndpointId::from_bytes(peer).ok())
                .collect(),
            Err(_) => Vec::new(),
        };
        Ok(Sighting { publisher, neighbors })
    }

    fn encryption(&self, minute: u64) -> SigningKey {
        encryption_keypair(&self.topic, &self.rotation, self.secret_hash, minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 29_000_000;

    fn keys(name: &str) -> RecordKeys {
        RecordKeys::public(&TopicName::new(name).unwrap())
    }

    fn me() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn id(key: &SigningKey) -> EndpointId {
        EndpointId::from_bytes(key.verifying_key().as_bytes()).unwrap()
    }

    fn peers(count: u8) -> Vec<EndpointId> {
        (0..count).map(|n| id(&SigningKey::from_bytes(&[10 + n; 32]))).collect()
    }

    #[test]
    fn records_round_trip() {
        let item = keys("global").seal(MINUTE, &me(), &peers(3)).unwrap();
        assert!(item.value().len() <= MAX_ITEM_BYTES, "{}", item.value().len());
        let (key, salt) = keys("global").place(MINUTE);
        assert_eq!((item.key(), item.salt()), (&key, Some(salt.as_slice())));
        let sighting = keys("global").open(MINUTE, item.value()).unwrap();
        assert_eq!(sighting, Sighting { publisher: id(&me()), neighbors: peers(3) });
    }

    #[test]
    fn at_most_five_neighbors_are_named() {
        let item = keys("global").seal(MINUTE, &me(), &peers(9)).unwrap();
        assert_eq!(keys("global").open(MINUTE, item.value()).unwrap().neighbors, peers(5));
    }

    #[test]
    fn another_minute_topic_or_secret_is_refused() {
        let value = keys("global").seal(MINUTE, &me(), []).unwrap().value().to_vec();
        assert_eq!(keys("global").open(MINUTE + 1, &value), Err(RecordError::Sealed));
        assert_eq!(keys("globe").open(MINUTE, &value), Err(RecordError::Sealed));
        let other = RecordKeys::new(TopicId::new("global"), b"another secret", [0; 32]);
        assert_eq!(other.open(MINUTE, &value), Err(RecordError::Sealed));
        assert_ne!(keys("global").place(MINUTE), keys("global").place(MINUTE + 1));
    }

    #[test]
    fn a_forged_record_is_refused() {
        // Encrypted as it should be, but signed for another minute and replayed.
        let keys = keys("global");
        let content = GossipRecordContent {
            active_peers: [[0; 32]; MAX_RECORD_PEERS],
            last_message_hashes: [[0; 32]; MAX_MESSAGE_HASHES],
        };
        let record = Record::sign(keys.topic.hash(), MINUTE - 5, content, &me()).unwrap();
        let value = record.encrypt(&keys.encryption(MINUTE)).to_bytes().unwrap();
        assert_eq!(keys.open(MINUTE, &value), Err(RecordError::Forged));
    }

    #[test]
    fn garbage_is_an_error() {
        let keys = keys("global");
        let good = keys.seal(MINUTE, &me(), []).unwrap().value().to_vec();
        for length in 0..good.len() {
            assert!(keys.open(MINUTE, &good[..length]).is_err());
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(keys.open(MINUTE, &bad).is_err(), "byte {at}");
        }
        assert_eq!(keys.open(MINUTE, &[0; 1_001]), Err(RecordError::Malformed));
        assert!(keys.open(MINUTE, &[0; 92]).is_err());
    }

    /// The topic id is a contract with every program built on distributed-topic-tracker.
    #[test]
    fn the_gossip_topic_is_the_hash_of_the_name() {
        let hash = Sha512::digest("global");
        assert_eq!(keys("global").gossip_id().as_bytes()[..], hash[..32]);
    }
}
