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

/// Of the large swarm, unless the environment asks for another number.
const NODES: usize = 500;

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
fn publish(
    world: &mut World,
    first: u64,
    count: u64,
    apart: Duration,
    by: Option<usize>,
) -> Published {
    let mut published = Published::default();
    for number in first..first + count {
        let living: Vec<_> = world.living().map(|(node, _)| node).collect();
        let anybody = living[world.random.random_range(0..living.len())];
        let node = by.unwrap_or(anybody);
        let event = note(world, number, 300);
        world.publish(node, &event);
        published.at.insert(event.id, world.now);
        published.events.push(event);
        world.run(apart);
    }
    published
}

fn say_deliveries(world: &World, what: &str, published: &Published) {
    let (hops, millis) = world.deliveries(&published.at);
    println!(
        "{what}: hops: median {}, most {}; ms: median {}, 99 % {}",
        quantile(&hops, 0.5),
        quantile(&hops, 1.0),
        quantile(&millis, 0.5),
        quantile(&millis, 0.99)
    );
}

#[derive(Default)]
struct Published {
    events: Vec<Event>,
    at: BTreeMap<EventId, Duration>,
}

fn say(world: &World, began: Instant, what: &str) {
    println!(
        "{what}: {} nodes, {} s in {:.1} s, {} happenings, {} components ({} to reconcile), {} one-sided links, \
         up to {} connections, {} messages swallowed, {} stuck, {} refused, {} comparisons, {} pulled",
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
        world.compared,
        world.pulled,
    );
}

