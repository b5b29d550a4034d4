//! When a topic is compared, and with whom.

use std::sync::Arc;

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::EndpointId;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    desk::{Call, Desk, Ending},
    lead::Report,
    library::{Failure, Library},
    plans::{Ended, Plans},
};
use crate::gossip::state::Work;

/// A neighbor that is busy so often in a row is given up by those who watch.
const BUSY: u32 = 3;

/// The actor of one topic's comparisons.
pub struct TopicSync {
    pub library: Arc<Library>,
    pub desk: Arc<Desk>,
}

impl TopicSync {
    /// Compares until shutdown or the topic ends.
    pub async fn run(self, mut calls: mpsc::Receiver<Call>, token: CancellationToken) {
        let this = &self;
        let mut plans = Plans::new(self.library.start.me, self.library.start.interval);
        let mut running = FuturesUnordered::new();
        let mut hints = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            self.follow_neighbors(&mut plans, now);
            while let Some((peer, deep)) = plans.start(now, &mut rand::rng()) {
                running.push(async move { (peer, this.lead(peer, deep).await) });
            }
            while let Some(peer) = plans.tell(now) {
                hints.push(this.library.hint(peer, this.desk.topic()));
            }
            let wake = plans.wake();
            tokio::select! {
                () = token.cancelled() => break,
                Some((peer, led)) = running.next(), if !running.is_empty() => {
                    self.ended(&mut plans, peer, led);
                }
                Some(()) = hints.next(), if !hints.is_empty() => {}
                (arrived, lagged) = self.desk.state.stirred() => {
                    let now = Instant::now();
                    arrived.into_iter().for_each(|peer| plans.arrived(peer, now));
                    if lagged {
                        plans.lagged(now);
                    }
                }
                call = calls.recv() => {
                    let Some(call) = call else { break };
                    self.call(&mut plans, call);
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
        self.library.close(&self.desk);
    }

    fn follow_neighbors(&self, plans: &mut Plans, now: Instant) {
        plans.follow(&self.desk.state.neighbors().into_iter().collect(), now);
        for peer in self.desk.watched() {
            if !plans.has(&peer) {
                self.desk.over(peer, Ending::Failed);
            }
        }
    }

    async fn lead(&self, peer: EndpointId, deep: bool) -> Result<Report, Failure> {
        tracing::debug!(peer = %peer.fmt_short(), deep, "comparing");
        let _busy = self.desk.state.busy(Work::Sync);
        self.library.lead(&self.desk, peer, deep).await
    }

    fn ended(&self, plans: &mut Plans, peer: EndpointId, led: Result<Report, Failure>) {
        let now = Instant::now();
        let busy = matches!(led, Err(Failure::NotNow)) && plans.failures(&peer) < BUSY;
        if !busy || !plans.has(&peer) {
            self.desk.over(
                peer,
                match led {
                    Ok(_) => Ending::Compared,
                    Err(Failure::DoesNotSpeak) => Ending::GossipOnly,
                    Err(_) => Ending::Failed,
                },
            );
        }
        let (ended, gained) = match &led {
            Ok(report) => {
                let (gained, lost) = (report.pulled.gained, report.pulled.lost > 0);
                (Ended::Done { gained: gained > 0, lost }, gained)
            }
            Err(Failure::NotTaken) => (Ended::Done { gained: false, lost: true }, 0),
            Err(Failure::DoesNotSpeak) => (Ended::Deaf, 0),
            Err(_) => (Ended::Failed, 0),
        };
        plans.ended(&peer, ended, now, &mut rand::rng());
        let speaks = match &led {
            Ok(_) | Err(Failure::NotNow | Failure::NotTaken) => Some(true),
            Err(Failure::DoesNotSpeak) => Some(false),
            Err(_) => None,
        };
        speaks.into_iter().for_each(|yes| self.desk.state.speaks(peer, yes));
        match led {
            Ok(report) if report.pulled.gained > 0 || report.offered > 0 => tracing::info!(
                peer = %peer.fmt_short(),
                gained = report.pulled.gained,
                offered = report.offered,
                gone_there = report.pulled.gone,
                "compared with another gateway"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(peer = %peer.fmt_short(), %error, "a comparison was broken off");
            }
        }
        self.pass_on(plans, &peer, gained);
    }

    fn pass_on(&self, plans: &mut Plans, from: &EndpointId, gained: usize) {
        if gained > 0 {
            let speaks = |peer: &EndpointId| self.desk.state.speaks_sync(peer) != Some(false);
            plans.pass_on(from, Instant::now(), speaks);
        }
    }

    fn call(&self, plans: &mut Plans, call: Call) {
        let now = Instant::now();
        match call {
            Call::Hint(peer) => {
                self.desk.state.speaks(peer, true);
                plans.hinted(&peer, now, &mut rand::rng());
            }
            Call::Followed(peer, gained) => {
                self.desk.state.speaks(peer, true);
                plans.followed(&peer, now, &mut rand::rng());
                self.pass_on(plans, &peer, gained);
            }
            Call::Gained(peer, gained) => self.pass_on(plans, &peer, gained),
            Call::All => plans.all(now),
        }
    }
}
