//! Hundreds of members on a network that loses and divides, driven by a seed.
//!
//! Members crash between saving and acting; two gateways of the admin act without knowing of one
//! another; those left out try everything they have. What must hold in the end is in `World::check`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::protocol::private::{message::Message, roster::Uses};

/// Deterministic: the same seed is the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*, good enough to choose with.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_be_bytes()));
        bytes
    }
}

struct Node {
    epochs: Epochs,
    saved: (Vec<u8>, Vec<u8>),
    online: bool,
    /// Only nodes of one side reach one another.
    side: usize,
    events: BTreeSet<u32>,
    /// Of somebody left out: whose, by its place in the list.
    hostile: Option<usize>,
    /// What a hostile one was sent, whether or not its state machine would take it.
    stolen: BTreeSet<EpochId>,
}

struct World {
    seed: u64,
    random: Random,
    now: u64,
    nodes: Vec<Node>,
    /// Percent of messages lost, and of steps that end in a crash.
    loss: usize,
    crashes: usize,
    published: u32,
    authors: BTreeMap<u32, usize>,
    invites: Vec<Invite>,
    /// Every roster that anybody had: its members.
    rosters: BTreeMap<RosterHash, BTreeSet<MemberId>>,
    left_out: BTreeSet<usize>,
    /// On the roster before the chaos begins.
    founders: usize,
    /// Who is to meet whom next.
    due: VecDeque<(usize, usize)>,
}

fn id(number: usize) -> MemberId {
    let mut id = [0xee; 32];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    MemberId(id)
}

