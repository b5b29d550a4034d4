//! Refuses events that mention too many people: one note, a thousand notifications.

use std::collections::HashSet;

use nostr_gateway_plugin::{Context, Event, EventFilter, Verdict, config, export_event_filter};

const DEFAULT_MOST: usize = 20;

struct Mentions {
    most: usize,
}

impl EventFilter for Mentions {
    fn init() -> Result<Self, String> {
        match config::optional("most") {
            Ok(Some(0)) | Err(_) => Err("config.most: want a number from 1 on".to_owned()),
            Ok(most) => Ok(Self { most: most.unwrap_or(DEFAULT_MOST) }),
        }
    }

    fn evaluate(&mut self, event: Event, _context: Context) -> Verdict {
        match too_many(&event.tags, self.most) {
            None => Verdict::Accept,
            Some(people) => {
                Verdict::Reject(format!("mentions {people} people, more than {}", self.most))
            }
        }
    }
}

/// How many people are mentioned, if they are more than that.
fn too_many(tags: &[Vec<String>], most: usize) -> Option<usize> {
    let mentioned: HashSet<&str> = tags
        .iter()
        .filter_map(|tag| match tag.as_slice() {
            [name, key, ..] if name == "p" => Some(key.as_str()),
            _ => None,
        })
        .collect();
    Some(mentioned.len()).filter(|people| *people > most)
}

export_event_filter!(Mentions);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_person_counts_once() {
        let tag = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut tags = vec![tag(&[]), tag(&["p"]), tag(&["t", "p"])];
        for key in ["a", "b", "c"] {
            tags.extend([tag(&["p", key]), tag(&["p", key, "wss://x"])]);
        }
        assert_eq!(too_many(&tags, 3), None);
        assert_eq!(too_many(&tags, 2), Some(3));
    }
}
