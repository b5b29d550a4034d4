//! Public keys and event ids, as they stand in events and in the configuration.

/// The 32 bytes of a public key or an event id, big-endian: so they are compared in four steps.
pub type Key = [u64; 4];

/// What each byte is worth as a hexadecimal digit of either case; more than 15 when it is none.
const WORTH: [u8; 256] = {
    let mut worth = [0x10; 256];
    let mut digit = 0;
    while digit < 16 {
        worth[b"0123456789abcdef"[digit] as usize] = digit as u8;
        worth[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    worth
};

/// 64 hexadecimal digits of either case.
pub fn parse(text: &str) -> Option<Key> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let (mut key, mut all) = ([0; 4], 0);
    for (number, digits) in key.iter_mut().zip(digits.as_chunks::<16>().0) {
        for digit in digits {
            let worth = WORTH[usize::from(*digit)];
            all |= worth;
            *number = *number << 4 | u64::from(worth);
        }
    }
    (all < 16).then_some(key)
}

/// A set of keys. They are in their order and not hashed: people choose keys, and nobody shall choose
/// some that make asking for one take long.
#[derive(Default)]
pub struct Keys(Vec<Key>);

impl Keys {
    pub fn contains(&self, key: &Key) -> bool {
        self.0.binary_search(key).is_ok()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        let mut keys = Vec::from_iter(keys);
        keys.sort_unstable();
        keys.dedup();
        Self(keys)
    }
}

/// Those under a key of the configuration.
///
/// # Errors
/// Names the entry that is none.
pub fn listed<'a>(
    key: &'a str,
    texts: &'a [String],
) -> impl Iterator<Item = Result<Key, String>> + 'a {
    texts.iter().enumerate().map(move |(index, text)| {
        parse(text).ok_or_else(|| {
            format!("config.{key}[{index}]: want a public key of 64 hexadecimal digits")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_64_digits_of_either_case() {
        let text = "00112233445566778899aabbccddeeffFEDCBA9876543210fedcba98765432ff";
        let key = [0x0011_2233_4455_6677, 0x8899_aabb_ccdd_eeff, 0xfedc_ba98_7654_3210];
        assert_eq!(parse(text), Some([key[0], key[1], key[2], 0xfedc_ba98_7654_32ff]));
        assert_eq!(parse(&text.to_uppercase()), parse(text));
        for byte in 0..=127_u8 {
            let text = format!("{}{}", &text[..63], char::from(byte));
            assert_eq!(parse(&text).is_some(), byte.is_ascii_hexdigit(), "{text}");
        }
        assert_eq!(parse(&text[1..]), None);
        assert_eq!(parse(&format!("{text}0")), None);
        assert_eq!(parse(&format!("{}é", &text[..62])), None);
    }

    #[test]
    fn a_set_has_each_key_once() {
        let keys: Keys = [[3; 4], [1; 4], [2, 0, 0, 0], [3; 4]].into_iter().collect();
        assert_eq!(keys.len(), 3);
        for key in [[1; 4], [2, 0, 0, 0], [3; 4]] {
            assert!(keys.contains(&key));
        }
        for key in [[0; 4], [2, 0, 0, 1], [4; 4]] {
            assert!(!keys.contains(&key));
        }
        assert!(Keys::default().is_empty());
    }
}