fn number(id: MemberId) -> usize {
    let (number, _) = id.0.split_first_chunk().unwrap();
    u64::from_be_bytes(*number) as usize
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut bytes = || random.bytes();
        let mut moment = Moment { now: 1_800_000_000, random: &mut bytes };
        let name = TopicName::new("simulated").unwrap();
        let (epochs, outputs) = Epochs::create(id(0), name, &mut moment);
        let mut world = Self {
            seed,
            random,
            now: 1_800_000_000,
            nodes: Vec::new(),
            loss: 0,
            crashes: 0,
            published: 0,
            authors: BTreeMap::new(),
            invites: Vec::new(),
            rosters: BTreeMap::new(),
            left_out: BTreeSet::new(),
            founders: 0,
            due: VecDeque::new(),
        };
        world.add(epochs, outputs, None);
        world
    }

    fn add(&mut self, epochs: Epochs, outputs: Vec<Output>, hostile: Option<usize>) -> usize {
        let saved = (epochs.open_state(), epochs.secret_state().to_vec());
        let (events, stolen) = (BTreeSet::new(), BTreeSet::new());
        self.nodes.push(Node { epochs, saved, online: true, side: 0, events, hostile, stolen });
        let place = self.nodes.len() - 1;
        self.perform(place, outputs);
        place
    }

    /// One step of a node and all that follows from it.
    fn step(&mut self, at: usize, input: Input) {
        let (now, random) = (self.now, &mut self.random);
        let mut bytes = || random.bytes();
        let mut moment = Moment { now, random: &mut bytes };
        let outputs = self.nodes[at].epochs.step(input, &mut moment);
        if self.nodes[at].hostile.is_none() && self.random.percent(self.crashes) {
            self.restart(at);
            return;
        }
        self.perform(at, outputs);
    }

    fn restart(&mut self, at: usize) {
        let (open, secret) = &self.nodes[at].saved;
        self.nodes[at].epochs = Epochs::restore(id(at), open, secret, self.now).unwrap();
    }

    fn perform(&mut self, at: usize, outputs: Vec<Output>) {
        let mut spread = false;
        for output in outputs {
            match output {
                Output::Persist => {
                    let epochs = &self.nodes[at].epochs;
                    if let Some(roster) = epochs.roster() {
                        let members = roster.body().members.keys().copied().collect();
                        self.rosters.insert(roster.hash(), members);
                    }
                    let saved = (epochs.open_state(), epochs.secret_state().to_vec());
                    self.nodes[at].saved = saved;
                }
                Output::HandOver { to, handover } => {
                    self.deliver(at, to, &Message::Handover(handover));
                }
                Output::Tell { to, admissions } => {
                    self.deliver(at, to, &Message::Admissions(admissions));
                }
                Output::Invited(invite) => {
                    // Through the string, as it would be passed on.
                    self.invites.push(Invite::parse(&invite.encode()).unwrap());
                }
                Output::Spread => spread = true,
                Output::Join(_) | Output::Leave(_) | Output::Publish(_) | Output::Refused(_) => {}
            }
        }
        if spread && self.nodes[at].hostile.is_none() {
            for _ in 0..2 {
                let other = self.random.below(self.nodes.len());
                self.due.push_back((at, other));
            }
        }
    }

    fn reaches(&mut self, from: usize, to: usize) -> bool {
        let (one, other) = (&self.nodes[from], &self.nodes[to]);
        from != to
            && one.online
            && other.online
            && one.side == other.side
            && !self.random.percent(self.loss)
    }

    fn deliver(&mut self, from: usize, to: MemberId, message: &Message) {
        let peer = id(from);
        let to = number(to);
        if !self.reaches(from, to) {
            return;
        }
        match Message::decode(&message.encode()).unwrap() {
            Message::Handover(handover) => {
                let Place { epoch, .. } = handover.roster.header.place;
                let commitment = commitment(&self.topic(), epoch, &handover.secret);
                if self.nodes[to].hostile.is_some() {
                    self.nodes[to].stolen.insert(EpochId { number: epoch, commitment });
                }
                self.step(to, Input::Received { peer, handover });
            }
            Message::Admissions(admissions) => self.step(to, Input::Told { peer, admissions }),
            other => unreachable!("{other:?}"),
        }
    }

    /// As on a stream: the responder answers only whom it welcomes; whoever is ahead hands over;
    /// two at the same roster reconcile their events.
    fn meet(&mut self, initiator: usize, responder: usize) {
        if !self.reaches(initiator, responder) {
            return;
        }
        let (one, other) = (&self.nodes[initiator].epochs, &self.nodes[responder].epochs);
        let trap = self.nodes[responder].hostile.is_some();
        if !trap && !other.welcomes(one.me, one.admission()) {
            return;
        }
        let position = self.claim(responder);
        self.step(initiator, Input::Met { peer: id(responder), position });
        if !self.reaches(initiator, responder) {
            return;
        }
        let position = self.claim(initiator);
        self.step(responder, Input::Met { peer: id(initiator), position });
        self.reconcile(initiator, responder);
    }

    /// A node's position; a hostile one may claim to have nothing yet.
    fn claim(&mut self, at: usize) -> Position {
        let mut position = self.nodes[at].epochs.position();
        if self.nodes[at].hostile.is_some() && self.random.percent(30) {
            position.hash = RosterHash::NONE;
        }
        position
    }

    fn topic(&self) -> Topic {
        self.nodes[0].epochs.topic().clone()
    }

    fn reconcile(&mut self, one: usize, other: usize) {
        let (a, b) = (&self.nodes[one].epochs, &self.nodes[other].epochs);
        let same = a.roster().map(Roster::hash) == b.roster().map(Roster::hash);
        if !same || !a.is_member(b.me) || !b.is_member(a.me) || !self.reaches(one, other) {
            return;
        }
        let mut all = std::mem::take(&mut self.nodes[one].events);
        all.extend(&self.nodes[other].events);
        self.nodes[other].events.clone_from(&all);
        self.nodes[one].events = all;
    }

    fn publish(&mut self, at: usize) {
        let Some(epoch) = self.nodes[at].epochs.publishes_in() else { return };
        let event = self.published;
        self.published += 1;
        self.authors.insert(event, at);
        for to in 0..self.nodes.len() {
            let reads = self.nodes[to].epochs.held.iter().any(|held| held.id == epoch);
            if reads && (to == at || self.reaches(at, to)) {
                self.nodes[to].events.insert(event);
            }
        }
    }

    fn honest(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].hostile.is_none()).collect()
    }

    /// All who look for others: mostly honest ones, and whoever it may be.
    fn mingle(&mut self, times: usize) {
        let all = self.nodes.len();
        for at in 0..all {
            for _ in 0..times {
                let other = self.random.below(all);
                self.due.push_back((at, other));
                while let Some((one, other)) = self.due.pop_front() {
                    self.meet(one, other);
                }
            }
        }
    }

    fn invite(&mut self, admin: usize, uses: Uses) -> Option<Invite> {
        let before = self.invites.len();
        self.step(admin, Input::Command(Command::Invite { uses, peers: vec![] }));
        self.invites.get(before).cloned()
    }

    fn join(&mut self, invite: &Invite, hostile: Option<usize>) -> usize {
        let (epochs, outputs) = Epochs::accept(id(self.nodes.len()), invite);
        self.add(epochs, outputs, hostile)
    }

    /// Leaves a member out, which from then on tries to come back by every means it has.
    fn exclude(&mut self, admin: usize, member: usize, grace: u32) {
        let exclude = BTreeSet::from([id(member)]);
        let before = self.nodes[admin].epochs.roster().unwrap().hash();
        self.step(admin, Input::Command(Command::Rotate { exclude, grace }));
        if self.nodes[admin].epochs.roster().unwrap().hash() == before {
            return; // It crashed first.
        }
        self.left_out.insert(member);
        self.nodes[member].hostile = Some(member);
        let mut twin = self.nodes[member].epochs.clone();
        twin.me = id(self.nodes.len());
        twin.admission = None;
        self.add(twin, vec![], Some(member));
        for invite in self.invites.clone().iter().rev().take(4) {
            let place = self.join(invite, Some(member));
            // With the epochs that it remembers, not only that of the invite.
            let old = self.nodes[member].epochs.chain.clone();
            let held = self.nodes[member].epochs.held.clone();
            if self.random.percent(50) && old.is_some() {
                self.nodes[place].epochs.chain = old;
                self.nodes[place].epochs.held = held;
            }
        }
    }

    /// Two gateways of the admin and `size` members in all, all of them on the roster.
    fn grow(&mut self, size: usize) {
        let invite = self.invite(0, Uses::Many).unwrap();
        while self.nodes.len() < size {
            let place = self.join(&invite, None);
            self.meet(place, 0);
        }
        let key = Box::new(self.nodes[0].epochs.admin_key().unwrap().clone());
        self.step(1, Input::Command(Command::Administer(key)));
        self.step(0, Input::Command(Command::Rotate { exclude: BTreeSet::new(), grace: 60 }));
        for _ in 0..4 {
            self.mingle(2);
        }
        let head = self.nodes[0].epochs.roster().unwrap();
        assert_eq!(head.body().members.len(), size);
        self.founders = size;
        for node in &self.nodes {
            assert_eq!(node.epochs.roster().unwrap().hash(), head.hash());
        }
    }

    /// Everything goes wrong at once.
    fn chaos(&mut self, rounds: usize) {
        (self.loss, self.crashes) = (20, 2);
        for round in 0..rounds {
            self.now += self.random.next() % 90;
            let size = self.nodes.len();
            if round % 5 == 0 {
                let sides = 1 + self.random.below(3);
                for at in 0..size {
                    self.nodes[at].side = self.random.below(sides);
                }
            }
            for at in 2..size {
                if self.random.percent(4) {
                    self.nodes[at].online ^= true;
                }
                if self.random.percent(3) && self.nodes[at].hostile.is_none() {
                    self.restart(at);
                }
                if self.random.percent(10) {
                    self.step(at, Input::Tick);
                }
            }
            // Both of the admin's gateways act in the same round, and often on different sides.
            for admin in [0, 1] {
                match self.random.below(8) {
                    0 | 1 => {
                        let grace = self.random.below(120) as u32;
                        let exclude = BTreeSet::new();
                        self.step(admin, Input::Command(Command::Rotate { exclude, grace }));
                    }
                    2 | 3 => {
                        let honest = self.honest();
                        let member = honest[self.random.below(honest.len())];
                        let roster = self.nodes[admin].epochs.roster().unwrap();
                        let founder = (2..self.founders).contains(&member);
                        if founder && roster.body().members.contains_key(&id(member)) {
                            let grace = self.random.below(120) as u32;
                            self.exclude(admin, member, grace);
                        }
                    }
                    4 => {
                        let uses = if self.random.percent(50) { Uses::Once } else { Uses::Many };
                        if let Some(invite) = self.invite(admin, uses) {
                            // Passed on to two, also if it is for one.
                            let first = self.join(&invite, None);
                            let second = self.join(&invite, None);
                            self.nodes[second].side = self.nodes[1 - admin].side;
                            self.nodes[first].side = self.nodes[admin].side;
                        }
                    }
                    _ => {}
                }
            }
            for _ in 0..size / 20 {
                let at = self.random.below(size);
                if self.nodes[at].online && self.nodes[at].hostile.is_none() {
                    self.publish(at);
                }
            }
            self.mingle(1);
        }
    }

    /// The network is whole again.
    fn heal(&mut self) {
        (self.loss, self.crashes) = (0, 0);
        self.now += 10;
        for node in &mut self.nodes {
            (node.online, node.side) = (true, 0);
        }
        // The admin's gateways first settle who is in, as they would on meeting again.
        // Until nothing has changed for a while: most of those whom one meets are hostile by now.
        let mut quiet = 0;
        while quiet < 12 {
            let before = self.agreement();
            self.mingle(1);
            quiet = if self.agreement() == before { quiet + 1 } else { 0 };
        }
        self.now += 200;
        for at in 0..self.nodes.len() {
            self.step(at, Input::Tick);
        }
        self.mingle(2);
    }

    fn agreement(&self) -> Vec<(Option<RosterHash>, usize, usize)> {
        let node = |node: &Node| {
            let hash = node.epochs.roster().map(Roster::hash);
            (hash, node.epochs.admissions.len(), node.events.len())
        };
        self.nodes.iter().map(node).collect()
    }

    /// Everything that must hold when the network is whole.
    fn check(&self) {
        let head = self.nodes[0].epochs.roster().unwrap();
        let chain = self.nodes[0].epochs.chain.as_ref().unwrap();
        let members = self.nodes[0].epochs.members();
        let remaining: Vec<_> = members.iter().map(|member| number(*member)).collect();

        // Nobody got lost: all founders are members but those left out, and no one left out is.
        for founder in 0..self.founders {
            let out = self.left_out.contains(&founder);
            assert_eq!(members.contains(&id(founder)), !out, "{founder}");
        }
        // All agree.
        for at in &remaining {
            let node = &self.nodes[*at];
            assert_eq!(node.hostile, None, "{at} came back");
            let (theirs, ours) = (node.epochs.place(), head.place());
            let same = node.epochs.roster().map(Roster::hash) == Some(head.hash());
            assert!(same, "seed {}: {at} is at {theirs:?}, the admin at {ours:?}", self.seed);
            assert_eq!(
                node.epochs.reads(),
                [epoch_id(head)],
                "{at} reads what nobody publishes in"
            );
        }
        // All have all that any of them published.
        let theirs: BTreeSet<u32> = self
            .authors
            .iter()
            .filter(|(_, author)| members.contains(&id(**author)))
            .map(|(event, _)| *event)
            .collect();
        for at in &remaining {
            let lacking = theirs.difference(&self.nodes[*at].events).count();
            assert_eq!(lacking, 0, "of {} events at {at}", theirs.len());
        }
        // Nobody left out has a secret newer than the last roster with its name on it.
        let links: Vec<_> = chain.whole().into_iter().chain([*head.header()]).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(of) = node.hostile else { continue };
            let listed = |header: &&super::super::roster::Header| {
                let hash = header.hash(node.epochs.topic());
                self.rosters.get(&hash).is_some_and(|members| members.contains(&id(of)))
            };
            let last = links.iter().filter(listed).map(|header| header.place.epoch).max();
            for header in links.iter().filter(|header| Some(header.place.epoch) > last) {
                let newer = EpochId { number: header.place.epoch, commitment: header.commitment };
                let holds = node.stolen.contains(&newer)
                    || node.epochs.held.iter().any(|held| held.id == newer);
                assert!(!holds, "{at}, left out as {of} after {last:?}, holds {newer:?}");
            }
        }
    }
}

