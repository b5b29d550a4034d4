//! Who speaks in a swarm: a public topic's own queue; in a private topic one queue for all epochs,
//! which is heard in the newest alone.

use std::{future::pending, sync::Arc};

use iroh_gossip::api::GossipSender;
use tokio::sync::watch;
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
    Lent { line: Arc<Line>, subscriptions: u64 },
}

/// The way into the swarm of one epoch.
pub struct Line {
    sender: watch::Sender<Option<Way>>,
    /// Gossip takes nothing any more by the way of this number: the swarm is to be subscribed anew.
    ended: watch::Sender<Option<(u64, Ended)>>,
}

/// Into the swarm by one subscription. They are numbered: what is told of an earlier one says nothing of
/// this.
#[derive(Clone)]
struct Way {
    number: u64,
    sender: GossipSender,
}

impl Line {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { sender: watch::Sender::new(None), ended: watch::Sender::new(None) })
    }
}

impl Voice {
    pub fn lent(line: Arc<Line>) -> Self {
        Self::Lent { line, subscriptions: 0 }
    }

    /// Speaks until gossip fails. Can be dropped at any point.
    pub async fn speak(&mut self, sender: &GossipSender) -> Ended {
        match self {
            Self::Own(outbound) => outbound.run(sender).await,
            Self::Lent { line, subscriptions } => {
                *subscriptions += 1;
                let (number, sender) = (*subscriptions, sender.clone());
                line.sender.send_replace(Some(Way { number, sender }));
                let mut ended = line.ended.subscribe();
                let of_this =
                    |ended: &Option<(u64, Ended)>| ended.is_some_and(|(of, _)| of == number);
                match ended.wait_for(of_this).await.map(|ended| *ended) {
                    Ok(Some((_, ended))) => ended,
                    // The line holds the other end.
                    Ok(None) | Err(_) => pending().await,
                }
            }
        }
    }

    /// The subscription ended.
    pub fn fall_silent(&self) {
        if let Self::Lent { line, .. } = self {
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
    let mut ways = line.sender.subscribe();
    loop {
        let way = ways.borrow_and_update().clone();
        let speaking = async {
            if let Some(Way { number, sender }) = &way {
                let ended = outbound.run(sender).await;
                line.ended.send_replace(Some((*number, ended)));
            }
            // The swarm takes notice and subscribes anew.
            pending().await
        };
        tokio::select! {
            // The line holds the other end.
            _ = ways.changed() => {}
            () = speaking => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use iroh_gossip::{TopicId, net::Gossip};

    use super::*;

    #[tokio::test]
    async fn what_is_told_of_an_earlier_subscription_does_not_end_this_one() {
        let endpoint = iroh::Endpoint::builder(iroh::endpoint::presets::Minimal)
            .relay_mode(iroh::RelayMode::Disabled)
            .clear_ip_transports()
            .bind_addr("127.0.0.1:0")
            .unwrap()
            .bind()
            .await
            .unwrap();
        let gossip = Gossip::builder().spawn(endpoint.clone());
        let topic = gossip.subscribe(TopicId::from_bytes([7; 32]), Vec::new()).await.unwrap();
        let (sender, _receiver) = topic.split();
        let line = Line::new();
        let mut voice = Voice::lent(line.clone());
        let tells = |number, ended| {
            line.ended.send_replace(Some((number, ended)));
        };
        assert!(voice.speak(&sender).now_or_never().is_none());
        // The subscription ended by itself, and this came too late for it.
        tells(1, Ended::Wedged);
        voice.fall_silent();
        assert!(voice.speak(&sender).now_or_never().is_none());
        for (number, ended) in [(3, Ended::Closed), (4, Ended::Wedged)] {
            let told = async { tells(number, ended) };
            assert_eq!(tokio::join!(voice.speak(&sender), told).0, ended);
        }
        endpoint.close().await;
    }
}
