//! The swarm of one epoch: its gossip topic, and its own places in the DHT.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use iroh::EndpointId;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::voice::{Line, Place, Voice};
use crate::{
    gossip::{
        JOIN_QUEUE, budget::Budgets, config::DiscoveryConfig, dht::SharedDht, discovery::Discovery,
        fetch::Announcement, net::Net, record::RecordKeys, state::TopicState, topic::Topic,
        watch::Health,
    },
    metrics::Metrics,
    pipeline::Ingest,
    protocol::private::{self, derive::EpochKeys, epochs::EpochId, seal::Sealer},
    tasks::Tasks,
};

/// How long the tasks of an epoch may take to end.
const LEAVE: Duration = Duration::from_secs(2);
/// How often the state of a swarm is looked at when nothing tells of a change.
const LOOK: Duration = Duration::from_secs(2);

/// What the swarms of one topic need.
pub struct Parts {
    pub me: SigningKey,
    pub id: EndpointId,
    pub net: Arc<Net>,
    pub config: Arc<DiscoveryConfig>,
    pub dht: Option<SharedDht>,
    pub ingest: Ingest,
    pub knock: mpsc::Sender<crate::gossip::joiner::Unanswered>,
    pub announced: mpsc::Sender<Announcement>,
    pub budgets: Arc<Budgets>,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
    /// The topic as the rest of the gateway sees it.
    pub state: Arc<TopicState>,
    /// To the topic's own task, which meets endpoints before they are joined.
    pub meet: mpsc::Sender<Vec<EndpointId>>,
    pub tasks: Tasks,
}

/// A running swarm.
pub struct Lane {
    pub epoch: EpochId,
    pub state: Arc<TopicState>,
    join: mpsc::Sender<Vec<EndpointId>>,
    place: Place,
    tasks: Tasks,
}

impl Parts {
    /// Enters the swarm of an epoch. Swarms are numbered in the order in which they are entered.
    pub fn enter(
        &self,
        topic: &private::Topic,
        epoch: EpochId,
        keys: &EpochKeys,
        number: u64,
    ) -> Lane {
        // Of the neighbors in metrics, those of all epochs are counted together.
        let state = Arc::new(TopicState::new(topic.name.clone(), Arc::default()));
        let (join, found) = mpsc::channel(JOIN_QUEUE);
        let records = RecordKeys::private(keys);
        let (line, seal) = (Line::new(), Sealer::new(topic, epoch.number, keys));
        let swarm = Topic {
            me: self.id,
            id: records.gossip_id(),
            net: self.net.clone(),
            state: state.clone(),
            ingest: self.ingest.clone(),
            voice: Voice::lent(line.clone()),
            seal: Some(seal.clone()),
            join: found,
            knock: self.knock.clone(),
            announced: self.announced.clone(),
            budgets: self.budgets.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
        };
        // Nobody is joined who was not met first: a join tells the id of the swarm, and of those
        // that are configured or on the local network we do not know that they belong to it.
        let discovery = Discovery {
            keys: records,
            me: self.me.clone(),
            id: self.id,
            config: self.config.clone(),
            dht: self.dht.clone(),
            configured: Arc::new([]),
            local: None,
            state: state.clone(),
            join: self.meet.clone(),
            metrics: self.metrics.clone(),
        };
        let tasks = self.tasks.child();
        let token = || tasks.token().clone();
        let span = tracing::info_span!("epoch", number = epoch.number);
        tasks.spawn("epoch", swarm.run(token()).instrument(span.clone()));
        tasks.spawn("discovery", discovery.run(token()).instrument(span));
        tasks.spawn("neighbors", mirror(state.clone(), self.state.clone(), number, token()));
        let place = Place { line, state: state.clone(), seal };
        Lane { epoch, state, join, place, tasks }
    }
}

impl Lane {
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// Joins an endpoint that was met. When the queue is full, it is met again.
    pub fn join(&self, peer: EndpointId) {
        if !self.state.neighbors().contains(&peer) {
            let _ = self.join.try_send(vec![peer]);
        }
    }

    /// Leaves the swarm and tells its neighbors so.
    pub async fn leave(self) {
        if !self.tasks.stop(LEAVE).await {
            tracing::warn!(epoch = self.epoch.number, "some tasks of an epoch did not end in time");
        }
    }
}

/// Shows the neighbors of one epoch as those of the topic, until the epoch is left.
async fn mirror(
    swarm: Arc<TopicState>,
    topic: Arc<TopicState>,
    number: u64,
    token: CancellationToken,
) {
    let mut count = swarm.count();
    loop {
        topic.mirror(number, Some(&swarm));
        tokio::select! {
            () = token.cancelled() => break,
            (arrived, lagged) = swarm.stirred() => {
                topic.mirror(number, Some(&swarm));
                // Also somebody who is a neighbor in another epoch: what was published while the two
                // swarms did not know of one another comes by a comparison.
                topic.arrived(arrived);
                if lagged {
                    topic.lagged();
                }
            }
            _ = count.changed() => {}
            () = sleep(LOOK) => {}
        }
    }
    topic.mirror(number, None);
}
