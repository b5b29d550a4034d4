//! Who speaks in a swarm: a public topic's own queue; in a private topic one queue for all epochs,
//! which is heard in the newest alone.

use std::{future::pending, sync::Arc, time::Duration};

use iroh_gossip::api::GossipSender;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    gossip::{
        outbound::{Ended, Outbound},
        state::TopicState,
    },
    protocol::private::seal::Sealer,
};

/// What one subscription of a swarm says.
pub enum Voice {
    /// What this queue holds.
    Own(Box<Outbound>),
    /// What somebody else says through it.
    Lent(Arc<Line>),
}

/// The way into the swarm of one epoch.
pub struct Line {
    sender: watch::Sender<Option<GossipSender>>,
    /// Gossip takes nothing any more: the swarm is to be subscribed anew.
    wedged: Notify,
}

impl Line {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { sender: watch::Sender::new(None), wedged: Notify::new() })
    }
}

impl Voice {
    /// Speaks until gossip fails. Can be dropped at any point.
    pub async fn speak(&mut self, sender: &GossipSender) -> Ended {
        match self {
            Self::Own(outbound) => outbound.run(sender).await,
            Self::Lent(line) => {
                line.sender.send_replace(Some(sender.clone()));
                line.wedged.notified().await;
                Ended::Wedged
            }
        }
    }

    /// The subscription ended.
    pub fn fall_silent(&self) {
        if let Self::Lent(line) = self {
            line.sender.send_replace(None);
        }
    }
}

/// The swarm to publish in.
#[derive(Clone)]
pub struct Place {
    pub line: Arc<Line>,
    pub state: Arc<TopicState>,
    pub seal: Sealer,
}

/// Says what is in the queue in the swarm that is the newest at the time.
pub async fn speak(
    mut outbound: Outbound,
    mut places: watch::Receiver<Option<Place>>,
    token: CancellationToken,
) {
    loop {
        let place = places.borrow_and_update().clone();
        tokio::select! {
            () = token.cancelled() => return,
            changed = places.changed() => if changed.is_err() { return },
            () = speak_in(&mut outbound, place) => {}
        }
    }
}

/// Never ends by itself.
async fn speak_in(outbound: &mut Outbound, place: Option<Place>) {
    let Some(Place { line, state, seal }) = place else { return pending().await };
    outbound.turn_to(state, seal);
    let mut senders = line.sender.subscribe();
    loop {
        let sender = senders.borrow_and_update().clone();
        let speaking = async {
            match &sender {
                Some(sender) => drop(outbound.run(sender).await),
                None => pending().await,
            }
        };
        tokio::select! {
            // The line holds the other end.
            _ = senders.changed() => {}
            () = speaking => {
                line.wedged.notify_one();
                // The swarm takes notice and subscribes anew.
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
