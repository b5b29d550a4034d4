//! When a topic looks for neighbors, and whom it follows: the decisions of discovery. No clock and no
//! network, so a simulated swarm takes the same ones.

use std::{collections::BTreeSet, time::Duration};

use iroh::EndpointId;
use rand::Rng;

use super::record::Sighting;

/// With fewer neighbors than this a topic looks for more and publishes a record every minute.
pub const FEW: usize = 4;

/// Pauses between two looks: just alone, while alone, while alone for long, with few neighbors, with
/// enough.
const JUST_ALONE: Duration = Duration::from_millis(250);
const ALONE: Duration = Duration::from_millis(1_500);
const LONG_ALONE: Duration = Duration::from_secs(5);
const WITH_FEW: Duration = Duration::from_secs(15);
const WITH_ENOUGH: Duration = Duration::from_secs(30);

/// Two that start together look before either has left a record: up to here they look again soon.
const JUST: Duration = Duration::from_secs(4);
/// After this time alone we look less often: most topics that nobody is in stay so.
const LONG: Duration = Duration::from_secs(300);

/// Publishers of records that one look joins while we are alone.
const PUBLISHERS: usize = 2;
/// Others that records name and that one look joins while we are alone.
const NAMED: usize = 2;
/// Of those that the configuration or the local network names, joined at once while we are alone.
const KNOWN: usize = 4;
/// With enough neighbors one look in this many joins somebody. It joins swarms that grew up apart, and
/// hardly disturbs one that is whole.
const STRANGERS: u32 = 8;

/// The time to the next look, without jitter; shorter the fewer neighbors there are.
pub fn pause(neighbors: usize, alone_for: Duration) -> Duration {
    match neighbors {
        0 if alone_for < JUST => JUST_ALONE,
        0 if alone_for > LONG => LONG_ALONE,
        0 => ALONE,
        _ if neighbors < FEW => WITH_FEW,
        _ => WITH_ENOUGH,
    }
}

/// Whom one look joins. Few: a join is never refused, so one whose view is full puts out another to
/// let us in, and who joins all that it sees takes a large swarm apart.
#[derive(Default)]
pub struct Choice {
    publishers: usize,
}

impl Choice {
    /// Whether to join the publisher of a record that just came in. Who is alone does not wait for the
    /// end of the look.
    pub const fn follows(&mut self, neighbors: usize) -> bool {
        let follows = neighbors == 0 && self.publishers < PUBLISHERS;
        self.publishers += follows as usize;
        follows
    }

    /// Whom to join at the end of a look, of all that records speak of. Their publishers may be gone;
    /// those whom they name may still be there.
    pub fn end<'a>(
        &self,
        me: EndpointId,
        neighbors: &[EndpointId],
        sightings: impl Iterator<Item = &'a Sighting>,
        random: &mut impl Rng,
    ) -> Vec<EndpointId> {
        let most = match neighbors.len() {
            0 => NAMED,
            1..FEW => 1,
            _ => usize::from(random.random_ratio(1, STRANGERS)),
        };
        let all =
            sightings.flat_map(|sighting| sighting.neighbors.iter().chain([&sighting.publisher]));
        some(most, strangers(me, neighbors, all.copied()), random)
    }
}

/// Whom to join of those that are known by other ways than records, while there are few neighbors.
pub fn known(
    me: EndpointId,
    neighbors: &[EndpointId],
    peers: impl IntoIterator<Item = EndpointId>,
    random: &mut impl Rng,
) -> Vec<EndpointId> {
    let most = match neighbors.len() {
        0 => KNOWN,
        1..FEW => 1,
        _ => 0,
    };
    some(most, strangers(me, neighbors, peers), random)
}

fn some(most: usize, peers: Vec<EndpointId>, random: &mut impl Rng) -> Vec<EndpointId> {
    // A set in order of a random key: nobody's ids come first.
    let peers: BTreeSet<_> = peers.into_iter().map(|peer| (random.random::<u64>(), peer)).collect();
    peers.into_iter().map(|(_, peer)| peer).take(most).collect()
}

/// Whether a record is due in the slot of this minute. `published` is the slot of our last record
/// and how long ago that was; `republish` the time to the next while there are enough neighbors.
pub fn publishes(
    neighbors: usize,
    published: Option<(u64, Duration)>,
    minute: u64,
    republish: Duration,
) -> bool {
    match published {
        None => true,
        // Records live in the slot of one minute: while we need neighbors, be in each of them.
        Some((slot, ago)) => slot != minute && (neighbors < FEW || ago >= republish),
    }
}

/// Those of `peers` that are neither we nor neighbors yet.
pub fn strangers(
    me: EndpointId,
    neighbors: &[EndpointId],
    peers: impl IntoIterator<Item = EndpointId>,
) -> Vec<EndpointId> {
    peers.into_iter().filter(|peer| *peer != me && !neighbors.contains(peer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::config::DiscoveryConfig;

    #[test]
    fn a_record_is_left_in_each_minute_while_neighbors_are_few_and_else_when_it_is_time() {
        let defaults = DiscoveryConfig::default();
        assert_eq!((defaults.records_per_minute, defaults.retries), (10, 3));
        assert_eq!((defaults.jitter_ms, defaults.timeout_ms), (500, 5_000));
        let republish = Duration::from_secs(defaults.republish_s);
        assert_eq!(republish, Duration::from_secs(300));
        assert!(publishes(FEW, None, 7, republish), "nobody has heard of us yet");
        let ago = |minutes: u64| Some((7, Duration::from_secs(60 * minutes)));
        for neighbors in 0..FEW {
            assert!(!publishes(neighbors, ago(0), 7, republish), "it is in this slot already");
            assert!(publishes(neighbors, ago(1), 8, republish));
        }
        assert!(!publishes(FEW, ago(4), 11, republish));
        assert!(publishes(FEW, ago(5), 12, republish));
    }

    #[test]
    fn the_fewer_neighbors_the_sooner_the_next_look() {
        let just = Duration::ZERO;
        let pauses = [0, 1, FEW].map(|neighbors| pause(neighbors, just));
        assert!(pauses.is_sorted() && pauses[0] < Duration::from_secs(1), "{pauses:?}");
        let alone = [just, JUST, LONG * 2].map(|alone_for| pause(0, alone_for));
        assert!(alone.is_sorted() && alone[0] < alone[2], "{alone:?}");
    }
}
