//! Topics that the operator left: no visit brings them back.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::protocol::TopicName;

/// How many are remembered. With more, the oldest may be visited again.
const MOST: usize = 1_000;

/// The topics left by command since the start, oldest first. Only in memory: after a restart
/// `topics.join_on_visit` says anew what a visit may do.
#[derive(Default)]
pub struct LeftTopics(Mutex<VecDeque<TopicName>>);

impl LeftTopics {
    pub fn contains(&self, name: &TopicName) -> bool {
        self.lock().contains(name)
    }

    /// The operator left it.
    pub fn insert(&self, name: TopicName) {
        let mut names = self.lock();
        names.retain(|left| *left != name);
        if names.len() >= MOST {
            names.pop_front();
        }
        names.push_back(name);
    }

    /// The operator joined it again.
    pub fn remove(&self, name: &TopicName) {
        self.lock().retain(|left| left != name);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<TopicName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered() {
        let name = |n: usize| TopicName::new(&format!("topic {n}")).unwrap();
        let left = LeftTopics::default();
        (0..MOST).for_each(|n| left.insert(name(n)));
        // Left again, it is the newest.
        left.insert(name(0));
        left.insert(name(MOST));
        assert!(left.contains(&name(0)) && left.contains(&name(MOST)) && left.contains(&name(2)));
        assert!(!left.contains(&name(1)), "the oldest makes room");
        assert_eq!(left.lock().len(), MOST);
        left.remove(&name(0));
        assert!(!left.contains(&name(0)));
    }
}
