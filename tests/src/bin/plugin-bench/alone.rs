//! The chain on one core, without a gateway around it: what a call costs when nothing else is done.

use std::{fs, time::Instant};

use nostr_gateway::{
    pipeline::{Context, Decision, Direction, Origin, PeerId, Policy},
    plugins::{PluginChain, Services},
    protocol::{TopicName, VerifiedEvent},
};
use nostr_gateway_tests::{events, figures::Row};
use nostr_sdk::Keys;

use crate::setup::{Setup, blocklist, copied, fixture};

pub fn rows(setup: &Setup) -> Vec<Row> {
    let goal = "p50 ≤ 2 µs, p99 ≤ 6 µs, ≥ 400,000/s";
    let choices: &[&str] = match setup.plugin {
        Some(_) => &["given"],
        None => &["fixtures", "blocklist"],
    };
    let mut rows = Vec::new();
    for choice in choices {
        let builder = setup.builder();
        let mut id = (*choice).to_owned();
        match (&setup.plugin, *choice) {
            (Some(folder), _) => id = copied(&builder, folder),
            (None, "fixtures") => drop(fixture(&builder, choice, "")),
            (None, _) => blocklist(&builder, choice, 1_000, 10),
        }
        let folder = builder.data_dir().join("plugins");
        assert!(fs::exists(&folder).unwrap());
        let chain = PluginChain::load(&folder, true, Services::none().unwrap()).unwrap();
        let mut worker = chain.worker();
        let keys = Keys::generate();
        let events: Vec<VerifiedEvent> = (0..100)
            .map(|n| {
                let text = format!("{n} {}", "lorem ipsum dolor sit amet ".repeat(8));
                let event = events::event(&keys, 1, &text, &[], events::now());
                VerifiedEvent::from_store(&events::json(&event)).unwrap()
            })
            .collect();
        let town = TopicName::new("town").unwrap();
        let origin = Origin::Gossip { topic: town.clone(), peer: PeerId([7; 32]) };
        let (topics, received_at) = ([town], events::now());
        let context =
            Context { direction: Direction::In, origin: &origin, topics: &topics, received_at };
        let rounds = setup.or(10_000, 100);
        let mut times = Vec::with_capacity(rounds * events.len());
        let began = Instant::now();
        for _ in 0..rounds {
            for event in &events {
                let began = Instant::now();
                let decision = worker.evaluate(event, &context);
                times.push(began.elapsed().as_secs_f64() * 1e6);
                assert_eq!(decision, Decision::Accept);
            }
        }
        let each_second = times.len() as f64 / began.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        rows.push(
            Row::new(format!("alone: {id}"), goal)
                .figure("p50 µs", p50)
                .figure("p99 µs", p99)
                .figure("calls/s", each_second)
                .met(p50 <= 2.0 && p99 <= 6.0 && each_second >= 400_000.0),
        );
    }
    rows
}
