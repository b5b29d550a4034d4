//! A number for each topic that rises whenever what the topic has changes: by it a comparison with
//! another gateway is known to be needless.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, OptionalExtension};

use crate::protocol::TopicName;

/// Topics whose changes are counted one by one; with more, counting begins anew for all.
const MOST: usize = 10_000;

/// What a transaction changes: topics of which something is held or gone that was not, or the other way
/// round. The writer tells [`Versions`] after the commit.
#[derive(Debug, Default)]
pub(super) struct Changed {
    topics: RefCell<BTreeSet<i64>>,
    all: Cell<bool>,
}

impl Changed {
    /// The topic with this number.
    pub fn topic(&self, topic: i64) {
        self.topics.borrow_mut().insert(topic);
    }

    /// Some topics, of which nobody knows which.
    pub fn all(&self) {
        self.all.set(true);
    }

    /// Begins anew, and tells by name what was changed up to here.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn take(&self, connection: &Connection) -> rusqlite::Result<News> {
        let mut names: Vec<String> = Vec::new();
        let mut name = connection.prepare_cached("SELECT name FROM topics WHERE topic = ?1")?;
        for topic in self.topics.take() {
            names.extend(name.query_row([topic], |row| row.get(0)).optional()?);
        }
        Ok(News { names, all: self.all.take() })
    }

    /// Nothing was kept.
    pub fn forget(&self) {
        self.topics.take();
        self.all.take();
    }
}

/// The names of changed topics.
pub(super) struct News {
    names: Vec<String>,
    all: bool,
}

/// How often each topic changed since the start.
#[derive(Debug, Default)]
pub(super) struct Versions(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    topics: HashMap<String, u64>,
    /// Added to each.
    all: u64,
}

impl Versions {
    pub fn of(&self, topic: &TopicName) -> u64 {
        let counts = self.counts();
        counts.all + counts.topics.get(topic.as_str()).copied().unwrap_or(0)
    }

    /// Not before the commit: whoever sees the number finds the change in the file.
    pub fn raise(&self, news: News) {
        let mut counts = self.counts();
        for name in news.names {
            *counts.topics.entry(name).or_insert(0) += 1;
        }
        if counts.topics.len() > MOST {
            // No number may come again.
            counts.all += counts.topics.values().max().copied().unwrap_or(0) + 1;
            counts.topics.clear();
        }
        counts.all += u64::from(news.all);
    }

    /// Any topic may have changed.
    pub fn raise_all(&self) {
        self.counts().all += 1;
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_topic_never_falls_and_never_comes_again() {
        let versions = Versions::default();
        let topic = |name: &str| TopicName::new(name).unwrap();
        let raise = |name: &str| {
            versions.raise(News { names: vec![name.to_owned()], all: false });
        };
        (0..5).for_each(|_| raise("a"));
        assert_eq!((versions.of(&topic("a")), versions.of(&topic("b"))), (5, 0));
        versions.raise_all();
        assert_eq!((versions.of(&topic("a")), versions.of(&topic("b"))), (6, 1));
        (0..=MOST).for_each(|n| raise(&n.to_string()));
        assert!(versions.of(&topic("a")) > 6);
        assert!(versions.of(&topic("b")) > 1);
        assert!(versions.counts().topics.len() <= MOST);
    }
}
