//! Sealed gossip frames: XChaCha20-Poly1305 with a nonce that follows from the content.
//!
//! The same event is the same frame at every member, so gossip still drops duplicates. The price is
//! that whoever sees two frames knows whether they are equal. The nonce is a MAC over everything
//! that is sealed, under a key of its own, so two different frames share a nonce only by a
//! collision of 192 bits.

use chacha20poly1305::{Key, KeyInit, Tag, XChaCha20Poly1305, XNonce, aead::AeadInPlace};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Topic, derive::EpochKeys};
use crate::protocol::frame::MAX_GOSSIP_BYTES;

/// The first byte of a sealed frame: version 1 of the sealing.
pub const SEALED: u8 = 0x02;

const NONCE: usize = 24;
const TAG: usize = 16;

/// What sealing adds to a frame, in bytes.
pub const OVERHEAD: usize = 1 + NONCE + TAG;

/// The longest frame that can be sealed, in bytes.
pub const MAX_SEALABLE_BYTES: usize = MAX_GOSSIP_BYTES - OVERHEAD;

/// Why a frame was not sealed or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("longer than {MAX_SEALABLE_BYTES} bytes")]
    TooLong,
    /// One answer for all that is wrong with a frame: nobody learns how far a forgery came.
    #[error("not sealed for this epoch")]
    Sealed,
}

