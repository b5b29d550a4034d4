//! Makes up the events that are published, in the proportions in which relays hold them.

use std::collections::{HashSet, VecDeque};

use super::{
    dataset::{Facts, Spec, Unsigned, json, keypair, unsigned},
    random::{Random, Zipf},
};
use crate::protocol::hex;

const HASHTAGS: usize = 300;
const WORDS: usize = 4_000;
/// Notes that replies and reactions choose from. Conversations are about what is new.
const RECENT: usize = 3_000;
/// Notes at a time that everybody answers.
const HOT: usize = 40;
/// Events between two replaceable ones of an author. Connections overtake one another by what they
/// have in flight; an older version behind a newer one would be refused.
const REPLACEABLE_GAP: u64 = 50_000;
/// Facts of each sort that are kept for the queries, however large the set is.
const SAMPLES: u64 = 20_000;

/// A note that others refer to.
#[derive(Clone)]
struct Note {
    id: String,
    author: usize,
}

/// Makes the events of a set, in the order of `created_at`.
pub struct Generator {
    spec: Spec,
    random: Random,
    made: u64,
    by_activity: Zipf,
    by_use: Zipf,
    by_frequency: Zipf,
    recent: VecDeque<Note>,
    hot: Vec<Note>,
    /// Which event was an author's last replaceable one.
    replaced: Vec<Option<u64>>,
    facts: Facts,
}

impl Generator {
    pub fn new(spec: Spec) -> Self {
        let mut random = Random::new(spec.seed);
        let words = words(&mut random, WORDS);
        let hashtags = words.iter().rev().take(HASHTAGS).cloned().collect();
        let authors = (0..spec.authors)
            .map(|author| {
                let key = keypair(spec.seed, author).x_only_public_key().0;
                hex::encode(&key.serialize())
            })
            .collect();
        Self {
            by_activity: Zipf::new(spec.authors as usize, 0.8),
            by_use: Zipf::new(HASHTAGS, 0.9),
            by_frequency: Zipf::new(WORDS, 1.0),
            random,
            made: 0,
            recent: VecDeque::new(),
            hot: Vec::new(),
            replaced: vec![None; spec.authors as usize],
            facts: Facts {
                spec: spec.clone(),
                bytes: 0,
                authors,
                hashtags,
                words,
                ids: Vec::new(),
                answered: Vec::new(),
                pairs: Vec::new(),
            },
            spec,
        }
    }

    /// What the queries need to know of the events made so far.
    pub fn facts(self) -> Facts {
        self.facts
    }

    /// Whether this event is one of those whose facts are kept.
    fn is_sampled(&self) -> bool {
        self.made.is_multiple_of((self.spec.events / SAMPLES).max(1))
    }

    fn kind(&mut self, author: usize) -> u16 {
        let kind = match self.random.below(1000) {
            0..700 => 1,
            700..770 => 6,
            770..970 => 7,
            970..980 => 0,
            980..985 => 3,
            985..995 => 16,
            _ => 30_023,
        };
        if matches!(kind, 0 | 3) {
            let last = self.replaced[author];
            if last.is_some_and(|last| self.made - last < REPLACEABLE_GAP) {
                return 1;
            }
            self.replaced[author] = Some(self.made);
        }
        if matches!(kind, 6 | 7 | 16) && self.recent.is_empty() { 1 } else { kind }
    }

    /// A note to answer or react to: often one that many others answer.
    fn target(&mut self) -> Note {
        if !self.hot.is_empty() && self.random.chance(0.4) {
            return self.random.pick(&self.hot).clone();
        }
        let at = self.random.below(self.recent.len());
        self.recent[at].clone()
    }

    fn sentence(&mut self, words: usize) -> String {
        let mut text = String::with_capacity(words * 8);
        for _ in 0..words {
            if !text.is_empty() {
                text.push(' ');
            }
            let rank = self.by_frequency.sample(&mut self.random);
            text.push_str(&self.facts.words[rank]);
        }
        text
    }

