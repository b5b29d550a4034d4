//! What the operator bans and allows while the gateway runs (NIP-86). The rules are read by every
//! event and every connection, and changed rarely.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use super::StoreError;
use crate::protocol::{Event, EventId, Network, PublicKey, Reason, kinds};

/// The most entries of one list.
pub const MAX_ENTRIES: usize = 100_000;

/// The lists of rules, each from an item to a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum List {
    BannedPubkeys,
    /// Keys that count as listed where `[access]` says `list`.
    AllowedPubkeys,
    BannedEvents,
    /// Exceptions from the rules for authors and kinds.
    AllowedEvents,
    /// When there are any, events of other kinds are refused.
    AllowedKinds,
    DisallowedKinds,
    BlockedIps,
    /// `name`, `description` and `icon` of the relay, in place of the configuration's.
    Relay,
}

impl List {
    const ALL: [Self; 8] = [
        Self::BannedPubkeys,
        Self::AllowedPubkeys,
        Self::BannedEvents,
        Self::AllowedEvents,
        Self::AllowedKinds,
        Self::DisallowedKinds,
        Self::BlockedIps,
        Self::Relay,
    ];

    /// The name under which the list is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BannedPubkeys => "banned_pubkeys",
            Self::AllowedPubkeys => "allowed_pubkeys",
            Self::BannedEvents => "banned_events",
            Self::AllowedEvents => "allowed_events",
            Self::AllowedKinds => "allowed_kinds",
            Self::DisallowedKinds => "disallowed_kinds",
            Self::BlockedIps => "blocked_ips",
            Self::Relay => "relay",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|list| list.name() == name)
    }
}

/// A change of the rules, done as a whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Items to take off these lists; those that are not there are passed over.
    pub take: Vec<(List, String)>,
    /// Items to put on these lists, each with its text.
    pub put: Vec<(List, String, String)>,
}

/// An entry as it is stored: list, item, text.
pub type Stored = (String, String, String);

/// Where the rules outlive the process.
pub trait ModerationStore: Send + Sync + 'static {
    /// All entries.
    fn load(&self) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>>;

    /// Commits a change before it returns.
    fn save(&self, change: Change) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Why the rules stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("{0:?} does not belong on the list {1}")]
    Malformed(String, &'static str),
    #[error("the list is full: at most {MAX_ENTRIES} entries")]
    Full,
    #[error("the change could not be stored: {0}")]
    Store(#[from] StoreError),
}

type Entries<K> = Arc<BTreeMap<K, Arc<str>>>;

/// The rules at one moment.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub banned_pubkeys: Entries<PublicKey>,
    pub allowed_pubkeys: Entries<PublicKey>,
    pub banned_events: Entries<EventId>,
    pub allowed_events: Entries<EventId>,
    pub allowed_kinds: Entries<u16>,
    pub disallowed_kinds: Entries<u16>,
    pub blocked_ips: Entries<Network>,
    pub relay: Entries<String>,
}

impl Rules {
    fn put(&mut self, list: List, item: &str, text: &str) -> Result<(), ChangeError> {
        let text = Arc::from(text);
        let wrong = || ChangeError::Malformed(item.to_owned(), list.name());
        let key = || PublicKey::parse(item).ok_or_else(wrong);
        let event = || EventId::parse(item).ok_or_else(wrong);
        let kind = || item.parse::<u16>().map_err(|_| wrong());
        match list {
            List::BannedPubkeys => insert(&mut self.banned_pubkeys, key()?, text),
            List::AllowedPubkeys => insert(&mut self.allowed_pubkeys, key()?, text),
            List::BannedEvents => insert(&mut self.banned_events, event()?, text),
            List::AllowedEvents => insert(&mut self.allowed_events, event()?, text),
            List::AllowedKinds => insert(&mut self.allowed_kinds, kind()?, text),
            List::DisallowedKinds => insert(&mut self.disallowed_kinds, kind()?, text),
            List::BlockedIps => {
                let network = Network::parse(item).ok_or_else(wrong)?;
                insert(&mut self.blocked_ips, network, text)
            }
            List::Relay => insert(&mut self.relay, item.to_owned(), text),
        }
    }

