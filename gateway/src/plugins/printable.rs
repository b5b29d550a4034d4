//! Makes a stranger's text fit for a log line or an OK message.

/// Cuts to at most `max` bytes at a character's border and makes one line of it: white space and
/// line breaks become single spaces, other control characters go.
pub fn one_line(text: &str, max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max));
    let mut pending_space = false;
    for character in text.chars() {
        if character.is_whitespace() {
            pending_space = !line.is_empty();
            continue;
        }
        if character.is_control() || is_direction_control(character) {
            continue;
        }
        let needed = character.len_utf8() + usize::from(pending_space);
        if line.len() + needed > max {
            break;
        }
        if std::mem::take(&mut pending_space) {
            line.push(' ');
        }
        line.push(character);
    }
    line
}

/// Characters that make a terminal show the rest of a line in another order.
fn is_direction_control(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn controls_go_and_characters_stay_whole() {
        assert_eq!(one_line("  a\r\n\tb\u{1b}[31m \u{202e}c\0 ", 100), "a b[31m c");
        assert_eq!(one_line("ääää", 5), "ää");
        assert_eq!(one_line("ab cd", 3), "ab");
        assert_eq!(one_line("\n\n", 9), "");
    }
}