#[test]
fn a_swarm_of_a_hundred_hears_everything_over_few_links() {
    let began = Instant::now();
    let mut medians = Vec::new();
    for seed in 0..5 {
        let mut world = grown(seed, 100, Duration::from_millis(200));
        world.run(seconds(60));
        assert_eq!(world.components(), 1, "seed {seed}");
        // One that talks: the tree forms around it.
        let node = world.random.random_range(0..100);
        let published = publish(&mut world, 0, 50, Duration::from_millis(300), Some(node));
        // All that talk share one tree.
        let by_all = publish(&mut world, 100, 50, Duration::from_millis(300), None);
        world.run(seconds(10));
        assert_eq!(world.missing(&published.events) + world.missing(&by_all.events), 0);
        say_deliveries(&world, "by one", &published);
        say_deliveries(&world, "by all", &by_all);
        medians.push(quantile(&world.deliveries(&published.at).0, 0.5));
        say(&world, began, "hundred");
    }
    assert!(medians.iter().all(|median| *median <= 4), "{medians:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let trace = |seed| {
        let mut world = grown(seed, 40, Duration::from_millis(100));
        world.links.loss = 0.02;
        publish(&mut world, 0, 10, Duration::from_millis(300), None);
        world.kill(3);
        world.run(seconds(2));
        world.restart(3);
        world.part(0..20, 1);
        world.run(seconds(20));
        world.part(0..20, 0);
        world.run(seconds(20));
        (world.trace, world.happened)
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

/// Two that know one another by their configuration alone.
fn pair(seed: u64, rules: Rules) -> World {
    let mut world = World::new(seed);
    world.rules = Rules { dht: false, ..rules };
    world.add(&[]);
    world.add(&[0]);
    let second = world.nodes[1].id;
    world.nodes[0].configured.push(second);
    world.run(seconds(10));
    assert_eq!(world.components(), 1);
    world
}

/// How long it takes the two to find one another again, if they do within two minutes.
fn healing(world: &mut World) -> Option<Duration> {
    let begin = world.now;
    let healed = world.run_until(begin + seconds(120), |world| world.components() == 1);
    healed.then(|| world.now - begin)
}

/// The one that was killed joined the other first, or was joined by it: the library answers no second
/// join in one of the two cases.
#[test]
fn a_gateway_that_comes_back_with_its_key_is_let_in_again() {
    let times = |asks_anew| {
        let cases = (0..10).flat_map(|seed| [(seed, 0), (seed, 1)]);
        let time = |(seed, node)| {
            let mut world = pair(seed, Rules { asks_anew, ..Rules::default() });
            world.kill(node);
            world.run(seconds(1));
            world.restart(node);
            healing(&mut world)
        };
        cases.map(time).collect::<Vec<_>>()
    };
    let (without, with) = (times(false), times(true));
    println!("without: {without:?}\nwith: {with:?}");
    assert!(without.contains(&None), "the library lets it in by itself now");
    assert!(with.iter().all(|time| time.is_some_and(|time| time < seconds(15))));
}

/// Each was out of reach when the other dialed it, and the library dials nobody twice.
#[test]
fn two_that_wait_for_one_another_find_one_another() {
    let times = |hands_over| {
        let time = |seed| {
            let mut world = pair(seed, Rules { hands_over, ..Rules::default() });
            world.part([1], 1);
            world.run(seconds(60));
            world.part([1], 0);
            healing(&mut world)
        };
        (0..10).map(time).collect::<Vec<_>>()
    };
    let (without, with) = (times(false), times(true));
    println!("without: {without:?}\nwith: {with:?}");
    assert!(without.contains(&None), "the library dials again now");
    assert!(with.iter().all(|time| time.is_some_and(|time| time < seconds(10))));
}

#[test]
fn the_sides_of_a_partition_find_one_another() {
    for (seed, count) in [(21, 2), (22, 6), (23, 40), (24, 100)] {
        let began = Instant::now();
        let mut world = grown(seed, count, Duration::from_millis(200));
        world.run(seconds(60));
        assert_eq!(world.components(), 1);
        world.part(count / 2..count, 1);
        let published = publish(&mut world, 0, 60, seconds(1), None);
        assert!(world.components() >= 2);
        assert!(world.missing(&published.events) > 0);
        world.part(count / 2..count, 0);
        let back = world.now;
        let healed = world.run_until(back + seconds(120), |world| world.components() == 1);
        let after = world.now - back;
        let equal =
            world.run_until(back + seconds(180), |world| world.missing(&published.events) == 0);
        let equal_after = world.now - back;
        println!(
            "{count} nodes: one again {healed} after {after:?}, equal {equal} after {equal_after:?}"
        );
        say(&world, began, "parted");
        assert!(healed && equal && equal_after < seconds(60));
    }
}

#[test]
fn those_that_are_left_close_the_gaps() {
    let began = Instant::now();
    let mut world = grown(31, 200, Duration::from_millis(100));
    world.run(seconds(60));
    for node in 0..200 {
        if node % 3 == 0 {
            world.kill(node);
        }
    }
    let killed = world.now;
    // Until the connections to them have timed out nobody misses them.
    world.run(seconds(7));
    let closed = world.run_until(killed + seconds(120), |world| world.components() == 1);
    println!("one again after {:?}", world.now - killed);
    assert!(closed);
    let published = publish(&mut world, 0, 10, Duration::from_millis(300), None);
    let end = world.now + seconds(90);
    assert!(world.run_until(end, |world| world.missing(&published.events) == 0));
    say(&world, began, "killed");
}

/// `SIM_NODES` says how many.
#[test]
fn a_swarm_of_thousands_is_one_and_has_everything() {
    let began = Instant::now();
    let count = std::env::var("SIM_NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(NODES);
    let mut world = grown(3, count, Duration::from_millis(20));
    say(&world, began, "started");
    let end = world.now + seconds(180);
    assert!(world.run_until(end, |world| world.components() == 1));
    say(&world, began, "one swarm");
    // Worse than what QUIC leaves of a bad line: here messages vanish, not packets.
    world.links.loss = 0.02;
    let published = publish(&mut world, 0, 20, Duration::from_millis(500), None);
    world.links.loss = 0.0;
    let missed = world.missing(&published.events);
    let end = world.now + seconds(90);
    let has_all = world.run_until(end, |world| world.missing(&published.events) == 0);
    println!("{missed} copies were missed by gossip");
    say_deliveries(&world, "thousands", &published);
    say(&world, began, "published");
    assert!(has_all);
    assert_eq!(world.reconciling_components(), 1);
}
