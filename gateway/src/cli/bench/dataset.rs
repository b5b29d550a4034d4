//! A set of events that follows from a seed: what it is made of, and what queries need to know of it.

use secp256k1::{Keypair, Message, SECP256K1};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::protocol::hex;

/// Seconds over which `created_at` rises: people page back a month at most.
const SPAN_S: u64 = 30 * 86_400;

/// Everything that the events follow from. The same `Spec` gives the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Raised whenever the generator changes what it makes.
    pub version: u32,
    pub seed: u64,
    pub events: u64,
    pub authors: u32,
    /// `created_at` of the newest event, in Unix seconds.
    pub ends_at: u64,
}

impl Spec {
    pub const VERSION: u32 = 1;

    /// `created_at` of an event, counted from 0.
    pub fn created_at(&self, number: u64) -> u64 {
        let left = self.events.saturating_sub(number + 1);
        let seconds = u128::from(left) * u128::from(SPAN_S) / u128::from(self.events);
        self.ends_at - seconds as u64
    }
}

/// What the queries need to know of the events: samples, spread evenly over the set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub spec: Spec,
    /// JSON of all events, in bytes.
    pub bytes: u64,
    /// Public keys, in hexadecimal, the most active first.
    pub authors: Vec<String>,
    /// Hashtags, the most used first.
    pub hashtags: Vec<String>,
    /// Words, the most used first.
    pub words: Vec<String>,
    /// Ids of events.
    pub ids: Vec<String>,
    /// Ids of notes that others answered or reacted to, in the order of their answers.
    pub answered: Vec<String>,
    /// Author and hashtag, as indexes, that occur together.
    pub pairs: Vec<(u32, u32)>,
}

impl Facts {
    /// Whether there is something to ask for and every index points to something. What is read from a
    /// file may be anything.
    pub fn is_sound(&self) -> bool {
        let are_there = [&self.authors, &self.hashtags, &self.words, &self.ids];
        are_there.iter().all(|list| !list.is_empty())
            && self.pairs.iter().all(|(author, hashtag)| {
                (*author as usize) < self.authors.len() && (*hashtag as usize) < self.hashtags.len()
            })
    }
}

/// An event without its signature: `head` ends behind the quote that opens `sig`.
#[derive(Debug)]
pub struct Unsigned {
    pub id: [u8; 32],
    pub author: u32,
    pub head: String,
}

/// An author's keys. They follow from the seed: nobody may take them for secrets.
pub fn keypair(seed: u64, author: u32) -> Keypair {
    let text = format!("nostr-gateway bench, seed {seed}, author {author}");
    let secret: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    Keypair::from_seckey_slice(SECP256K1, &secret)
        .expect("a hash is below the order but for 2^-127")
}

/// The EVENT message of an unsigned event, and its newline.
pub fn sign(event: &Unsigned, keypair: &Keypair, out: &mut String) {
    // Without auxiliary randomness the signature follows from the event.
    let sig = SECP256K1.sign_schnorr_no_aux_rand(&Message::from_digest(event.id), keypair);
    out.push_str(&event.head);
    hex::append(sig.as_ref(), out);
    out.push_str("\"}]\n");
}

/// Puts an event together and computes its id (NIP-01). `tags` and `content` are JSON.
pub fn unsigned(
    author: u32,
    pubkey: &str,
    created_at: u64,
    kind: u16,
    tags: &str,
    content: &str,
) -> Unsigned {
    let signed = format!("[0,\"{pubkey}\",{created_at},{kind},{tags},{content}]");
    let id: [u8; 32] = Sha256::digest(signed.as_bytes()).into();
    let head = format!(
        "[\"EVENT\",{{\"id\":\"{}\",\"pubkey\":\"{pubkey}\",\"created_at\":{created_at},\"kind\":{kind},\
         \"tags\":{tags},\"content\":{content},\"sig\":\"",
        hex::encode(&id)
    );
    Unsigned { id, author, head }
}

/// Strings and lists of strings as JSON.
pub fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and lists of strings always serialise")
}
