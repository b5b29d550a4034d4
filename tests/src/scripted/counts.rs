//! What a scripted relay was sent.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use serde_json::Value;

/// REQs and NEG-OPENs that are kept.
const KEPT: usize = 10_000;

/// A copy of the counts.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// TCP connections that were accepted, those for the document not among them.
    pub connections: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Requests for the document (NIP-11).
    pub documents: u64,
    /// Messages by their first element.
    pub verbs: BTreeMap<String, u64>,
    /// Frames that were no message.
    pub malformed: u64,
    /// How often each event was sent to it, by id.
    pub events: BTreeMap<String, u64>,
    /// REQ and NEG-OPEN messages, the last ones.
    pub asked: VecDeque<Value>,
    /// The most subscriptions that one connection had at a time.
    pub subscriptions: usize,
    /// The longest message.
    pub longest: usize,
    /// Public keys that authenticated, in hexadecimal.
    pub authenticated: Vec<String>,
    /// Authentications that were wrong, and why.
    pub wrong_auths: Vec<String>,
    /// Events that it sent.
    pub told: u64,
}

impl Counts {
    pub fn verb(&self, verb: &str) -> u64 {
        self.verbs.get(verb).copied().unwrap_or_default()
    }

    /// All messages.
    pub fn messages(&self) -> u64 {
        self.verbs.values().sum()
    }
}

/// The counts as they grow.
#[derive(Default)]
pub(super) struct Counted(Mutex<Counts>);

impl Counted {
    pub fn snapshot(&self) -> Counts {
        self.0.lock().unwrap().clone()
    }

    pub fn add(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.lock().unwrap());
    }

    /// A message of this length.
    pub fn message(&self, message: &Value, length: usize) {
        self.add(|counts| {
            let verb = message[0].as_str().unwrap_or("?");
            *counts.verbs.entry(verb.to_owned()).or_default() += 1;
            counts.longest = counts.longest.max(length);
            match verb {
                "REQ" | "NEG-OPEN" => {
                    if counts.asked.len() == KEPT {
                        counts.asked.pop_front();
                    }
                    counts.asked.push_back(message.clone());
                }
                "EVENT" => {
                    let id = message[1]["id"].as_str().unwrap_or_default().to_owned();
                    *counts.events.entry(id).or_default() += 1;
                }
                _ => {}
            }
        });
    }
}
