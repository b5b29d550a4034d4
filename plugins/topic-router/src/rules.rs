//! The rules themselves, without the gateway.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use nostr_gateway_plugin::Event;
use serde::Deserialize;

/// The most topics of a route, as the host has it.
const MOST_TOPICS: usize = 64;

/// The longest name of a topic, in bytes.
const NAME_BYTES: usize = 128;

/// `[config]`.
#[derive(Default)]
pub struct Settings {
    pub rules: Vec<Rule>,
    pub mode: Mode,
    pub otherwise: Option<Vec<String>>,
    pub keep: bool,
    pub visits: Option<Vec<String>>,
}

/// Which of the rules that fit count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    All,
    First,
}

/// One rule as it is written: all of its conditions must hold, and of each one entry.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Values by the tag's name; none mean that there is such a tag.
    tags: BTreeMap<String, Vec<String>>,
    kinds: Vec<u16>,
    authors: Vec<String>,
    topics: Vec<String>,
}

/// Where events go.
pub struct Rules {
    rules: Vec<Condition>,
    mode: Mode,
    otherwise: Option<Vec<String>>,
    /// What routing chose stays, too.
    keep: bool,
    /// Topics that may be joined by a visit; all when `None`.
    visits: Option<HashSet<String>>,
}

struct Condition {
    /// The tag's name and its values.
    tags: Vec<(String, HashSet<String>)>,
    kinds: HashSet<u16>,
    authors: HashSet<String>,
    topics: Vec<String>,
}

impl Rules {
    /// # Errors
    /// The text names the setting that is wrong.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let Settings { rules, mode, otherwise, keep, visits } = settings;
        for (index, name) in otherwise.iter().flatten().enumerate() {
            check_name(name).map_err(|why| format!("config.else[{index}]: {why}"))?;
        }
        let rules = rules.into_iter().enumerate().map(|(index, rule)| {
            rule.check().map_err(|why| format!("config.rules[{index}]{why}"))?;
            Ok(Condition::new(rule))
        });
        let rules: Vec<_> = rules.collect::<Result<_, String>>()?;
        let visits = visits.map(|names| names.into_iter().collect());
        Ok(Self { rules, mode, otherwise, keep, visits })
    }

    /// The topics of an event for which `usual` ones were chosen; `None` leaves it at those.
    pub fn topics(&self, event: &Event, usual: Vec<String>) -> Option<Vec<String>> {
        let mut fitting = self.rules.iter().filter(|rule| rule.fits(event)).peekable();
        let mut chosen: Vec<&String> = match (fitting.peek(), self.mode) {
            (None, _) => self.otherwise.as_ref()?.iter().collect(),
            (Some(first), Mode::First) => first.topics.iter().collect(),
            (Some(_), Mode::All) => fitting.flat_map(|rule| &rule.topics).collect(),
        };
        let mut topics = if self.keep { usual } else { Vec::new() };
        chosen.retain(|name| !topics.contains(name));
        for name in chosen {
            if topics.len() < MOST_TOPICS && !topics.contains(name) {
                topics.push(name.clone());
            }
        }
        Some(topics)
    }

    pub fn may_visit(&self, topic: &str) -> bool {
        self.visits.as_ref().is_none_or(|names| names.contains(topic))
    }
}

impl Rule {
    /// The text stands after the rule's place.
    fn check(&self) -> Result<(), String> {
        if self.tags.is_empty() && self.kinds.is_empty() && self.authors.is_empty() {
            return Err(": want tags, kinds or authors; for all others there is else".to_owned());
        }
        if self.topics.len() > MOST_TOPICS {
            return Err(format!(".topics: want at most {MOST_TOPICS}"));
        }
        for (index, name) in self.topics.iter().enumerate() {
            check_name(name).map_err(|why| format!(".topics[{index}]: {why}"))?;
        }
        let is_key =
            |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match self.authors.iter().position(|author| !is_key(author)) {
            Some(index) => {
                Err(format!(".authors[{index}]: want a public key of 64 hexadecimal digits"))
            }
            None => Ok(()),
        }
    }
}

/// What the host takes for a topic's name; another would make each call fail.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty()
        || name.len() > NAME_BYTES
        || name.trim() != name
        || name.chars().any(char::is_control)
    {
        return Err(format!(
            "want the name of a topic: 1 to {NAME_BYTES} bytes, without control characters, and no \
             white space at its ends"
        ));
    }
    Ok(())
}

impl Condition {
    fn new(rule: Rule) -> Self {
        let tag = |(name, values): (String, Vec<String>)| {
            let values = values.iter().map(|value| comparable(&name, value)).collect();
            (name, values)
        };
        Self {
            tags: rule.tags.into_iter().map(tag).collect(),
            kinds: rule.kinds.into_iter().collect(),
            authors: rule.authors.iter().map(|author| author.to_lowercase()).collect(),
            topics: rule.topics,
        }
    }

    fn fits(&self, event: &Event) -> bool {
        let has = |(name, values): &(String, HashSet<String>)| {
            event.tags.iter().any(|tag| match tag.as_slice() {
                [own, rest @ ..] if own == name => {
                    let value = rest.first().map(|value| comparable(name, value));
                    values.is_empty() || value.is_some_and(|value| values.contains(&value))
                }
                _ => false,
            })
        };
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.authors.is_empty() || self.authors.contains(&event.pubkey))
            && self.tags.iter().all(has)
    }
}

