//! Keeps a private topic going: is in the swarms of its epochs, meets members, and spreads what is
//! new.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::EndpointId;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    circle::{Circle, CircleError},
    guests::Guests,
    lane::{Lane, Parts},
    talk,
    voice::{self, Place},
};
use crate::{
    clock::unix_now,
    gossip::{
        asking::Asking,
        fetch::Connections,
        ladder::{FoundBy, Step},
        outbound::Outbound,
        state::{Busy, Work},
    },
    protocol::private::{MemberId, epochs::Input},
};

/// With fewer neighbors than this in the newest swarm, members are looked for.
const FEW: usize = 4;
/// Pauses between two looks: just begun, alone, with few neighbors, with enough.
const AT_FIRST: Duration = Duration::from_millis(250);
const ALONE: Duration = Duration::from_secs(2);
const WITH_FEW: Duration = Duration::from_secs(10);
const WITH_ENOUGH: Duration = Duration::from_secs(60);
/// The first looks come in quick succession.
const QUICK: u32 = 8;
/// Members tried at one look.
const TRIED: usize = 6;
/// Meetings at once. One that is away holds up a place for as long as dialing may take.
const AT_ONCE: usize = 16;
/// The topic is shown as rotating at most this long.
const ROTATING: Duration = Duration::from_secs(15);
/// After a step of the clock that could not be saved.
const NEXT_TRY: Duration = Duration::from_secs(5);

/// The task of one private topic.
pub struct Tender {
    pub circle: Arc<Circle>,
    pub parts: Parts,
    pub connections: Arc<Connections>,
    pub outbound: Outbound,
    /// Endpoints that may be members.
    pub found: mpsc::Receiver<Vec<EndpointId>>,
    /// Where the holder of an invite begins.
    pub first: Vec<EndpointId>,
}

struct Swarms {
    lanes: Vec<Lane>,
    /// How many were entered so far.
    entered: u64,
    places: watch::Sender<Option<Place>>,
}

impl Tender {
    /// Is in the topic until it is left or the gateway stops.
    pub async fn run(mut self, token: CancellationToken) {
        let (places, heard) = watch::channel(None);
        let mut swarms = Swarms { lanes: Vec::new(), entered: 0, places };
        let speaking = voice::speak(self.outbound, heard, token.clone());
        let span = tracing::Span::current();
        self.parts.tasks.spawn("voice", speaking.instrument(span));
        let (circle, parts) = (&self.circle, &self.parts);
        let connections = &self.connections;
        let mut guests = Guests::new(parts.id);
        let mut meetings = FuturesUnordered::new();
        let mut rotating: Option<(Busy, Instant)> = None;
        let limit = Duration::from_millis(parts.config.timeout_ms);
        let mut inviting = Asking::new(Step::Invite, limit);
        let mut asking = Asking::new(Step::Members, limit);
        let mut looks = 0;
        let mut look_at = Instant::now();
        // What ended while the gateway was away.
        let mut no_tick_before = tick(circle).await;
        follow(circle, parts, &mut swarms).await;
        loop {
            while meetings.len() < AT_ONCE
                && let Some(peer) = guests.next()
            {
                meetings.push(async move { (peer, meet(circle, connections, peer).await) });
            }
            // Whom it takes is known after the first look.
            let is_through = looks > 0 && meetings.is_empty() && guests.nobody_waits();
            if rotating.as_ref().is_some_and(|(_, since)| is_through || since.elapsed() > ROTATING)
            {
                rotating = None;
            }
            let ends = circle.next_tick().map(until);
            let ends = ends.unwrap_or_else(|| Instant::now() + WITH_ENOUGH).max(no_tick_before);
            tokio::select! {
                () = token.cancelled() => break,
                () = circle.changed.notified() => {
                    let before = swarms.places.borrow().is_some();
                    if follow(circle, parts, &mut swarms).await && before {
                        let shown = parts.state.busy(Work::Rotation);
                        rotating = Some((shown, Instant::now()));
                    }
                    looks = 0;
                    look_at = Instant::now();
                }
                () = circle.near.notified() => guests.tell(parts.state.neighbors()),
                () = circle.far.notified() => {
                    guests.tell(parts.state.neighbors());
                    guests.tell(members(circle));
                }
                Some(peers) = self.found.recv() => guests.invite(peers),
                Some((peer, met)) = meetings.next(), if !meetings.is_empty() => {
                    guests.met(peer);
                    match met {
                        Ok(()) => {
                            if let Some(lane) = swarms.lanes.last() {
                                let by = parts.state.found_by(&peer);
                                lane.state.found(peer, by.unwrap_or(FoundBy::Member));
                                lane.join(peer);
                            }
                        }
                        Err(error) => tracing::debug!(
                            peer = %peer.fmt_short(), error, "no meeting with a possible member"
                        ),
                    }
                }
                () = inviting.ends(&parts.state) => {}
                () = asking.ends(&parts.state) => {}
                () = sleep_until(ends) => no_tick_before = tick(circle).await,
                () = sleep_until(look_at) => {
                    let neighbors = newest_neighbors(&swarms);
                    let pause = match neighbors.len() {
                        _ if looks < QUICK => AT_FIRST * (looks + 1),
                        0 => ALONE,
                        few if few < FEW => WITH_FEW,
                        _ => WITH_ENOUGH,
                    };
                    looks += 1;
                    look_at = Instant::now() + pause.mul_f64(0.8 + 0.4 * rand::random::<f64>());
                    if neighbors.len() < FEW {
                        let members = members(circle);
                        let is_new = |peer: &EndpointId| !neighbors.contains(peer);
                        let named = self.first.iter().filter(|peer| !members.contains(peer));
                        let named = some_of(named.copied().filter(is_new).collect());
                        let chosen = members.iter().copied().filter(is_new).collect();
                        let chosen = some_of(chosen);
                        // Until somebody has let us in, the invite is all that there is.
                        if !self.first.is_empty() && (members.is_empty() || !named.is_empty()) {
                            named.iter().for_each(|peer| parts.state.found(*peer, FoundBy::Invite));
                            inviting.ask(&parts.state, "", &named);
                        }
                        if self.first.is_empty() || !members.is_empty() {
                            asking.ask(&parts.state, "", &chosen);
                        }
                        guests.invite(named.into_iter().chain(chosen));
                    }
                }
            }
        }
        for lane in swarms.lanes {
            lane.leave().await;
        }
    }
}

