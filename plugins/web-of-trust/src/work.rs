//! Proof of work (NIP-13).

use nostr_gateway_plugin::Event;

/// How many bits of work an event shows: the leading zeros of its id, but no more than it committed to
/// in its `nonce` tag. What it found by chance beyond that is no work, and without a commitment none is.
pub fn shown(event: &Event) -> u32 {
    let committed = event.tags.iter().find_map(|tag| match tag.as_slice() {
        [name, _, target, ..] if name == "nonce" => target.parse::<u32>().ok(),
        _ => None,
    });
    committed.unwrap_or(0).min(leading_zeros(&event.id))
}

fn leading_zeros(id: &str) -> u32 {
    let mut zeros = 0;
    for digit in id.chars().map_while(|digit| digit.to_digit(16)) {
        if digit != 0 {
            // A digit has four bits.
            return zeros + digit.leading_zeros() - 28;
        }
        zeros += 4;
    }
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::event;

    #[test]
    fn work_is_what_was_committed_to_and_done() {
        // The example of NIP-13 has 36 bits.
        let id = "000000000e9d97a1ab09fc381030b346cdd7a142ad57e6df0b46dc9bef6c7e2d";
        let with =
            |tags: &[&[&str]]| Event { id: id.to_owned(), ..event(&"aa".repeat(32), 1, tags) };
        assert_eq!(shown(&with(&[&["nonce", "776797", "20"]])), 20);
        assert_eq!(shown(&with(&[&["t", "x"], &["nonce", "776797", "40"]])), 36);
        assert_eq!(shown(&with(&[&["nonce", "776797"]])), 0);
        assert_eq!(shown(&with(&[])), 0);
        assert_eq!(leading_zeros("002f"), 10);
        assert_eq!(leading_zeros("8"), 0);
        assert_eq!(leading_zeros(&"0".repeat(64)), 256);
    }
}
