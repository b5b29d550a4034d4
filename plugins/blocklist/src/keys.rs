//! Public keys and event ids, as they stand in events and in the configuration.

/// 64 hexadecimal digits of either case.
pub fn parse(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(key)
}

/// Those under a key of the configuration.
///
/// # Errors
/// Names the entry that is none.
pub fn listed<'a>(
    key: &'a str,
    texts: &'a [String],
) -> impl Iterator<Item = Result<[u8; 32], String>> + 'a {
    texts.iter().enumerate().map(move |(index, text)| {
        parse(text).ok_or_else(|| {
            format!("config.{key}[{index}]: want a public key of 64 hexadecimal digits")
        })
    })
}
