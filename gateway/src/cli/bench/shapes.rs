//! The questions that are asked: made before the clock starts, from what the relay holds.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{dataset::Facts, random::Random};

/// Questions of a small shape that are made in advance; they are asked in turn.
const SMALL_POOL: usize = 2_048;
/// The same for those of many kilobytes.
const LARGE_POOL: usize = 256;

/// The subscription id of every question.
pub const SUBSCRIPTION: &str = "bench";

/// One sort of question.
pub struct Shape {
    pub name: &'static str,
    pub reqs: Vec<Utf8Bytes>,
}

/// Shapes that are asked and reported together.
pub type Group = (&'static str, Vec<Shape>);

/// Each shape as a group of its own.
pub fn alone(shapes: Vec<Shape>) -> Vec<Group> {
    shapes.into_iter().map(|shape| (shape.name, vec![shape])).collect()
}

impl Shape {
    fn new(name: &'static str, count: usize, mut filter: impl FnMut() -> Value) -> Self {
        let reqs = (0..count).map(|_| req(SUBSCRIPTION, &filter())).collect();
        Self { name, reqs }
    }
}

/// A REQ with one filter.
pub fn req(subscription: &str, filter: &Value) -> Utf8Bytes {
    json!(["REQ", subscription, filter]).to_string().into()
}

/// By id; author and kind; hashtag; kind.
pub fn mixed(facts: &Facts) -> Vec<Shape> {
    let random = &mut Random::new(facts.spec.seed ^ 0x6d69_7865);
    let hashtags = &facts.hashtags[..facts.hashtags.len().min(100)];
    vec![
        Shape::new("by id", SMALL_POOL, || json!({ "ids": [random.pick(&facts.ids)] })),
        Shape::new(
            "author + kind, limit 20",
            SMALL_POOL,
            || json!({ "authors": [random.pick(&facts.authors)], "kinds": [1], "limit": 20 }),
        ),
        Shape::new(
            "#t, limit 50",
            SMALL_POOL,
            || json!({ "#t": [random.pick(hashtags)], "limit": 50 }),
        ),
        Shape::new("kind 1, limit 100", 1, || json!({ "kinds": [1], "limit": 100 })),
    ]
}

/// What clients really ask, without the mix.
pub fn clients(facts: &Facts) -> Vec<Shape> {
    let random = &mut Random::new(facts.spec.seed ^ 0x636c_6965);
    let mut shapes =
        vec![Shape::new("home feed, 500 authors × 5 kinds, limit 100", LARGE_POOL, || {
            let authors = some(random, &facts.authors, 500);
            json!({ "authors": authors, "kinds": [1, 6, 7, 16, 30_023], "limit": 100 })
        })];
    if !facts.answered.is_empty() {
        shapes.push(Shape::new("thread, 200 × #e, limit 500", LARGE_POOL, || {
            // What one screen shows: neighbours in time, of which some are answered often.
            let mut ids = window(random, &facts.ids, 180);
            ids.extend(window(random, &facts.answered, 20));
            ids.sort();
            ids.dedup();
            json!({ "#e": ids, "limit": 500 })
        }));
    }
    shapes.push(Shape::new("since, kind 1, limit 500", SMALL_POOL, || {
        // What came while a client was away: up to about 300 events.
        let since =
            facts.spec.created_at(facts.spec.events.saturating_sub(random.below(300) as u64 + 1));
        json!({ "kinds": [1], "since": since, "limit": 500 })
    }));
    if !facts.pairs.is_empty() {
        shapes.push(Shape::new("hashtag + author, limit 20", SMALL_POOL, || {
            let (author, hashtag) = *random.pick(&facts.pairs);
            let author = &facts.authors[author as usize];
            let hashtag = &facts.hashtags[hashtag as usize];
            json!({ "#t": [hashtag], "authors": [author], "limit": 20 })
        }));
    }
    shapes
}

/// Words, alone and in pairs (NIP-50).
pub fn search(facts: &Facts) -> Vec<Shape> {
    let random = &mut Random::new(facts.spec.seed ^ 0x7365_6172);
    // The most frequent words are no question anybody asks, the rarest find nothing in a small set.
    let words = &facts.words[20.min(facts.words.len() - 1)..facts.words.len().min(1_500)];
    vec![
        Shape::new(
            "one word, limit 20",
            SMALL_POOL,
            || json!({ "search": random.pick(words), "kinds": [1], "limit": 20 }),
        ),
        Shape::new("two words, limit 20", SMALL_POOL, || {
            let text = format!("{} {}", random.pick(words), random.pick(words));
            json!({ "search": text, "kinds": [1], "limit": 20 })
        }),
    ]
}

/// So many that follow one another, from anywhere.
fn window<'a>(random: &mut Random, all: &'a [String], count: usize) -> Vec<&'a String> {
    let start = random.below(all.len());
    all.iter().cycle().skip(start).take(count.min(all.len())).collect()
}

