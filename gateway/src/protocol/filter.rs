//! The filter of NIP-01: reading, matching.

use std::fmt;

use serde::{
    Deserialize, Serialize,
    de::{Error as _, MapAccess, Visitor},
    ser::SerializeMap,
};

use super::{Event, EventId, PublicKey, Search};

/// A filter. Every list is sorted and free of duplicates; an absent condition allows everything, an
/// empty list matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    pub ids: Option<Vec<EventId>>,
    pub authors: Option<Vec<PublicKey>>,
    pub kinds: Option<Vec<u16>>,
    /// Single-letter tag conditions: the letter (ASCII) and the values of which one must be there.
    pub tags: Vec<(u8, Vec<String>)>,
    /// Inclusive, Unix seconds.
    pub since: Option<u64>,
    /// Inclusive, Unix seconds.
    pub until: Option<u64>,
    /// The most stored events to send; it says nothing about live ones.
    pub limit: Option<u64>,
    /// Words that the event must have (NIP-50). Only the store's search index can tell; see
    /// [`Self::words`].
    pub search: Option<Search>,
}

/// Why a filter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not of the shape that NIP-01 gives.
    #[error("{0}")]
    Invalid(String),
    /// Well-formed, but it asks for something this relay does not know (NIP-01, CLOSED).
    #[error("filter contains unknown element {0}")]
    Unsupported(String),
}

/// How an unknown element travels through serde's errors.
const UNSUPPORTED: &str = "filter contains unknown element ";

impl Filter {
    /// Reads a filter from JSON.
    pub fn parse(json: &str) -> Result<Self, FilterError> {
        serde_json::from_str(json).map_err(|error| {
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            match text.strip_prefix(UNSUPPORTED) {
                Some(element) => FilterError::Unsupported(element.to_owned()),
                None => FilterError::Invalid(text.to_owned()),
            }
        })
    }

    /// Whether the event satisfies every condition but `search`. `limit` is not a condition.
    pub fn matches(&self, event: &Event) -> bool {
        self.since.is_none_or(|since| event.created_at >= since)
            && self.until.is_none_or(|until| event.created_at <= until)
            && allows(&self.kinds, &event.kind)
            && allows(&self.authors, &event.pubkey)
            && allows(&self.ids, &event.id)
            && self.tags.iter().all(|(letter, values)| has_tag(event, *letter, values))
    }

    /// The search, unless it asks for nothing (only extensions, which are not supported: NIP-50).
    pub fn words(&self) -> Option<&Search> {
        self.search.as_ref().filter(|search| search.is_condition())
    }

    /// How many ids, authors, kinds and tag values it names: what it costs to keep and to answer.
    pub fn values(&self) -> usize {
        fn count<T>(list: &Option<Vec<T>>) -> usize {
            list.as_ref().map_or(0, Vec::len)
        }
        // A long value costs as much memory as several.
        let cost = |value: &String| 1 + value.len() / 64;
        let tags: usize = self.tags.iter().flat_map(|(_, values)| values).map(cost).sum();
        count(&self.ids) + count(&self.authors) + count(&self.kinds) + tags
    }

    /// Whether nothing can match, whatever is stored.
    pub fn matches_nothing(&self) -> bool {
        self.ids.as_ref().is_some_and(Vec::is_empty)
            || self.authors.as_ref().is_some_and(Vec::is_empty)
            || self.kinds.as_ref().is_some_and(Vec::is_empty)
            || self.tags.iter().any(|(_, values)| values.is_empty())
            || matches!((self.since, self.until), (Some(since), Some(until)) if since > until)
    }
}

fn allows<T: Ord>(list: &Option<Vec<T>>, value: &T) -> bool {
    list.as_ref().is_none_or(|list| list.binary_search(value).is_ok())
}

fn has_tag(event: &Event, letter: u8, values: &[String]) -> bool {
    event.tags.iter().any(|tag| {
        matches!(tag.as_slice(), [name, value, ..]
            if name.as_bytes() == [letter] && values.binary_search(value).is_ok())
    })
}

