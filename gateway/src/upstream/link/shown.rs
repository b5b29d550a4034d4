//! Texts of relays, as they may stand in a log or on a terminal.

/// The most characters that are shown.
const SHOWN: usize = 200;

/// Cut, on one line and without control characters.
pub(in crate::upstream) fn shown(text: &str) -> String {
    let visible = |c: &char| {
        !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .filter(visible)
        .take(SHOWN)
        .collect()
}