/// Seals and opens the frames of one epoch.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    nonce_key: Zeroizing<[u8; 32]>,
    associated: Vec<u8>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// `epoch` is the number that `keys` were derived with.
    pub fn new(topic: &Topic, epoch: u64, keys: &EpochKeys) -> Self {
        let mut associated = vec![1, SEALED];
        associated.extend_from_slice(&epoch.to_be_bytes());
        topic.write(&mut associated);
        Self {
            cipher: XChaCha20Poly1305::new(Key::from_slice(&*keys.encryption)),
            nonce_key: keys.nonce.clone(),
            associated,
        }
    }

    /// Seals a frame that would go into a public topic as it is.
    ///
    /// # Errors
    /// [`SealError::TooLong`] above [`MAX_SEALABLE_BYTES`].
    pub fn seal(&self, frame: &[u8]) -> Result<Vec<u8>, SealError> {
        if frame.len() > MAX_SEALABLE_BYTES {
            return Err(SealError::TooLong);
        }
        let nonce = self.nonce(frame);
        let mut sealed = Vec::with_capacity(OVERHEAD + frame.len());
        sealed.push(SEALED);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(frame);
        let tag = self
            .cipher
            .encrypt_in_place_detached(
                XNonce::from_slice(&nonce),
                &self.associated,
                &mut sealed[1 + NONCE..],
            )
            .map_err(|_| SealError::TooLong)?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens what a member sealed in this epoch.
    ///
    /// # Errors
    /// [`SealError::Sealed`] for everything else, also for a frame with a valid tag whose nonce
    /// does not follow from its content: there is one frame for each content.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        if sealed.len() > MAX_GOSSIP_BYTES {
            return Err(SealError::Sealed);
        }
        let [SEALED, rest @ ..] = sealed else { return Err(SealError::Sealed) };
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(SealError::Sealed)?;
        let (body, tag) = rest.split_last_chunk::<TAG>().ok_or(SealError::Sealed)?;
        let mut frame = body.to_vec();
        self.cipher
            .decrypt_in_place_detached(
                XNonce::from_slice(nonce),
                &self.associated,
                &mut frame,
                Tag::from_slice(tag),
            )
            .map_err(|_| SealError::Sealed)?;
        if !bool::from(self.nonce(&frame).ct_eq(nonce)) {
            return Err(SealError::Sealed);
        }
        Ok(frame)
    }

    fn nonce(&self, frame: &[u8]) -> [u8; NONCE] {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&*self.nonce_key)
            .expect("HMAC takes keys of any length");
        mac.update(&self.associated);
        mac.update(&(frame.len() as u64).to_be_bytes());
        mac.update(frame);
        let mut nonce = [0; NONCE];
        nonce.copy_from_slice(&mac.finalize().into_bytes()[..NONCE]);
        nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{TopicName, private::derive::EpochSecret};

    /// Does not compile otherwise.
    #[test]
    fn a_sealer_is_zeroed_when_dropped() {
        fn zeroed<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let sealer = sealer("a", 1, 1);
        let Sealer { cipher, nonce_key, associated: _ } = &sealer;
        zeroed(cipher);
        zeroed(nonce_key);
    }

    fn topic(name: &str) -> Topic {
        Topic { admin: [7; 32], name: TopicName::new(name).unwrap() }
    }

    fn keys(name: &str, epoch: u64, secret: u8) -> EpochKeys {
        EpochKeys::derive(&topic(name), epoch, &EpochSecret::new([secret; 32]))
    }

    fn sealer(name: &str, epoch: u64, secret: u8) -> Sealer {
        Sealer::new(&topic(name), epoch, &keys(name, epoch, secret))
    }

    #[test]
    fn the_same_event_is_the_same_frame_at_every_member() {
        let one = sealer("t", 3, 1).seal(b"{\"id\":1}").unwrap();
        let other = sealer("t", 3, 1).seal(b"{\"id\":1}").unwrap();
        assert_eq!(one, other);
        assert_eq!(one.len(), OVERHEAD + 8);
        assert_eq!(sealer("t", 3, 1).open(&one).unwrap(), b"{\"id\":1}");
        let different = sealer("t", 3, 1).seal(b"{\"id\":2}").unwrap();
        assert_ne!(one[1..25], different[1..25], "another content has another nonce");
    }

    #[test]
    fn another_topic_epoch_or_secret_opens_nothing() {
        let sealed = sealer("t", 3, 1).seal(b"{}").unwrap();
        for other in [sealer("u", 3, 1), sealer("t", 4, 1), sealer("t", 3, 2)] {
            assert_eq!(other.open(&sealed), Err(SealError::Sealed));
        }
        // The same keys, but the frame claims another epoch: the associated data differ.
        let other = Sealer::new(&topic("t"), 4, &keys("t", 3, 1));
        assert_eq!(other.open(&sealed), Err(SealError::Sealed));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let sealer = sealer("t", 3, 1);
        let sealed = sealer.seal(b"{\"content\":\"x\"}").unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(sealer.open(&bad), Err(SealError::Sealed), "byte {at}");
        }
        for length in 0..sealed.len() {
            assert_eq!(sealer.open(&sealed[..length]), Err(SealError::Sealed));
        }
    }

    /// A member could seal with a nonce of its choice: the same event would be many frames.
    #[test]
    fn a_nonce_that_does_not_follow_from_the_content_is_refused() {
        let sealer = sealer("t", 3, 1);
        let nonce = [9; NONCE];
        let mut body = b"{}".to_vec();
        let tag = sealer
            .cipher
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), &sealer.associated, &mut body)
            .unwrap();
        let sealed = [&[SEALED][..], &nonce, &body, &tag].concat();
        assert_eq!(sealer.open(&sealed), Err(SealError::Sealed));
    }

    #[test]
    fn a_sealed_frame_fits_into_gossip() {
        let sealer = sealer("t", 3, 1);
        let longest = vec![b'{'; MAX_SEALABLE_BYTES];
        let sealed = sealer.seal(&longest).unwrap();
        assert_eq!(sealed.len(), MAX_GOSSIP_BYTES);
        assert_eq!(sealer.open(&sealed).unwrap(), longest);
        assert_eq!(sealer.seal(&[b'{'; MAX_SEALABLE_BYTES + 1]), Err(SealError::TooLong));
        assert_eq!(sealer.open(&[SEALED; MAX_GOSSIP_BYTES + 1]), Err(SealError::Sealed));
        // The longest announcement fits too.
        const { assert!(32 * crate::protocol::frame::MAX_ANNOUNCED < MAX_SEALABLE_BYTES) };
    }
}
