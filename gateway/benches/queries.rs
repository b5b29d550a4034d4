//! Queries on a generated store, each shape that clients ask.
//!
//! `cargo bench --workspace --bench queries`; `QUERIES_EVENTS=1000000` for more than 100,000 events.
//! What is measured is the processor time of all threads, from the question to its last event, so
//! that the figures do not depend on what else the machine does.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{
    Criterion, Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use nostr_gateway::{
    metrics::Metrics,
    pipeline::{EventReader, EventWriter, Origin, ScanItem, Scope, Write},
    protocol::{Filter, TopicName, VerifiedEvent},
    store::{StorageConfig, Store},
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const AUTHORS: u64 = 3_000;
const HASHTAGS: u64 = 300;
const WORDS: u64 = 20_000;
const KINDS: [u16; 10] = [1, 1, 1, 1, 1, 1, 6, 7, 7, 30_023];
const KINDS_WITH_WORDS: [u16; 2] = [1, 30_023];
/// Seconds from one event to the next.
const STEP: u64 = 5;
const START: u64 = 1_700_000_000;

/// Processor time of the whole process.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        let part = |part: i64| u64::try_from(part).unwrap_or(0);
        Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// A hash of a number (splitmix64; Steele, Lea and Flood 2014).
fn scatter(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One of so many, the first ones much more often.
fn skewed(n: u64, of: u64) -> u64 {
    let part = (scatter(n) >> 11) as f64 / (1_u64 << 53) as f64;
    #[allow(clippy::cast_sign_loss, reason = "neither is negative")]
    let rank = ((of as f64 + 1.0).powf(part) - 1.0) as u64;
    rank.min(of - 1)
}

fn id(n: u64) -> String {
    (0..4).map(|part| format!("{:016x}", scatter(n * 4 + part))).collect()
}

fn author(n: u64) -> String {
    id((1 << 40) + n)
}

fn hashtag(n: u64) -> String {
    format!("tag{n}")
}

fn topic() -> TopicName {
    TopicName::new("bench").expect("it is a name")
}

fn kind(n: u64) -> u16 {
    KINDS[usize::try_from(scatter(n ^ 0xcccc) % 10).unwrap_or(0)]
}

fn word(n: u64) -> String {
    format!("word{n}")
}

/// Twenty words, and one that no other event has.
fn content(n: u64) -> String {
    let words: Vec<_> = (0..20).map(|place| word(skewed(n * 20 + place, WORDS))).collect();
    format!("{} only{n}", words.join(" "))
}

/// The event of a number. It is not signed: nobody looks here.
fn event(n: u64) -> VerifiedEvent {
    let mut tags = vec![json!(["p", author(skewed(n ^ 0xaaaa, AUTHORS))])];
    if n > 100 && n.is_multiple_of(3) {
        let answered = n - 1 - scatter(n) % 100;
        tags.push(json!(["e", id(answered), "", "reply"]));
    }
    for place in 0..scatter(n ^ 0xbbbb) % 3 {
        tags.push(json!(["t", hashtag(skewed(n * 3 + place, HASHTAGS))]));
    }
    let kind = kind(n);
    if kind == 30_023 {
        tags.push(json!(["d", n.to_string()]));
    }
    let event = json!({
        "id": id(n), "pubkey": author(skewed(n, AUTHORS)), "created_at": START + n * STEP,
        "kind": kind, "tags": tags, "content": content(n), "sig": "0".repeat(128),
    });
    VerifiedEvent::from_store(&event.to_string()).expect("it is well-formed")
}

fn fill(store: &Store, events: u64) {
    let (done, committed) = crossbeam_channel::bounded(1);
    for n in 0..events {
        let last = (n + 1 == events).then(|| done.clone());
        let write = Write {
            event: event(n),
            topics: if n.is_multiple_of(4) { vec![topic()] } else { vec![] },
            private: false,
            vanish: false,
            under_way: 1_024,
            origin: Origin::Client {
                connection: 1,
                address: [127, 0, 0, 1].into(),
                viewer: Arc::default(),
            },
            done: Box::new(move |_| {
                let _ = last.map(|last| last.send(()));
            }),
        };
        store.write(write).expect("the store is open");
    }
    committed.recv().expect("the last event is committed");
}

/// A question that differs from one call to the next.
type Question = Box<dyn Fn(u64) -> Value>;

fn shapes(events: u64) -> Vec<(&'static str, Scope, Question)> {
    let feed = |n: u64| {
        let authors: Vec<_> = (0..500).map(|i| author((scatter(n) + i * 6) % AUTHORS)).collect();
        json!({ "authors": authors, "kinds": [1, 6, 7, 16, 30_023], "limit": 100 })
    };
    let newest = START + events * STEP;
    let some = move |n: u64| scatter(n) % events;
    let all = |question: Question| (Scope::All, question);
    let topic = |question: Question| (Scope::Topic(topic()), question);
    let shapes = [
        ("id", all(Box::new(move |n| json!({ "ids": [id(some(n))] })))),
        (
            "author and kind, limit 20",
            all(Box::new(|n| {
                let author = author(scatter(n) % AUTHORS);
                json!({ "authors": [author], "kinds": [1], "limit": 20 })
            })),
        ),
        ("hashtag, limit 50", all(Box::new(|n| json!({ "#t": [hashtag(n % 100)], "limit": 50 })))),
        ("kind 1, limit 100", all(Box::new(|_| json!({ "kinds": [1], "limit": 100 })))),
        // A relay sets a limit where a client does not: relay.default_limit.
        ("the empty filter, limit 500", all(Box::new(|_| json!({ "limit": 500 })))),
        ("everything, limit 100", all(Box::new(|_| json!({ "limit": 100 })))),
        ("home feed, 500 authors, limit 100", all(Box::new(feed))),
        ("home feed in a topic", topic(Box::new(feed))),
        (
            "thread, 200 ids",
            all(Box::new(move |n| {
                let first = some(n);
                let ids: Vec<_> = (first..first + 200).map(id).collect();
                json!({ "#e": ids, "limit": 500 })
            })),
        ),
        (
            "since, kind 1",
            all(Box::new(move |n| {
                let since = newest - STEP * (1 + n % 300);
                json!({ "kinds": [1], "since": since, "limit": 500 })
            })),
        ),
        (
            "hashtag and author, limit 20",
            all(Box::new(|n| {
                let (author, hashtag) =
                    (author(skewed(n, AUTHORS)), hashtag(skewed(n ^ 1, HASHTAGS)));
                json!({ "#t": [hashtag], "authors": [author], "limit": 20 })
            })),
        ),
        (
            "search, one word, limit 20",
            all(Box::new(
                |n| json!({ "search": word(skewed(n, WORDS)), "kinds": [1], "limit": 20 }),
            )),
        ),
        (
            "search, two words, limit 20",
            all(Box::new(|n| {
                let two = [skewed(n, WORDS), skewed(n ^ 1, WORDS)].map(word);
                json!({ "search": two.join(" "), "kinds": [1], "limit": 20 })
            })),
        ),
        (
            "search in a topic, limit 20",
            topic(Box::new(|n| json!({ "search": word(skewed(n, WORDS)), "limit": 20 }))),
        ),
        (
            "hashtag and rare kind, limit 20",
            all(Box::new(|n| json!({ "#t": [hashtag(n % 10)], "kinds": [30_023], "limit": 20 }))),
        ),
    ];
    shapes.into_iter().map(|(name, (scope, question))| (name, scope, question)).collect()
}

/// How many events the answer has.
async fn ask(store: &Store, filter: Filter, scope: Scope) -> usize {
    let mut scan = store.scan(vec![filter], scope, Arc::default());
    let mut count = 0;
    while let Some(item) = scan.next().await {
        match item {
            ScanItem::Events(events) => count += black_box(events).len(),
            ScanItem::End { .. } => break,
            ScanItem::Failed(error) => panic!("{error}"),
        }
    }
    count
}

fn main() {
    let events = std::env::var("QUERIES_EVENTS").ok().and_then(|n| n.parse().ok());
    let events = events.unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let dir = tempfile::tempdir().expect("there is a temporary directory");
    let metrics = Arc::new(Metrics::default());
    let config = StorageConfig::default();
    let store = runtime.block_on(Store::open(dir.path(), &config, metrics));
    let store = store.expect("an empty store opens");
    fill(&store, events);
    // The index of words follows the log; what it does meanwhile is not to be measured.
    let newest = (0..events).rev().find(|n| KINDS_WITH_WORDS.contains(&kind(*n)));
    let newest = json!({ "search": format!("only{}", newest.unwrap_or(0)) }).to_string();
    let newest = Filter::parse(&newest).expect("it is a filter");
    while runtime.block_on(ask(&store, newest.clone(), Scope::All)) == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }

    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    let mut group = criterion.benchmark_group(format!("{events} events"));
    for (name, scope, question) in shapes(events) {
        let filters: Vec<_> = (0..256)
            .map(|n| Filter::parse(&question(n).to_string()).expect("it is a filter"))
            .collect();
        let answers = filters.iter().map(|filter| ask(&store, filter.clone(), scope.clone()));
        let size: usize = answers.map(|answer| runtime.block_on(answer)).sum();
        group.throughput(Throughput::Elements((size / filters.len()) as u64));
        let mut next = filters.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || next.next().expect("there are some").clone(),
                |filter| runtime.block_on(ask(&store, filter, scope.clone())),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
    criterion.final_summary();
    runtime.block_on(store.close());
}