    fn take(&mut self, list: List, item: &str) {
        match list {
            List::BannedPubkeys => remove(&mut self.banned_pubkeys, PublicKey::parse(item)),
            List::AllowedPubkeys => remove(&mut self.allowed_pubkeys, PublicKey::parse(item)),
            List::BannedEvents => remove(&mut self.banned_events, EventId::parse(item)),
            List::AllowedEvents => remove(&mut self.allowed_events, EventId::parse(item)),
            List::AllowedKinds => remove(&mut self.allowed_kinds, item.parse().ok()),
            List::DisallowedKinds => remove(&mut self.disallowed_kinds, item.parse().ok()),
            List::BlockedIps => remove(&mut self.blocked_ips, Network::parse(item)),
            List::Relay => remove(&mut self.relay, Some(item.to_owned())),
        }
    }

    /// Why the event is not taken, wherever it comes from, or `None`. A request to vanish is taken
    /// from everybody: it takes more out of the store than it brings (NIP-62).
    pub fn refusal(&self, event: &Event) -> Option<Reason> {
        if self.banned_events.contains_key(&event.id) {
            return Some(Reason::blocked("this event is banned here"));
        }
        if event.kind == kinds::VANISH || self.allowed_events.contains_key(&event.id) {
            return None;
        }
        if self.banned_pubkeys.contains_key(&event.pubkey) {
            return Some(Reason::blocked("its author is banned here"));
        }
        let listed = self.allowed_kinds.is_empty() || self.allowed_kinds.contains_key(&event.kind);
        if !listed || self.disallowed_kinds.contains_key(&event.kind) {
            return Some(Reason::blocked(format!("kind {} is not taken here", event.kind)));
        }
        None
    }

    pub fn blocks(&self, address: IpAddr) -> bool {
        !self.blocked_ips.is_empty()
            && Network::around(address).any(|network| self.blocked_ips.contains_key(&network))
    }
}

fn insert<K: Ord + Clone>(
    entries: &mut Entries<K>,
    key: K,
    text: Arc<str>,
) -> Result<(), ChangeError> {
    if entries.len() >= MAX_ENTRIES && !entries.contains_key(&key) {
        return Err(ChangeError::Full);
    }
    Arc::make_mut(entries).insert(key, text);
    Ok(())
}

fn remove<K: Ord + Clone>(entries: &mut Entries<K>, key: Option<K>) {
    if let Some(key) = key.filter(|key| entries.contains_key(key)) {
        Arc::make_mut(entries).remove(&key);
    }
}

/// The rules in force.
#[derive(Default)]
pub struct Moderation {
    rules: ArcSwap<Rules>,
    store: Option<Box<dyn ModerationStore>>,
    /// One change after the other.
    turn: tokio::sync::Mutex<()>,
}

