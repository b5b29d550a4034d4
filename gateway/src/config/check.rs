//! From the merged layers to a [`Config`], with everything that is wrong on the way.

use std::collections::BTreeSet;

use figment::value::{Dict, Value};

use super::{
    Config,
    errors::Problem,
    keys::{self, Section},
    validate,
};

/// Reads the configuration from a tree. Where there are problems, the configuration has defaults in
/// their place and is of no use but to find further problems.
pub(super) fn read(tree: &Dict) -> (Config, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut clean = defaults();
    for (name, value) in tree {
        let Some(section) = keys::section(name) else {
            problems.push(Problem::new(name, unknown_section(name)));
            continue;
        };
        match (section.list, value) {
            (false, Value::Dict(_, given)) => {
                if let Some(Value::Dict(_, target)) = clean.get_mut(name) {
                    read_table(name, section, given, target, &mut problems);
                }
            }
            (true, Value::Array(_, list)) => {
                let list = list.iter().enumerate().map(|(index, element)| {
                    read_element(&format!("{name}[{index}]"), section, element, &mut problems)
                });
                let list: Vec<Value> = list.collect();
                clean.insert(name.clone(), list.into());
            }
            (_, other) => {
                let text =
                    format!("{} stands here; write {}", keys::shown(other), section.header());
                problems.push(Problem::new(name, text));
            }
        }
    }
    let config = match Value::from(clean).deserialize::<Config>() {
        Ok(config) => config,
        // The checks above cover every key; this speaks up when a new one was forgotten.
        Err(error) => {
            problems.push(Problem::new(error.path.join("."), error.kind.to_string()));
            Config::default()
        }
    };
    let wrong: BTreeSet<String> = problems.iter().map(|problem| problem.key.clone()).collect();
    let consequence = |problem: &Problem| {
        problem.involved().any(|key| wrong.iter().any(|wrong| related(wrong, key)))
    };
    problems.extend(validate::across(&config).into_iter().filter(|p| !consequence(p)));
    (config, problems)
}

/// Whether one key is the other or lies within it.
fn related(a: &str, b: &str) -> bool {
    let within = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(a, b) || within(b, a)
}

/// [`Config::default`] as a tree.
pub(super) fn defaults() -> Dict {
    tree_of(&Config::default())
}

/// A configuration as a tree.
pub(super) fn tree_of(config: &Config) -> Dict {
    let tree = Value::serialize(config).ok().and_then(Value::into_dict);
    // Only a path that is not UTF-8 could fail, and none is read from anything but UTF-8.
    tree.expect("a configuration can be written down")
}

fn read_table(
    path: &str,
    section: &Section,
    given: &Dict,
    target: &mut Dict,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in given {
        let path = format!("{path}.{name}");
        let Some(key) = section.key(name) else {
            problems.push(Problem::new(path, keys::unknown_key(name, section.keys)));
            continue;
        };
        let wrong = key.form.problems(value);
        if wrong.is_empty() {
            target.insert(name.clone(), value.clone());
        }
        let wrong = wrong.into_iter();
        problems.extend(wrong.map(|(place, text)| Problem::new(format!("{path}{place}"), text)));
    }
}

/// One table of a `[[…]]` section. What is wrong or missing in it is filled in, so that the others
/// keep their places.
fn read_element(
    path: &str,
    section: &Section,
    element: &Value,
    problems: &mut Vec<Problem>,
) -> Value {
    let mut table = match section.name {
        "route" => Dict::from([
            ("filter".to_owned(), Dict::new().into()),
            ("topics".to_owned(), Vec::<Value>::new().into()),
        ]),
        "retention" => Dict::new(),
        // Also of an upstream: that it has neither relays nor follows is said where both are known.
        _ => Dict::from([("name".to_owned(), "?".into())]),
    };
    let Value::Dict(_, given) = element else {
        let text = format!("{} stands here; write {}", keys::shown(element), section.header());
        problems.push(Problem::new(path, text));
        return table.into();
    };
    for key in section.keys.iter().filter(|key| key.required && !given.contains_key(key.name)) {
        let text = format!("missing; every {} has one", section.header());
        problems.push(Problem::new(format!("{path}.{}", key.name), text));
    }
    read_table(path, section, given, &mut table, problems);
    table.into()
}

fn unknown_section(name: &str) -> String {
    let holders: Vec<&Section> =
        keys::SECTIONS.iter().filter(|section| section.key(name).is_some()).collect();
    if let [section, ..] = holders.as_slice() {
        return format!("this key belongs under {}", section.header());
    }
    let names: Vec<&str> = keys::SECTIONS.iter().map(|section| section.name).collect();
    match closest(name, &names) {
        Some(close) => format!("unknown section; did you mean {close}?"),
        None => format!("unknown section; allowed: {}", names.join(", ")),
    }
}

/// The name that was probably meant.
pub(super) fn closest<'a>(given: &str, names: &[&'a str]) -> Option<&'a str> {
    let best = names.iter().map(|name| (distance(given, name), *name)).min()?;
    // Two slips, or a third of a short name.
    (best.0 <= 2.min(given.len() / 3).max(1)).then_some(best.1)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_recognised_and_others_are_not() {
        assert_eq!(closest("listn", &["listen", "name"]), Some("listen"));
        assert_eq!(closest("max_filter", &["max_filters", "max_limit"]), Some("max_filters"));
        assert_eq!(closest("port", &["listen", "name"]), None);
        assert_eq!(closest("x", &[]), None);
    }

    #[test]
    fn a_key_is_related_to_what_it_holds() {
        assert!(related("upstream[0]", "upstream[0].name"));
        assert!(related("topics.join[1]", "topics.join"));
        assert!(!related("upstream[1]", "upstream[10]"));
        assert!(!related("relay.name", "relay.names"));
    }

    #[test]
    fn every_key_of_the_configuration_has_a_form() {
        let mut tree = defaults();
        let upstream = crate::upstream::config::UpstreamConfig {
            name: String::new(),
            urls: Vec::new(),
            follow: Vec::new(),
            direction: Default::default(),
            filter: Default::default(),
            topics: Vec::new(),
            history: Some(crate::upstream::config::History::All),
            plugins: Some(Vec::new()),
            auth: false,
            rates: Default::default(),
            max_relays: 1,
            relays_per_author: 1,
            discover: Vec::new(),
            fallback: Vec::new(),
            allow_private_relays: false,
            allow_onion_relays: false,
        };
        let route =
            crate::pipeline::config::RouteConfig { filter: Default::default(), topics: Vec::new() };
        let private = crate::pipeline::config::PrivateTopicConfig {
            name: crate::protocol::TopicName::new("x").unwrap(),
            readers: Vec::new(),
        };
        tree.insert("private_topic".to_owned(), Value::serialize(private).unwrap());
        let retention = crate::store::config::RetentionConfig::default();
        tree.insert("retention".to_owned(), Value::serialize(retention).unwrap());
        tree.insert("upstream".to_owned(), Value::serialize(upstream).unwrap());
        tree.insert("route".to_owned(), Value::serialize(route).unwrap());
        for (name, table) in &tree {
            let section = keys::section(name).unwrap_or_else(|| panic!("{name}"));
            let mut fields: Vec<&str> =
                table.as_dict().unwrap().keys().map(String::as_str).collect();
            let mut known: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
            fields.sort_unstable();
            known.sort_unstable();
            assert_eq!(fields, known, "[{name}]");
        }
        assert_eq!(tree.len(), keys::SECTIONS.len());
    }
}
