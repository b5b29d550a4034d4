//! A filter in the terms of the file: numbers for authors, tags and the topic.

use memchr::memmem::Finder;
use rusqlite::Connection;

use crate::{
    protocol::Filter,
    store::{memory::Memory, tag_keys::tag_key},
};

/// What an event must satisfy.
pub(super) struct Conditions<'f> {
    pub filter: &'f Filter,
    /// Numbers of the filter's authors, sorted; those of whom nothing was ever stored are left out.
    pub authors: Option<Vec<u32>>,
    pub tags: Vec<TagCondition>,
    /// The topic whose events alone are looked at.
    pub topic: Option<i64>,
    pub since: i64,
    pub until: i64,
}

impl<'f> Conditions<'f> {
    pub fn new(
        connection: &Connection,
        memory: &Memory,
        filter: &'f Filter,
        topic: Option<i64>,
    ) -> rusqlite::Result<Self> {
        let authors = match &filter.authors {
            Some(keys) => {
                let mut numbers = memory.authors_of(connection, keys)?;
                numbers.sort_unstable();
                Some(numbers)
            }
            None => None,
        };
        Ok(Self {
            filter,
            authors,
            tags: filter.tags.iter().map(|(l, values)| TagCondition::new(*l, values)).collect(),
            topic,
            since: filter.since.map_or(0, |since| i64::try_from(since).unwrap_or(i64::MAX)),
            until: filter.until.and_then(|until| i64::try_from(until).ok()).unwrap_or(i64::MAX),
        })
    }

    pub fn allows_author(&self, author: u32) -> bool {
        self.authors.as_ref().is_none_or(|authors| authors.binary_search(&author).is_ok())
    }

    pub fn allows_kind(&self, kind: u16) -> bool {
        self.filter.kinds.as_ref().is_none_or(|kinds| kinds.binary_search(&kind).is_ok())
    }
}

/// One of the filter's tag conditions.
pub(super) struct TagCondition {
    /// Where events with one of the values stand in the index; different values may share a number.
    pub keys: Vec<i64>,
    text: TagText,
}

/// How a tag is found in an event's canonical JSON. There, a quotation mark within a string is always
/// escaped, so `["t","` occurs nowhere but at the beginning of a tag.
enum TagText {
    /// `["t","value"`
    Whole(Finder<'static>),
    /// `["t","`, and the values as they stand in JSON, sorted.
    OneOf(Finder<'static>, Vec<String>),
}

impl TagCondition {
    fn new(letter: u8, values: &[String]) -> Self {
        let mut keys: Vec<i64> = values.iter().map(|value| tag_key(letter, value)).collect();
        keys.sort_unstable();
        keys.dedup();
        let start = format!("[\"{}\",", char::from(letter));
        let quoted = |value: &String| serde_json::Value::from(value.as_str()).to_string();
        let text = match values {
            [value] => {
                let whole = format!("{start}{}", quoted(value));
                TagText::Whole(Finder::new(&whole).into_owned())
            }
            _ => {
                let mut values: Vec<String> = values.iter().map(quoted).collect();
                values.sort_unstable();
                TagText::OneOf(Finder::new(&start).into_owned(), values)
            }
        };
        Self { keys, text }
    }

    /// Whether an event with this canonical JSON has one of the tags.
    pub fn holds(&self, json: &str) -> bool {
        let json = json.as_bytes();
        match &self.text {
            TagText::Whole(whole) => whole.find(json).is_some(),
            TagText::OneOf(start, values) => start.find_iter(json).any(|at| {
                let rest = json.get(at + start.needle().len()..).unwrap_or_default();
                let value = rest.get(..string_length(rest)).unwrap_or_default();
                values.binary_search_by(|probe| probe.as_bytes().cmp(value)).is_ok()
            }),
        }
    }
}

/// Bytes of the JSON string that a text begins with, its quotation marks counted.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text.iter().skip(1).position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    #[test]
    fn a_tag_is_found_in_the_text_exactly_when_the_event_has_it() {
        let author = Author::new(1);
        let odd = ["", "a", "a\"", "\\", "\\\"", "[\"t\",\"a\"", "é\u{1}", "a["];
        let event = |tags: &[&[&str]]| author.verified(1, 1, tags, "[\"t\",\"a\"],[\"t\",\"\"]");
        let mut events =
            vec![event(&[]), event(&[&["t"]]), event(&[&["t[", "t", "a"], &["x", "a"]])];
        for value in odd {
            events.push(event(&[&["p", "a"], &["t", value, "more"]]));
            events.push(event(&[&["u", "t", value], &["T", value], &[value, "t", "a"]]));
        }
        for event in &events {
            for value in odd {
                for others in [&[][..], &["zz"], &odd[..3]] {
                    let mut values: Vec<String> = others.iter().map(|v| (*v).to_owned()).collect();
                    values.push(value.to_owned());
                    values.sort_unstable();
                    values.dedup();
                    let filter = Filter { tags: vec![(b't', values.clone())], ..Filter::default() };
                    let found = TagCondition::new(b't', &values).holds(event.json());
                    assert_eq!(found, filter.matches(event), "{values:?} in {}", event.json());
                }
            }
        }
    }
}