/// Hashtags are the same in any case (NIP-24); other values are not.
fn comparable(name: &str, value: &str) -> String {
    if name == "t" { value.to_lowercase() } else { value.to_owned() }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules", self.rules.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn event(kind: u16, pubkey: &str, tags: &[&[&str]]) -> Event {
        Event {
            id: String::new(),
            pubkey: pubkey.repeat(32),
            created_at: 1,
            kind,
            tags: tags.iter().map(|tag| owned(tag)).collect(),
            content: String::new(),
            sig: String::new(),
        }
    }

    fn rule(tags: &[(&str, &[&str])], kinds: &[u16], authors: &[&str], topics: &[&str]) -> Rule {
        Rule {
            tags: tags.iter().map(|(name, values)| (name.to_string(), owned(values))).collect(),
            kinds: kinds.to_vec(),
            authors: authors.iter().map(|pair| pair.repeat(32)).collect(),
            topics: owned(topics),
        }
    }

    fn routed(rules: &Rules, event: &Event) -> Option<Vec<String>> {
        rules.topics(event, owned(&["usual"]))
    }

    fn settings() -> Settings {
        Settings {
            rules: vec![
                rule(&[("t", &["Nostr", "bitcoin"])], &[1], &[], &["nostr"]),
                rule(&[], &[], &["AA"], &["alice", "friends"]),
                rule(&[("e", &[]), ("p", &[])], &[7, 16], &[], &["talk"]),
            ],
            ..Settings::default()
        }
    }

    #[test]
    fn events_go_where_rules_that_fit_say() {
        let rules = Rules::new(settings()).unwrap();
        let topics = |event: Event| routed(&rules, &event).unwrap_or_default().join(" ");
        assert_eq!(topics(event(1, "bb", &[&["t", "noSTR", "x"]])), "nostr");
        assert_eq!(topics(event(1, "bb", &[&["p", "x"], &["t", "bitcoin"]])), "nostr");
        assert_eq!(topics(event(1, "aa", &[&["t", "nostr"]])), "nostr alice friends");
        assert_eq!(topics(event(7, "bb", &[&["e"], &["p", "y"]])), "talk");
        for other in [
            event(2, "bb", &[&["t", "nostr"]]),
            event(1, "bb", &[&["t", "nostrich"], &["t"], &["r", "nostr"], &[]]),
            event(7, "bb", &[&["e", "x"]]),
        ] {
            assert_eq!(routed(&rules, &other), None, "left to others: {other:?}");
        }
    }

    #[test]
    fn the_first_alone_or_all() {
        let rules = Rules::new(Settings { mode: Mode::First, ..settings() }).unwrap();
        let both = event(1, "aa", &[&["t", "nostr"]]);
        assert_eq!(routed(&rules, &both), Some(owned(&["nostr"])));
    }

    #[test]
    fn others_go_elsewhere() {
        let otherwise = Some(owned(&["rest"]));
        let rules = Rules::new(Settings { otherwise, ..settings() }).unwrap();
        assert_eq!(routed(&rules, &event(1, "bb", &[])), Some(owned(&["rest"])));
        assert_eq!(routed(&rules, &event(1, "aa", &[])), Some(owned(&["alice", "friends"])));
        let rules = Rules::new(Settings { otherwise: Some(vec![]), ..settings() }).unwrap();
        assert_eq!(routed(&rules, &event(1, "bb", &[])), Some(vec![]), "nowhere");
    }

    #[test]
    fn what_routing_chose_may_stay() {
        let rules = Rules::new(Settings { keep: true, ..settings() }).unwrap();
        let tagged = event(1, "bb", &[&["t", "nostr"]]);
        assert_eq!(routed(&rules, &tagged), Some(owned(&["usual", "nostr"])));
        let topics = rules.topics(&tagged, owned(&["nostr", "x"]));
        assert_eq!(topics, Some(owned(&["nostr", "x"])), "each once");
    }

    #[test]
    fn a_route_has_only_so_many_topics() {
        let many = |from: usize| (from..from + 60).map(|n| format!("topic{n}")).collect::<Vec<_>>();
        let fits_all = |topics| Rule { kinds: vec![1], topics, ..Rule::default() };
        let rules = vec![fits_all(many(0)), fits_all(many(50))];
        let rules = Rules::new(Settings { rules, ..Settings::default() }).unwrap();
        assert_eq!(routed(&rules, &event(1, "bb", &[])).unwrap().len(), 64);
    }

    #[test]
    fn visits_are_for_what_is_listed() {
        assert!(Rules::new(settings()).unwrap().may_visit("anything"));
        let rules = Rules::new(Settings { visits: Some(owned(&["nostr"])), ..settings() }).unwrap();
        assert!(rules.may_visit("nostr") && !rules.may_visit("anything"));
    }

    #[test]
    fn a_wrong_rule_is_named() {
        let error = |rule| {
            let rules = vec![Rule { kinds: vec![1], ..Rule::default() }, rule];
            Rules::new(Settings { rules, ..Settings::default() }).err().unwrap()
        };
        assert!(error(rule(&[], &[], &[], &["x"])).starts_with("config.rules[1]: want tags"));
        assert!(
            error(rule(&[], &[1], &[], &["x", " y"])).starts_with("config.rules[1].topics[1]: ")
        );
        assert!(error(rule(&[], &[1], &["x"], &[])).starts_with("config.rules[1].authors[0]: "));
        let otherwise = Some(owned(&[""]));
        let error = Rules::new(Settings { otherwise, ..Settings::default() }).err().unwrap();
        assert!(error.starts_with("config.else[0]: want the name of a topic"), "{error}");
    }
}
