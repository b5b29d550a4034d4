//! The traits through which the parts meet. Siblings never import one another.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Audience, Origin, Viewer, scan::Scan};
use crate::protocol::{Event, EventId, Filter, PublicKey, TopicName, VerifiedEvent, kinds::Part};

/// A position in the store's log: given at commit, rising, never reused. 0 is before everything.
pub type Seq = u64;

/// The store failed. The text names what to look at and holds no content.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// What the store holds of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Unknown,
    /// Held, and part of every topic that was asked about.
    Known,
    /// Held, but missing from at least one of those topics.
    KnownElsewhere,
    /// Its author, or the recipient of a gift wrap, deleted it (NIP-09).
    Deleted,
    /// Its author vanished after it was made (NIP-62).
    Vanished,
    /// Retention would remove it at once.
    PastRetention,
    /// The operator deleted it. Whoever publishes or imports it again means it; what others offer by
    /// themselves stays away.
    Removed,
}

/// One event to commit.
pub struct Write {
    pub event: VerifiedEvent,
    pub topics: Vec<TopicName>,
    /// It is for the readers of its topics alone.
    pub private: bool,
    /// It is a request to vanish (NIP-62) that counts here.
    pub vanish: bool,
    /// How many events were under way in the pipeline when this one was handed over, itself
    /// included: what a group commit may wait for.
    pub under_way: usize,
    pub origin: Origin,
    /// Called once, after the commit or with the failure.
    pub done: Box<dyn FnOnce(Result<Committed, StoreError>) + Send>,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    New(Seq),
    /// Held before; now also in further topics.
    Joined(Seq),
    Duplicate,
    /// A newer version of this replaceable or addressable event is held.
    Superseded,
    /// See [`Presence::Deleted`].
    Deleted,
    /// See [`Presence::Vanished`].
    Vanished,
}

/// Why an event that was verified is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// By a plugin or a limit.
    Refused,
    /// By a rule of the operator (NIP-86).
    Banned,
    /// A newer version is, or was, held.
    Replaced,
    Deleted,
    Vanished,
    /// By retention, or because it expired.
    Evicted,
    /// Deleted by the operator's command, who need not ban it. No change of rules forgets this.
    Removed,
}

/// What an operator takes out of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    Event(EventId),
    /// All events of an author.
    Author {
        key: PublicKey,
        /// But not these; sorted.
        keep: Arc<[EventId]>,
    },
    /// Some hundred events that a command picked; they are [`Gone::Removed`], in their topics and
    /// everywhere else.
    Events(Vec<EventId>),
}

/// What an event acts on: the version that it would replace, the events that it deletes (NIP-09), all
/// events of an author who vanishes (NIP-62).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    /// The topics that hold any of it.
    pub topics: Vec<TopicName>,
    /// Any of it is for all who read here, not for the readers of private topics alone.
    pub public: bool,
}

/// The writing side of the store. All methods block and are called from worker threads only.
pub trait EventWriter: Send + Sync + 'static {
    /// Looks an event up among the committed ones and the tombstones. It is not verified yet.
    fn presence(&self, event: &Event, topics: &[TopicName]) -> Result<Presence, StoreError>;

    /// What this event acts on, as far as it is held.
    fn affected(&self, event: &Event) -> Result<Affected, StoreError>;

    /// Queues an event for the next group commit; waits while the queue is full.
    fn write(&self, write: Write) -> Result<(), StoreError>;

    /// Removes events; returns after the commit with how many there were.
    fn remove(&self, removal: Removal) -> Result<u64, StoreError>;

    /// Remembers that this event is not wanted in these topics, so that it need not be fetched again.
    /// Never waits; when too many are to be written, it is forgotten.
    fn refused(&self, event: &VerifiedEvent, topics: &[TopicName], why: Gone);
}

/// One step of the log: an event was stored, or a stored one became part of a topic or public.
#[derive(Debug, Clone)]
pub struct LogEntry {
    pub seq: Seq,
    pub event: Arc<Event>,
    /// The topic that it became part of, if any. An event stored into several topics makes one
    /// entry for each.
    pub topic: Option<TopicName>,
    /// Whether this is the event's first entry.
    pub first: bool,
    /// For whom the event is news on `/` by this step.
    pub audience: Audience,
    /// [`Origin::log_name`] of where it came from.
    pub origin: Arc<str>,
}

/// Which part of the store a subscription sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything: the relay's root URL.
    All,
    /// One topic's events alone: `/topic/NAME`.
    Topic(TopicName),
}

