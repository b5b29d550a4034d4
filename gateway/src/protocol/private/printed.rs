//! Secrets as one printable string: Bech32m (BIP 350), whose checksum notices every single wrong
//! character.

use bech32::{Bech32m, Hrp, primitives::decode::CheckedHrpstring};
use zeroize::Zeroizing;

/// The longest string whose mistakes the checksum is made for.
pub const MAX_CHARACTERS: usize = 1_023;

/// The string; `None` when it would be too long. `kind` is what stands before the `1`.
pub fn print(kind: &str, bytes: &[u8]) -> Option<Zeroizing<String>> {
    bech32::encode::<Bech32m>(Hrp::parse_unchecked(kind), bytes).ok().map(Zeroizing::new)
}

/// The bytes of a string of this kind; `None` when it is mistyped. White space around it and line
/// breaks within it do not matter, and neither does writing all of it in capitals.
pub fn read(kind: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut whole = Zeroizing::new(String::with_capacity(MAX_CHARACTERS));
    for character in text.chars().filter(|c| !c.is_ascii_whitespace()) {
        if whole.len() >= MAX_CHARACTERS || !character.is_ascii() {
            return None;
        }
        whole.push(character);
    }
    let checked = CheckedHrpstring::new::<Bech32m>(&whole).ok()?;
    if checked.hrp() != Hrp::parse_unchecked(kind) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_CHARACTERS));
    bytes.extend(checked.byte_iter());
    Some(bytes)
}

/// Whether this begins like a string with this beginning, `1` included, or would but for one mistake
/// there.
pub fn begins_like(beginning: &str, text: &str) -> bool {
    let text = text.trim_start().as_bytes();
    let beginning = beginning.as_bytes();
    let begins = |start: &[u8]| {
        text.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start))
    };
    if begins(beginning) {
        return true;
    }
    // A mistake in the beginning of a long word that nobody thinks of as a name.
    let strange = text.iter().filter(|byte| !byte.is_ascii_alphanumeric()).count();
    if text.len() < 48 || strange > 1 {
        return false;
    }
    let without = |at: usize, text: &[u8]| [&text[..at], &text[at + 1..]].concat();
    let typed = &text[..=beginning.len()];
    let differ = beginning.iter().zip(typed).filter(|(a, b)| !a.eq_ignore_ascii_case(b)).count();
    let missing = (0..beginning.len()).any(|at| begins(&without(at, beginning)));
    let added = (0..typed.len()).any(|at| without(at, typed).eq_ignore_ascii_case(beginning));
    differ == 1 || missing || added
}
