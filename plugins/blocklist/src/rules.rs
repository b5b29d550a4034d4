//! The rules themselves, without the gateway.

use std::{collections::HashSet, fmt};

/// Whom and what to refuse.
pub struct Rules {
    authors: HashSet<[u8; 32]>,
    /// In lower case.
    words: Vec<String>,
    reason: Option<String>,
}

impl Rules {
    /// `authors` are public keys of 64 hexadecimal digits; `words` are
    /// looked for anywhere in the content, whatever their case.
    ///
    /// # Errors
    /// The text names the entry that is wrong.
    pub fn new(
        authors: &[String],
        words: &[String],
        reason: Option<String>,
    ) -> Result<Self, String> {
        let authors = authors
            .iter()
            .enumerate()
            .map(|(index, author)| {
                hex_key(author).ok_or_else(|| {
                    format!("config.authors[{index}]: want a public key of 64 hexadecimal digits")
                })
            })
            .collect::<Result<_, _>>()?;
        if let Some(index) = words.iter().position(|word| word.trim().is_empty()) {
            return Err(format!("config.words[{index}]: an empty word would refuse every event"));
        }
        let words = words.iter().map(|word| word.to_lowercase()).collect();
        Ok(Self { authors, words, reason })
    }

    /// Why an event is refused, if it is.
    pub fn refuse(&self, pubkey: &str, content: &str) -> Option<&str> {
        let by_author = || hex_key(pubkey).is_some_and(|key| self.authors.contains(&key));
        if !self.authors.is_empty() && by_author() {
            return Some(self.reason.as_deref().unwrap_or("this author is on the blocklist"));
        }
        if !self.words.is_empty() {
            let content = content.to_lowercase();
            if self.words.iter().any(|word| content.contains(word)) {
                return Some(self.reason.as_deref().unwrap_or("a word is on the blocklist"));
            }
        }
        None
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authors and {} words are listed", self.authors.len(), self.words.len())
    }
}

/// 64 hexadecimal digits of either case.
fn hex_key(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(authors: &[&str], words: &[&str]) -> Result<Rules, String> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Rules::new(&owned(authors), &owned(words), None)
    }

    const ALICE: &str = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d";
    const BOB: &str = "82341f882b6eabcd2ba7f1ef90aad961cf074af15b9ef44a09f9d2a8fbfbe6a2";

    #[test]
    fn a_listed_author_is_refused() {
        for written in [ALICE.to_owned(), ALICE.to_uppercase()] {
            let rules = rules(&[&written], &[]).unwrap();
            assert_eq!(rules.refuse(ALICE, "hi"), Some("this author is on the blocklist"));
            assert_eq!(rules.refuse(BOB, "hi"), None);
        }
    }

    #[test]
    fn words_are_found_in_any_case_and_script() {
        let rules = rules(&[], &["Casino", "ÄRGER", "СПАМ"]).unwrap();
        for content in ["CASINO royale", "big casinos", "so ein ärger", "это Спам!"] {
            assert_eq!(rules.refuse(BOB, content), Some("a word is on the blocklist"), "{content}");
        }
        for content in ["", "cas ino", "arger"] {
            assert_eq!(rules.refuse(BOB, content), None, "{content}");
        }
    }

    #[test]
    fn the_operator_may_give_the_reason() {
        let words = ["x".to_owned()];
        let rules = Rules::new(&[], &words, Some("restricted: not here".to_owned())).unwrap();
        assert_eq!(rules.refuse(BOB, "x"), Some("restricted: not here"));
    }

    #[test]
    fn a_wrong_entry_is_named() {
        let error = |result: Result<Rules, String>| result.err().unwrap();
        assert_eq!(
            error(rules(&[ALICE, "alice"], &[])),
            "config.authors[1]: want a public key of 64 hexadecimal digits"
        );
        assert_eq!(
            error(rules(&[], &["a", " "])),
            "config.words[1]: an empty word would refuse every event"
        );
    }

    #[test]
    fn an_empty_list_refuses_nothing() {
        assert_eq!(rules(&[], &[]).unwrap().refuse(ALICE, "anything"), None);
    }
}