impl Scope {
    /// Whether a log entry is news in this scope.
    pub fn sees(&self, entry: &LogEntry) -> bool {
        match self {
            Self::All => entry.audience != Audience::Nobody,
            Self::Topic(name) => entry.topic.as_ref() == Some(name),
        }
    }

    /// Whether this scope and the viewer's rights allow the entry to be shown. Whoever looks at a
    /// private topic itself was asked for the right to do so before.
    pub fn may_show(&self, entry: &LogEntry, viewer: &Viewer) -> bool {
        let topic_allows = match self {
            Self::All => entry.audience.includes(viewer, entry.topic.as_slice()),
            Self::Topic(_) => true,
        };
        topic_allows && viewer.may_read(&entry.event)
    }
}

/// The reading side of the store. Nothing here waits for the writer.
pub trait EventReader: Send + Sync + 'static {
    /// The log's newest position, changed after each commit. Only a wake-up: read with
    /// [`Self::log_after`].
    fn head(&self) -> watch::Receiver<Seq>;

    /// Up to `max` log entries after `seq`, oldest first. Entries whose event is gone are left out,
    /// so an empty answer means: nothing is left up to the head that was seen before the call.
    fn log_after(&self, seq: Seq, max: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, StoreError>>;

    /// The same from memory: `None` when the part after `seq` is no longer all there.
    fn recent_log_after(&self, seq: Seq) -> Option<Vec<LogEntry>>;

    /// Runs the filters against one snapshot. `limit` of each filter must be set by the caller.
    /// Events that the viewer may not read are left out and do not count.
    fn scan(&self, filters: Vec<Filter>, scope: Scope, viewer: Arc<Viewer>) -> Scan;

    /// Whether filters with words (NIP-50) can be answered.
    fn can_search(&self) -> bool {
        true
    }

    /// How many different events match at least one of the filters, whose limits do not matter
    /// (NIP-45).
    fn count(
        &self,
        filters: Vec<Filter>,
        scope: Scope,
        viewer: Arc<Viewer>,
    ) -> BoxFuture<'_, Result<Count, StoreError>>;

    /// `created_at` and id of every event that the filter matches, for reconciliation (NIP-77). The
    /// filter's limit counts; more than `max` events are [`IdSet::TooMany`].
    fn ids(
        &self,
        filter: Filter,
        scope: Scope,
        viewer: Arc<Viewer>,
        max: usize,
    ) -> BoxFuture<'_, Result<IdSet, StoreError>>;

    /// The canonical JSON of those of these events that are in the topic.
    fn fetch(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>>;

    /// Those of these ids that are not in the topic.
    fn missing(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>>;

    /// Those of these ids that the operator deleted: what others have of them need not be asked for.
    fn removed(&self, ids: Vec<EventId>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        drop(ids);
        Box::pin(async { Ok(Vec::new()) })
    }

    /// `created_at` and id of everything in this part of the topic that is held or gone, within the
    /// span. When there are more than `max`, only the newest, in whole seconds.
    fn topic_ids(
        &self,
        topic: TopicName,
        part: Part,
        span: Span,
        max: usize,
    ) -> BoxFuture<'_, Result<TopicIds, StoreError>>;

    /// Those of these ids that are gone from the topic, with their `created_at`.
    fn gone(
        &self,
        topic: TopicName,
        ids: Vec<EventId>,
    ) -> BoxFuture<'_, Result<Vec<(u64, EventId)>, StoreError>>;

    /// Retention removes events of the topic's [`Part::Rest`] that are older than this. Unix seconds.
    fn kept_since(&self, topic: &TopicName) -> u64;

    /// Rises with every change of what this topic holds or what is gone from it, since the start, and
    /// with few others.
    fn version(&self, topic: &TopicName) -> u64;
}

/// The answer to a count (NIP-45).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub count: u64,
    /// Counting was given up at a bound: there are at least so many.
    pub approximate: bool,
}

/// Ids to reconcile, in no particular order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdSet {
    All(Vec<(u64, EventId)>),
    TooMany,
}

/// A span of `created_at`, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: u64,
    pub until: u64,
}

/// The ids of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicIds {
    /// Sorted, each once.
    pub ids: Vec<(u64, EventId)>,
    /// From where on all of them are there.
    pub from: u64,
}

/// An ephemeral event on its way out; it has no place in the log.
#[derive(Debug, Clone)]
pub struct Passing {
    pub event: VerifiedEvent,
    /// The topics that it is new to.
    pub topics: Arc<[TopicName]>,
    /// For whom it is news on `/`.
    pub audience: Audience,
    pub origin: Origin,
}