/// Enters and leaves swarms as the epochs want it. Returns whether another one is published in.
async fn follow(circle: &Circle, parts: &Parts, swarms: &mut Swarms) -> bool {
    let (reads, publishes) = circle.swarms();
    for epoch in &reads {
        if !swarms.lanes.iter().any(|lane| lane.epoch == *epoch)
            && let Some(keys) = circle.keys(*epoch)
        {
            swarms.lanes.push(parts.enter(circle.topic(), *epoch, &keys, swarms.entered));
            swarms.entered += 1;
        }
    }
    // The newest last, as they are read.
    let order = |lane: &Lane| reads.iter().position(|epoch| *epoch == lane.epoch);
    swarms.lanes.sort_by_key(|lane| order(lane).unwrap_or(0));
    let place = swarms.lanes.iter().find(|lane| Some(lane.epoch) == publishes).map(Lane::place);
    let same = |old: &Option<Place>| match (old, &place) {
        (Some(old), Some(new)) => Arc::ptr_eq(&old.line, &new.line),
        (None, None) => true,
        _ => false,
    };
    let is_new = !same(&swarms.places.borrow());
    if is_new {
        swarms.places.send_replace(place);
        if let Some(epoch) = publishes {
            tracing::info!(epoch = epoch.number, "publishing in a new epoch");
        }
    }
    let ended = swarms.lanes.extract_if(.., |lane| !reads.contains(&lane.epoch));
    for lane in ended.collect::<Vec<_>>() {
        tracing::info!(epoch = lane.epoch.number, "left the swarm of an epoch");
        lane.leave().await;
    }
    is_new
}

/// Lets time pass. Returns when it may be asked for again at the soonest.
async fn tick(circle: &Arc<Circle>) -> Instant {
    match circle.step(Input::Tick).await {
        Ok(_) => return Instant::now(),
        // The task is about to be ended.
        Err(CircleError::Left) => {}
        Err(error) => tracing::warn!(%error, "cannot save that an epoch has ended"),
    }
    Instant::now() + NEXT_TRY
}

async fn meet(
    circle: &Arc<Circle>,
    connections: &Connections,
    peer: EndpointId,
) -> Result<(), String> {
    let connection = connections.to(peer).await?;
    let (mut send, _receive) =
        talk::call(circle, &connection).await.map_err(|error| error.to_string())?;
    let _ = send.finish();
    Ok(())
}

fn members(circle: &Circle) -> Vec<EndpointId> {
    circle.others().into_iter().filter_map(endpoint).collect()
}

pub fn member(endpoint: &EndpointId) -> MemberId {
    MemberId(*endpoint.as_bytes())
}

fn endpoint(member: MemberId) -> Option<EndpointId> {
    EndpointId::from_bytes(&member.0).ok()
}

fn newest_neighbors(swarms: &Swarms) -> Vec<EndpointId> {
    swarms.lanes.last().map(|lane| lane.state.neighbors()).unwrap_or_default()
}

/// A few, at random: nobody's ids come first.
fn some_of(peers: Vec<EndpointId>) -> Vec<EndpointId> {
    let mut keyed: Vec<_> = peers.into_iter().map(|peer| (rand::random::<u64>(), peer)).collect();
    keyed.sort_unstable_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, peer)| peer).take(TRIED).collect()
}

/// The moment in which a time in Unix seconds is over.
fn until(unix: u64) -> Instant {
    let left = unix.saturating_sub(unix_now()).min(3_600);
    Instant::now() + Duration::from_secs(left).max(Duration::from_millis(200))
}
