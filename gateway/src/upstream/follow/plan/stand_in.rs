//! Stand-ins: where authors are asked for while their homes are away, and those who have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Address, Health, Opened, Plan, PublicKey, Role, Situation, Why};

/// How the homes of one author are.
enum Homes {
    None,
    /// All are, or may well be, there.
    There,
    /// Some are away, for long enough to do something about it.
    SomeAway,
    /// All are away; since when the first of them might be missed.
    AllAway(Duration),
}

/// Adds stand-ins to a plan of homes.
pub(super) fn add(plan: &mut Plan, situation: &Situation<'_>) {
    let seats = Seats { situation };
    let homeless = seats.stand_in_from_lists(plan);
    let fallback = seats.fallback(plan);
    for author in homeless {
        let Some(place) = plan.authors.get_mut(&author) else { continue };
        for relay in &fallback {
            place.stand_ins.push(relay.clone());
            let opened = plan.relays.entry(relay.clone());
            opened.or_insert_with(|| new(Role::Fallback)).stand_ins.insert(author);
        }
    }
}

fn new(role: Role) -> Opened {
    Opened { role, homes: BTreeSet::new(), stand_ins: BTreeSet::new() }
}

struct Seats<'a> {
    situation: &'a Situation<'a>,
}

impl Seats<'_> {
    fn health(&self, relay: &Address) -> Health {
        self.situation.health.get(relay).copied().unwrap_or_default()
    }

    /// Whether authors can be asked for there now, as far as is known.
    fn serves(&self, relay: &Address) -> bool {
        match self.health(relay) {
            Health::Good => true,
            Health::Away(time) => time < self.situation.limits.stand_in_after,
            Health::Dead => false,
        }
    }

    fn homes(&self, homes: &[Address]) -> Homes {
        let away = |relay: &Address| match self.health(relay) {
            Health::Away(time) if time >= self.situation.limits.stand_in_after => Some(time),
            _ => None,
        };
        let times: Vec<_> = homes.iter().filter_map(away).collect();
        match times.iter().min() {
            _ if homes.is_empty() => Homes::None,
            None => Homes::There,
            Some(least) if times.len() == homes.len() => Homes::AllAway(*least),
            Some(_) => Homes::SomeAway,
        }
    }

    /// Puts authors whose homes are away on other relays of their lists: on one that is open anyway; or,
    /// when no home is left, on one that is opened for it in the place of those that are away. Returns
    /// those who need a fallback.
    fn stand_in_from_lists(&self, plan: &mut Plan) -> Vec<PublicKey> {
        let mut room = self.room(plan);
        let (mut homeless, mut waiting) = (Vec::new(), BTreeMap::new());
        for (author, list) in self.situation.authors {
            let Some(place) = plan.authors.get_mut(author) else { continue };
            let state = self.homes(&place.homes);
            match state {
                Homes::There => continue,
                Homes::None => {
                    homeless.push(*author);
                    continue;
                }
                Homes::SomeAway => place.why = Some(Why::OneAway),
                Homes::AllAway(_) => place.why = Some(Why::Away),
            }
            let others = list.relays().iter().filter(|relay| !place.homes.contains(relay));
            let others: Vec<_> = others.filter(|relay| self.serves(relay)).collect();
            let open = others.iter().find(|relay| plan.relays.contains_key(**relay));
            match (open, state) {
                (Some(relay), _) => {
                    place.stand_ins.push((*relay).clone());
                    if let Some(opened) = plan.relays.get_mut(*relay) {
                        opened.stand_ins.insert(*author);
                    }
                }
                (None, Homes::AllAway(time)) => {
                    waiting.insert(*author, (others, time));
                }
                (None, _) => {}
            }
        }
        while room > 0
            && let Some(relay) = self.most_wanted(&waiting, plan)
        {
            let relay = relay.clone();
            let here = |(_, (others, _)): &(_, &mut (Vec<&Address>, _))| others.contains(&&relay);
            let authors: Vec<PublicKey> =
                waiting.iter_mut().filter(here).map(|(author, _)| *author).collect();
            for author in &authors {
                waiting.remove(author);
                if let Some(place) = plan.authors.get_mut(author) {
                    place.stand_ins.push(relay.clone());
                }
            }
            plan.left_out.remove(&relay);
            let mut opened = new(Role::StandIn);
            opened.stand_ins.extend(authors);
            plan.relays.insert(relay, opened);
            room -= 1;
        }
        let patience = self.situation.limits.fall_back_after;
        let impatient = waiting.into_iter().filter(|(_, (_, time))| *time >= patience);
        homeless.extend(impatient.map(|(author, _)| author));
        homeless
    }

    /// How many relays may be opened to stand in: as many connections as are not there.
    fn room(&self, plan: &Plan) -> usize {
        let limits = self.situation.limits;
        let kept_free = self.situation.fallback.len().min(limits.per_author);
        let there = plan.relays.keys().filter(|relay| self.serves(relay)).count();
        limits.relays.saturating_sub(kept_free + there)
    }

    /// The relay that most of those who wait list; of equal ones the one that stands in already, then
    /// the first by name.
    fn most_wanted<'b>(
        &self,
        waiting: &BTreeMap<PublicKey, (Vec<&'b Address>, Duration)>,
        plan: &Plan,
    ) -> Option<&'b Address> {
        let mut wanted = BTreeMap::<&Address, usize>::new();
        for relay in waiting.values().flat_map(|(others, _)| others) {
            *wanted.entry(relay).or_default() += 1;
        }
        let host_has_room = |relay: &Address| {
            let of_host = plan.relays.keys().filter(|open| open.host() == relay.host()).count();
            of_host < self.situation.limits.per_host
        };
        let candidates = wanted.into_iter().filter(|(relay, _)| host_has_room(relay));
        let before = |relay: &Address| self.situation.current.relays.contains_key(relay);
        // Of equal ones, max_by_key takes the last.
        let best = candidates.rev().max_by_key(|(relay, authors)| (*authors, before(relay)));
        best.map(|(relay, _)| relay)
    }

    /// Where those are asked for who have no relay: at the operator's choice, else at the relays with
    /// the most homes, else at the last resort. Those that are away are passed over.
    fn fallback(&self, plan: &Plan) -> Vec<Address> {
        let limits = self.situation.limits;
        let first = |relays: &[Address]| -> Vec<Address> {
            let serving = relays.iter().filter(|relay| self.serves(relay));
            serving.take(limits.per_author).cloned().collect()
        };
        let chosen = first(self.situation.fallback);
        if !chosen.is_empty() {
            return chosen;
        }
        // A choice that is away altogether is waited for, and the best of the others asked meanwhile.
        let homes = plan.relays.iter().filter(|(_, opened)| opened.role == Role::Home);
        let mut homes: Vec<_> = homes.map(|(relay, opened)| (opened.homes.len(), relay)).collect();
        homes.sort_by_key(|(authors, relay)| (usize::MAX - authors, *relay));
        let homes: Vec<Address> = homes.into_iter().map(|(_, relay)| relay.clone()).collect();
        let chosen = first(&homes);
        if chosen.is_empty() { first(self.situation.last_resort) } else { chosen }
    }
}