/// So many different ones, or all if there are fewer.
fn some<'a>(random: &mut Random, all: &'a [String], count: usize) -> Vec<&'a String> {
    let mut chosen: Vec<&String> = all.iter().collect();
    let count = count.min(chosen.len());
    for place in 0..count {
        let other = place + random.below(chosen.len() - place);
        chosen.swap(place, other);
    }
    chosen.truncate(count);
    chosen
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            dataset::{Facts, Spec},
            generator::Generator,
        },
        *,
    };
    use crate::protocol::{
        Filter,
        message::{self, ClientMessage},
    };

    fn facts(events: u64, authors: u32) -> Facts {
        let spec =
            Spec { version: Spec::VERSION, seed: 5, events, authors, ends_at: 1_800_000_000 };
        let mut generator = Generator::new(spec);
        generator.by_ref().count();
        generator.facts()
    }

    fn filters(shape: &Shape) -> Vec<Filter> {
        let filters = shape.reqs.iter().map(|req| match message::parse(req, 1).unwrap() {
            ClientMessage::Req { subscription, mut filters } => {
                assert_eq!(subscription, SUBSCRIPTION);
                filters.remove(0)
            }
            other => panic!("{}: {other:?}", shape.name),
        });
        filters.collect()
    }

    #[test]
    fn the_questions_are_those_that_are_documented() {
        let facts = facts(5_000, 1_000);
        let [feed, thread, since, tagged] = &clients(&facts)[..] else { panic!() };
        for filter in filters(feed) {
            // Reading a filter removes what is there twice.
            assert_eq!(filter.authors.unwrap().len(), 500);
            assert_eq!((filter.kinds.unwrap().len(), filter.limit), (5, Some(100)));
        }
        for filter in filters(thread) {
            let [(b'e', ids)] = &filter.tags[..] else { panic!("{filter:?}") };
            assert!((150..=200).contains(&ids.len()), "{}", ids.len());
        }
        let oldest = facts.spec.created_at(4_700);
        for filter in filters(since) {
            assert!((oldest..=facts.spec.ends_at).contains(&filter.since.unwrap()));
        }
        for filter in filters(tagged) {
            assert_eq!((filter.tags.len(), filter.authors.unwrap().len()), (1, 1));
        }
        let limits: Vec<_> = mixed(&facts).iter().map(|shape| filters(shape)[0].limit).collect();
        assert_eq!(limits, [None, Some(20), Some(50), Some(100)]);
        assert!(search(&facts).iter().flat_map(filters).all(|filter| filter.search.is_some()));
        assert_eq!(alone(mixed(&facts)).len(), 4);
    }

    #[test]
    fn a_tiny_set_has_questions_too() {
        let facts = facts(3, 1);
        for shape in clients(&facts).iter().chain(&mixed(&facts)).chain(&search(&facts)) {
            assert!(!filters(shape).is_empty(), "{}", shape.name);
        }
    }
}
