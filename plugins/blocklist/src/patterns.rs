//! Regular expressions for the content, all in one pass.
//!
//! They become one automaton whose states are made when a content first leads to them. Its time is
//! linear in the content, and how many states are made for one content is bounded: a pattern must not
//! become a way to hold up the gateway.

use regex_automata::{
    Anchored, Input,
    hybrid::dfa::{Cache, DFA},
    nfa::thompson,
    util::syntax,
};

/// The most patterns, and the longest one in bytes.
const MOST: usize = 50;
const BYTES: usize = 500;

/// How large all of them may become: the automaton as it is written, and its states. Bytes.
const PROGRAM_BYTES: usize = 4 << 20;
const CACHE_BYTES: usize = 1 << 20;

/// How much of a content they see, in bytes.
const SEARCHED_BYTES: usize = 8 * 1024;

/// Patterns, compiled.
pub struct Patterns(Option<Compiled>);

struct Compiled {
    count: usize,
    automaton: DFA,
    cache: Cache,
}

impl Patterns {
    /// # Errors
    /// The text names the pattern that is wrong.
    pub fn new(texts: &[String]) -> Result<Self, String> {
        if texts.is_empty() {
            return Ok(Self(None));
        }
        if texts.len() > MOST {
            return Err(format!("config.patterns: want at most {MOST}"));
        }
        for (index, text) in texts.iter().enumerate() {
            check(text).map_err(|why| format!("config.patterns[{index}]: {why}"))?;
        }
        let (automaton, cache) =
            compiled(texts).map_err(|why| format!("config.patterns: {why}"))?;
        Ok(Self(Some(Compiled { count: texts.len(), automaton, cache })))
    }

    /// Whether one of them fits somewhere in a content; `None` when that would cost too much.
    pub fn fit(&mut self, content: &str) -> Option<bool> {
        let Some(Compiled { automaton, cache, .. }) = &mut self.0 else { return Some(false) };
        let content = &content[..content.floor_char_boundary(SEARCHED_BYTES)];
        fits(automaton, cache, content).or_else(|| {
            // The states of other contents were in the way.
            cache.reset(automaton);
            fits(automaton, cache, content)
        })
    }

    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |compiled| compiled.count)
    }
}

/// `None` when there is no room for the states that it takes.
fn fits(automaton: &DFA, cache: &mut Cache, content: &str) -> Option<bool> {
    let input = Input::new(content).anchored(Anchored::No).earliest(true);
    automaton.try_search_fwd(cache, &input).ok().map(|found| found.is_some())
}

fn check(text: &str) -> Result<(), String> {
    if text.len() > BYTES {
        return Err(format!("want at most {BYTES} bytes"));
    }
    let (automaton, mut cache) = compiled(&[text.to_owned()])?;
    match fits(&automaton, &mut cache, "") {
        Some(true) => Err("it fits an empty text, and so would refuse every event".to_owned()),
        _ => Ok(()),
    }
}

fn compiled(texts: &[String]) -> Result<(DFA, Cache), String> {
    let texts: Vec<_> = texts.iter().map(|text| ascii_boundaries(text)).collect();
    let config = DFA::config()
        .cache_capacity(CACHE_BYTES)
        // What does not fit at once is not tried for long.
        .minimum_cache_clear_count(Some(0));
    let automaton = DFA::builder()
        .configure(config)
        .syntax(syntax::Config::new().utf8(false))
        .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(PROGRAM_BYTES)))
        .build_many(&texts);
    let automaton = automaton.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = error.to_string();
            cause = error.source();
        }
        text
    })?;
    let cache = automaton.create_cache();
    Ok((automaton, cache))
}

