//! What the operator lists, without the gateway.

use std::fmt;

use nostr_gateway_plugin::Event;

use crate::{
    keys::{self, Keys},
    patterns::Patterns,
    words::{self, Words},
};

/// Whom and what to refuse.
pub struct Rules {
    authors: Keys,
    words: Words,
    patterns: Patterns,
}

impl Rules {
    /// `authors` are public keys of 64 hexadecimal digits; `words` are looked for anywhere in the
    /// content, whatever their case; `patterns` are regular expressions for the content.
    ///
    /// # Errors
    /// The text names the entry that is wrong.
    pub fn new(authors: &[String], words: &[String], patterns: &[String]) -> Result<Self, String> {
        let authors = keys::listed("authors", authors).collect::<Result<_, _>>()?;
        if let Some(index) = words.iter().position(|word| word.trim().is_empty()) {
            return Err(format!("config.words[{index}]: an empty word would refuse every event"));
        }
        let words = Words::new(words.iter().map(String::as_str));
        Ok(Self { authors, words, patterns: Patterns::new(patterns)? })
    }

    /// Why an event is refused, if it is.
    pub fn refuse(&mut self, event: &Event) -> Option<&'static str> {
        let by_author =
            || keys::parse(&event.pubkey).is_some_and(|key| self.authors.contains(&key));
        if !self.authors.is_empty() && by_author() {
            return Some("this author is on the blocklist");
        }
        if !self.words.is_empty() && self.words.are_in(&words::lowered(&event.content)) {
            return Some("a word is on the blocklist");
        }
        match self.patterns.fit(&event.content) {
            Some(false) => None,
            Some(true) => Some("a pattern on the blocklist fits"),
            // Whoever makes such contents knows the patterns.
            None => Some("this content is too costly to look through"),
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authors, words) = (self.authors.len(), self.words.len());
        write!(
            f,
            "{authors} authors, {words} words and {} patterns are listed",
            self.patterns.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutes::tests::{ALICE, BOB, note};

    fn rules(authors: &[&str], words: &[&str], patterns: &[&str]) -> Result<Rules, String> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Rules::new(&owned(authors), &owned(words), &owned(patterns))
    }

    #[test]
    fn a_listed_author_is_refused() {
        for written in [ALICE.to_owned(), ALICE.to_uppercase()] {
            let mut rules = rules(&[&written], &[], &[]).unwrap();
            assert_eq!(rules.refuse(&note(ALICE, "hi")), Some("this author is on the blocklist"));
            assert_eq!(rules.refuse(&note(BOB, "hi")), None);
        }
    }

    #[test]
    fn words_are_found_in_any_case_and_script() {
        let mut rules = rules(&[], &["Casino", "ÄRGER", "СПАМ"], &[]).unwrap();
        for content in ["CASINO royale", "big casinos", "so ein ärger", "это Спам!"] {
            let refused = rules.refuse(&note(BOB, content));
            assert_eq!(refused, Some("a word is on the blocklist"), "{content}");
        }
        for content in ["", "cas ino", "arger"] {
            assert_eq!(rules.refuse(&note(BOB, content)), None, "{content}");
        }
    }

    #[test]
    fn patterns_fit_the_content() {
        let mut rules = rules(&[], &[], &["f[o0]+"]).unwrap();
        let refused = rules.refuse(&note(BOB, "a f0o"));
        assert_eq!(refused, Some("a pattern on the blocklist fits"));
        assert_eq!(rules.refuse(&note(BOB, "oof")), None);
    }

    #[test]
    fn a_wrong_entry_is_named() {
        let error = |result: Result<Rules, String>| result.err().unwrap();
        assert_eq!(
            error(rules(&[ALICE, "alice"], &[], &[])),
            "config.authors[1]: want a public key of 64 hexadecimal digits"
        );
        assert_eq!(
            error(rules(&[], &["a", " "], &[])),
            "config.words[1]: an empty word would refuse every event"
        );
        assert!(error(rules(&[], &[], &["a", "(x"])).starts_with("config.patterns[1]: "));
    }

    #[test]
    fn an_empty_list_refuses_nothing() {
        assert_eq!(rules(&[], &[], &[]).unwrap().refuse(&note(ALICE, "anything")), None);
    }
}
