//! What every event and every question goes through, each part alone.
//!
//! `cargo bench --workspace --bench hot` runs all, with a part of a name behind `--` only those.
//! `nostr-gateway bench` measures what comes of it.

#![allow(clippy::unwrap_used, reason = "a benchmark fails loudly")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nostr_gateway::{
    cli::bench::{
        dataset::{Spec, keypair, sign},
        generator::Generator,
    },
    protocol::{
        Event, Filter, PublicKey, VerifiedEvent,
        event::compute_id,
        message::{self, ClientMessage},
    },
    subscriptions::index::Index,
};

const EVENTS: u64 = 2_000;
/// Verifying is slow: fewer give a round of a few milliseconds.
const VERIFIED: usize = 100;
const SUBSCRIPTIONS: u32 = 10_000;

/// EVENT messages as `nostr-gateway bench` publishes them.
fn messages() -> Vec<String> {
    let spec = Spec {
        version: Spec::VERSION,
        seed: 1,
        events: EVENTS,
        authors: 500,
        ends_at: 1_800_000_000,
    };
    let keys: Vec<_> = (0..spec.authors).map(|author| keypair(spec.seed, author)).collect();
    Generator::new(spec)
        .map(|event| {
            let mut line = String::new();
            sign(&event, &keys[event.author as usize], &mut line);
            line.trim_end().to_owned()
        })
        .collect()
}

fn event(message: &str) -> Event {
    match message::parse(message, 1).unwrap() {
        ClientMessage::Event(event) => *event,
        other => panic!("not an EVENT: {other:?}"),
    }
}

/// A part that is done to each event.
fn each<T>(c: &mut Criterion, name: &str, events: &[Event], mut part: impl FnMut(&Event) -> T) {
    let mut group = c.benchmark_group("event");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            for event in events {
                black_box(part(black_box(event)));
            }
        });
    });
    group.finish();
}

fn events(c: &mut Criterion) {
    let messages = messages();
    let events: Vec<Event> = messages.iter().map(|message| event(message)).collect();

    let mut group = c.benchmark_group("event");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("parse a message", |b| {
        b.iter(|| {
            for text in &messages {
                black_box(message::parse(black_box(text), 1).is_ok());
            }
        });
    });
    group.throughput(Throughput::Elements(VERIFIED as u64));
    group.bench_function("verify", |b| {
        b.iter_batched(
            || events[..VERIFIED].to_vec(),
            |events| {
                for event in events {
                    VerifiedEvent::verify(black_box(event)).unwrap();
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();

    each(c, "parse", &events, |event| Event::parse(event.json()).unwrap());
    each(c, "canonical id", &events, compute_id);
    each(c, "message to a subscriber", &events, |event| {
        message::event("sub", event.json()).concat()
    });
    each(c, "OK", &events, |event| message::ok(&event.id, true, ""));
}

/// A home feed as a client asks for it.
fn home_feed(authors: &[PublicKey]) -> Filter {
    Filter {
        authors: Some(authors.to_vec()),
        kinds: Some(vec![1, 6, 7, 16, 30_023]),
        limit: Some(100),
        ..Filter::default()
    }
}

fn filters(c: &mut Criterion) {
    let events: Vec<Event> = messages().iter().map(|message| event(message)).collect();
    let mut authors: Vec<PublicKey> = events.iter().map(|event| event.pubkey).collect();
    authors.sort();
    authors.dedup();
    let feed = home_feed(&authors[..authors.len() / 2]);
    each(c, "match a home feed", &events, |event| feed.matches(event));
    let hashtags: Vec<String> =
        events.iter().flat_map(|event| event.tag_values("t")).map(str::to_owned).collect();
    let mut some: Vec<String> = hashtags.iter().take(20).cloned().collect();
    some.sort();
    some.dedup();
    let tagged = Filter { tags: vec![(b't', some)], ..Filter::default() };
    each(c, "match 20 hashtags", &events, |event| tagged.matches(event));

    let text = serde_json::to_string(&feed).unwrap();
    c.bench_function("filter/parse a home feed", |b| {
        b.iter(|| Filter::parse(black_box(&text)).unwrap());
    });

    // Most connections follow authors, some a hashtag, a few everything of a kind.
    let mut index = Index::default();
    for slot in 0..SUBSCRIPTIONS {
        let at = slot as usize;
        let filter = match slot % 100 {
            0 => Filter { kinds: Some(vec![30_023]), ..Filter::default() },
            1..20 => {
                let hashtag = hashtags[at % hashtags.len()].clone();
                Filter { tags: vec![(b't', vec![hashtag])], ..Filter::default() }
            }
            _ => home_feed(&authors[at % authors.len()..][..1]),
        };
        index.insert(slot, &[filter]);
    }
    let mut found = Vec::new();
    each(c, "subscriptions that may want it, of 10,000", &events, |event| {
        found.clear();
        index.candidates(event, &mut found);
        found.len()
    });
}

criterion_group!(benches, events, filters);
criterion_main!(benches);
