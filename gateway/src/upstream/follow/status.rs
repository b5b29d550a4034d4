//! What following is doing, for people: how many authors are where, what is wrong, and what was done
//! instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;

use super::{
    address::Address,
    book::Book,
    health::Healths,
    plan::{Health, LeftOut, Place, Plan, Role, Why, WhyLeftOut},
};
use crate::protocol::PublicKey;

/// So many keys are named where there may be thousands,
const MAX_NAMED: usize = 20;
/// and so many relays.
const MAX_RELAYS: usize = 50;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FollowStatus {
    /// Those who are followed, the keys themselves included.
    pub authors: usize,
    /// How many of them have a relay list.
    pub with_list: usize,
    /// How many are asked for at a relay of their list that is there.
    pub at_home: usize,
    /// How many are asked for elsewhere, because a relay of theirs is missing.
    pub stood_in: usize,
    /// How many are asked for nowhere.
    pub nowhere: usize,
    /// Followed keys beyond the bound.
    pub too_many: usize,
    /// Keys whose list of follows was not found yet.
    pub without_follows: Vec<PublicKey>,
    pub relays: Vec<FollowedRelay>,
    /// What is wrong, and what was done instead.
    pub exceptions: Vec<Exception>,
    /// Relays that were not opened though somebody has need of them, those with the most authors first.
    pub not_opened: Vec<NotOpened>,
    /// How many relays of lists were not opened for any reason.
    pub not_opened_in_all: usize,
    /// URLs of lists that are not used, by what is wrong with them.
    pub refused_urls: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FollowedRelay {
    pub url: String,
    /// `home`, `stand-in`, `fallback` or `discovery`.
    pub role: &'static str,
    /// Authors who have it as a home.
    pub authors: usize,
    /// Authors who are asked for here instead of at home.
    pub stand_ins: usize,
    /// For how many seconds it has been away.
    pub away_s: Option<u64>,
}

/// Authors with the same trouble.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exception {
    pub why: &'static str,
    pub authors: usize,
    /// Some of them.
    pub keys: Vec<PublicKey>,
    /// The relays that are away, where that is why.
    pub away: Vec<String>,
    /// Where they are asked for instead, and how many of them.
    pub instead: BTreeMap<String, usize>,
    /// How many of them are asked for nowhere else.
    pub nothing_instead: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotOpened {
    pub url: String,
    /// Authors who list it.
    pub authors: usize,
    /// How many of them have no home.
    pub without_home: usize,
    pub why: &'static str,
    /// When it is tried again, where it was given up.
    pub again_in_s: Option<u64>,
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::Home => "home",
        Role::StandIn => "stand-in",
        Role::Fallback => "fallback",
    }
}

const fn why_left_out(why: WhyLeftOut) -> &'static str {
    match why {
        WhyLeftOut::NotNeeded => "not needed",
        WhyLeftOut::NoRoom => "too few authors for one of the places (max_relays)",
        WhyLeftOut::HostFull => "too many relays of this host are open",
        WhyLeftOut::Dead => "given up for now: nobody reached it",
    }
}

/// What a status is made from.
pub(super) struct Looking<'a> {
    pub book: &'a Book,
    pub plan: &'a Plan,
    pub healths: &'a Healths,
    /// Relays that are open to find lists.
    pub discovery: &'a BTreeSet<Address>,
    pub now: Duration,
}

impl Looking<'_> {
    pub fn status(&self) -> FollowStatus {
        let Self { book, plan, .. } = self;
        let health = self.healths.now(self.now);
        let away = |relay: &Address| match health.get(relay) {
            Some(Health::Away(time)) => Some(time.as_secs()),
            _ => None,
        };
        let there = |relay: &Address| away(relay).is_none();
        let count = |what: &dyn Fn(&Place) -> bool| {
            plan.authors.values().filter(|place| what(place)).count()
        };
        let refused = book.refused().into_iter().map(|(why, count)| (why.label(), count));
        FollowStatus {
            authors: book.authors().len(),
            with_list: book.authors().len() - book.without_relays().count(),
            at_home: count(&|place| place.homes.iter().any(there)),
            stood_in: count(&|place| !place.stand_ins.is_empty()),
            nowhere: count(&|place| !place.homes.iter().chain(&place.stand_ins).any(there)),
            too_many: book.too_many(),
            without_follows: book.without_follows().take(MAX_NAMED).copied().collect(),
            relays: self.relays(&away),
            exceptions: self.exceptions(&away),
            not_opened: self.not_opened(),
            not_opened_in_all: plan.left_out.len(),
            refused_urls: refused.collect(),
        }
    }

    fn relays(&self, away: &dyn Fn(&Address) -> Option<u64>) -> Vec<FollowedRelay> {
        let open = self.plan.relays.iter().map(|(relay, opened)| FollowedRelay {
            url: relay.to_string(),
            role: role(opened.role),
            authors: opened.homes.len(),
            stand_ins: opened.stand_ins.len(),
            away_s: away(relay),
        });
        let alone = self.discovery.iter().filter(|relay| !self.plan.relays.contains_key(*relay));
        let discovery = alone.map(|relay| FollowedRelay {
            url: relay.to_string(),
            role: "discovery",
            authors: 0,
            stand_ins: 0,
            away_s: away(relay),
        });
        open.chain(discovery).collect()
    }

    fn exceptions(&self, away: &dyn Fn(&Address) -> Option<u64>) -> Vec<Exception> {
        let mut exceptions = BTreeMap::<Why, Exception>::new();
        for (author, place) in &self.plan.authors {
            let Some(why) = place.why else { continue };
            let exception = exceptions.entry(why).or_insert_with(|| Exception {
                why: why.label(),
                authors: 0,
                keys: Vec::new(),
                away: Vec::new(),
                instead: BTreeMap::new(),
                nothing_instead: 0,
            });
            exception.authors += 1;
            if exception.keys.len() < MAX_NAMED {
                exception.keys.push(*author);
            }
            for relay in place.homes.iter().filter(|relay| away(relay).is_some()) {
                let url = relay.to_string();
                if exception.away.len() < MAX_RELAYS && !exception.away.contains(&url) {
                    exception.away.push(url);
                }
            }
            for relay in &place.stand_ins {
                *exception.instead.entry(relay.to_string()).or_default() += 1;
            }
            exception.nothing_instead += usize::from(place.stand_ins.is_empty());
        }
        exceptions.into_values().collect()
    }

    fn not_opened(&self) -> Vec<NotOpened> {
        let needed = |left: &LeftOut| left.why != WhyLeftOut::NotNeeded;
        let mut relays: Vec<_> =
            self.plan.left_out.iter().filter(|(_, left)| needed(left)).collect();
        relays.sort_by_key(|(relay, left)| {
            (usize::MAX - left.without_home, usize::MAX - left.authors, *relay)
        });
        let shown = relays.into_iter().take(MAX_RELAYS).map(|(relay, left)| NotOpened {
            url: relay.to_string(),
            authors: left.authors,
            without_home: left.without_home,
            why: why_left_out(left.why),
            again_in_s: self.healths.tried_again_in(relay, self.now).map(|time| time.as_secs()),
        });
        shown.collect()
    }
}