/// Word boundaries are those of ASCII: the automaton has no others.
fn ascii_boundaries(pattern: &str) -> String {
    let mut text = String::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    while let Some(letter) = rest.next() {
        if letter != '\\' {
            text.push(letter);
            continue;
        }
        match (rest.next(), rest.peek()) {
            (Some(letter @ ('b' | 'B')), next) if next != Some(&'{') => {
                text.extend(["(?-u:\\", &letter.to_string(), ")"]);
            }
            (Some(letter), _) => text.extend(['\\', letter]),
            (None, _) => text.push('\\'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Result<Patterns, String> {
        let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
        Patterns::new(&texts)
    }

    #[test]
    fn they_fit_the_content() {
        let mut patterns = patterns(&[
            r"(?i)\bfree\s+sats\b",
            r"https?://[a-z0-9-]+\.zip/",
            r"(?i)казино",
            r"^GM$",
        ])
        .unwrap();
        assert_eq!(patterns.len(), 4);
        for content in [
            "Get FREE  sats now",
            "see http://a-b.zip/x",
            "Новое КАЗИНО!",
            "GM",
            "é free\u{a0}sats é",
        ] {
            assert_eq!(patterns.fit(content), Some(true), "{content}");
        }
        for content in ["", "freesats", "see HTTP://a.zip/", "GM all", "carefree sats"] {
            assert_eq!(patterns.fit(content), Some(false), "{content}");
        }
    }

    #[test]
    fn they_see_the_beginning() {
        let mut patterns = patterns(&["end"]).unwrap();
        assert_eq!(patterns.fit(&format!("{}end", "ä".repeat(SEARCHED_BYTES / 2 - 2))), Some(true));
        assert_eq!(
            patterns.fit(&format!("{}end", "ä".repeat(SEARCHED_BYTES / 2 - 1))),
            Some(false)
        );
        let cut_between = "€".repeat(SEARCHED_BYTES);
        assert_eq!(patterns.fit(&cut_between), Some(false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |texts: &[&str]| patterns(texts).err().unwrap();
        assert_eq!(
            error(&["a", "x*"]),
            "config.patterns[1]: it fits an empty text, and so would refuse every event"
        );
        assert!(error(&["(a"]).starts_with("config.patterns[0]: "), "{}", error(&["(a"]));
        assert!(
            error(&["((a{99}){99}){99}"]).contains("limit"),
            "{}",
            error(&["((a{99}){99}){99}"])
        );
        assert!(error(&[&"a".repeat(501)]).contains("at most 500 bytes"));
        assert!(error(&["a"; 51]).contains("at most 50"));
        assert!(error(&["a\\"]).starts_with("config.patterns[0]: "));
    }

    #[test]
    fn boundaries_are_of_ascii_wherever_they_stand() {
        for (written, read) in [
            (r"\bx\B", r"(?-u:\b)x(?-u:\B)"),
            (r"\\bx\.", r"\\bx\."),
            (r"\b{start}x", r"\b{start}x"),
            (r"x\", r"x\"),
        ] {
            assert_eq!(ascii_boundaries(written), read);
        }
    }

    #[test]
    fn as_many_as_there_may_be_have_room() {
        let texts: Vec<_> =
            (0..MOST).map(|n| format!(r"(?i)\bunwanted{n}\s+(\w+|\d{{2,5}})\b[^a-z]?")).collect();
        let mut patterns = Patterns::new(&texts).unwrap();
        assert_eq!(patterns.fit("an UNWANTED49  word"), Some(true));
        assert_eq!(patterns.fit("an UNWANTED50  word"), Some(false));
        let ordinary = "Unwanted or not, das ist ein ganz gewöhnlicher Text, это тоже. ";
        assert_eq!(patterns.fit(&ordinary.repeat(80)), Some(false));
    }

    /// Contents made to lead to ever new states of a pattern that has many.
    #[test]
    fn no_content_takes_more_room_than_there_is() {
        let mut patterns = patterns(&["a[ab]{14}[^ab]"]).unwrap();
        let mut seed = 1_u32;
        let mut content = String::new();
        for _ in 0..SEARCHED_BYTES {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            content.push(if seed >> 30 & 1 == 0 { 'a' } else { 'b' });
        }
        assert_eq!(patterns.fit(&content), None);
        let Some(Compiled { cache, .. }) = &patterns.0 else { panic!("it has one") };
        assert!(cache.memory_usage() < 2 * CACHE_BYTES, "{}", cache.memory_usage());
        assert_eq!(patterns.fit(&format!("a{}!", "ab".repeat(7))), Some(true));
        assert_eq!(patterns.fit("an ordinary note"), Some(false));
    }
}