    fn next_event(&mut self) -> Unsigned {
        let author = self.by_activity.sample(&mut self.random);
        let kind = self.kind(author);
        let mut tags: Vec<Vec<String>> = Vec::new();
        let content = match kind {
            0 => {
                let name = self.sentence(1);
                let about = self.sentence(12);
                serde_json::json!({ "name": name, "about": about, "nip05": format!("{name}@example.org") })
                    .to_string()
            }
            3 => {
                for _ in 0..20 + self.random.below(60) {
                    let followed = self.by_activity.sample(&mut self.random);
                    tags.push(vec!["p".to_owned(), self.facts.authors[followed].clone()]);
                }
                String::new()
            }
            6 | 16 => {
                self.refer(&mut tags, &[""]);
                if kind == 16 {
                    tags.push(vec!["k".to_owned(), "1".to_owned()]);
                }
                String::new()
            }
            7 => {
                self.refer(&mut tags, &[""]);
                (*self.random.pick(&["+", "+", "🤙", "❤️", "🔥"])).to_owned()
            }
            30_023 => {
                tags.push(vec!["d".to_owned(), format!("article-{}", self.made)]);
                tags.push(vec!["title".to_owned(), self.sentence(5)]);
                self.add_hashtags(author, &mut tags, 2);
                let words = 150 + self.random.below(250);
                self.sentence(words)
            }
            _ => {
                if !self.recent.is_empty() && self.random.chance(0.5) {
                    self.refer(&mut tags, &["root"]);
                    if self.random.chance(0.3) {
                        self.refer(&mut tags, &["reply"]);
                    }
                }
                let count = *self.random.pick(&[0, 0, 1, 1, 2, 3]);
                self.add_hashtags(author, &mut tags, count);
                let words = 4 + self.random.below(30);
                self.sentence(words)
            }
        };
        let tags = json(&tags);
        let content = json(&content);
        let pubkey = &self.facts.authors[author];
        unsigned(author as u32, pubkey, self.spec.created_at(self.made), kind, &tags, &content)
    }

    /// Tags that refer to a note and its author (NIP-10, NIP-18, NIP-25).
    fn refer(&mut self, tags: &mut Vec<Vec<String>>, markers: &[&str]) {
        for marker in markers {
            let note = self.target();
            let mut tag = vec!["e".to_owned(), note.id.clone()];
            if !marker.is_empty() {
                tag.extend([String::new(), (*marker).to_owned()]);
            }
            tags.push(tag);
            tags.push(vec!["p".to_owned(), self.facts.authors[note.author].clone()]);
            if self.is_sampled() {
                self.facts.answered.push(note.id);
            }
        }
    }

    fn add_hashtags(&mut self, author: usize, tags: &mut Vec<Vec<String>>, count: usize) {
        for _ in 0..count {
            let rank = self.by_use.sample(&mut self.random);
            tags.push(vec!["t".to_owned(), self.facts.hashtags[rank].clone()]);
            if self.is_sampled() {
                self.facts.pairs.push((author as u32, rank as u32));
            }
        }
    }

    fn remember(&mut self, event: &Unsigned) {
        let id = hex::encode(&event.id);
        if self.is_sampled() {
            self.facts.ids.push(id.clone());
        }
        // The signature and its end are 131 bytes; the message around the event is not counted.
        self.facts.bytes += (event.head.len() - "[\"EVENT\",".len() + 130) as u64;
        let note = Note { id, author: event.author as usize };
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(note.clone());
        // Attention wanders: a hot note gives way after about 25 events times HOT.
        if self.hot.len() < HOT {
            self.hot.push(note);
        } else if self.random.chance(0.04) {
            let place = self.random.below(HOT);
            self.hot[place] = note;
        }
    }
}

impl Iterator for Generator {
    type Item = Unsigned;

    fn next(&mut self) -> Option<Unsigned> {
        if self.made == self.spec.events {
            return None;
        }
        let event = self.next_event();
        self.remember(&event);
        self.made += 1;
        Some(event)
    }
}