impl Serialize for Filter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn texts<T: ToString>(list: &[T]) -> Vec<String> {
            list.iter().map(T::to_string).collect()
        }

        let mut map = serializer.serialize_map(None)?;
        if let Some(ids) = &self.ids {
            map.serialize_entry("ids", &texts(ids))?;
        }
        if let Some(authors) = &self.authors {
            map.serialize_entry("authors", &texts(authors))?;
        }
        if let Some(kinds) = &self.kinds {
            map.serialize_entry("kinds", kinds)?;
        }
        for (letter, values) in &self.tags {
            map.serialize_entry(&format!("#{}", char::from(*letter)), values)?;
        }
        if let Some(search) = &self.search {
            map.serialize_entry("search", search.as_str())?;
        }
        for (key, value) in [("since", self.since), ("until", self.until), ("limit", self.limit)] {
            if let Some(value) = value {
                map.serialize_entry(key, &value)?;
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FilterVisitor;

        impl<'de> Visitor<'de> for FilterVisitor {
            type Value = Filter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a filter object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Filter, A::Error> {
                let mut filter = Filter::default();
                while let Some(key) = map.next_key::<String>()? {
                    let named = |error: A::Error| A::Error::custom(format_args!("{key}: {error}"));
                    match key.as_str() {
                        "ids" => {
                            let texts: Vec<String> = map.next_value().map_err(named)?;
                            set(&mut filter.ids, &key, hex_list(texts, &key, EventId::parse)?)?;
                        }
                        "authors" => {
                            let texts: Vec<String> = map.next_value().map_err(named)?;
                            let list = hex_list(texts, &key, PublicKey::parse)?;
                            set(&mut filter.authors, &key, list)?;
                        }
                        "kinds" => {
                            // No event has a kind above 65535, so such a value cannot match.
                            let kinds: Vec<u64> = map.next_value().map_err(named)?;
                            let kinds =
                                kinds.into_iter().filter_map(|k| u16::try_from(k).ok()).collect();
                            set(&mut filter.kinds, &key, sorted(kinds))?;
                        }
                        "since" => set(&mut filter.since, &key, map.next_value().map_err(named)?)?,
                        "until" => set(&mut filter.until, &key, map.next_value().map_err(named)?)?,
                        "limit" => set(&mut filter.limit, &key, map.next_value().map_err(named)?)?,
                        "search" => {
                            let text: String = map.next_value().map_err(named)?;
                            let search = Search::parse(text).map_err(|error| {
                                A::Error::custom(format_args!("search: {error}"))
                            })?;
                            set(&mut filter.search, &key, search)?;
                        }
                        _ => match *key.as_bytes() {
                            [b'#', letter] if letter.is_ascii_alphabetic() => {
                                let values: Vec<String> = map.next_value().map_err(named)?;
                                if filter.tags.iter().any(|(known, _)| *known == letter) {
                                    return Err(twice(&key));
                                }
                                filter.tags.push((letter, sorted(values)));
                            }
                            _ => {
                                let short: String = key.chars().take(32).collect();
                                return Err(A::Error::custom(format_args!(
                                    "{UNSUPPORTED}{short:?}"
                                )));
                            }
                        },
                    }
                }
                filter.tags.sort();
                Ok(filter)
            }
        }

        fn twice<E: serde::de::Error>(key: &str) -> E {
            E::custom(format_args!("{key} occurs twice"))
        }

        fn set<T, E: serde::de::Error>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), E> {
            if slot.replace(value).is_some() { Err(twice(key)) } else { Ok(()) }
        }

        fn hex_list<T: Ord, E: serde::de::Error>(
            texts: Vec<String>,
            key: &str,
            parse: fn(&str) -> Option<T>,
        ) -> Result<Vec<T>, E> {
            let list: Option<Vec<T>> = texts.iter().map(|text| parse(text)).collect();
            list.map(sorted)
                .ok_or_else(|| E::custom(format_args!("{key}: want 64 lowercase hex digits each")))
        }

        fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
            list.sort_unstable();
            list.dedup();
            list
        }

        deserializer.deserialize_map(FilterVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_elements_and_wrong_shapes_are_told_apart() {
        assert!(matches!(Filter::parse(r##"{"#emoji":["x"]}"##), Err(FilterError::Unsupported(_))));
        let filter = Filter::parse(r#"{"search":"x"}"#).unwrap();
        assert_eq!(filter.search.as_ref().map(Search::as_str), Some("x"));
        assert_eq!(serde_json::to_string(&filter).unwrap(), r#"{"search":"x"}"#);
        assert!(filter.words().is_some());
        assert!(Filter::parse(r#"{"search":"language:en"}"#).unwrap().words().is_none());
        for bad in [
            r#"{"kinds":"1"}"#,
            r#"{"kinds":[-1]}"#,
            r#"{"ids":["abc"]}"#,
            r#"{"since":1.5}"#,
            r#"{"limit":1,"limit":2}"#,
            r#"{"search":7}"#,
            r#"{"search":"-x"}"#,
            "[]",
        ] {
            assert!(matches!(Filter::parse(bad), Err(FilterError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn an_empty_list_matches_nothing_and_an_empty_filter_everything() {
        assert!(Filter::parse(r#"{"ids":[]}"#).unwrap().matches_nothing());
        assert!(Filter::parse(r#"{"kinds":[70000]}"#).unwrap().matches_nothing());
        assert!(Filter::parse(r#"{"since":2,"until":1}"#).unwrap().matches_nothing());
        assert!(!Filter::parse("{}").unwrap().matches_nothing());
    }
}
