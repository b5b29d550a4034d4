//! Swarms, and what must hold of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::Rng;
use sha2::{Digest, Sha256};

use super::{
    reports::quantile,
    world::{Rules, World},
};
use crate::protocol::{Event, EventId, hex};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn note(world: &World, number: u64, length: usize) -> Event {
    let id = hex::encode(&Sha256::digest(number.to_be_bytes()));
    let json = format!(
        r#"{{"id":"{id}","pubkey":"{0:064x}","created_at":{1},"kind":1,"tags":[],"content":"{2}","sig":"{0:0128x}"}}"#,
        1,
        world.unix(),
        "x".repeat(length),
    );
    Event::parse(&json).unwrap()
}

/// Nodes that start one after the other.
fn grown(seed: u64, count: usize, apart: Duration) -> World {
    let mut world = World::new(seed);
    for _ in 0..count {
        world.add(&[]);
        world.run(apart);
    }
    world
}

/// Events published here and there, one after the other.
fn publish(world: &mut World, first: u64, count: u64, apart: Duration) -> Published {
    let mut published = Published::default();
    for number in first..first + count {
        let living: Vec<_> = world.living().map(|(node, _)| node).collect();
        let node = living[world.random.random_range(0..living.len())];
        let event = note(world, number, 300);
        world.publish(node, &event);
        published.at.insert(event.id, world.now);
        published.events.push(event);
        world.run(apart);
    }
    published
}

#[derive(Default)]
struct Published {
    events: Vec<Event>,
    at: BTreeMap<EventId, Duration>,
}

fn say(world: &World, began: Instant, what: &str) {
    println!(
        "{what}: {} nodes, {} s in {:.1} s, {} happenings, {} components ({} to reconcile), {} one-sided links, \
         up to {} connections, {} messages swallowed, {} stuck, {} refused",
        world.living().count(),
        world.now.as_secs(),
        began.elapsed().as_secs_f64(),
        world.happened,
        world.components(),
        world.reconciling_components(),
        world.one_sided(),
        world.most_connections(),
        world.swallowed,
        world.stuck,
        world.refused,
    );
}

#[test]
fn explore() {
    for mended in [false, true] {
        let began = Instant::now();
        let mut world = World::new(3);
        world.rules.mended = mended;
        for _ in 0..500 {
            world.add(&[]);
            world.run(Duration::from_millis(20));
        }
        for _ in 0..8 {
            world.run(seconds(60));
            say(&world, began, "explore");
            let mut sizes = BTreeMap::new();
            for (_, node) in world.living() {
                let both = node.neighbors.iter().filter(|p| world.nodes[world.index[*p]].neighbors.contains(&node.id)).count();
                *sizes.entry((node.neighbors.len(), both)).or_insert(0) += 1;
            }
            println!("neighbors: {sizes:?}");
        }
    }
    for seed in 0..0 {
        for threshold in [7, 2] {
        let mut world = World::new(seed);
        world.threshold = threshold;
        for _ in 0..100 {
            world.add(&[]);
            world.run(Duration::from_millis(200));
        }
        world.run(seconds(60));
        let mut published = Published::default();
        let node = world.random.random_range(0..100);
        for number in 0..50 {
            let event = note(&world, number, 300);
            world.publish(node, &event);
            published.at.insert(event.id, world.now);
            published.events.push(event);
            world.run(Duration::from_millis(300));
        }
        world.run(seconds(5));
        let (hops, millis) = world.deliveries(&published.at);
        println!("seed {seed} {threshold}: hops {} {} ms {} {} missing {}", quantile(&hops, 0.5), quantile(&hops, 1.0), quantile(&millis, 0.5), quantile(&millis, 0.99), world.missing(&published.events));
        }
    }
}

#[test]
fn a_swarm_of_a_hundred_hears_everything_over_few_links() {
    let began = Instant::now();
    let mut world = grown(1, 100, Duration::from_millis(200));
    world.run(seconds(60));
    say(&world, began, "grown");
    assert_eq!(world.components(), 1);
    let published = publish(&mut world, 0, 50, Duration::from_millis(300));
    world.run(seconds(10));
    let (hops, millis) = world.deliveries(&published.at);
    println!(
        "hops: median {}, most {}; ms: median {}, 99 % {}",
        quantile(&hops, 0.5),
        quantile(&hops, 1.0),
        quantile(&millis, 0.5),
        quantile(&millis, 0.99)
    );
    assert_eq!(world.missing(&published.events), 0);
    assert!(quantile(&hops, 0.5) <= 4);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let trace = |seed| {
        let mut world = grown(seed, 40, Duration::from_millis(100));
        world.links.loss = 0.02;
        publish(&mut world, 0, 10, Duration::from_millis(300));
        world.kill(3);
        world.run(seconds(2));
        world.restart(3);
        world.run(seconds(20));
        (world.trace, world.happened)
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

#[test]
fn a_gateway_that_comes_back_is_let_in_again() {
    for asks_anew in [false, true] {
        let mut world = World::new(11);
        world.rules = Rules { asks_anew, ..Rules::default() };
        let a = world.add(&[]);
        world.run(seconds(1));
        let b = world.add(&[a]);
        world.run(seconds(5));
        assert_eq!(world.components(), 1);
        world.kill(a);
        world.run(seconds(1));
        world.restart(a);
        let end = world.now + seconds(120);
        let began = world.now;
        let healed = world.run_until(end, |world| world.components() == 1);
        println!("asks anew {asks_anew}: healed {healed} after {:?}", world.now - began);
        let _ = b;
    }
}

#[test]
fn the_sides_of_a_partition_find_one_another() {
    for asks_anew in [false, true] {
        for (seed, count) in [(21, 2), (22, 6), (23, 40)] {
            let began = Instant::now();
            let mut world = grown(seed, count, Duration::from_millis(200));
            world.rules = Rules { asks_anew, ..Rules::default() };
            world.run(seconds(30));
            assert_eq!(world.components(), 1);
            world.part(count / 2..count, 1);
            world.run(seconds(60));
            assert_eq!(world.components(), 2);
            world.part(count / 2..count, 0);
            let back = world.now;
            let healed = world.run_until(back + seconds(300), |world| world.components() == 1);
            println!("asks anew {asks_anew} {count} nodes: healed {healed} after {:?}", world.now - back);
            say(&world, began, "parted");
        }
    }
}

#[test]
fn a_swarm_of_thousands_is_one() {
    let began = Instant::now();
    let count = std::env::var("SIM_NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    let mut world = grown(3, count, Duration::from_millis(20));
    say(&world, began, "started");
    world.run(seconds(90));
    say(&world, began, "grown");
    assert_eq!(world.components(), 1);
    let published = publish(&mut world, 0, 20, Duration::from_millis(500));
    world.run(seconds(10));
    let (hops, millis) = world.deliveries(&published.at);
    say(&world, began, "published");
    println!(
        "missing {}; hops: median {}, most {}; ms: median {}, 99 % {}",
        world.missing(&published.events),
        quantile(&hops, 0.5),
        quantile(&hops, 1.0),
        quantile(&millis, 0.5),
        quantile(&millis, 0.99)
    );
}