/// Different words that can be pronounced, so that a search index has whole words to find.
fn words(random: &mut Random, count: usize) -> Vec<String> {
    const ONSETS: [&str; 20] = [
        "b", "br", "d", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t",
        "tr", "v", "z",
    ];
    const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ea", "ou"];
    const ENDS: [&str; 6] = ["", "", "n", "r", "s", "l"];
    let mut seen = HashSet::new();
    let mut words = Vec::with_capacity(count);
    while words.len() < count {
        let mut word = String::new();
        for _ in 0..*random.pick(&[1, 2, 2, 2, 3]) {
            word += *random.pick(&ONSETS);
            word += *random.pick(&VOWELS);
        }
        word += *random.pick(&ENDS);
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{super::dataset::sign, *};
    use crate::protocol::{Event, VerifiedEvent};

    fn spec(events: u64) -> Spec {
        Spec { version: Spec::VERSION, seed: 5, events, authors: 300, ends_at: 1_800_000_000 }
    }

    fn event(unsigned: &Unsigned, seed: u64) -> Event {
        let mut line = String::new();
        sign(unsigned, &keypair(seed, unsigned.author), &mut line);
        let text = line.strip_prefix("[\"EVENT\",").and_then(|rest| rest.strip_suffix("]\n"));
        let text = text.unwrap();
        let event = Event::parse(text).unwrap();
        assert_eq!(&**event.json(), text, "the message carries the canonical form");
        event
    }

    #[test]
    fn events_follow_from_the_seed_and_verify() {
        let lines = |spec: Spec| -> Vec<String> {
            Generator::new(spec).map(|unsigned| unsigned.head).collect()
        };
        assert_eq!(lines(spec(50)), lines(spec(50)));
        assert_ne!(lines(spec(50)), lines(Spec { seed: 6, ..spec(50) }));
        for unsigned in Generator::new(spec(50)) {
            VerifiedEvent::verify(event(&unsigned, 5)).unwrap();
        }
    }

    #[test]
    fn the_set_has_the_shape_of_a_relays_events() {
        let mut generator = Generator::new(spec(20_000));
        let (mut bytes, mut last) = (0, 0);
        let mut kinds: HashMap<u16, usize> = HashMap::new();
        let mut authors: HashMap<String, usize> = HashMap::new();
        let mut hashtags: HashMap<String, usize> = HashMap::new();
        let (mut ids, mut answers) = (HashSet::new(), 0);
        for unsigned in generator.by_ref() {
            let event = event(&Unsigned { author: 0, ..unsigned }, 5);
            bytes += event.json().len();
            assert!(event.created_at >= last, "created_at rises");
            last = event.created_at;
            *kinds.entry(event.kind).or_default() += 1;
            *authors.entry(event.pubkey.to_string()).or_default() += 1;
            for tag in event.tag_values("t") {
                *hashtags.entry(tag.to_owned()).or_default() += 1;
            }
            for id in event.tag_values("e") {
                answers += 1;
                assert!(ids.contains(id), "only what exists is answered");
            }
            assert!(ids.insert(event.id.to_string()));
        }
        assert_eq!(last, 1_800_000_000);
        let mean = bytes / 20_000;
        assert!((540..600).contains(&mean), "mean size {mean}");
        assert!(kinds[&1] > 13_000 && kinds[&7] > 3_500, "{kinds:?}");
        assert!([0, 3, 6, 16, 30_023].iter().all(|kind| kinds[kind] > 20), "{kinds:?}");
        assert!(answers > 8_000, "{answers}");
        assert!(authors.len() > 290 && *authors.values().max().unwrap() > 400);
        assert!(hashtags.len() > 290 && *hashtags.values().max().unwrap() > 1_000);

        let facts = generator.facts();
        assert_eq!(facts.bytes, bytes as u64);
        assert_eq!(facts.ids.len(), 20_000);
        assert!(facts.answered.iter().all(|id| ids.contains(id)));
        assert!(facts.pairs.len() > 5_000);
    }

    #[test]
    fn facts_of_a_large_set_stay_small() {
        let mut generator = Generator::new(spec(70_000));
        assert_eq!(generator.by_ref().count(), 70_000);
        let facts = generator.facts();
        assert!(facts.ids.len() < 2 * SAMPLES as usize);
        assert!(facts.pairs.len() < 3 * SAMPLES as usize);
    }
}
