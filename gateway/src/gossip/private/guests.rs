//! Who is to be met for a private topic, in which order, and who once more.

use std::collections::{HashMap, VecDeque};

use iroh::EndpointId;

use crate::protocol::private::MAX_MEMBERS;

/// Who may wait to be met. Beyond that nobody is taken in; a later look finds them again.
const WAITING: usize = MAX_MEMBERS + 64;

/// Endpoints to be met, each at one place at a time.
pub struct Guests {
    me: EndpointId,
    waiting: VecDeque<EndpointId>,
    stages: HashMap<EndpointId, Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Meeting,
    /// Being met, and there is something newer than what this meeting began with.
    MeetingAndOnceMore,
}

impl Guests {
    pub fn new(me: EndpointId) -> Self {
        Self { me, waiting: VecDeque::new(), stages: HashMap::new() }
    }

    /// Wants to meet them. Whoever waits or is being met is not met once more for this.
    pub fn invite(&mut self, peers: impl IntoIterator<Item = EndpointId>) {
        for peer in peers {
            if !self.stages.contains_key(&peer) {
                self.line_up(peer);
            }
        }
    }

    /// Wants to tell them something new. In a meeting that goes on, both may have said already what they
    /// have: then there is another one after it.
    pub fn tell(&mut self, peers: impl IntoIterator<Item = EndpointId>) {
        for peer in peers {
            match self.stages.get_mut(&peer) {
                None => self.line_up(peer),
                Some(Stage::Waiting) => {}
                Some(stage) => *stage = Stage::MeetingAndOnceMore,
            }
        }
    }

    /// Whom to meet next.
    pub fn next(&mut self) -> Option<EndpointId> {
        let peer = self.waiting.pop_front()?;
        self.stages.insert(peer, Stage::Meeting);
        Some(peer)
    }

    /// The meeting is over, whatever came of it.
    pub fn met(&mut self, peer: EndpointId) {
        if self.stages.remove(&peer) == Some(Stage::MeetingAndOnceMore) {
            self.line_up(peer);
        }
    }

    pub fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    fn line_up(&mut self, peer: EndpointId) {
        if peer != self.me && self.waiting.len() < WAITING {
            self.stages.insert(peer, Stage::Waiting);
            self.waiting.push_back(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    #[test]
    fn what_is_new_is_told_once_more_to_who_is_being_met() {
        let [me, a, b] = [1, 2, 3].map(|seed| SecretKey::from_bytes(&[seed; 32]).public());
        let mut guests = Guests::new(me);
        guests.invite([me, a, b, a]);
        assert_eq!(guests.next(), Some(a));
        // `a` is being met, `b` waits.
        guests.invite([a, b]);
        guests.tell([me, a, b]);
        guests.tell([a]);
        assert_eq!((guests.next(), guests.next()), (Some(b), None));
        guests.met(b);
        assert!(guests.nobody_waits(), "it hears of it in the meeting that came after");
        guests.met(a);
        assert_eq!((guests.next(), guests.next()), (Some(a), None));
        guests.met(a);
        assert!(guests.nobody_waits(), "once");
        guests.tell([b]);
        assert_eq!(guests.next(), Some(b));
    }

    #[test]
    fn not_everybody_may_wait() {
        let me = SecretKey::from_bytes(&[1; 32]).public();
        let mut guests = Guests::new(me);
        let many = (0..WAITING as u32 + 10).map(|n| {
            let mut seed = [2; 32];
            seed[..4].copy_from_slice(&n.to_be_bytes());
            SecretKey::from_bytes(&seed).public()
        });
        guests.tell(many);
        assert_eq!((guests.waiting.len(), guests.stages.len()), (WAITING, WAITING));
    }
}
