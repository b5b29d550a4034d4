//! The step of discovery that asks the neighbors of earlier runs, in public and private topics alike.
//! Whom it asks, and how often, is decided in `remembered.rs`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use iroh::EndpointId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    asking::Asking,
    config::DiscoveryConfig,
    discovery::{ask, rest},
    ladder::{FoundBy, Step},
    pace,
    remembered::{Asked, Remembered},
    state::TopicState,
};

/// Asks those who are remembered of one topic, and remembers those of now.
pub struct Earlier {
    pub id: EndpointId,
    pub config: Arc<DiscoveryConfig>,
    pub remembered: Remembered,
    pub state: Arc<TopicState>,
    /// To the topic. A public one joins whom it is given; a private one meets them first.
    pub join: mpsc::Sender<Vec<EndpointId>>,
}

impl Earlier {
    /// At start, and again while there are few neighbors, until shutdown.
    pub async fn run(self, token: CancellationToken) {
        let steps = async {
            tokio::join!(self.meet(), self.remembered.keep());
        };
        token.run_until_cancelled(steps).await;
    }

    async fn meet(&self) {
        let (remembered, state) = (&self.remembered, &self.state);
        let began = Instant::now();
        if let Err(error) = remembered.recall().await {
            tracing::warn!(%error, "cannot read who was reached before");
            state.step(Step::Remembered, began, Err(error.to_string()));
        }
        let mut asked = Asked::default();
        let limit = Duration::from_millis(self.config.timeout_ms);
        let mut asking = Asking::new(Step::Remembered, limit);
        loop {
            let neighbors = state.neighbors();
            if neighbors.len() < pace::FEW {
                let due = asked.due(remembered.choice(), &neighbors);
                if !due.is_empty() {
                    let due = ask(self.id, state, &self.join, due, FoundBy::Remembered);
                    asking.ask(state, "", &due);
                }
                remembered.missed(asked.missed()).await;
            }
            asking.during(state, rest(state, self.config.jitter_ms)).await;
        }
    }
}
