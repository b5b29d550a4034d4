//! What differs between two configurations.

use figment::value::Value;

use super::{Config, check, keys};

/// The keys whose values differ, in the order of the annotated default: `relay.listen`, or `route` for a
/// list of tables. Streams (`[[upstream]]`) are left out: they change while the gateway runs.
pub fn needing_restart(former: &Config, next: &Config) -> Vec<String> {
    let (former, next) = (check::tree_of(former), check::tree_of(next));
    let mut names = Vec::new();
    for section in keys::SECTIONS.iter().filter(|section| section.name != "upstream") {
        let both = [&former, &next].map(|tree| tree.get(section.name));
        match both {
            [Some(Value::Dict(_, former)), Some(Value::Dict(_, next))] => {
                let differing =
                    section.keys.iter().filter(|key| former.get(key.name) != next.get(key.name));
                names.extend(differing.map(|key| format!("{}.{}", section.name, key.name)));
            }
            [former, next] if former != next => names.push(section.name.to_owned()),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_do_not_need_a_restart_and_all_else_does() {
        let former = Config::default();
        let mut next = former.clone();
        assert!(needing_restart(&former, &next).is_empty());
        next.upstream = vec![
            serde_json::from_value(serde_json::json!({ "name": "a", "urls": ["wss://a"] }))
                .unwrap(),
        ];
        assert!(needing_restart(&former, &next).is_empty());
        next.relay.name = "another".to_owned();
        next.limits.min_pow = 7;
        next.retention.push(Default::default());
        assert_eq!(needing_restart(&former, &next), ["relay.name", "limits.min_pow", "retention"]);
    }
}
