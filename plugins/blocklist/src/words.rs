//! Words in a text, whatever their case, all looked for in one pass.
//!
//! The pass goes by pairs of bytes and passes over what no word can end in (Wu and Manber, "A fast
//! algorithm for multi-pattern searching", 1994): the longer the shortest word, the less of the text
//! is looked at.

use std::borrow::Cow;

/// Pairs of bytes fall into so many slots; those of one slot are not told apart.
const SLOTS: usize = 4_096;

/// Of a longer word, only the beginning is gone by.
const LONGEST_WINDOW: usize = 64;

/// A set of words.
#[derive(Default)]
pub struct Words {
    /// In lower case, with two bytes or more.
    long: Vec<Box<[u8]>>,
    /// In lower case, of one byte each.
    short: Vec<u8>,
    /// The bytes of each long word that are gone by: all of the shortest one.
    window: usize,
    /// How many bytes further a window may end that ended with a pair in this slot; 0 when a word
    /// may stand there. Empty without long words.
    steps: Vec<u8>,
    /// The slots with which windows of long words end, in their order, and which word it is.
    ends: Vec<(u16, u32)>,
}

/// A text as [`Words::are_in`] takes it.
///
/// Letters of ASCII may stay as they are. In other texts even those may come from others: the sign
/// for Kelvin becomes a k.
pub fn lowered(text: &str) -> Cow<'_, str> {
    if text.is_ascii() { Cow::Borrowed(text) } else { Cow::Owned(text.to_lowercase()) }
}

impl Words {
    /// None of them may be empty.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut long, mut short) = (Vec::<Box<[u8]>>::new(), Vec::new());
        for word in words {
            match word.to_lowercase().into_bytes().as_slice() {
                [] => {}
                [byte] => short.push(*byte),
                bytes => long.push(Box::from(bytes)),
            }
        }
        let shortest = long.iter().map(|word| word.len()).min();
        let Some(window) = shortest.map(|shortest| shortest.min(LONGEST_WINDOW)) else {
            return Self { short, ..Self::default() };
        };
        let furthest = u8::try_from(window - 1).unwrap_or(u8::MAX);
        let mut steps = vec![furthest; SLOTS];
        let mut ends = Vec::with_capacity(long.len());
        for (number, word) in (0..).zip(&long) {
            for (at, pair) in word[..window].windows(2).enumerate() {
                let slot = slot(pair[0], pair[1]);
                steps[slot] = steps[slot].min(u8::try_from(window - 2 - at).unwrap_or(u8::MAX));
            }
            let end = slot(word[window - 2], word[window - 1]);
            ends.push((u16::try_from(end).unwrap_or_default(), number));
        }
        ends.sort_unstable();
        Self { long, short, window, steps, ends }
    }

    pub fn is_empty(&self) -> bool {
        self.long.is_empty() && self.short.is_empty()
    }

    pub fn len(&self) -> usize {
        self.long.len() + self.short.len()
    }

    /// Whether one of them stands anywhere in a text that is [`lowered`].
    pub fn are_in(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let has = |byte: &u8| self.short.contains(&byte.to_ascii_lowercase());
        (!self.short.is_empty() && text.iter().any(has)) || self.has_long(text)
    }

    fn has_long(&self, text: &[u8]) -> bool {
        let Ok(steps) = <&[u8; SLOTS]>::try_from(self.steps.as_slice()) else { return false };
        // Where the last pair of a window begins.
        let mut at = self.window - 2;
        while let Some(&[first, second]) = text.get(at..at + 2) {
            let slot = slot(first, second);
            let step = usize::from(steps[slot]);
            if step > 0 {
                at += step;
                continue;
            }
            if self.stands_at(&text[at + 2 - self.window..], slot) {
                return true;
            }
            at += 1;
        }
        false
    }

    /// Whether a text begins with one of those whose windows end in this slot.
    fn stands_at(&self, text: &[u8], slot: usize) -> bool {
        let first = self.ends.partition_point(|(of, _)| usize::from(*of) < slot);
        let here = self.ends[first..].iter().take_while(|(of, _)| usize::from(*of) == slot);
        here.map(|(_, number)| &self.long[*number as usize])
            .any(|word| text.get(..word.len()).is_some_and(|text| text.eq_ignore_ascii_case(word)))
    }
}

/// Letters of both cases fall into the same slot.
fn slot(first: u8, second: u8) -> usize {
    (usize::from(first | 0x20) << 5 ^ usize::from(second | 0x20)) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[&str], text: &str) -> bool {
        Words::new(words.iter().copied()).are_in(&lowered(text))
    }

    #[test]
    fn they_are_found_anywhere() {
        let words = ["casino", "x", "free sats", &"long".repeat(40)];
        for text in
            ["CASINO", "a casino!", "my Casino", "X", "fax", "get fREE sATS", &"LONG".repeat(41)]
        {
            assert!(found(&words, text), "{text}");
        }
        for text in ["", "c", "casin", "asino", "free  sats", "cas\u{131}no", &"long".repeat(39)] {
            assert!(!found(&words, text), "{text}");
        }
        assert!(!found(&[], "text") && !found(&[""], "text"));
    }

    #[test]
    fn other_scripts_have_cases_too() {
        for (word, text) in [
            ("ÄRGER", "so ein ärger"),
            ("спам", "это СПАМ!"),
            ("é", "CAFÉ"),
            ("kelvin", "\u{212A}ELVIN"),
            ("日本", "これは日本語"),
            ("ΟΔΟΣ", "Η ΟΔΟΣ"),
        ] {
            assert!(found(&[word], text), "{word} in {text}");
        }
        assert!(!found(&["ä"], "a¤") && !found(&["日本"], "日木"));
    }

    /// Against the plain way, on texts and words of few letters, so that much is found and much nearly.
    #[test]
    fn the_same_are_found_as_by_looking_for_each() {
        let mut seed = 1_u64;
        let mut random = move |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let letters = ['a', 'b', 'A', 'B', 'é', 'É', ' ', 'K', '\u{212A}'];
        let mut hits = 0;
        for _ in 0..20_000 {
            let mut text = |most: usize, least: usize| -> String {
                let kinds = 2 + random(letters.len() - 1);
                (0..least + random(most)).map(|_| letters[random(kinds)]).collect()
            };
            let words: Vec<_> = (0..4).map(|_| text(7, 1)).collect();
            let text = text(40, 0);
            let plain = words.iter().any(|word| text.to_lowercase().contains(&word.to_lowercase()));
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            assert_eq!(found(&words, &text), plain, "{words:?} in {text:?}");
            hits += usize::from(plain);
        }
        assert!((2_000..18_000).contains(&hits), "{hits}");
    }
}