impl Moderation {
    /// The rules as they were left. What cannot be read of them is logged and passed over.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn load(store: Box<dyn ModerationStore>) -> Result<Self, StoreError> {
        let mut rules = Rules::default();
        for (list, item, text) in store.load().await? {
            let known = List::named(&list).map(|list| rules.put(list, &item, &text));
            if !matches!(known, Some(Ok(()))) {
                tracing::warn!(list, "an entry of the table moderation is passed over");
            }
        }
        Ok(Self { rules: ArcSwap::from_pointee(rules), store: Some(store), ..Self::default() })
    }

    /// The rules at this moment.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// See [`Rules::refusal`].
    pub fn refusal(&self, event: &Event) -> Option<Reason> {
        self.rules.load().refusal(event)
    }

    /// Whether connections from there are refused.
    pub fn blocks(&self, address: IpAddr) -> bool {
        self.rules.load().blocks(address)
    }

    /// Changes the rules: on disk first, then for everybody.
    ///
    /// # Errors
    /// When nothing was changed.
    pub async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let _turn = self.turn.lock().await;
        let mut rules = (**self.rules.load()).clone();
        for (list, item) in &change.take {
            rules.take(*list, item);
        }
        for (list, item, text) in &change.put {
            rules.put(*list, item, text)?;
        }
        // The rules first: what the old ones still refuse would be remembered after the store forgot
        // what a lifted ban kept out.
        let before = self.rules.swap(Arc::new(rules));
        if let Some(store) = &self.store
            && let Err(error) = store.save(change).await
        {
            self.rules.store(before);
            return Err(error.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    fn put(list: List, item: impl ToString) -> Change {
        Change { put: vec![(list, item.to_string(), "because".to_owned())], ..Change::default() }
    }

    fn take(list: List, item: impl ToString) -> Change {
        Change { take: vec![(list, item.to_string())], ..Change::default() }
    }

    #[tokio::test]
    async fn rules_hold_from_the_change_on_and_exceptions_go_before_them() {
        let moderation = Moderation::default();
        let author = Author::new(1);
        let note = author.sign(1, 1, &[], "");
        let vanish = author.sign(1, 62, &[&["relay", "ALL_RELAYS"]], "");
        assert_eq!(moderation.refusal(&note), None);

        moderation.change(put(List::BannedPubkeys, author.pubkey())).await.unwrap();
        assert!(moderation.refusal(&note).unwrap().to_string().starts_with("blocked: "));
        assert_eq!(moderation.refusal(&vanish), None);
        assert_eq!(moderation.refusal(&Author::new(2).sign(1, 1, &[], "")), None);
        moderation.change(put(List::AllowedEvents, note.id)).await.unwrap();
        assert_eq!(moderation.refusal(&note), None);
        moderation.change(put(List::BannedEvents, note.id)).await.unwrap();
        assert!(moderation.refusal(&note).is_some());
        moderation.change(take(List::BannedEvents, note.id)).await.unwrap();
        moderation.change(take(List::BannedPubkeys, author.pubkey())).await.unwrap();

        moderation.change(put(List::AllowedKinds, 7)).await.unwrap();
        let other = author.sign(2, 1, &[], "");
        assert!(moderation.refusal(&other).is_some());
        assert_eq!(moderation.refusal(&note), None, "an exception");
        assert_eq!(moderation.refusal(&author.sign(1, 7, &[], "")), None);
        moderation.change(put(List::DisallowedKinds, 7)).await.unwrap();
        assert!(moderation.refusal(&author.sign(1, 7, &[], "")).is_some());
    }

    #[tokio::test]
    async fn addresses_are_blocked_alone_and_by_network() {
        let moderation = Moderation::default();
        let blocks = |text: &str| moderation.blocks(text.parse().unwrap());
        moderation.change(put(List::BlockedIps, "203.0.113.7")).await.unwrap();
        moderation.change(put(List::BlockedIps, "2001:db8:1:2::/64")).await.unwrap();
        assert!(blocks("203.0.113.7") && blocks("::ffff:203.0.113.7") && !blocks("203.0.113.8"));
        assert!(blocks("2001:db8:1:2::9") && !blocks("2001:db8:1:3::9"));
        moderation.change(take(List::BlockedIps, "203.0.113.7")).await.unwrap();
        assert!(!blocks("203.0.113.7"));
    }

    #[tokio::test]
    async fn a_change_is_whole_or_not_at_all() {
        let moderation = Moderation::default();
        let mut change = put(List::AllowedKinds, 1);
        change.put.push((List::BannedEvents, "no id".to_owned(), String::new()));
        assert!(matches!(moderation.change(change).await, Err(ChangeError::Malformed(..))));
        assert!(moderation.rules().allowed_kinds.is_empty());

        let full: BTreeMap<Network, Arc<str>> = (0..MAX_ENTRIES as u32)
            .map(|n| (Network::host(std::net::Ipv4Addr::from(n).into()), Arc::from("")))
            .collect();
        let rules = Rules { blocked_ips: Arc::new(full), ..Rules::default() };
        moderation.rules.store(Arc::new(rules));
        let one_more = moderation.change(put(List::BlockedIps, "203.0.113.7")).await;
        assert!(matches!(one_more, Err(ChangeError::Full)));
        moderation.change(put(List::BlockedIps, "0.0.0.1")).await.unwrap();
    }

    #[test]
    fn every_list_is_found_by_its_name() {
        for list in List::ALL {
            assert_eq!(List::named(list.name()), Some(list));
        }
    }
}
