//! Keeps the plan up to date and the relays in step with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Follow, StartFollow, Trust,
    address::{Address, AddressRules},
    ask::{Asked, Wish},
    book::{Book, Change},
    health::Healths,
    pace::Pace,
    plan::{Health, Limits, Place, Plan, Situation},
    source::Source,
    status::Looking,
};
use crate::{
    clock::unix_now,
    pipeline::StoreError,
    protocol::PublicKey,
    tasks,
    upstream::{demand::Demand, relay::Relay},
};

/// How often the relays are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How old a status may be. For thousands of authors it takes milliseconds to make.
const SHOW: Duration = Duration::from_secs(3);
/// How often the store is asked for all lists again: what was banned or removed there says nothing.
const READ_AGAIN: Duration = Duration::from_secs(3_600);
/// After the log has grown, what comes next is waited for so long: lists come by the hundred.
const GATHER: Duration = Duration::from_millis(200);
/// A store that failed is tried again after so long.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

pub(super) struct Actor {
    follow: Arc<Follow>,
    start: StartFollow,
    began: Instant,
    source: Source,
    book: Book,
    healths: Healths,
    /// How badly relays are doing, as the last plan knows it or the next one will.
    grades: BTreeMap<Address, u8>,
    plan: Plan,
    limits: Limits,
    /// The operator's relays, where lists are looked for.
    discovery: BTreeSet<Address>,
    discover: Vec<Address>,
    fallback: Vec<Address>,
    /// By relay, also of some that are closed: whoever is asked for there again need not be caught up with.
    asked: BTreeMap<Address, Asked>,
    /// Relays whose groups on disk are out of date.
    unsaved: BTreeSet<Address>,
    open: BTreeMap<Address, Open>,
    pace: Pace,
    /// When all lists were last read.
    read: Instant,
    /// When the status was last made.
    shown: Instant,
}

struct Open {
    relay: Arc<Relay>,
    demand: watch::Sender<Demand>,
    token: CancellationToken,
}

impl Actor {
    pub fn new(follow: Arc<Follow>, start: StartFollow) -> Self {
        let config = &start.config;
        let trusted = AddressRules { private: true, hidden: true, own: start.rules.own.clone() };
        let read = |urls: &[String]| -> Vec<Address> {
            urls.iter().filter_map(|url| trusted.read(url).ok()).collect()
        };
        let (discover, fallback) = (read(&config.discover), read(&config.fallback));
        let limits = Limits {
            relays: config.max_relays,
            per_author: config.relays_per_author,
            // In a network of one's own many relays may share a host.
            per_host: if config.allow_private_relays {
                usize::MAX
            } else {
                Limits::default().per_host
            },
            ..Limits::default()
        };
        Self {
            source: Source::new(start.reader.clone(), start.private.clone()),
            book: Book::new(&config.follow, start.rules.clone()),
            healths: Healths::default(),
            grades: BTreeMap::new(),
            plan: Plan::default(),
            limits,
            discovery: discover.iter().cloned().collect(),
            pace: Pace::new(!discover.is_empty()),
            discover,
            fallback,
            asked: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            open: BTreeMap::new(),
            began: Instant::now(),
            read: Instant::now(),
            shown: Instant::now(),
            follow,
            start,
        }
    }

