//! Questions to the gateway's store. Need the capability `lookup`. What they may cost is limited:
//! keep what was learned for a while.

use crate::host::lookup;

#[doc(inline)]
pub use crate::bindings::nostr_gateway::plugin::lookup::{Author, Error, Query};

/// What is held of an author.
///
/// # Errors
/// When the key is none, or the limit of cost is reached.
pub fn author(pubkey: &str) -> Result<Author, Error> {
    lookup::get_author(pubkey)
}

/// How many events match; counting stops at `most`.
///
/// # Errors
/// When a key is none, the query names too many, or the limit of cost is reached.
pub fn count(query: &Query, most: u32) -> Result<u32, Error> {
    lookup::count(query, most)
}

/// Whether one author follows another, by the newest list that is held.
///
/// # Errors
/// When a key is none, or the limit of cost is reached.
pub fn follows(pubkey: &str, whom: &str) -> Result<bool, Error> {
    lookup::follows(pubkey, whom)
}

/// Whom an author follows, by the newest list that is held; at most `most`.
///
/// # Errors
/// When the key is none, or the limit of cost is reached.
pub fn list_follows(pubkey: &str, most: u32) -> Result<Vec<String>, Error> {
    lookup::list_follows(pubkey, most)
}

/// The tags of the newest event of an author and a kind that is held; at most `most`. The kind is one
/// of which each author has one event alone: 0, 3, or from 10000 to 19999.
///
/// # Errors
/// When the key is none, the kind is another, or the limit of cost is reached.
pub fn list_tags(pubkey: &str, kind: u16, most: u32) -> Result<Vec<Vec<String>>, Error> {
    lookup::list_tags(pubkey, kind, most)
}
