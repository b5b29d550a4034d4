//! How a tag stands in the index: one number for its letter and value.

use crate::protocol::{Event, hex};

/// The letter in the upper 8 bits, 56 bits of the value below. Different values may share a number:
/// whoever reads the index checks the event.
pub(super) fn tag_key(letter: u8, value: &str) -> i64 {
    let bits = match hex::decode::<32>(value) {
        // Ids and keys are uniformly distributed by themselves.
        Some(bytes) => bytes.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)),
        None => fnv_1a(value.as_bytes()),
    };
    (u64::from(letter) << 56 | bits & 0x00FF_FFFF_FFFF_FFFF).cast_signed()
}

/// The keys of an event's single-letter tags (NIP-01), each once.
pub(super) fn tag_keys(event: &Event) -> Vec<i64> {
    let mut keys: Vec<i64> =
        indexed_tags(event).map(|(letter, value)| tag_key(letter, value)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The tags that filters can ask for: named by one letter, with a value (NIP-01).
fn indexed_tags(event: &Event) -> impl Iterator<Item = (u8, &str)> {
    event.tags.iter().filter_map(|tag| match tag.as_slice() {
        [name, value, ..] => match *name.as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some((letter, value.as_str())),
            _ => None,
        },
        _ => None,
    })
}

/// FNV-1a, 64 bits: part of the file format, so it must never change.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_part_of_the_file_format() {
        assert_eq!(tag_key(b't', "nostr"), 0x7474_a071_a100_434d);
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(tag_key(b'e', &id), 0x6523_4567_89ab_cdef);
        assert_ne!(tag_key(b'e', &id), tag_key(b'p', &id));
    }
}