    pub async fn run(mut self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.keep_up() => {}
        }
        for open in self.open.values() {
            open.token.cancel();
        }
    }

    fn stream(&self) -> &str {
        &self.start.config.name
    }

    /// Time since the beginning.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn keep_up(&mut self) {
        self.restore().await;
        let read = self.source.read_all(&mut self.book).await;
        self.learnt(read).await;
        self.ask().await;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.source.grown() => {
                    sleep(GATHER).await;
                    let news = self.source.read_news(&mut self.book).await;
                    self.learnt(news).await;
                }
                _ = look.tick() => self.look(),
            }
            if self.read.elapsed() >= READ_AGAIN {
                self.read = Instant::now();
                let read = self.source.read_all(&mut self.book).await;
                self.learnt(read).await;
            }
            if self.pace.is_due(self.now(), self.book.without_relays().next().is_some()) {
                self.make_plan().await;
                self.ask().await;
            }
        }
    }

    /// Who was asked for where before the restart.
    async fn restore(&mut self) {
        let groups = match self.start.kept.groups(self.stream().into()).await {
            Ok(groups) => groups,
            Err(error) => {
                let stream = self.stream();
                tracing::warn!(stream, %error, "cannot read who was asked for where; all begins anew");
                return;
            }
        };
        let trusted =
            AddressRules { private: true, hidden: true, own: self.start.rules.own.clone() };
        for group in groups {
            let Ok(relay) = trusted.read(&group.url) else { continue };
            if group.open && !group.lists {
                for author in &group.authors {
                    let place: &mut Place = self.plan.authors.entry(*author).or_default();
                    place.homes.push(relay.clone());
                }
            }
            self.asked.entry(relay).or_default().restore(group);
        }
    }

    async fn learnt(&mut self, read: Result<Change, StoreError>) {
        match read {
            Ok(Change::Nothing) => {}
            Ok(Change::Relays) => self.pace.changed(self.now()),
            Ok(Change::Authors) => {
                self.pace.changed(self.now());
                // Where they write is looked for at once: the plan waits for it.
                self.ask().await;
            }
            Err(error) => {
                let stream = self.stream();
                tracing::warn!(stream, %error, "cannot read lists from the store; trying again later");
                // Some of it may have been read.
                self.pace.changed(self.now());
            }
        }
    }

    /// Looks how the relays are doing.
    fn look(&mut self) {
        let now = self.now();
        for (relay, open) in &self.open {
            if let Some(serves) = open.relay.serves() {
                self.healths.seen(relay, serves, now);
            }
        }
        let Self { healths, plan, open, .. } = self;
        let listed = |relay: &Address| {
            open.contains_key(relay)
                || plan.relays.contains_key(relay)
                || plan.left_out.contains_key(relay)
        };
        healths.pass(now, listed);
        let limits = self.limits;
        // Only what the planner tells apart.
        let grade = |health: &Health| match health {
            Health::Good => 0,
            Health::Away(time) if *time < limits.stand_in_after => 0,
            Health::Away(time) if *time < limits.fall_back_after => 1,
            Health::Away(_) => 2,
            Health::Dead => 3,
        };
        let health = self.healths.to_plan_by(now);
        let grades = health.iter().map(|(relay, health)| (relay.clone(), grade(health)));
        let grades: BTreeMap<_, u8> = grades.filter(|(_, grade)| *grade > 0).collect();
        if grades != self.grades {
            self.grades = grades;
            self.pace.changed(now);
        }
        if self.shown.elapsed() >= SHOW {
            self.publish();
        }
    }

    async fn make_plan(&mut self) {
        let (authors, health) = (self.book.lists(), self.healths.to_plan_by(self.now()));
        let (fallback, last_resort) = (self.fallback.clone(), self.discover.clone());
        let (limits, current) = (self.limits, std::mem::take(&mut self.plan));
        // For thousands of authors it takes a while.
        let made = tasks::blocking(move || {
            let plan = Plan::make(&Situation {
                authors: &authors,
                health: &health,
                fallback: &fallback,
                last_resort: &last_resort,
                limits,
                current: &current,
            });
            (plan, current)
        });
        // Otherwise the gateway is stopping.
        let Ok((plan, before)) = made.await else { return };
        if plan.relays.keys().ne(before.relays.keys()) {
            let (stream, authors) = (self.stream(), plan.authors.len());
            let without_home = plan.authors.values().filter(|place| place.homes.is_empty()).count();
            let relays = plan.relays.len();
            tracing::info!(
                stream,
                authors,
                relays,
                without_home,
                "following authors at their relays"
            );
        }
        self.plan = plan;
        self.pace.planned(self.now());
        self.forget();
    }

    /// Of relays that nobody lists any more it need not be known who was asked for there.
    fn forget(&mut self) {
        let Self { asked, plan, discovery, fallback, unsaved, .. } = self;
        asked.retain(|relay, _| {
            let known = plan.relays.contains_key(relay)
                || plan.left_out.contains_key(relay)
                || discovery.contains(relay)
                || fallback.contains(relay);
            if !known {
                unsaved.insert(relay.clone());
            }
            known
        });
    }

    /// What each relay is to be asked for.
    fn wishes(&self) -> BTreeMap<Address, Wish> {
        let roots: BTreeSet<PublicKey> = self.book.roots().iter().copied().collect();
        let unknown: BTreeSet<PublicKey> = self.book.without_relays().copied().collect();
        let look_for_follows =
            self.book.without_follows().next().is_some() || !unknown.is_disjoint(&roots);
        let mut wishes = BTreeMap::new();
        for relay in self.plan.relays.keys() {
            let notes = self.plan.asked_at(relay);
            let follows = look_for_follows || !notes.is_disjoint(&roots);
            let lists = &(&notes | &unknown) - &roots;
            wishes.insert(relay.clone(), Wish { notes, lists, follows });
        }
        for relay in &self.discovery {
            let wish: &mut Wish = wishes.entry(relay.clone()).or_default();
            wish.follows = true;
            wish.lists = self.book.authors() - &roots;
        }
        wishes
    }

    /// Opens, closes and asks as planned.
    async fn ask(&mut self) {
        let wishes = self.wishes();
        let now = unix_now();
        for (relay, wish) in &wishes {
            let changed = self.asked.entry(relay.clone()).or_default().regroup(wish, now);
            if changed || !self.open.contains_key(relay) {
                self.unsaved.insert(relay.clone());
            }
        }
        let closing: Vec<Address> =
            self.open.keys().filter(|relay| !wishes.contains_key(*relay)).cloned().collect();
        for relay in closing {
            if let Some(open) = self.open.remove(&relay) {
                open.token.cancel();
                self.healths.closed(&relay);
            }
            self.unsaved.insert(relay);
        }
        if !self.save(&wishes).await {
            // Nobody is asked for anything that is not on disk.
            self.pace.changed(self.now() + SAVE_AGAIN);
            return;
        }
        for relay in wishes.into_keys() {
            let Some(asked) = self.asked.get(&relay) else { continue };
            let demand = asked.demand(&self.start.config);
            match self.open.get(&relay) {
                Some(open) => {
                    open.demand.send_if_modified(|now| {
                        let differs = *now != demand;
                        *now = demand;
                        differs
                    });
                }
                None => self.open_relay(relay, demand),
            }
        }
        self.follow.show_relays(self.open.values().map(|open| open.relay.clone()).collect());
        self.publish();
    }

    async fn save(&mut self, wishes: &BTreeMap<Address, Wish>) -> bool {
        if self.unsaved.is_empty() {
            return true;
        }
        let relays: Vec<Arc<str>> = self.unsaved.iter().map(Address::shared).collect();
        let groups = self.unsaved.iter().flat_map(|relay| {
            let asked = self.asked.get(relay);
            let is_open = wishes.contains_key(relay);
            asked.map(|asked| asked.saved(relay.as_str(), is_open)).unwrap_or_default()
        });
        let groups = groups.collect();
        let stream: Arc<str> = self.stream().into();
        match self.start.kept.regrouped(stream.clone(), relays, groups).await {
            Ok(()) => {
                self.unsaved.clear();
                true
            }
            Err(error) => {
                tracing::warn!(
                    stream = &*stream, %error,
                    "cannot keep who is asked for where; relays stay as they are until that works"
                );
                false
            }
        }
    }

    fn open_relay(&mut self, relay: Address, demand: Demand) {
        let is_own_choice = self.discovery.contains(&relay) || self.fallback.contains(&relay);
        let trust = match is_own_choice || self.start.rules.private {
            true => Trust::Operator,
            false => Trust::Stranger,
        };
        let (sender, receiver) = watch::channel(demand);
        let opened = (self.start.open)(&relay.shared(), receiver, trust);
        let token = self.start.tasks.token().child_token();
        self.start.tasks.spawn("upstream relay", opened.clone().run(token.clone()));
        self.open.insert(relay, Open { relay: opened, demand: sender, token });
    }

    fn publish(&mut self) {
        self.shown = Instant::now();
        let looking = Looking {
            book: &self.book,
            plan: &self.plan,
            healths: &self.healths,
            discovery: &self.discovery,
            now: self.now(),
        };
        self.follow.show_status(looking.status());
    }
}
