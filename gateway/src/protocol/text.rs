//! Texts as a search index takes them: words in lower case, each with a space behind it.
//!
//! The index folds accents by itself. What is done here is done to what is stored and to what is
//! asked for alike: addresses lose their scheme and query, identifiers and blobs are left out, and
//! the characters of scripts that write no spaces become words of their own.

/// The longest run of ASCII letters and digits that is a word: keys, ids and blobs are longer.
const MAX_WORD: usize = 32;

/// Appends the words of a text.
pub fn append_words(text: &str, out: &mut String) {
    for piece in text.split_whitespace() {
        append_piece(piece, out);
    }
}

fn append_piece(piece: &str, out: &mut String) {
    if let Some(at) = piece.find("nostr:") {
        // A reference names an event or a key (NIP-21); what is written around it is text.
        let (before, reference) = (&piece[..at], &piece[at + "nostr:".len()..]);
        let end = reference.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(reference.len());
        append_plain(before, out);
        // Only what looks like a reference is one.
        if end < 20 {
            append_plain(&piece[at..at + "nostr:".len() + end], out);
        }
        return append_piece(&reference[end..], out);
    }
    let address = ["https://", "http://"]
        .iter()
        .find_map(|scheme| piece.find(scheme).map(|at| (at, scheme.len())));
    match address {
        Some((at, scheme)) => {
            let rest = &piece[at + scheme..];
            let end = rest.find(['?', '#']).unwrap_or(rest.len());
            append_plain(&piece[..at], out);
            append_plain(&rest[..end], out);
        }
        None => append_plain(piece, out),
    }
}

fn append_plain(piece: &str, out: &mut String) {
    let mut start = out.len();
    // Whether the word so far is nothing but ASCII letters and digits.
    let mut ascii = true;
    let end_word = |out: &mut String, start: &mut usize, ascii: &mut bool| {
        if out.len() > *start {
            if *ascii && out.len() - *start > MAX_WORD {
                out.truncate(*start);
            } else {
                out.push(' ');
            }
        }
        (*start, *ascii) = (out.len(), true);
    };
    for c in piece.chars() {
        if c.is_ascii() {
            if c.is_ascii_alphanumeric() {
                out.push(c.to_ascii_lowercase());
            } else {
                end_word(out, &mut start, &mut ascii);
            }
        } else if stands_alone(c) {
            end_word(out, &mut start, &mut ascii);
            out.push(c);
            ascii = false;
            end_word(out, &mut start, &mut ascii);
        } else if c.is_alphanumeric() || is_mark(c) {
            out.extend(c.to_lowercase());
            ascii = false;
        } else {
            end_word(out, &mut start, &mut ascii);
        }
    }
    end_word(out, &mut start, &mut ascii);
}

/// Characters of scripts that write words without spaces: kana, Han ideographs, bopomofo.
const fn stands_alone(c: char) -> bool {
    matches!(c,
        '\u{3005}'..='\u{3007}' | '\u{3040}'..='\u{30FF}' | '\u{3100}'..='\u{312F}'
        | '\u{31A0}'..='\u{31BF}' | '\u{31F0}'..='\u{31FF}' | '\u{3400}'..='\u{4DBF}'
        | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{FF66}'..='\u{FF9F}'
        | '\u{20000}'..='\u{323AF}')
}

/// Marks that belong to the letter before them: accents, and the signs of Indic scripts that
/// `char::is_alphanumeric` does not count.
const fn is_mark(c: char) -> bool {
    matches!(c,
        '\u{0300}'..='\u{036F}' | '\u{0900}'..='\u{0DFF}' | '\u{0E31}'..='\u{0E4E}'
        | '\u{0EB1}'..='\u{0ECD}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17D3}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let mut out = String::new();
        append_words(text, &mut out);
        out
    }

    #[test]
    fn words_are_plain_and_junk_is_left_out() {
        assert_eq!(words("Hello, World!"), "hello world ");
        assert_eq!(words("Grüße ÉTÉ"), "grüße été ");
        assert_eq!(
            words("see https://www.a.example/cats.jpg?w=1&h=2#x now"),
            "see www a example cats jpg now "
        );
        assert_eq!(words(&format!("a {} b", "0123456789abcdef".repeat(4))), "a b ");
        assert_eq!(words(&format!("hi nostr:npub1{}, bye", "q".repeat(58))), "hi bye ");
        assert_eq!(words("nostr:rocks"), "nostr rocks ");
        assert_eq!(words("日本語 text かな"), "日 本 語 text か な ");
        assert_eq!(words("हिन्दी"), "हिन्दी ");
        assert_eq!(words("❤️🔥 \u{0} \u{7}"), "");
        // Long words of other scripts are words.
        assert_eq!(words(&"я".repeat(40)), format!("{} ", "я".repeat(40)));
    }
}
