//! Hexadecimal: lowercase and of fixed length, as NIP-01 writes ids, keys and signatures; and freely,
//! for messages (NIP-77).

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

/// Decodes exactly `2 * N` lowercase hexadecimal digits. Upper case is refused: the id of an event
/// is a hash over the lowercase text (NIP-01).
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (text.len() == 2 * N && HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).is_ok())
        .then_some(bytes)
}

/// Decodes hexadecimal of any even length, of either case.
pub fn decode_all(text: &str) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()
}

/// Lowercase hexadecimal.
pub fn encode(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// Appends lowercase hexadecimal to `out`.
pub fn append(bytes: &[u8], out: &mut String) {
    HEXLOWER.encode_append(bytes, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lowercase_of_the_right_length_decodes() {
        assert_eq!(decode::<2>("00ff"), Some([0, 255]));
        for bad in ["00FF", "00f", "00fff", "00fg", ""] {
            assert_eq!(decode::<2>(bad), None, "{bad}");
        }
    }
}
