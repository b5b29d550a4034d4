//! The `search` of a filter (NIP-50): words that must be there, "phrases", -words that must not be.

use super::text;

/// The longest search, in characters.
pub const MAX_CHARS: usize = 256;
/// The most words and phrases of one search.
pub const MAX_TERMS: usize = 16;
/// Letters that a beginning (`word*`) has at least: shorter ones stand for too many words.
const MIN_PREFIX: usize = 3;

/// What a filter's `search` asks for, and its text as it came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Search {
    text: String,
    terms: Vec<Term>,
}

/// One condition of a search. An event must satisfy all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    /// Words that follow one another, prepared like the texts of events. Empty when nothing of it can
    /// be in an index, like an emoji or a key.
    pub words: String,
    /// The event must not have it.
    pub excluded: bool,
    /// The last word is only the beginning of one.
    pub prefix: bool,
}

impl Search {
    /// Reads a search. Extensions (`key:value`) are passed over: none is supported (NIP-50).
    ///
    /// # Errors
    /// When it is too long, or says only what must not be there.
    pub fn parse(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        if text.chars().count() > MAX_CHARS {
            return Err(format!("longer than {MAX_CHARS} characters"));
        }
        let terms: Vec<Term> = pieces(&text).filter_map(term).collect();
        if terms.len() > MAX_TERMS {
            return Err(format!("more than {MAX_TERMS} words and phrases"));
        }
        if !terms.is_empty() && terms.iter().all(|term| term.excluded) {
            return Err("name at least one word that must be there".to_owned());
        }
        Ok(Self { text, terms })
    }

    /// The text as it came.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether it narrows the filter down: not when there are only extensions in it.
    pub fn is_condition(&self) -> bool {
        !self.terms.is_empty()
    }
}

/// A part of the text: a word, or what stands in quotation marks.
struct Piece<'t> {
    text: &'t str,
    excluded: bool,
    quoted: bool,
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let (excluded, body) = match rest.strip_prefix('-') {
            Some(body) if body.starts_with(|c: char| !c.is_whitespace()) => (true, body),
            _ => (false, rest),
        };
        if let Some(inner) = body.strip_prefix('"') {
            // A phrase that is not closed goes to the end.
            let end = inner.find('"').unwrap_or(inner.len());
            rest = inner.get(end + 1..).unwrap_or_default();
            return Some(Piece { text: &inner[..end], excluded, quoted: true });
        }
        let end = body.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(body.len());
        rest = &body[end..];
        Some(Piece { text: &body[..end], excluded, quoted: false })
    })
}

fn term(piece: Piece<'_>) -> Option<Term> {
    if piece.text.is_empty() || (!piece.quoted && is_extension(piece.text)) {
        return None;
    }
    let mut words = String::new();
    text::append_words(piece.text, &mut words);
    let words = words.trim_end().to_owned();
    let last = words.rsplit(' ').next().unwrap_or_default();
    let prefix = !piece.quoted && piece.text.ends_with('*') && last.chars().count() >= MIN_PREFIX;
    Some(Term { words, excluded: piece.excluded, prefix })
}

/// `key:value`, as in `language:en`. A URL is none.
fn is_extension(word: &str) -> bool {
    word.split_once(':').is_some_and(|(key, value)| {
        key.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            && !value.is_empty()
            && !value.starts_with("//")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Vec<String> {
        let search = Search::parse(text).unwrap();
        let show = |term: &Term| {
            let (not, star) =
                (if term.excluded { "-" } else { "" }, if term.prefix { "*" } else { "" });
            format!("{not}{}{star}", term.words)
        };
        search.terms().iter().map(show).collect()
    }

    #[test]
    fn words_phrases_and_exclusions_are_told_apart() {
        assert_eq!(terms("best nostr apps"), ["best", "nostr", "apps"]);
        assert_eq!(terms(r#"a "b c" -d -"e f""#), ["a", "b c", "-d", "-e f"]);
        assert_eq!(terms(r#"say"hello world"#), ["say", "hello world"]);
        assert_eq!(terms("rock-n-roll - x"), ["rock n roll", "", "x"]);
        assert_eq!(terms("nost* ab* * \"nost*\""), ["nost*", "ab", "", "nost"]);
        assert_eq!(terms("日本 #nostr"), ["日 本", "nostr"]);
    }

    #[test]
    fn extensions_are_passed_over_and_urls_are_not() {
        assert_eq!(terms("cats language:en domain:x.example sort:top"), ["cats"]);
        assert_eq!(terms("https://a.example/b?c=d"), ["a example b"]);
        assert_eq!(terms("10:30"), ["10 30"]);
        assert!(!Search::parse("language:en include:spam").unwrap().is_condition());
        assert!(!Search::parse("  ").unwrap().is_condition());
        assert!(Search::parse("🔥").unwrap().is_condition(), "it finds nothing, not everything");
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        assert!(Search::parse("é".repeat(256)).is_ok());
        assert!(Search::parse("é".repeat(257)).is_err());
        assert!(Search::parse("a ".repeat(16)).is_ok());
        assert!(Search::parse("a ".repeat(17)).is_err());
        assert!(Search::parse("-spam").is_err());
        assert!(Search::parse("-spam language:en").is_err());
    }

    #[test]
    fn no_text_breaks_the_reader() {
        for text in
            ["\"", "-\"", "-", "--", "\"\"\"", "-\"\"", "a\"-", "NEAR(a b)", "a^2", "\0", "x\0y"]
        {
            let _ = Search::parse(text);
        }
        assert_eq!(terms("NEAR(a AND b*) {c}: ^d"), ["near a", "and", "b", "c", "d"]);
    }
}
