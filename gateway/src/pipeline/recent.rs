//! Ephemeral events that passed lately.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use super::{Audience, Presence};
use crate::protocol::{EventId, TopicName};

/// How many ephemeral events are remembered, each once and once more for each of its topics.
const REMEMBERED: usize = 8_192;

/// Ephemeral events that passed lately, so that one which comes back by another way is not passed on
/// a second time.
#[derive(Default)]
pub(super) struct Recent(Mutex<RecentSet>);

#[derive(Default)]
struct RecentSet {
    known: HashMap<EventId, Passed>,
    order: VecDeque<EventId>,
    /// What they take of [`REMEMBERED`].
    size: usize,
}

/// Where an event passed, in this order.
struct Passed {
    topics: Vec<TopicName>,
    /// Only there so far: not for everybody on `/`.
    private: bool,
}

impl Recent {
    /// Whether it passed by all of these topics; if not `private`, for everybody.
    pub(super) fn presence(&self, id: &EventId, topics: &[TopicName], private: bool) -> Presence {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match set.known.get(id) {
            None => Presence::Unknown,
            Some(passed) => {
                let seen = private || !passed.private;
                if seen && topics.iter().all(|topic| passed.topics.contains(topic)) {
                    Presence::Known
                } else {
                    Presence::KnownElsewhere
                }
            }
        }
    }

    /// Takes note of an event. Returns the topics that it is new to, and for whom it is news on `/`;
    /// `None` when it is no news.
    pub(super) fn remember(
        &self,
        id: &EventId,
        topics: Vec<TopicName>,
        private: bool,
    ) -> Option<(Vec<TopicName>, Audience)> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = &mut *set;
        let (news, audience) = match set.known.get_mut(id) {
            None => {
                set.known.insert(*id, Passed { topics: topics.clone(), private });
                set.order.push_back(*id);
                set.size += 1;
                (topics, Audience::first(private))
            }
            Some(passed) => {
                let is_new = |topic: &TopicName| !passed.topics.contains(topic);
                let news: Vec<_> = topics.into_iter().filter(is_new).collect();
                let but = if passed.private { passed.topics.clone() } else { Vec::new() };
                let audience = match (passed.private, private) {
                    (false, _) => Audience::Nobody,
                    (true, true) => Audience::Readers { but },
                    (true, false) => Audience::Everybody { but },
                };
                if news.is_empty() && (private || !passed.private) {
                    return None;
                }
                passed.private &= private;
                passed.topics.extend_from_slice(&news);
                (news, audience)
            }
        };
        set.size += news.len();
        while set.size > REMEMBERED {
            let Some(oldest) = set.order.pop_front() else { break };
            if let Some(passed) = set.known.remove(&oldest) {
                set.size -= 1 + passed.topics.len();
            }
        }
        Some((news, audience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(names: &[&str]) -> Vec<TopicName> {
        names.iter().map(|name| TopicName::new(name).unwrap()).collect()
    }

    #[test]
    fn an_ephemeral_event_is_news_once_and_once_in_each_topic() {
        let (recent, id) = (Recent::default(), EventId([1; 32]));
        let (a, both) = (topics(&["a"]), topics(&["a", "b"]));
        assert_eq!(recent.presence(&id, &both, false), Presence::Unknown);
        let first = recent.remember(&id, a.clone(), false);
        assert_eq!(first, Some((a.clone(), Audience::first(false))));
        assert_eq!(recent.presence(&id, &a, false), Presence::Known);
        assert_eq!(recent.presence(&id, &both, false), Presence::KnownElsewhere);
        let second = recent.remember(&id, both.clone(), false);
        assert_eq!(second, Some((topics(&["b"]), Audience::Nobody)));
        assert_eq!(recent.remember(&id, both.clone(), false), None);
        // It stays public.
        assert_eq!(recent.remember(&id, both, true), None);
    }

    #[test]
    fn one_that_passed_in_a_private_topic_is_news_for_the_others() {
        let (recent, id) = (Recent::default(), EventId([1; 32]));
        let (a, b) = (topics(&["a"]), topics(&["b"]));
        let first = recent.remember(&id, a.clone(), true);
        assert_eq!(first, Some((a.clone(), Audience::Readers { but: vec![] })));
        assert_eq!(recent.presence(&id, &a, true), Presence::Known);
        assert_eq!(recent.presence(&id, &[], false), Presence::KnownElsewhere);
        let second = recent.remember(&id, b.clone(), true);
        assert_eq!(second, Some((b.clone(), Audience::Readers { but: a })));
        let third = recent.remember(&id, vec![], false);
        assert_eq!(third, Some((vec![], Audience::Everybody { but: topics(&["a", "b"]) })));
        assert_eq!(recent.presence(&id, &[], false), Presence::Known);
        assert_eq!(recent.remember(&id, b, true), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let recent = Recent::default();
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            EventId(id)
        };
        for n in 0..REMEMBERED {
            recent.remember(&id(n), topics(&["a", "b"]), false);
        }
        assert_eq!(recent.presence(&id(0), &[], false), Presence::Unknown);
        let last = recent.presence(&id(REMEMBERED - 1), &[], false);
        assert_eq!(last, Presence::Known);
        let set = recent.0.lock().unwrap();
        assert_eq!(set.known.len(), set.order.len());
        assert_eq!(set.size, set.known.len() * 3);
        assert!(set.size <= REMEMBERED && set.size > REMEMBERED - 3);
    }
}
