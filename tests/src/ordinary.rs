//! Events as public relays hold them: the mix of kinds and sizes that was seen on them.

use nostr_sdk::{Event, Keys};

use crate::events;

/// Kind, its share of a thousand events, and lengths of its JSON at even steps from the shortest to the
/// longest.
const MIX: [(u16, u64, &[usize]); 7] = [
    (1, 496, &[400, 450, 507, 560, 620, 681, 760, 866, 1_001, 1_745]),
    (7, 302, &[489, 489, 499, 560, 602]),
    (6, 109, &[507, 525, 532, 538, 1_117, 1_821]),
    (0, 45, &[744, 834, 976, 1_338, 1_582, 3_173]),
    (10_002, 22, &[497, 509, 512, 668]),
    (3, 22, &[906, 1_914, 7_310, 18_307, 37_930, 76_564]),
    (30_078, 4, &[367, 1_436, 30_755]),
];

/// Authors of what does not replace anything.
const AUTHORS: usize = 200;
/// What is left of an event's JSON without tags and content.
const FRAME: usize = 330;

/// `count` events, the last one created at `until` and the first one earlier, three to a second on
/// average and up to fourteen. No two replace one another. In the order of their time.
pub fn ordinary(count: usize, until: u64) -> Vec<Event> {
    let authors: Vec<Keys> = (0..AUTHORS).map(|_| Keys::generate()).collect();
    let mut at = until - count as u64 / 3 - 15;
    let times: Vec<u64> = (0..count)
        .map(|n| {
            // A crowded second now and then, and gaps beside it.
            at += match n % 60 {
                0..14 => 0,
                14 => 4,
                n if n % 3 == 0 => 1,
                _ => 0,
            };
            at.min(until)
        })
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(cores).max(1);
    let sign = |first: usize| -> Vec<Event> {
        (first..count.min(first + share)).map(|n| one(n, times[n], &authors)).collect()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..count).step_by(share).map(|first| scope.spawn(move || sign(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn one(n: usize, at: u64, authors: &[Keys]) -> Event {
    let draw = scatter(n as u64);
    let mut left = draw % 1_000;
    let (kind, lengths) = MIX
        .iter()
        .find_map(|(kind, share, lengths)| {
            let found = left < *share;
            left = left.saturating_sub(*share);
            found.then_some((*kind, *lengths))
        })
        .expect("the shares add up to a thousand");
    let length = lengths[(draw / 1_000) as usize % lengths.len()].saturating_sub(FRAME).max(10);
    let author = &authors[(draw / 1_000_000) as usize % authors.len()];
    let other = authors[n % authors.len()].public_key().to_hex();
    let id = format!("{draw:064x}");
    let text = |length: usize| {
        let words = format!("{n} gm “everybody” 👋 as said:\n ");
        let lines = "lorem ipsum dolor sit amet, ".repeat(length / 28);
        words + &lines
    };
    match kind {
        7 => events::event(author, 7, "+", &[&["e", &id], &["p", &other], &["k", "1"]], at),
        6 => events::event(author, 6, &text(length), &[&["e", &id], &["p", &other]], at),
        1 if n.is_multiple_of(2) => {
            let tags: [&[&str]; 2] = [&["e", &id, "", "root"], &["p", &other]];
            events::event(author, 1, &text(length.saturating_sub(150)), &tags, at)
        }
        1 => events::event(author, 1, &text(length), &[&["t", "nostr"]], at),
        30_078 => events::event(author, kind, &text(length), &[&["d", &n.to_string()]], at),
        // Of these everybody has one.
        3 | 10_002 => {
            let tags: Vec<[String; 2]> = match kind {
                3 => {
                    (0..length / 71).map(|m| ["p".to_owned(), format!("{:064x}", m + n)]).collect()
                }
                _ => (0..length / 35 + 1)
                    .map(|m| ["r".to_owned(), format!("wss://relay{m}.example.org")])
                    .collect(),
            };
            let tags: Vec<[&str; 2]> =
                tags.iter().map(|[name, value]| [name.as_str(), value.as_str()]).collect();
            let tags: Vec<&[&str]> = tags.iter().map(<[_; 2]>::as_slice).collect();
            events::event(&Keys::generate(), kind, "", &tags, at)
        }
        _ => {
            let profile = format!(r#"{{"name":"n{n}","about":{:?}}}"#, text(length));
            events::event(&Keys::generate(), kind, &profile, &[], at)
        }
    }
}

/// A number that looks drawn and is always the same for `n` (SplitMix64).
fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
