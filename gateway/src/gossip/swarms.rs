//! The topics that we are in, each with what it takes to reach or end it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use iroh::EndpointId;
use tokio::sync::mpsc;

use super::state::{TopicState, TopicStatus};
use crate::{pipeline::HowJoined, protocol::TopicName, tasks::Tasks};

/// A topic's state, and the way to have it join endpoints.
pub type TopicEntrance = (Arc<TopicState>, mpsc::Sender<Vec<EndpointId>>);

/// One topic that we are in.
#[derive(Clone)]
pub struct Swarm {
    pub state: Arc<TopicState>,
    /// To the topic, which joins the endpoints that it is given.
    pub join: mpsc::Sender<Vec<EndpointId>>,
    pub how: HowJoined,
    /// Unix seconds.
    pub joined_at: u64,
    /// The topic itself, its discovery and its fetches.
    pub tasks: Tasks,
}

impl Swarm {
    pub fn status(&self) -> TopicStatus {
        self.state.status(self.how, self.joined_at)
    }
}

/// All of them.
#[derive(Default)]
pub struct Swarms(Mutex<BTreeMap<TopicName, Swarm>>);

impl Swarms {
    pub fn get(&self, name: &TopicName) -> Option<Swarm> {
        self.lock().get(name).cloned()
    }

    /// In alphabetical order.
    pub fn all(&self) -> Vec<Swarm> {
        self.lock().values().cloned().collect()
    }

    /// Looks at each of them; none comes or goes meanwhile.
    pub fn each(&self, look: impl FnMut(&Swarm)) {
        self.lock().values().for_each(look);
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn entrances(&self) -> Vec<TopicEntrance> {
        let swarms = self.lock();
        swarms.values().map(|swarm| (swarm.state.clone(), swarm.join.clone())).collect()
    }

    pub fn insert(&self, swarm: Swarm) {
        self.lock().insert(swarm.state.name().clone(), swarm);
    }

    pub fn remove(&self, name: &TopicName) -> Option<Swarm> {
        self.lock().remove(name)
    }

    /// Notes that a topic is now joined for another reason.
    pub fn rejoined(&self, name: &TopicName, how: HowJoined) {
        if let Some(swarm) = self.lock().get_mut(name) {
            swarm.how = how;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TopicName, Swarm>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
