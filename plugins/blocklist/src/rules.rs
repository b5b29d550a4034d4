//! What the operator lists, without the gateway.

use std::{collections::HashSet, fmt};

use nostr_gateway_plugin::Event;
use regex_lite::{Regex, RegexBuilder};

use crate::keys;

/// The most patterns, the longest one, and the largest that one may become when it is compiled, in
/// bytes: together they bound what a call costs.
const MOST_PATTERNS: usize = 50;
const PATTERN_BYTES: usize = 500;
const PROGRAM_BYTES: usize = 64 * 1024;

/// How much of a content patterns see, in bytes.
const SEARCHED_BYTES: usize = 8 * 1024;

/// Whom and what to refuse.
pub struct Rules {
    authors: HashSet<[u8; 32]>,
    /// In lower case.
    words: Vec<String>,
    patterns: Vec<Regex>,
}

impl Rules {
    /// `authors` are public keys of 64 hexadecimal digits; `words` are looked for anywhere in the
    /// content, whatever their case; `patterns` are regular expressions for the content, which see
    /// the case unless they begin with `(?i)`.
    ///
    /// # Errors
    /// The text names the entry that is wrong.
    pub fn new(authors: &[String], words: &[String], patterns: &[String]) -> Result<Self, String> {
        let authors = keys::listed("authors", authors).collect::<Result<_, _>>()?;
        if let Some(index) = words.iter().position(|word| word.trim().is_empty()) {
            return Err(format!("config.words[{index}]: an empty word would refuse every event"));
        }
        let words = words.iter().map(|word| word.to_lowercase()).collect();
        if patterns.len() > MOST_PATTERNS {
            return Err(format!("config.patterns: want at most {MOST_PATTERNS}"));
        }
        let pattern = |(index, text): (usize, &String)| {
            compiled(text).map_err(|why| format!("config.patterns[{index}]: {why}"))
        };
        let patterns = patterns.iter().enumerate().map(pattern).collect::<Result<_, _>>()?;
        Ok(Self { authors, words, patterns })
    }

    /// Why an event is refused, if it is.
    pub fn refuse(&self, event: &Event) -> Option<&'static str> {
        let by_author =
            || keys::parse(&event.pubkey).is_some_and(|key| self.authors.contains(&key));
        if !self.authors.is_empty() && by_author() {
            return Some("this author is on the blocklist");
        }
        if !self.words.is_empty() && has_word(&self.words, &event.content.to_lowercase()) {
            return Some("a word is on the blocklist");
        }
        if !self.patterns.is_empty() {
            let content = beginning(&event.content);
            if self.patterns.iter().any(|pattern| pattern.is_match(content)) {
                return Some("a pattern on the blocklist fits");
            }
        }
        None
    }
}

/// Whether a text has one of these words anywhere. All are in lower case.
pub fn has_word(words: &[String], text: &str) -> bool {
    words.iter().any(|word| text.contains(word))
}

fn compiled(text: &str) -> Result<Regex, String> {
    if text.len() > PATTERN_BYTES {
        return Err(format!("want at most {PATTERN_BYTES} bytes"));
    }
    let pattern = RegexBuilder::new(text).size_limit(PROGRAM_BYTES).build();
    let pattern = pattern.map_err(|error| error.to_string())?;
    match pattern.is_match("") {
        true => Err("it fits an empty text, and so would refuse every event".to_owned()),
        false => Ok(pattern),
    }
}

/// As much as patterns see.
fn beginning(content: &str) -> &str {
    &content[..content.floor_char_boundary(SEARCHED_BYTES)]
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authors, words, patterns } = self;
        write!(
            f,
            "{} authors, {} words and {} patterns are listed",
            authors.len(),
            words.len(),
            patterns.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutes::tests::{ALICE, BOB, note};

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn rules(authors: &[&str], words: &[&str], patterns: &[&str]) -> Result<Rules, String> {
        Rules::new(&owned(authors), &owned(words), &owned(patterns))
    }

    #[test]
    fn a_listed_author_is_refused() {
        for written in [ALICE.to_owned(), ALICE.to_uppercase()] {
            let rules = rules(&[&written], &[], &[]).unwrap();
            assert_eq!(rules.refuse(&note(ALICE, "hi")), Some("this author is on the blocklist"));
            assert_eq!(rules.refuse(&note(BOB, "hi")), None);
        }
    }

    #[test]
    fn words_are_found_in_any_case_and_script() {
        let rules = rules(&[], &["Casino", "ÄRGER", "СПАМ"], &[]).unwrap();
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
        let rules =
            rules(&[], &[], &[r"(?i)\bfree\s+sats\b", r"https?://[a-z0-9-]+\.zip/"]).unwrap();
        for content in ["Get FREE  sats now", "see http://a-b.zip/x"] {
            let refused = rules.refuse(&note(BOB, content));
            assert_eq!(refused, Some("a pattern on the blocklist fits"), "{content}");
        }
        for content in ["", "freesats", "see HTTP://a.zip/"] {
            assert_eq!(rules.refuse(&note(BOB, content)), None, "{content}");
        }
        let far = |bytes| format!("{}free sats", "ä ".repeat(bytes / 3));
        assert!(rules.refuse(&note(BOB, &far(SEARCHED_BYTES - 30))).is_some());
        assert!(rules.refuse(&note(BOB, &far(SEARCHED_BYTES))).is_none(), "further than it looks");
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
        assert_eq!(
            error(rules(&[], &[], &["a", "x*"])),
            "config.patterns[1]: it fits an empty text, and so would refuse every event"
        );
        assert!(error(rules(&[], &[], &["(a"])).starts_with("config.patterns[0]: "));
        assert!(error(rules(&[], &[], &["((a{99}){99}){99}"])).starts_with("config.patterns[0]: "));
        assert!(error(rules(&[], &[], &[&"a".repeat(501)])).contains("at most 500 bytes"));
        assert!(error(rules(&[], &[], &["a"; 51])).contains("at most 50"));
    }

    #[test]
    fn an_empty_list_refuses_nothing() {
        assert_eq!(rules(&[], &[], &[]).unwrap().refuse(&note(ALICE, "anything")), None);
    }
}
