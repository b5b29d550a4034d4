//! Public keys.

/// A public key.
pub type Key = [u8; 32];

/// What of a key is kept: half of it, which nobody can find another key for.
pub type Short = u128;

/// 64 hexadecimal digits of either case.
pub fn parse(text: &str) -> Option<Key> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(key)
}

/// As the host wants it.
pub fn written(key: &Key) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
    key.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

pub fn short(key: &Key) -> Short {
    let half = key.first_chunk().expect("a key has 32 bytes");
    Short::from_be_bytes(*half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let text = format!("0123456789abcdef{}", "fe".repeat(24));
        let key = parse(&text).unwrap();
        assert_eq!(written(&key), text);
        assert_eq!(parse(&text.to_uppercase()), Some(key));
        assert_eq!(short(&key), 0x0123_4567_89ab_cdef_fefe_fefe_fefe_fefe);
        assert_eq!((parse("x"), parse(&"x".repeat(64))), (None, None));
    }
}
