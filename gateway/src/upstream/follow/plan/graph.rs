//! Authors and relays as numbers, so that planning for thousands of them takes milliseconds.

use std::collections::BTreeMap;

use super::{Address, Health, List, PublicKey, Situation};

/// Who lists which relay. Relays that were given up are not in it.
pub(super) struct Graph<'a> {
    keys: Vec<(&'a PublicKey, &'a List)>,
    /// Sorted.
    relays: Vec<&'a Address>,
    /// By author, in the order of the list.
    listed: Vec<Vec<usize>>,
    /// By relay.
    listers: Vec<Vec<usize>>,
    /// By relay.
    hosts: Vec<usize>,
    host_count: usize,
    /// By author: the homes of the plan in force that are still on the list.
    before: Vec<Vec<usize>>,
    dead: BTreeMap<&'a Address, Vec<&'a PublicKey>>,
}

impl<'a> Graph<'a> {
    pub fn new(situation: &Situation<'a>) -> Self {
        let health = |address| situation.health.get(address).copied().unwrap_or_default();
        let (mut numbers, mut dead) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
        for (key, list) in situation.authors {
            for address in list.relays() {
                if health(address) == Health::Dead {
                    dead.entry(address).or_default().push(key);
                } else {
                    numbers.insert(address, 0);
                }
            }
        }
        for (next, number) in numbers.values_mut().enumerate() {
            *number = next;
        }
        let relays: Vec<&Address> = numbers.keys().copied().collect();
        let mut host_numbers = BTreeMap::new();
        let hosts = relays
            .iter()
            .map(|relay| {
                let next = host_numbers.len();
                *host_numbers.entry(relay.host()).or_insert(next)
            })
            .collect();
        let host_count = host_numbers.len();
        let mut graph = Self {
            keys: situation.authors.iter().collect(),
            listed: Vec::with_capacity(situation.authors.len()),
            listers: vec![Vec::new(); relays.len()],
            before: Vec::with_capacity(situation.authors.len()),
            relays,
            hosts,
            host_count,
            dead,
        };
        for (author, (key, list)) in situation.authors.iter().enumerate() {
            let number = |address: &Address| numbers.get(address).copied();
            let mut listed: Vec<usize> = Vec::new();
            for relay in list.relays().iter().filter_map(number) {
                if !listed.contains(&relay) {
                    listed.push(relay);
                    graph.listers[relay].push(author);
                }
            }
            let before = situation.current.authors.get(key).map(|place| place.homes.as_slice());
            let before = before.unwrap_or_default().iter().filter_map(number);
            graph.before.push(before.filter(|relay| listed.contains(relay)).collect());
            graph.listed.push(listed);
        }
        graph
    }

    pub fn authors(&self) -> impl Iterator<Item = (usize, &'a List)> {
        self.keys.iter().enumerate().map(|(author, (_, list))| (author, *list))
    }

    pub fn author_count(&self) -> usize {
        self.keys.len()
    }

    pub fn relay_count(&self) -> usize {
        self.relays.len()
    }

    pub fn host_count(&self) -> usize {
        self.host_count
    }

    pub fn key(&self, author: usize) -> &'a PublicKey {
        self.keys[author].0
    }

    pub fn address(&self, relay: usize) -> &'a Address {
        self.relays[relay]
    }

    pub fn host(&self, relay: usize) -> usize {
        self.hosts[relay]
    }

    /// The relays of an author's list, in its order.
    pub fn listed(&self, author: usize) -> &[usize] {
        &self.listed[author]
    }

    /// The authors who list a relay.
    pub fn listers(&self, relay: usize) -> &[usize] {
        &self.listers[relay]
    }

    pub fn before(&self, author: usize) -> &[usize] {
        &self.before[author]
    }

    /// Relays that were given up, and who lists them.
    pub fn dead(&self) -> impl Iterator<Item = (&'a Address, &[&'a PublicKey])> {
        self.dead.iter().map(|(address, authors)| (*address, authors.as_slice()))
    }
}

impl List {
    /// The relays to choose from.
    pub fn relays(&self) -> &[Address] {
        match self {
            Self::Absent => &[],
            Self::Relays(relays) => relays,
        }
    }
}
