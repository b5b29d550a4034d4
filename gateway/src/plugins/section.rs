//! Reading a custom section of a component, without compiling it.

/// A custom section of a component, outside of what is nested in it: after a head of 8 bytes each
/// section is a number, its length (LEB128) and its content; a custom one has number 0 and begins with
/// its name.
pub fn section<'a>(component: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut rest = component.get(8..)?;
    while let Some((number, after)) = rest.split_first() {
        let (length, after) = leb128(after)?;
        let (content, after) = after.split_at_checked(length)?;
        rest = after;
        if *number == 0 {
            let (length, content) = leb128(content)?;
            let (name, content) = content.split_at_checked(length)?;
            if name == wanted {
                return Some(content);
            }
        }
    }
    None
}

fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u32;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= u32::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[at + 1..]));
        }
    }
    None
}
