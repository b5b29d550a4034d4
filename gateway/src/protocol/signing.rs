//! Signed events for unit tests.

use secp256k1::{Keypair, Message, SECP256K1};

use super::{Event, EventId, PublicKey, Tag, VerifiedEvent, event::compute_id, hex};

/// An author whose key follows from a number above 0.
pub struct Author(Keypair);

impl Author {
    pub fn new(number: u8) -> Self {
        let mut secret = [0; 32];
        secret[31] = number;
        Self(Keypair::from_seckey_slice(SECP256K1, &secret).unwrap())
    }

    pub fn pubkey(&self) -> PublicKey {
        PublicKey(self.0.x_only_public_key().0.serialize())
    }

    pub fn sign(&self, created_at: u64, kind: u16, tags: &[&[&str]], content: &str) -> Event {
        let tags: Vec<Tag> =
            tags.iter().map(|tag| tag.iter().map(|&part| part.to_owned()).collect()).collect();
        let text = |id: &EventId, sig: &[u8]| {
            serde_json::json!({
                "id": id.to_string(),
                "pubkey": self.pubkey().to_string(),
                "created_at": created_at,
                "kind": kind,
                "tags": tags,
                "content": content,
                "sig": hex::encode(sig),
            })
            .to_string()
        };
        let id = compute_id(&Event::parse(&text(&EventId([0; 32]), &[0; 64])).unwrap());
        let sig = SECP256K1.sign_schnorr_no_aux_rand(&Message::from_digest(id.0), &self.0);
        Event::parse(&text(&id, sig.as_ref())).unwrap()
    }

    pub fn verified(
        &self,
        created_at: u64,
        kind: u16,
        tags: &[&[&str]],
        content: &str,
    ) -> VerifiedEvent {
        VerifiedEvent::verify(self.sign(created_at, kind, tags, content)).unwrap()
    }
}