fn run(seed: u64, size: usize, rounds: usize) -> World {
    let mut world = World::new(seed);
    world.grow(size);
    world.chaos(rounds);
    world.heal();
    world.check();
    world
}

#[test]
fn three_hundred_members_converge() {
    let world = run(1, 300, 20);
    assert!(world.published > 100, "{}", world.published);
}

/// With `SIMULATOR_SEEDS=1000` for a longer search.
#[test]
fn many_small_topics_converge() {
    let seeds = std::env::var("SIMULATOR_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let seeds: u64 = seeds.unwrap_or(10);
    let (mut left_out, mut epochs, mut forks) = (0, 0, 0);
    for seed in 2..2 + seeds {
        let world = run(seed, 24, 40);
        left_out += world.left_out.len() as u64;
        epochs += world.nodes[0].epochs.roster().unwrap().place().epoch;
        let chain = world.nodes[0].epochs.chain.as_ref().unwrap();
        forks += (world.rosters.len() - chain.whole().len() - 1) as u64;
    }
    println!("{seeds} topics: {left_out} left out, {epochs} epochs, {forks} rosters undone");
    // It is no quiet world: there was something to agree on.
    assert!(left_out > 3 * seeds && epochs > 10 * seeds && forks > 2 * seeds);
}

#[test]
fn a_seed_is_a_run() {
    let summary = |world: &World| {
        let head = world.nodes[0].epochs.roster().unwrap();
        (head.hash(), world.published, world.nodes.len())
    };
    assert_eq!(summary(&run(7, 12, 20)), summary(&run(7, 12, 20)));
}
