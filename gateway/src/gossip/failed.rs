//! Topics of the last run that could not be joined again: shown as failed, with the reason, until they are
//! joined anew or left.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{phase::TopicPhase, state::TopicStatus};
use crate::{
    metrics::{Metrics, PhaseLabels},
    pipeline::HowJoined,
    protocol::TopicName,
};

/// At most as many as were joined before.
pub struct FailedTopics {
    topics: Mutex<BTreeMap<TopicName, TopicStatus>>,
    metrics: Arc<Metrics>,
}

impl FailedTopics {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { topics: Mutex::default(), metrics }
    }

    /// `joined_at` is in Unix seconds. The reason is shown, and holds no secret.
    pub fn insert(
        &self,
        name: TopicName,
        private: bool,
        how: HowJoined,
        joined_at: u64,
        reason: String,
    ) {
        let status = TopicStatus {
            name: name.clone(),
            private,
            how,
            joined_at,
            state: TopicPhase::Failed,
            reason: Some(reason),
            neighbors: Vec::new(),
            first_neighbor_ms: None,
            steps: BTreeMap::new(),
        };
        self.lock().insert(name, status);
    }

    /// It was left, or is joined now. Takes it out of the figures too.
    pub fn remove(&self, name: &TopicName) {
        let mut topics = self.lock();
        if topics.remove(name).is_some() {
            self.metrics.forget_topic(name.as_str(), &TopicPhase::ALL.map(TopicPhase::name));
        }
    }

    pub fn get(&self, name: &TopicName) -> Option<TopicStatus> {
        self.lock().get(name).cloned()
    }

    /// In alphabetical order.
    pub fn all(&self) -> Vec<TopicStatus> {
        self.lock().values().cloned().collect()
    }

    /// Puts their state into the figures; none comes or goes meanwhile.
    pub fn measure(&self) {
        for name in self.lock().keys() {
            let state = TopicPhase::Failed.name();
            let labels = PhaseLabels { topic: name.to_string(), state };
            self.metrics.topic_state.get_or_create_owned(&labels).set(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TopicName, TopicStatus>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
