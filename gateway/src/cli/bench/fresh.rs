//! Events of this moment, for live delivery: signed just before they are needed.

use std::collections::VecDeque;

use super::{
    dataset::{Spec, json, keypair, sign, unsigned},
    frames::EventFrame,
    publish::Source,
};
use crate::protocol::hex;

/// Authors of fresh events.
const AUTHORS: u32 = 20;

/// Notes with a hashtag that nobody else uses.
pub struct Fresh(VecDeque<EventFrame>);

impl Fresh {
    /// Makes and signs so many; about 40 µs each, on this thread.
    pub fn new(spec: &Spec, hashtag: &str, count: u32, now: u64) -> Self {
        let keys: Vec<_> = (0..AUTHORS).map(|author| keypair(spec.seed, author)).collect();
        let tags = json(&[["t", hashtag]]);
        let frames = (0..count).filter_map(|number| {
            let key = &keys[(number % AUTHORS) as usize];
            let pubkey = hex::encode(&key.x_only_public_key().0.serialize());
            // About as long as the events of the set.
            let content = json(&format!("{number} {}", "what everybody hears at once ".repeat(6)));
            let event = unsigned(number % AUTHORS, &pubkey, now, 1, &tags, &content);
            let mut line = String::new();
            sign(&event, key, &mut line);
            line.truncate(line.trim_end().len());
            EventFrame::new(line)
        });
        Self(frames.collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Source for Fresh {
    fn next(&mut self) -> std::io::Result<Option<EventFrame>> {
        Ok(self.0.pop_front())
    }
}

/// A hashtag of this run alone.
pub fn hashtag(purpose: &str) -> String {
    format!("bench{purpose}{:016x}", rand::random::<u64>())
}
